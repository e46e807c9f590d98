"""Pictures are fetched from listed hosts at public addresses, and from nowhere else."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.errors import SettingsError
from serve.addresses import is_public
from serve.fetch import Fetcher
from serve.problems import Problem

CONTENT = b"picture" * 100


class Site(BaseHTTPRequestHandler):
    """Serves a picture, redirects to what follows `/to/`, drips, never ends, or fails."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site = self.server
        site.asked.append((self.headers["Host"], self.path))
        with contextlib.suppress(OSError):  # the fetcher has left
            if self.path.startswith("/to/"):
                self._head(302, Location=self.path[4:])
            elif self.path == "/nowhere":
                self._head(302)
            elif self.path == "/two":
                self.send_response(302)
                self.send_header("Location", "/picture")
                self.send_header("Location", "http://127.0.0.1/")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == "/drip":
                self._head(200, **{"Content-Length": "100"})
                while not site.closing.wait(0.1):
                    self.wfile.write(b"x")
            elif self.path == "/slow-head":
                while not site.closing.wait(0.1):
                    self.wfile.write(b"H")
            elif self.path in ("/endless", "/large"):
                chunks = 10**9 if self.path == "/endless" else 1
                self._head(200, **{"Transfer-Encoding": "chunked"})
                for _ in range(chunks):
                    self.wfile.write(b"800\r\n" + b"x" * 2048 + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
            elif self.path.startswith("/picture"):
                self._head(200, **{"Content-Length": str(len(CONTENT))})
                self.wfile.write(CONTENT)
            else:
                self._head(404)

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} if status != 200 else {}).items():
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    server.asked, server.closing = [], threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


LOCAL = "127.0.0.1"


class Fixture:
    """A fetcher for which 127.0.0.1 is public, and all names lead there."""

    def __init__(self, site, *, names=("pictures.test", "other.test"), **options) -> None:
        self.port = site.server_port
        self.site = site
        self.asked: list[str] = []
        self.addresses: dict[str, list[list[str]]] = {}  # of a name, at each resolution
        given = {"allowed": lambda address: address == LOCAL, "seconds": 5.0, "max_bytes": 2048} | options
        self.fetcher = Fetcher([f"{name}:{self.port}" for name in names], resolve=self._resolve, **given)

    async def _resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.addresses.get(host, [[LOCAL]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def get(self, url: str) -> bytes:
        self.site.asked.clear()
        return asyncio.run(self.fetcher.fetch(url.replace("PORT", str(self.port))))

    def refusal(self, url: str) -> tuple[str, str]:
        with pytest.raises(Problem) as caught:
            self.get(url)
        assert caught.value.status == 400
        assert "\n" not in caught.value.message
        return caught.value.code, caught.value.message


def test_a_listed_host_gives_its_picture(site):
    known = Fixture(site)
    for path in ("/picture", "/picture?size=a b&x=%20", "/to//picture", "/to/http://other.test:PORT/picture"):
        assert known.get(f"http://pictures.test:PORT{path}") == CONTENT
    assert known.get("HTTP://Pictures.TEST:PORT/picture#fragment") == CONTENT
    assert site.asked == [(f"pictures.test:{site.server_port}", "/picture")]
    assert known.asked[-1] == "pictures.test"


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.test:PORT/picture",
        "http://pictures.test/picture",
        "http://pictures.test:1/picture",
        "https://pictures.test/picture",
        "http://127.0.0.1:PORT/picture",
        "http://2130706433:PORT/picture",
        "http://0x7f000001:PORT/picture",
        "http://017700000001:PORT/picture",
        "http://0177.0.0.1:PORT/picture",
        "http://127.1:PORT/picture",
        "http://[::1]:PORT/picture",
        "http://[::ffff:127.0.0.1]:PORT/picture",
        "http://[64:ff9b::7f00:1]:PORT/picture",
        "http://localhost:PORT/picture",
        "http://pictures.test.:PORT/picture",
        "http://x.pictures.test:PORT/picture",
        "http://user:password@pictures.test:PORT/picture",
        "http://pictures.test:PORT@127.0.0.1/picture",
        "http://127.0.0.1:PORT#@pictures.test:PORT/picture",
        "http://127.0.0.1:PORT\\@pictures.test:PORT/picture",
        "http://127.0.0.1\t:PORT/picture",
        "http://pictures.test:99999/picture",
        "http://pictures.test:PORT:80/picture",
        "http:///picture",
        "http:pictures.test:PORT/picture",
        "file:///etc/passwd",
        "ftp://pictures.test:PORT/picture",
        "gopher://pictures.test:PORT/_",
        "pictures.test:PORT/picture",
        "",
    ],
)
def test_any_other_url_is_refused_before_anything_is_resolved(site, url):
    known = Fixture(site)
    assert known.refusal(url)[0] == "invalid_image_url"
    assert site.asked == known.asked == []
    if "://" in url and not url.startswith("http:///"):  # otherwise it would be a path on the same host
        assert known.refusal(f"http://pictures.test:PORT/to/{url}")[0] == "invalid_image_url"
        assert (len(site.asked), known.asked) == (1, ["pictures.test"])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:1::1",
        "2001:db8::1",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1111%eth0",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "localhost",
        "",
    ],
)
def test_what_is_no_public_address_is_not_connected_to(site, address):
    assert not is_public(address)
    known = Fixture(site, allowed=is_public)
    for addresses in ([address], ["8.8.8.8", address]):
        known.addresses = {"pictures.test": [addresses]}
        assert known.refusal("http://pictures.test:PORT/picture")[0] == "invalid_image_url"
    assert site.asked == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700::1111", "2a00:1450::1"]
)
def test_what_is_public_is(address):
    assert is_public(address)


