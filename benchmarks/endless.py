"""What it costs to go on past the context, and whether anything grows on the way.

    uv run python -m benchmarks.endless [--model embedded] [--context 2048] [--repeats 7]
    uv run python -m benchmarks.endless --tokens 1000000

The first prints the time per token of streams with a picture in the sinks, from one full cache to the next,
for tails of 256 and 1,024 tokens: with `reseed`, with `shift`, and with a cache that is only declared as full
as behind a reseed (no work: the same decode steps, wrong tokens). A pause is the time of the step that meets
a full cache; what it takes longer than where there is no work, in decode steps and per token, is what going
on costs. The tokens that are fed again, per token, are what it would cost if a prefill took as long as its
tokens one by one.

The second runs the smallest random checkpoint and exits with 1 unless, behind the second reseed, resident
memory and device arrays stay as they are, nothing compiles, and a token costs the same at the end.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.monitoring
import numpy as np
from PIL import Image

from benchmarks.measure import Spread, interleaved
from models import LoadedModel, load_model
from sample import SamplingConfig, StreamConfig, TokenStream, prepare_inputs, sample_streaming
from sample.endless import EndlessCache
from sample.pace import decode
from sample.pictures import Picture
from sample.step import DecodeState

PICTURE = Path(__file__).parents[1] / "examples/imgs/panda_climbing.png"

TAILS = (256, 1024)
MOST_ARRAYS, MOST_ARRAY_BYTES = 4, 2**16  # of the programs that happen to be on their way
MOST_RESIDENT = (
    16 << 20
)  # bytes that a million tokens may add: bounded statistics fill up, 16 bytes a token not
SLOWEST = 1.2  # the best interval of the second half against that of the first


@partial(jax.jit, donate_argnums=0)
def _declared(state: DecodeState, length: Any) -> DecodeState:
    return state._replace(length=state.length * 0 + length)


class Declared(EndlessCache):
    """A full cache is called as full as a reseed would leave it, and that is all."""

    def steps(self, model: Any, params: Any, state: DecodeState, sampling: Any, top: int, most: int) -> Any:
        reseed = None
        if self.filled == self.plan.context:
            reseed = self._renewed(0)
            state, most = _declared(state, np.int32(self.plan.anchor + reseed.tail - 1)), 1
        most = min(most, self.plan.context - self.filled)
        state, packed = decode(model, params, state, sampling, (most,), top=top)
        self.total += most
        return state, packed, most, reseed


def stream_of(
    loaded: LoadedModel, picture: Picture, stream: StreamConfig, tokens: int, **settings: Any
) -> TokenStream:
    """A picture in the prompt, and no end token."""
    model, params, processor = loaded
    inputs = prepare_inputs(model, params, processor, images=[picture], prompt="Describe this image")
    cfg = SamplingConfig(max_new_tokens=tokens, **settings)
    return sample_streaming(
        model, params, inputs, cfg, jax.random.key(0), tokenizer=processor.tokenizer, stream=stream
    )


def to_the_next_reseed(stream: TokenStream) -> None:
    before = stream.stats.reseeds
    for _ in stream:
        if stream.stats.reseeds > before:
            return


def cost(model: str, context: int, repeats: int) -> None:
    """The table of the first command."""
    loaded = load_model(model)
    streams: dict[tuple[int, str], TokenStream] = {}
    for tail in TAILS:
        for policy in ("reseed", "shift"):
            config = StreamConfig(policy=policy, context=context, tail=tail)
            streams[tail, policy] = stream_of(loaded, PICTURE, config, 2**31 - 1)
        none = stream_of(loaded, PICTURE, StreamConfig(context=context, tail=tail), 2**31 - 1)
        request = none._request
        assert request is not None
        assert request.plan is not None
        none._endless = Declared(request.plan, request.vision)
        streams[tail, "none"] = none
    runs: dict[tuple[int, str], Callable[[], Any]] = {
        name: partial(to_the_next_reseed, stream) for name, stream in streams.items()
    }
    seconds = interleaved(runs, repeats)  # the warm-up goes to the first reseed, which compiles
    prompt = streams[TAILS[0], "none"].stats.prompt_tokens
    print(f"{jax.devices()[0].device_kind}, {model}: context {context}, {prompt} tokens of sinks")
    print(f"median (lowest..highest) of {repeats} times from one full cache to the next\n")
    print("| tail | policy | ms per token | pause, ms | extra decode steps per token | fed again per token |")
    print("|---|---|---|---|---|---|")
    for tail in TAILS:
        tokens = context - prompt - tail + 1
        fed = {"none": 0.0, "reseed": (prompt + tail - 1) / tokens, "shift": 0.0}
        pauses = {
            policy: np.array([r.pause for r in streams[tail, policy].stats.recent_reseeds])[1:]
            for policy in fed
        }
        step = np.median(seconds[tail, "none"]) / tokens
        for policy, again in fed.items():
            extra = (pauses[policy] - np.median(pauses["none"])) / tokens / step
            columns = [
                Spread.of(seconds[tail, policy] / tokens * 1e3),
                Spread.of(pauses[policy] * 1e3),
                "{:.3f} ({:.3f}..{:.3f})".format(*Spread.of(extra)),
                f"{again:.2f}",
            ]
            print(f"| {tail} | {policy} | " + " | ".join(map(str, columns)) + " |")


class Reading(NamedTuple):
    """What is in use after so many tokens; the time is that since the reading before."""

    tokens: int
    reseeds: int
    resident: int  # bytes
    arrays: int  # on the device
    array_bytes: int
    programs: int  # compiled, or fetched from the cache of compiled ones, since the stream began
    microseconds: float | None  # per token


def readings(stream: TokenStream, intervals: int, tokens: int) -> Iterator[Reading]:
    """One behind the second reseed, then one after each of so many equal parts of the stream."""
    programs = 0

    def count(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal programs
        programs += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    for _ in stream:
        if stream.stats.reseeds == 2:
            break
    targets = np.linspace(stream.stats.new_tokens, tokens, intervals + 1).astype(int).tolist()
    try:
        for target in targets:
            done, began = stream.stats.new_tokens, time.perf_counter()
            while stream.stats.new_tokens < target:
                next(stream)
            elapsed, made = time.perf_counter() - began, target - done
            arrays = [array.nbytes for array in jax.live_arrays()]
            yield Reading(
                tokens=target,
                reseeds=stream.stats.reseeds,
                resident=_resident(),
                arrays=len(arrays),
                array_bytes=sum(arrays),
                programs=programs,
                microseconds=elapsed / made * 1e6 if made else None,
            )
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def _resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def growth(taken: list[Reading]) -> list[str]:
    """What is not flat, a line each."""
    first, last = taken[0], taken[-1]
    found = []
    if max(r.resident for r in taken) - first.resident > MOST_RESIDENT:
        found.append(f"resident memory grew by {(last.resident - first.resident) / 2**20:.1f} MiB")
    for what, few in (("arrays", MOST_ARRAYS), ("array_bytes", MOST_ARRAY_BYTES)):
        more = max(getattr(r, what) for r in taken) - getattr(first, what)
        if more > few:
            found.append(f"device {what} grew by {more}")
    if last.programs > first.programs:
        found.append(f"{last.programs - first.programs} programs were compiled")
    times = [r.microseconds for r in taken if r.microseconds is not None]
    half = len(times) // 2
    if half and min(times[half:]) > SLOWEST * min(times[:half]):
        found.append(f"a token took {min(times[:half]):.0f} us, later {min(times[half:]):.0f} us")
    return found


def endure(tokens: int, intervals: int) -> list[str]:
    """The table of the second command."""
    from tests.tiny import tiny_checkpoint  # noqa: PLC0415  (random weights)

    with tempfile.TemporaryDirectory() as directory:
        loaded = load_model(tiny_checkpoint(directory), dtype="float32")
    config = StreamConfig(context=512, tail=128)
    ngrams = {"no_repeat_ngram_size": 6, "no_repeat_ngram_window": 512}
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    print("| tokens | reseeds | resident, MiB | device arrays | of bytes | programs | us per token |")
    print("|---|---|---|---|---|---|---|")
    taken: list[Reading] = []
    with stream_of(loaded, picture, config, 2**31 - 1, **ngrams) as stream:
        for r in readings(stream, intervals, tokens):
            taken.append(r)
            pace = "" if r.microseconds is None else round(r.microseconds)
            columns = (r.tokens, r.reseeds, f"{r.resident / 2**20:.1f}", r.arrays, r.array_bytes, r.programs)
            print("| " + " | ".join(map(str, (*columns, pace))) + " |", flush=True)
    return growth(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--intervals", type=int, default=20)
    args = parser.parse_args()
    if args.tokens is None:
        cost(args.model, args.context, args.repeats)
        return
    grown = endure(args.tokens, args.intervals)
    print("\n" + ("flat" if not grown else "not flat: " + "; ".join(grown)))
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
