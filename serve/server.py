"""A hub behind uvicorn: it listens at once, is ready when all is compiled, and ends with no stream lost."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import uvicorn

from serve.app import make_app
from serve.connection import protocol
from serve.hub import Hub
from serve.rpc.server import RpcServer

_LAST_WORDS = 5  # seconds for frames that are on their way when all streams have ended


class _Server(uvicorn.Server):
    """Signals are `serve`'s: uvicorn's own handlers would cut running streams off."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


async def serve(
    hub: Hub,
    listener: socket.socket,
    rpc: str | None = None,
    *,
    listening: Callable[[int | None], None] = lambda _: None,
    ready: Callable[[], None],
    drain: float,
) -> int | None:
    """Serve until SIGTERM or SIGINT; then running streams may end, within `drain` seconds.

    Args:
        rpc: where gRPC listens, HOST:PORT; None: nowhere.
        listening: called with gRPC's port.
        ready: called once streams may come.

    Returns:
        The signal's number.

    Raises:
        EngineDeadError: the engine could not start.
        SettingsError: the address of gRPC is not to be had.
    """
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda number=number: (signals.append(number), stopped.set()))
    config = uvicorn.Config(
        make_app(hub),
        http=protocol(hub.config.patience),
        headers=[("X-Content-Type-Options", "nosniff")],
        server_header=False,
        lifespan="off",
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=hub.config.limits.body_bytes,
        ws_per_message_deflate=False,  # a small message would wait for nothing and cost more
        timeout_graceful_shutdown=_LAST_WORDS,
    )
    calls = None if rpc is None else RpcServer(hub, rpc)
    listening(None if calls is None else calls.port)
    if calls is not None:
        await calls.start()
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(hub.start())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready()
            await stopping
            await hub.drain(drain)
            await hub.close()
    finally:
        stopping.cancel()
        server.should_exit = True
        if calls is not None:
            await calls.stop(_LAST_WORDS)
        await serving
    return signals[0] if signals else None