def test_a_name_that_resolves_anew_gains_nothing(site):
    known = Fixture(site)
    known.addresses = {"pictures.test": [[LOCAL], ["10.0.0.1"]]}
    assert known.get("http://pictures.test:PORT/picture") == CONTENT
    assert known.asked == ["pictures.test"]  # once: the address that was checked is the one connected to
    known.addresses = {"pictures.test": [[LOCAL], ["10.0.0.1"]]}
    assert known.refusal("http://pictures.test:PORT/to//picture")[0] == "invalid_image_url"
    assert len(known.site.asked) == 1


def test_the_address_of_the_connection_itself_is_checked(site):
    answers = iter([True, False])
    known = Fixture(site, allowed=lambda _: next(answers))
    assert known.refusal("http://pictures.test:PORT/picture")[0] == "invalid_image_url"
    assert site.asked == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "status 404"),
        ("/nowhere", "a redirect to nowhere"),
        ("/two", "a redirect to nowhere"),
        ("/to/" * 5 + "/picture", "too many redirects"),
        ("/to/http://other.test:1/", "not listed"),
    ],
)
def test_redirects_are_few_and_lead_somewhere(site, path, why):
    assert why in Fixture(site).refusal(f"http://pictures.test:PORT{path}")[1]


@pytest.mark.parametrize("path", ["/drip", "/slow-head"])
def test_what_takes_too_long_is_left(site, path):
    code, message = Fixture(site, seconds=0.3).refusal(f"http://pictures.test:PORT{path}")
    assert (code, "longer than 0.3 s" in message) == ("image_not_fetched", True)


def test_what_is_too_large_is_left(site):
    assert len(Fixture(site).get("http://pictures.test:PORT/large")) == 2048
    for path in ("/large", "/endless"):
        code, _ = Fixture(site, max_bytes=2047).refusal(f"http://pictures.test:PORT{path}")
        assert code == "limit_exceeded"


def test_nobody_there_is_told_as_anything_else_that_gives_no_answer(site):
    known = Fixture(site)
    known.fetcher = Fetcher(["pictures.test:9"], resolve=known._resolve, allowed=lambda _: True)
    assert known.refusal("http://pictures.test:9/")[1] == "image_url: cannot be fetched (no answer)"


@pytest.mark.parametrize(
    "host", ["", "http://a.test", "a.test/x", "*.a.test", "A.test", "a.test:", "[::1]", "a_b"]
)
def test_an_entry_that_is_no_host_is_refused(host):
    with pytest.raises(SettingsError, match="picture_hosts: "):
        Fetcher([host])


def test_without_hosts_nothing_is_fetched():
    assert not Fetcher().enabled
