"""A stream and its client's words, over any connection that carries both ways.

The first word opens a stream or comes back to one; then each delta is acknowledged by its id.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from msgspec import Struct

from serve.chat_request import StreamRequest
from serve.commands import Command, obey
from serve.events import Event
from serve.hub import Hub
from serve.live import Live
from serve.problems import Problem
from serve.tasks import first_of


class Open(Struct, forbid_unknown_fields=True, tag="open"):
    """A new stream."""

    request: StreamRequest


class Attach(Struct, forbid_unknown_fields=True, tag="attach"):
    """Back to a stream whose connection was lost, behind the event `after`; all up to it is acknowledged."""

    stream: str
    after: int


Opening: TypeAlias = Open | Attach


class Wire(Protocol):
    """A connection. Each of these raises what its library raises when the client is gone."""

    async def opening(self) -> Opening:
        """The first word. Raises Problem for one that is none."""
        ...

    async def command(self) -> Command:
        """The next word. Raises Problem for one that is none."""
        ...

    async def tell(self, event: Event) -> None:
        """The client hears of an event."""
        ...

    async def answer(self, problem: Problem) -> None:
        """The client hears that its word was none."""
        ...


async def converse(hub: Hub, wire: Wire, owner: str) -> None:
    """Until the stream has ended.

    Raises:
        Problem: there is no stream, another reader has come, or this one was too slow.
    """
    live, ticket, after = await begin(hub, await wire.opening(), owner)
    await first_of(tell(hub, live, ticket, after, wire.tell), _listen(hub, live, wire))


async def begin(hub: Hub, opening: Opening, owner: str) -> tuple[Live, int, int]:
    """The stream, its reader's ticket, and the event behind which the reader begins. Raises Problem."""
    if isinstance(opening, Attach):
        return *hub.resume(opening.stream, opening.after, owner), opening.after
    live = await hub.open(opening.request, owner)
    return live, live.stream.attach(), 0


async def tell(
    hub: Hub, live: Live, ticket: int, after: int, send: Callable[[Event], Awaitable[None]]
) -> None:
    """All events, until the last. Raises Problem as `hub.read` does."""
    async with contextlib.aclosing(hub.read(live, ticket, after)) as reading:
        async for events in reading:
            for event in events:
                await send(event)


async def _listen(hub: Hub, live: Live, wire: Wire) -> None:
    """Do as the client says. A word that is none is answered, and changes nothing."""
    while True:
        try:
            obey(live, await wire.command(), hub.config.limits)
        except Problem as problem:
            hub.metrics.rejected.labels(problem.code).inc()
            await wire.answer(problem)
