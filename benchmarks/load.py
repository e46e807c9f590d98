"""The real server and its clients, for measurements: a process of its own, and readers that do little."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvloop

from serve.rpc import messages

ROOT = Path(__file__).parents[1]
_LONGEST_START = 300  # seconds; all programs may have to be compiled
_CALLS = {
    "Generate": ("unary_stream", messages.Event),
    "Resume": ("unary_stream", messages.Event),
    "Converse": ("stream_stream", messages.Event),
    "Cancel": ("unary_unary", messages.CancelResponse),
}


class Server:
    """A process of `run_server.py`, by what it says on standard error; `url` is where it listens."""

    def __init__(self, process: Any) -> None:
        self.process, self.url = process, ""
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def metrics_url(self) -> str:
        """Where Prometheus asks."""
        return self.wait_for(r"metrics on (\S+)")[1]

    @property
    def rpc(self) -> str:
        """Where gRPC listens."""
        return self.wait_for(r"gRPC on (\S+)")[1]

    def listen(self) -> None:
        """Wait until it listens."""
        self.url = self.wait_for(r"listening on (http://\S+)")[1]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """A line of standard error. Raises RuntimeError where the process has ended without one."""
        deadline = time.monotonic() + _LONGEST_START
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None and not self._reading.is_alive()
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            if ended:
                break
            time.sleep(0.02)
        raise RuntimeError(f"no {pattern!r} in {self.lines}")

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

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self._reading.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.decode())


@contextmanager
def serving(*settings: str, rpc: bool = False) -> Iterator[Server]:
    """A server, ended behind the block; with gRPC only if asked for."""
    ports = ("serve.port=0", f"serve.grpc_port={0 if rpc else -1}", "telemetry.prometheus_port=0")
    command = [sys.executable, str(ROOT / "run_server.py"), *ports, *settings]
    server = Server(subprocess.Popen(command, stderr=subprocess.PIPE))
    try:
        server.listen()
        server.wait_for("^ready")
        yield server
    finally:
        server.end()


def rpc_call(channel: Any, name: str) -> Any:
    """A method of the service, on a channel of gRPC, for asyncio or not."""
    kind, answer = _CALLS[name]
    return getattr(channel, kind)(
        f"/{messages.SERVICE}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )


class Read(NamedTuple):
    """A stream as its reader saw it, in seconds on this machine's clock."""

    asked: float
    deltas: list[float]


def http_request(path: str, body: dict[str, Any]) -> bytes:
    """A POST, as it is sent."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def stream_request(body: dict[str, Any]) -> bytes:
    """`POST /v1/stream`, as it is sent."""
    return http_request("/v1/stream", body)


class _Reader(asyncio.Protocol):
    """Asks for a stream, and looks only for the beginnings of its deltas and for its end."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.over: asyncio.Future[Read] = asyncio.get_running_loop().create_future()
        self._request = stream_request(body)
        self._asked, self._deltas = 0.0, list[float]()
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._transport, self._asked = transport, time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now, kept = time.perf_counter(), self._rest[-20:]
        self._rest = kept + data
        self._deltas += [now] * (self._rest.count(b"event: delta") - kept.count(b"event: delta"))
        if b"event: end" in self._rest or b"event: error" in self._rest:
            self.over.set_result(Read(self._asked, self._deltas))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or RuntimeError(f"the stream broke off: {self._rest[-200:]!r}"))


def read_streams(server: Server, bodies: Iterable[dict[str, Any]]) -> list[Read]:
    """Streams of `POST /v1/stream`, all at once, in a loop that takes little of the server's cores."""

    async def read(body: dict[str, Any]) -> Read:
        reader = _Reader(body)
        await asyncio.get_running_loop().create_connection(lambda: reader, *server.address)
        return await reader.over

    async def read_all() -> list[Read]:
        return await asyncio.gather(*map(read, bodies))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(read_all())
