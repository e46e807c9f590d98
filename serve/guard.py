"""Before every route: the server was meant, the caller has a key, and is no page of somebody else's."""

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.hosts import Hosts
from serve.keys import Keys
from serve.problems import Problem

_OPEN = {"/health", "/ready"}
_HARMLESS = {
    "GET",
    "HEAD",
    "OPTIONS",
}  # of HTTP: they change nothing, and without CORS nobody else reads them


class Guard:
    """Puts the owner of the request's key into `scope["state"]["owner"]`, or answers that there is none.

    Args:
        hosts: by which the server may be called.
        refuse: the response to a problem.
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Hosts, refuse: Callable[[Problem], Response]) -> None:
        self._app, self._keys, self._hosts, self._refuse = app, keys, hosts, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._admit(scope, Headers(scope=scope))
            except Problem as problem:
                await self._refuse(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        self._hosts.check(headers.get("host"))
        if scope["path"] in _OPEN:
            return
        scope.setdefault("state", {})["owner"] = self._keys.admit(headers.get("authorization"))
        _check_origin(scope, headers)


def _check_origin(scope: Scope, headers: Headers) -> None:
    """A browser lends a page its user's key, also to a page from elsewhere. Raises Problem for such a one."""
    origin = headers.get("origin")
    if origin is None or (scope["type"] == "http" and scope["method"] in _HARMLESS):
        return
    if urlsplit(origin).netloc != headers.get("host"):
        raise Problem(403, "cross_origin", "pages of other servers may not ask this one")
