"""Server-sent events: frames, and a response that notices at once when its reader has gone."""

import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.events import KINDS, Event
from serve.hub import Hub
from serve.live import Live
from serve.one_line import encode
from serve.problems import Problem
from serve.tasks import first_of

_HEADS = {payload: b"event: %s\ndata: " % kind.encode() for payload, kind in KINDS.items()}
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the tokens back
}


class EventStreamResponse(Response):
    """Sends frames while they come. `frames` is closed as soon as the reader is gone.

    Starlette's own response learns of that from a failed send alone; a stream that waits sends nothing.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], headers: dict[str, str] | None = None) -> None:
        super().__init__(headers=HEADERS | (headers or {}))
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._frames):
            await first_of(self._pump(send), disconnected(receive))

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def event_frames(hub: Hub, live: Live, ticket: int, after: int) -> AsyncGenerator[bytes, None]:
    """A stream's own events. What has been sent counts as acknowledged."""
    try:
        async for events in hub.read(live, ticket, after):
            yield b"".join([frame(live.id, event) for event in events])
            live.stream.drained(events[-1].id or 0)
    except Problem as problem:  # no event: the stream itself goes on
        yield b": " + problem.message.encode() + b"\n\n"


def frame(stream_id: str, event: Event) -> bytes:
    """An event as it is sent."""
    name = b"" if event.id is None else b"id: %s.%d\n" % (stream_id.encode(), event.id)
    return b"%s%s%s\n\n" % (name, _HEADS[type(event.data)], encode(event.data))
