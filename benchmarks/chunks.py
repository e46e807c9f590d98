"""What chunk pooling gains: a token's way from the engine to its frame, with it on and off, in one process.

    uv run python -m benchmarks.chunks [--tokens 200000] [--repeats 5]

Two things go by the name. A buffer that is used again for each frame, and copied out, as none may change
under whoever holds it. And the garbage collector kept off the path (`serve/garbage.py`). Each is measured by
itself, with the shipped model loaded, as it is in the server.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.measure import Spread, interleaved
from models import load_model
from serve.events import Event, Start
from serve.garbage import QuietCollector
from serve.job import Piece
from serve.sse import frame
from serve.stream import Stream
from serve.stream_rules import StreamRules

_PIECE = Piece(17, " word", -0.5, [])
_EACH = 1000  # tokens of a stream
_encode_into = msgspec.json.Encoder().encode_into


def reusing(buffer: bytearray) -> Callable[[str, Event], bytes]:
    """`frame`, put together in one buffer."""

    def made(stream_id: str, event: Event) -> bytes:
        del buffer[:]
        if event.id is not None:
            buffer.extend(b"id: %s.%d\n" % (stream_id.encode(), event.id))
        buffer.extend(b"event: %s\ndata: " % event.kind.encode())
        _encode_into(event.data, buffer, -1)
        buffer.extend(b"\n\n")
        return bytes(buffer)

    return made


def stream_tokens(tokens: int, to_frame: Callable[[str, Event], bytes]) -> None:
    """So many tokens through streams of a thousand, as `event_frames` does it."""
    for _ in range(tokens // _EACH):
        stream = Stream(Start("s-0123456789abcdef", "model", 0, 7, 4), StreamRules())
        ticket, after = stream.attach(), 0
        for _ in range(_EACH):
            stream.push(_PIECE)
            events = stream.read(ticket, after)
            after = events[-1].id or after
            b"".join(to_frame("s-0123456789abcdef", event) for event in events)
            stream.drained(after)


class Pauses(NamedTuple):
    """Of the collector, in seconds."""

    each: list[float]

    @classmethod
    def during(cls, run: Callable[[], None]) -> "Pauses":
        each: list[float] = []
        begun = [0.0]

        def watch(phase: str, _: dict) -> None:
            if phase == "start":
                begun[0] = time.perf_counter()
            else:
                each.append(time.perf_counter() - begun[0])

        gc.callbacks.append(watch)
        try:
            run()
        finally:
            gc.callbacks.remove(watch)
        return cls(each)

    def __str__(self) -> str:
        return f"{len(self.each)} pauses, the longest {1e3 * max(self.each, default=0.0):.1f} ms"


def allocations(to_frame: Callable[[str, Event], bytes]) -> float:
    """Blocks of memory per token that are held while a thousand tokens wait in the ring and in frames."""
    gc.collect()
    stream = Stream(Start("s", "model", 0, 7, 4), StreamRules(max_unacked_chunks=_EACH, ring=_EACH + 4))
    held: list[bytes] = []
    before = sys.getallocatedblocks()
    for _ in range(_EACH):
        stream.push(_PIECE)
    events = stream.read(stream.attach(1), 1)
    held.extend(to_frame("s", event) for event in events)
    return (sys.getallocatedblocks() - before) / _EACH


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    loaded = load_model("embedded")
    quiet, tokens = QuietCollector(), arguments.tokens
    frames = {"a new buffer each": frame, "one buffer, reused": reusing(bytearray(4096))}
    seconds = interleaved(
        {k: lambda f=f: stream_tokens(tokens, f) for k, f in frames.items()}, arguments.repeats
    )
    first = seconds["a new buffer each"]
    for name, to_frame in frames.items():
        rate = Spread.of(tokens / seconds[name] / 1e3)
        told = f"{rate} thousand events/s, {Spread.of(first / seconds[name])} of the first"
        print(f"frames, {name}: {told} | {allocations(to_frame):.2f} blocks a token held")

    def run() -> None:
        stream_tokens(tokens, frame)
        quiet.collect()  # sooner or later there is a full one

    taken: dict[str, list[float]] = {"as Python has it": [], "kept off the path": []}
    pauses = {}
    for _ in range(arguments.repeats):
        for name, each in taken.items():
            if name == "kept off the path":
                quiet.begin()
            begun = time.perf_counter()
            pauses[name] = Pauses.during(run)
            each.append(tokens / (time.perf_counter() - begun) / 1e3)
        quiet.end()
    rates = {name: np.array(each) for name, each in taken.items()}
    for name, each in rates.items():
        share = Spread.of(each / rates["as Python has it"])
        told = f"{Spread.of(each)} thousand events/s, {share} of the first"
        print(f"collector {name}: {told} | {pauses[name]}")
    assert loaded.params is not None  # it was there all the time


if __name__ == "__main__":
    main()
