"""The real server and its clients, for measurements: a process of its own, and readers that do little."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

ROOT = Path(__file__).parents[1]


class Server(NamedTuple):
    """Where it listens, and its process."""

    url: str
    metrics_url: str
    process: subprocess.Popen

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def resident(self) -> float:
        """Memory, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def cpu(self) -> float:
        """Seconds that all its threads have worked."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / 100

    def metrics(self) -> dict[str, float]:
        """What Prometheus would read, by name and labels."""
        lines = httpx.get(self.metrics_url).raise_for_status().text.splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@contextmanager
def serving(*settings: str) -> Iterator[Server]:
    """A server, ended behind the block."""
    ports = ("serve.port=0", "serve.grpc_port=-1", "telemetry.prometheus_port=0")
    command = [sys.executable, str(ROOT / "run_server.py"), *ports, *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = _wait_for(process, r"listening on (\S+) \| metrics on (\S+)")
        _wait_for(process, "^ready")
        yield Server(found[1], found[2], process)
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _wait_for(process: subprocess.Popen, pattern: str) -> re.Match[str]:
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if found := re.search(pattern, line):
            return found
    raise RuntimeError("the server has ended:\n" + "".join(told))


class Read(NamedTuple):
    """A stream as its reader saw it, in seconds on this machine's clock."""

    asked: float
    deltas: list[float]


async def read_stream(server: Server, body: dict[str, Any]) -> Read:
    """A stream of `POST /v1/stream`, by a reader that only looks for the beginnings of deltas."""
    reader, writer = await asyncio.open_connection(*server.address)
    content = json.dumps(body).encode()
    head = f"POST /v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    asked = time.perf_counter()
    writer.write(head.encode() + content)
    deltas: list[float] = []
    rest = b""
    while b"event: end" not in rest and b"event: error" not in rest:
        part = await reader.read(65536)
        if not part:
            raise RuntimeError(f"the stream broke off: {rest[-200:]!r}")
        now = time.perf_counter()
        rest = rest[-20:] + part
        deltas += [now] * (rest.count(b"event: delta") - rest[:20].count(b"event: delta"))
    writer.close()
    return Read(asked, deltas)
