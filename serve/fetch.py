"""Pictures from http(s) addresses of listed hosts, and from no address inside."""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from models.errors import SettingsError
from serve.addresses import is_public
from serve.problems import Problem

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The numeric addresses of a host."""

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_HOPS = 4  # requests for one picture
_HEADERS = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "saccade")]


class Fetcher:
    """Fetches from the hosts that it is told, over connections to public addresses.

    Args:
        hosts: "example.com" with the scheme's own port, or "example.com:8443"; none: nothing is fetched.
        seconds: for one picture, with all redirects.
        max_bytes: of one.
        resolve: the system's own by default.
        allowed: which addresses may be connected to.

    Raises:
        SettingsError: an entry that is no host.
    """

    def __init__(
        self,
        hosts: Sequence[str] = (),
        *,
        seconds: float = 5.0,
        max_bytes: int = 16 * 2**20,
        resolve: Resolve | None = None,
        allowed: Callable[[str], bool] = is_public,
    ) -> None:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise SettingsError(
                    f"picture_hosts: {host!r}; allowed: such as example.com or example.com:8443"
                )
        self._hosts, self._seconds, self._max_bytes = frozenset(hosts), seconds, max_bytes
        self._backend = _Guarded(resolve or _resolve, allowed)
        self._ssl = ssl.create_default_context() if hosts else None

    @property
    def enabled(self) -> bool:
        """Whether it fetches anything."""
        return bool(self._hosts)

    async def fetch(self, url: str) -> bytes:
        """What is at an http(s) URL.

        Raises:
            Problem: the URL or one that it redirects to is not allowed, or there is no picture to be had.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(url)
        except TimeoutError:
            raise _unfetched(f"takes longer than {self._seconds:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            raise _unfetched("no answer") from None  # the same for all: it shall not map a network

    async def _follow(self, url: str) -> bytes:
        for _ in range(_HOPS):
            target = self._target(url)
            async with (
                httpcore.AsyncConnectionPool(self._ssl, network_backend=self._backend) as pool,
                pool.stream("GET", target, headers=_HEADERS) as response,
            ):
                if response.status not in _REDIRECTS:
                    return await self._content(response)
                url = urljoin(url, _location(response))
        raise _unfetched("too many redirects")

    def _target(self, url: str) -> httpcore.URL:
        try:
            parts = urlsplit(url)
            default = _PORTS[parts.scheme]
            port = parts.port or default
        except (ValueError, KeyError):
            raise _refused("no http(s) URL") from None
        host = parts.hostname or ""
        name = host if port == default else f"{host}:{port}"
        if "@" in parts.netloc:
            raise _refused("a URL with credentials")
        if name not in self._hosts:
            raise _refused("a host that is not listed")
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
        return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target)

    async def _content(self, response: httpcore.Response) -> bytes:
        if response.status != 200:
            raise _unfetched(f"status {response.status}")
        content = bytearray()
        async for part in response.aiter_stream():
            content += part
            if len(content) > self._max_bytes:
                message = f"image_url: a picture of more than {self._max_bytes} bytes"
                raise Problem(400, "limit_exceeded", message, param="messages")
        return bytes(content)


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to the very address that was checked: a name that resolves anew gains nothing."""

    def __init__(self, resolve: Resolve, allowed: Callable[[str], bool]) -> None:
        self._resolve, self._allowed = resolve, allowed
        self._backend: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise _refused("a host that is not of the public internet")
        stream = await self._backend.connect_tcp(addresses[0], port, *args, **options)
        connected = stream.get_extra_info("server_addr")
        if not self._allowed(connected[0]):
            await stream.aclose()
            raise _refused("a host that is not of the public internet")
        return stream


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _location(response: httpcore.Response) -> str:
    found = [value for name, value in response.headers if name.lower() == b"location"]
    if len(found) != 1:
        raise _unfetched("a redirect to nowhere")
    return found[0].decode("latin-1")


def _refused(what: str) -> Problem:
    return Problem(400, "invalid_image_url", f"image_url: {what}", param="messages")


def _unfetched(why: str) -> Problem:
    return Problem(400, "image_not_fetched", f"image_url: cannot be fetched ({why})", param="messages")
