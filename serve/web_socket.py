"""A stream over a WebSocket: its events as JSON, one a message, and the client's words in between."""

import asyncio
import contextlib

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from serve.chat_request import parse
from serve.commands import Command
from serve.conversation import Opening, converse
from serve.events import Event
from serve.hub import Hub
from serve.one_line import encode
from serve.problems import Problem

_PATIENCE = 30  # seconds for the first message
_REFUSED = 4000  # and the HTTP status: the code with which a connection is closed that has no stream


async def carry(hub: Hub, socket: WebSocket, owner: str) -> None:
    """One connection from its handshake to its end."""
    try:
        hub.check_ready()
    except Problem as problem:
        body = encode(problem.body)
        await socket.send_denial_response(Response(body, problem.status, problem.headers, "application/json"))
        return
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):  # the stream waits for its reader to come back
        await _converse(hub, SocketWire(socket), owner)


async def _converse(hub: Hub, wire: "SocketWire", owner: str) -> None:
    try:
        await converse(hub, wire, owner)
    except Problem as problem:
        hub.metrics.rejected.labels(problem.code).inc()
        await wire.answer(problem)
        await wire.socket.close(_REFUSED + problem.status, problem.code)
    else:
        await wire.socket.close()


class SocketWire:
    """JSON texts. Raises WebSocketDisconnect when the client is gone."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket

    async def opening(self) -> Opening:
        """Raises Problem also where none comes."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return parse(await self._message(), Opening)  # pyright: ignore[reportArgumentType]
        except TimeoutError:
            raise Problem(408, "timeout", f"no message within {_PATIENCE} s") from None

    async def command(self) -> Command:
        """Raises Problem for a message that is none."""
        return parse(await self._message(), Command)  # pyright: ignore[reportArgumentType]

    async def tell(self, event: Event) -> None:
        """An event with its id, if it has one."""
        payload = encode(event.data)
        named = payload if event.id is None else b'{"id":%d,%s' % (event.id, payload[1:])
        await self.socket.send_text(named.decode())

    async def answer(self, problem: Problem) -> None:
        """As HTTP would, with the seconds of its Retry-After beside it."""
        wait = {} if problem.retry_after is None else {"retry_after": problem.retry_after}
        await self.socket.send_text(encode(problem.body | wait).decode())

    async def _message(self) -> bytes:
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text = message.get("text")
        return message["bytes"] if text is None else text.encode()
