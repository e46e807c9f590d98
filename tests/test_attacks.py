"""The real server and those who mean it ill: nothing hangs or is told, and the next one is answered."""

import contextlib
import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.servers import SMALL, Server, running
from tests.test_server import asked, told


@pytest.fixture(scope="module")
def server(tiny_directory, env) -> Iterator[Server]:
    settings = (*SMALL, "serve.request_ms=700", "limits.new_tokens=20")
    with running(tiny_directory(), env, *settings) as server:
        yield server


@pytest.fixture(autouse=True)
def answers_still(server) -> Iterator[None]:
    yield
    body = {"messages": asked("Hm"), "max_tokens": 2}
    assert told(httpx.post(f"{server.url}/v1/stream", json=body, timeout=60))[-1]["event"] == "end"
    assert not [line for line in server.lines if "Traceback" in line]


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


HEAD = b"POST /v1/stream HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", HEAD, HEAD + b"X: " + b"y" * 1000, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD],
    ids=["nothing", "a letter", "half a head", "half a line", "a second one"],
)
def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(server, sent):
    with connect(server) as connection:
        connection.sendall(sent)
        assert rest(connection).count(b"HTTP/1.1 ") == sent.count(b"GET")


def test_a_head_without_end_is_not_kept(server):
    with connect(server) as connection:
        connection.sendall(HEAD + b"X: ")
        sent = 0
        with contextlib.suppress(OSError):  # reset or broken, as it happens
            while sent < 2**28:
                sent += connection.send(b"y" * 65536)
        assert sent < 2**28


@pytest.mark.parametrize(
    "length", [b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
def test_a_body_that_does_not_come_to_its_end_is_not_waited_for(server, length):
    with connect(server) as connection:
        connection.sendall(HEAD + length)
        assert b" 408 " in connection.recv(1000)


DEEP = 100_000


def asking(field: bytes, value: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": "a"}], "%s": %s}' % (field, value)


WRONG = {
    "depth": b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "depth of objects": b'{"a": ' * DEEP + b"1" + b"}" * DEEP,
    "nan": asking(b"temperature", b"NaN"),
    "infinity": asking(b"temperature", b"Infinity"),
    "beyond floats": asking(b"temperature", b"1e999"),
    "beyond integers": asking(b"seed", b"9" * 5000),
    "a bias of infinity": asking(b"logit_bias", b'{"1": 1e999}'),
    "a bias for no number": asking(b"logit_bias", b'{"' + b"9" * 5000 + b'": 1}'),
    "a bias for less than nothing": asking(b"logit_bias", b'{"-1": 1}'),
    "less than nothing": asking(b"max_tokens", b"-1"),
    "an empty stop": asking(b"stop", b'[""]'),
    "a template": asking(b"chat_template", b'"{{ 7 * 7 }}"'),
    "a line in a name": asking(b"a\\nb", b"1"),
    "half a character": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "overlong utf-8": b'{"messages": [{"role": "user", "content": "\xc0\xaf"}]}',
    "a role": b'{"messages": [{"role": "user\\n", "content": "a"}]}',
    "utf-16": '{"messages": []}'.encode("utf-16"),
    "two documents": asking(b"n", b"1") * 2,
}


@pytest.mark.parametrize("name", WRONG)
def test_json_that_is_none_or_goes_too_far_is_refused(server, name):
    for path in ("/v1/chat/completions", "/v1/stream"):
        refused = httpx.post(server.url + path, content=WRONG[name], timeout=60)
        assert refused.status_code == 400, refused.text
        assert len(refused.json()["error"]["message"]) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "\0\x1b[31m\r\nSet-Cookie: a=b",
        "\u202e\u2066\ufeff\U000e0041",
        "e\u0301" * 50,
        "{{ 7 * 7 }}{% raw %}",
        "<|image_pad|>" * 20,
        "\U0010fffd<|im_end|>",
    ],
)
def test_strange_text_is_text(server, text):
    body = {"messages": asked(text), "max_tokens": 2, "user": text, "metadata": {text: text}}
    events = told(httpx.post(f"{server.url}/v1/stream", json=body, timeout=60))
    assert events[0]["image_tokens"] == 0
    assert events[-1]["event"] == "end"


def test_a_text_of_all_characters_that_could_hide_one_is_refused(server):
    text = "".join(map(chr, range(0xF0000, 0x10FFFE))) + "<|im_end|>"
    refused = httpx.post(f"{server.url}/v1/stream", json={"messages": asked(text)}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")


def test_an_endless_answer_ends_at_the_limit_too(server):
    body = {"messages": asked("Hm"), "endless": {"tail": 64}}
    events = told(httpx.post(f"{server.url}/v1/stream", json=body, timeout=60))
    assert (events[-1]["finish_reason"], events[-1]["usage"]["completion_tokens"]) == ("length", 20)


@pytest.mark.parametrize(
    "last",
    ["", ".", "s-.1", "../../etc/passwd.1", "s-x.-1", "s-x.1e9", "s-x.\u0661", "s-x." + "9" * 400, "%00.1"],
)
def test_no_name_of_a_stream_leads_anywhere(server, last):
    headers = {"Last-Event-ID": last.encode()}
    assert httpx.post(f"{server.url}/v1/stream", headers=headers).status_code in (400, 404)
    assert httpx.delete(f"{server.url}/v1/stream/x%2f..%2fy").status_code == 404


def test_nothing_is_told_of_what_is_inside(server):
    headers = httpx.get(server.url).headers
    assert "server" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    missing = httpx.get(f"{server.url}/nowhere")
    assert missing.json()["error"]["code"] == "not_found"
    wrong = httpx.put(f"{server.url}/v1/stream")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_many_that_send_their_bodies_slowly_do_not_hold_up_others(server):
    body = json.dumps({"messages": asked("Hm"), "max_tokens": 2}).encode()
    slow = [connect(server) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
        assert httpx.post(f"{server.url}/v1/stream", content=body, timeout=60).status_code == 200
    finally:
        for connection in slow:
            connection.close()
