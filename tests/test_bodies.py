"""Bodies of requests: each has a limit, and all together have one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serve.bodies import Bodies
from serve.problems import Problem


class Request:
    """Sends its parts, and then, if it is told to, nothing for ever."""

    def __init__(self, *parts: bytes, stays: bool = False) -> None:
        self._parts, self._stays = parts, stays

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        if self._stays:
            await asyncio.Event().wait()


def refused(bodies: Bodies, request: Any) -> tuple[int, str]:
    async def read() -> None:
        async with bodies.read(request):
            pass

    with pytest.raises(Problem) as caught:
        asyncio.run(read())
    return caught.value.status, caught.value.code


def test_a_body_may_be_as_long_as_allowed_and_no_longer():
    async def read(request: Any) -> bytes:
        async with Bodies(10, 1.0).read(request) as body:
            return body

    assert asyncio.run(read(Request(b"01234", b"", b"56789"))) == b"0123456789"
    assert refused(Bodies(10, 1.0), Request(b"01234", b"567890")) == (413, "limit_exceeded")


def test_a_body_that_does_not_end_is_given_up():
    bodies = Bodies(10, 0.05)
    assert refused(bodies, Request(b"01234", stays=True)) == (408, "timeout")
    assert bodies._held == 0


def test_all_bodies_together_are_limited_until_they_are_let_go():
    async def crowd() -> None:
        bodies = Bodies(10, 1.0)
        async with AsyncExitStack() as held:
            for _ in range(16):
                await held.enter_async_context(bodies.read(Request(b"0123456789")))  # pyright: ignore[reportArgumentType]
            with pytest.raises(Problem) as caught:
                await held.enter_async_context(bodies.read(Request(b"0")))  # pyright: ignore[reportArgumentType]
            assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        async with bodies.read(Request(b"0")) as body:  # pyright: ignore[reportArgumentType]
            assert body == b"0"
        assert bodies._held == 0

    asyncio.run(crowd())


def test_what_fails_behind_a_body_is_not_taken_for_its_slowness():
    async def fail() -> None:
        async with Bodies(10, 1.0).read(Request(b"0")):  # pyright: ignore[reportArgumentType]
            raise TimeoutError("something else")

    with pytest.raises(TimeoutError, match="something else"):
        asyncio.run(fail())
