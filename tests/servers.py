"""Running the real server, as a user does."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks import load
from tests import forks
from tests.commands import environment
from tests.programs import PROGRAMS

SMALL = (
    "serve.port=0",
    "serve.grpc_port=0",
    "telemetry.prometheus_port=0",
    "serve.rows=[4]",
    "serve.chunks=[64]",
    "serve.context=512",
    "stream_registry.adaptive_limits.enabled=false",
    "stream_registry.adaptive_limits.min_streams=2",
    "stream_registry.adaptive_limits.max_streams=4",
)
FLOW = (
    "stream_registry.backpressure.max_unacked_chunks=24",
    "stream_registry.backpressure.ack_timeout_ms=1000",
    "stream_registry.backpressure.slow_consumer_threshold_ms=200",
    "serve.resume_events=30",
    "serve.waiting=2",
    "limits.pictures=2",
    "limits.body_bytes=100000",
    "limits.picture_bytes=30000",
    "limits.picture_pixels=8192",
)
_KEPT = {f"JAX_COMPILATION_CACHE_{name}": value for name, value in PROGRAMS.items()}


class Server(load.Server):
    """With what only tests ask."""

    def health(self) -> dict:
        """The server's figures."""
        return httpx.get(f"{self.url}/health").raise_for_status().json()

    def until_idle(self) -> None:
        """Wait until no stream has a row."""
        deadline = time.monotonic() + 30
        while (figures := self.health())["running"] or figures["activeStreams"]:
            assert time.monotonic() < deadline, figures
            time.sleep(0.02)


def warm_environment(cache: Path, **changes: str) -> dict[str, str]:
    """As `environment`, with the programs that tests keep: what was compiled once starts in seconds."""
    return environment(cache, **_KEPT, **changes)


@contextmanager
def running(
    model: Path | str,
    env: dict[str, str],
    *settings: str,
    wait: bool = True,
    script: tuple[str, ...] = ("run_server.py",),
    start: Callable[..., Any] = forks.start,
) -> Iterator[Server]:
    """A server of its own, ended behind the block; a fork, or by `start` a process from nothing."""
    server = Server(start(*script, f"model.name={model}", *settings, cwd=Path(os.curdir), env=env))
    try:
        server.listen()
        if wait:
            server.wait_for("^ready")
        yield server
    finally:
        server.end()
