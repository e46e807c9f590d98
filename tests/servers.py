"""Running the real server, as a user does."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

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
    "serve.resume_events=30",
    "serve.waiting=2",
    "limits.pictures=2",
    "limits.body_bytes=100000",
    "limits.picture_bytes=30000",
    "limits.picture_pixels=8192",
)
_KEPT = {f"JAX_COMPILATION_CACHE_{name}": value for name, value in PROGRAMS.items()}
_LONGEST_START = 300  # seconds; all programs may have to be compiled


class Server:
    """A process of `run_server.py`; `url` is where it listens."""

    def __init__(self, process: forks.Fork | subprocess.Popen) -> None:
        self.process, self.url = process, ""
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def rpc(self) -> str:
        """Where gRPC listens."""
        return self.wait_for(r"gRPC on (\S+)")[1]

    def wait_for(self, pattern: str) -> re.Match:
        """A line of standard error."""
        deadline = time.monotonic() + _LONGEST_START
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self.lines}")

    def health(self) -> dict:
        """The server's figures."""
        return httpx.get(f"{self.url}/health").raise_for_status().json()

    def metrics(self) -> dict[str, float]:
        """What Prometheus would read, by name and labels."""
        found = re.search(r"metrics on (\S+)", "".join(self.lines))
        assert found is not None
        lines = httpx.get(found[1]).raise_for_status().text.splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def until_idle(self) -> None:
        """Wait until no stream has a row."""
        deadline = time.monotonic() + 30
        while (figures := self.health())["running"] or figures["activeStreams"]:
            assert time.monotonic() < deadline, figures
            time.sleep(0.02)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode())


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
    process = start(*script, f"model.name={model}", *settings, cwd=Path(os.curdir), env=env)
    try:
        server = Server(process)
        server.url = server.wait_for(r"listening on (http://\S+)")[1]
        if wait:
            server.wait_for("^ready")
        yield server
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
