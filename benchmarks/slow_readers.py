"""What a reader that does not read costs its neighbours: their time between tokens, with one and without.

    uv run python -m benchmarks.slow_readers [--neighbours 8] [--tokens 256] [--repeats 5] [--model embedded]

For each transport in turns: neighbours alone, and neighbours beside a stream whose reader opened it and then
neither reads nor acknowledges: it stands still, at its window or where the sockets are full. Figures are of
all neighbours' gaps between tokens; the ratio is told with its spread over the repeats.
"""

import argparse
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import grpc
import numpy as np
from websockets.sync.client import connect

from benchmarks.load import Read, Server, read_streams, rpc_call, serving, stream_request
from benchmarks.measure import Spread
from models import load_model
from serve.rpc import messages

_PATIENCE = "stream_registry.backpressure.ack_timeout_ms=600000"
_PROMPT = "Describe this image"
_BODY: dict[str, Any] = {"messages": [{"role": "user", "content": _PROMPT}], "seed": 1}
_HEAVY: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "endless": {"ignore_eos": True}}
_TOKENS = 100_000  # of the stream that nobody reads: more than sockets hold
_STALLED = _BODY | _HEAVY | {"max_tokens": _TOKENS}


def sse(server: Server) -> AbstractContextManager[Any]:
    """With a small buffer, which nobody empties."""
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect(server.address)
    stalled.sendall(stream_request(_STALLED))
    return closing(stalled)


@contextmanager
def web_socket(server: Server) -> Iterator[None]:
    """Without an ack."""
    with connect(server.url.replace("http", "ws") + "/v1/stream/ws", proxy=None) as stalled:
        stalled.send(json.dumps({"type": "open", "request": _STALLED}))
        yield
        stalled.socket.close()  # or it would read all that it has been sent


@contextmanager
def call(server: Server) -> Iterator[None]:
    """A call whose messages nobody takes."""
    small = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    channel = grpc.insecure_channel(server.rpc, small)
    said = {"role": "user", "content": [{"text": _PROMPT}]}
    request = messages.GenerateRequest(messages=[said], seed=1, max_completion_tokens=_TOKENS, **_HEAVY)
    running = rpc_call(channel, "Generate")(request)
    yield
    running.cancel()
    channel.close()


READERS: dict[str, Callable[[Server], AbstractContextManager[Any]]] = {
    "SSE": sse,
    "WebSocket": web_socket,
    "gRPC": call,
}


def _neighbours(server: Server, count: int, tokens: int, eos: dict[int, float]) -> list[Read]:
    body = _BODY | {"max_tokens": tokens, "logit_bias": eos}
    return read_streams(server, [body | {"seed": n} for n in range(count)])


def _until_stalled(server: Server) -> None:
    """Until the stream that nobody reads makes no more tokens. Raises RuntimeError where it has ended."""
    made = -1.0
    while (now := server.metrics()["saccade_tokens_total"]) != made:
        made = now
        time.sleep(2.5)  # it is counted once a second
    if not server.metrics()["saccade_streams_active"]:
        raise RuntimeError("the stream that nobody reads has ended")


def p99(reads: list[Read]) -> float:
    """Of the times between two tokens, in seconds."""
    return float(np.percentile(np.concatenate([np.diff(read.deltas) for read in reads]), 99))


def measure(
    server: Server, reader: Callable, count: int, tokens: int, repeats: int, eos: dict[int, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours' p99, in seconds: alone, and beside the reader that does not read."""
    alone, beside = [], []
    for _ in range(repeats):
        alone.append(p99(_neighbours(server, count, tokens, eos)))
        with reader(server):
            _until_stalled(server)
            beside.append(p99(_neighbours(server, count, tokens, eos)))
    return np.array(alone), np.array(beside)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    processor = load_model(args.model).processor
    eos = dict.fromkeys(processor.eos_ids, -100.0)
    with serving(_PATIENCE, f"model.name={args.model}", rpc=True) as server:
        print("| reader that does not read | p99 alone, ms | p99 beside it, ms | ratio |\n|---|---|---|---|")
        for name, reader in READERS.items():
            measure(server, reader, args.neighbours, 16, 1, eos)
            found = measure(server, reader, args.neighbours, args.tokens, args.repeats, eos)
            alone, beside = (1e3 * seconds for seconds in found)
            print(f"| {name} | {Spread.of(alone)} | {Spread.of(beside)} | {Spread.of(beside / alone)} |")


if __name__ == "__main__":
    main()
