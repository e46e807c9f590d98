"""From a client's going to its row being free, for each way to go.

    uv run python -m benchmarks.disconnects [--repeats 100] [--tokens 1000] [--model embedded] [SETTING ...]

A stream is opened, its first token awaited, and some time let pass; then its client goes, and the server's
figure of rows that run is asked for until the row is not among them. That is later than it is free by up to
one such question, whose own time stands in the last line.
"""

import argparse
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
from websockets.sync.client import connect

from benchmarks.load import Server, http_request, rpc_call, serving
from models import load_model
from serve.rpc import messages

_PROMPT = "Describe this image"
_LONGEST_WAIT = 0.05  # seconds between the first token and the going
Going = Callable[[], object]
"""What a client does to go."""


@dataclass(frozen=True)
class Client:
    """Connections of one client, and what it asks for: `tokens` without an end before."""

    server: Server
    http: httpx.Client
    channel: grpc.Channel
    tokens: int
    eos: dict[int, float]

    @property
    def body(self) -> dict[str, Any]:
        """As HTTP and the WebSocket take it."""
        bias = {str(token): value for token, value in self.eos.items()}
        said = {"role": "user", "content": _PROMPT}
        return {"messages": [said], "max_tokens": self.tokens, "logit_bias": bias, "stream": True, "seed": 1}

    def running(self) -> int:
        """Streams that have a row."""
        return self.http.get("/health").json()["running"]


@contextmanager
def chat(client: Client) -> Iterator[Going]:
    """A chat completion, whose connection is closed."""
    with socket.create_connection(client.server.address) as connection:
        _begin(connection, "/v1/chat/completions", client.body)
        yield connection.close


@contextmanager
def stream(client: Client) -> Iterator[Going]:
    """`/v1/stream`, ended by DELETE."""
    with socket.create_connection(client.server.address) as connection:
        head = _begin(connection, "/v1/stream", client.body | {"stream": False})
        name = head.lower().partition(b"x-stream-id: ")[2].split()[0].decode()
        yield lambda: client.http.delete(f"/v1/stream/{name}")


@contextmanager
def web_socket(client: Client) -> Iterator[Going]:
    """A WebSocket, on which `cancel` is said."""
    with connect(client.server.url.replace("http", "ws") + "/v1/stream/ws", proxy=None) as connection:
        connection.send(json.dumps({"type": "open", "request": client.body | {"stream": False}}))
        while json.loads(connection.recv())["event"] != "delta":
            pass
        yield lambda: connection.send('{"type": "cancel"}')
        connection.socket.close()  # or it would read all that it has been sent


@contextmanager
def call(client: Client) -> Iterator[Going]:
    """gRPC's Generate, ended by Cancel."""
    said = {"role": "user", "content": [{"text": _PROMPT}]}
    asked = messages.GenerateRequest(
        messages=[said], max_completion_tokens=client.tokens, logit_bias=client.eos, seed=1
    )
    running = rpc_call(client.channel, "Generate")(asked)
    name = next(running).start.stream
    while next(running).WhichOneof("event") != "delta":
        pass
    yield lambda: rpc_call(client.channel, "Cancel")(messages.CancelRequest(stream=name))
    running.cancel()


WAYS: dict[str, Callable[[Client], AbstractContextManager[Going]]] = {
    "chat completion, connection closed": chat,
    "/v1/stream, DELETE": stream,
    "WebSocket, cancel": web_socket,
    "gRPC, Cancel": call,
}


def _begin(connection: socket.socket, path: str, body: dict[str, Any]) -> bytes:
    """Ask, and read until a token has come. Raises RuntimeError where none does."""
    connection.sendall(http_request(path, body))
    received = b""
    while b'"content":"' not in received.replace(b'"content":""', b"") and b"event: delta" not in received:
        part = connection.recv(65536)
        if not part:
            raise RuntimeError(f"no stream: {received[-200:]!r}")
        received += part
    return received


def seconds_until_free(client: Client, way: Callable, waiting: float) -> float:
    """From just before the client goes. Raises RuntimeError where the stream had ended before."""
    with way(client) as go:
        time.sleep(waiting)
        if client.running() != 1:
            raise RuntimeError("the stream has ended by itself; more --tokens are needed")
        begun = time.perf_counter()
        go()
        while client.running():
            pass
        return time.perf_counter() - begun


def line(name: str, seconds: np.ndarray) -> str:
    """Of a table, in milliseconds."""
    p50, p99 = 1e3 * np.percentile(seconds, (50, 99))
    return f"| {name} | {p50:.1f} | {p99:.1f} | {1e3 * seconds.max():.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="of the server")
    args = parser.parse_args()
    eos = dict.fromkeys(load_model(args.model).processor.eos_ids, -100.0)
    waits = random.Random(args.seed)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    asking = []
    with (
        serving(f"model.name={args.model}", *args.settings, rpc=True) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        grpc.insecure_channel(server.rpc) as channel,
    ):
        client = Client(server, http, channel, args.tokens, eos)
        for _ in range(args.repeats):
            for name, way in WAYS.items():
                found[name].append(seconds_until_free(client, way, waits.uniform(0, _LONGEST_WAIT)))
            begun = time.perf_counter()
            client.running()
            asking.append(time.perf_counter() - begun)
    print("| the client goes | p50, ms | p99, ms | longest, ms |\n|---|---|---|---|")
    for name, seconds in (found | {"(one question for the figure)": asking}).items():
        print(line(name, np.array(seconds)))


if __name__ == "__main__":
    main()
