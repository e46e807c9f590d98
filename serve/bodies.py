"""The bodies of requests: in time, of a limited length each, and of a limited length all together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from serve.problems import Problem

_TOGETHER = 16  # of the longest ones


class Bodies:
    """Of one server.

    Args:
        most: bytes of one.
        patience: seconds that one may take.
    """

    def __init__(self, most: int, patience: float) -> None:
        self._most, self._patience = most, patience
        self._held = 0  # bytes of all

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """A body, which counts as held until the block ends.

        Raises:
            Problem: it is too long, comes too slowly, or there are too many.
        """
        body = bytearray()
        try:
            await self._fill(body, request)
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(self._patience):
                async for part in request.stream():
                    body += part
                    self._held += len(part)
                    self._check(len(body))
        except ClientDisconnect:
            raise Problem(499, "disconnected", "nobody reads this") from None
        except TimeoutError:
            raise Problem(408, "timeout", f"body: not whole in {self._patience:g} s") from None

    def _check(self, length: int) -> None:
        if length > self._most:
            raise Problem(413, "limit_exceeded", f"body: allowed: up to {self._most} bytes")
        if self._held > self._most * _TOGETHER:
            raise Problem(503, "busy", "too many requests come in at once", retry_after=1)
