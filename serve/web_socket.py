"""A stream over a WebSocket: its events as JSON, one a message, and the client's words in between.

The first message opens a stream or comes back to one; then each delta is acknowledged by its id.
"""

import asyncio
import contextlib
from typing import TypeAlias

import msgspec
from msgspec import Struct
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from serve.chat_request import StreamRequest, parse
from serve.commands import Command, obey
from serve.events import Event
from serve.hub import Hub
from serve.live import Live
from serve.problems import Problem
from serve.tasks import first_of

_encode = msgspec.json.Encoder().encode
_PATIENCE = 30  # seconds for the first message
_REFUSED = 4000  # and the HTTP status: the code with which a connection is closed that has no stream


class Open(Struct, forbid_unknown_fields=True, tag="open"):
    """A new stream."""

    request: StreamRequest


class Attach(Struct, forbid_unknown_fields=True, tag="attach"):
    """Back to a stream whose connection was lost, behind the event `after`; all up to it is acknowledged."""

    stream: str
    after: int


Opening: TypeAlias = Open | Attach


async def carry(hub: Hub, socket: WebSocket, owner: str) -> None:
    """One connection from its handshake to its end."""
    try:
        hub.check_ready()
    except Problem as problem:
        body = _encode(problem.body)
        await socket.send_denial_response(Response(body, problem.status, problem.headers, "application/json"))
        return
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):  # the stream waits for its reader to come back
        await _converse(hub, socket, owner)


async def _converse(hub: Hub, socket: WebSocket, owner: str) -> None:
    try:
        live, ticket, after = await _begin(hub, socket, owner)
        await first_of(_tell(hub, socket, live, ticket, after), _listen(hub, socket, live))
    except Problem as problem:
        await _refuse(hub, socket, problem)
    else:
        await socket.close()


async def _begin(hub: Hub, socket: WebSocket, owner: str) -> tuple[Live, int, int]:
    """The stream, its reader's ticket, and the event behind which the reader begins."""
    try:
        async with asyncio.timeout(_PATIENCE):
            opening = parse(await _message(socket), Opening)  # pyright: ignore[reportArgumentType]
    except TimeoutError:
        raise Problem(408, "timeout", f"no message within {_PATIENCE} s") from None
    if isinstance(opening, Attach):
        return *hub.resume(opening.stream, opening.after, owner), opening.after
    live = await hub.open(opening.request, owner)
    return live, live.stream.attach(), 0


async def _tell(hub: Hub, socket: WebSocket, live: Live, ticket: int, after: int) -> None:
    """All events, until the last."""
    async with contextlib.aclosing(hub.read(live, ticket, after)) as reading:
        async for events in reading:
            for event in events:
                await socket.send_text(_words(event))


async def _listen(hub: Hub, socket: WebSocket, live: Live) -> None:
    """Do as the client says, until it goes. A word that is none is answered, and changes nothing."""
    while True:
        try:
            command = parse(await _message(socket), Command)  # pyright: ignore[reportArgumentType]
            obey(live, command, hub.config.limits)
        except Problem as problem:
            await _answer(hub, socket, problem)


async def _message(socket: WebSocket) -> bytes:
    """Raises WebSocketDisconnect."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    text = message.get("text")
    return message["bytes"] if text is None else text.encode()


async def _answer(hub: Hub, socket: WebSocket, problem: Problem) -> None:
    hub.metrics.rejected.labels(problem.code).inc()
    wait = {} if problem.retry_after is None else {"retry_after": problem.retry_after}
    await socket.send_text(_encode(problem.body | wait).decode())


async def _refuse(hub: Hub, socket: WebSocket, problem: Problem) -> None:
    await _answer(hub, socket, problem)
    await socket.close(_REFUSED + problem.status, problem.code)


def _words(event: Event) -> str:
    payload = _encode(event.data)
    return (payload if event.id is None else b'{"id":%d,%s' % (event.id, payload[1:])).decode()
