"""Decoding beside its limit and its peer: tokens per second, and how much of the memory's speed that uses.

    uv run python -m benchmarks.decode model=embedded batch=1,8,32
    uv run python -m benchmarks.decode shape=qwen3_vl_2b batch=1,8,32 peers=all
    uv run python -m benchmarks.decode shape=qwen3_vl_2b filled=256,8192 slots=32768

`shape=` is a model with random weights that are made on the device. Each case is a batch whose prompts are
`filled` made-up tokens, in a cache of `slots` (by default as many as are needed). Times are those of
`new_tokens` steps behind the first token, as they reach the host: by `streaming` (a Python loop over programs
of steps, one ahead; at batch 1 `sample_streaming` itself), by `sample`, and by transformers' `generate` where
torch is installed. `peers=all` adds, on a GPU, its static cache with torch.compile, and a decoder in plain
torch whose step is one CUDA graph (`compiled_torch.py`, greedy; alone: `peers=torch`). All take turns.

The limit of a step: the bytes of the decoder's weights (a tied head once; of an untied embedding the rows
looked up) and of the keys and values that are filled on average, over the memory's bandwidth. That is
measured before each repeat: on a GPU with a copy of 2 GiB, read and write counted; on a CPU by reading an
array of the weights' size with numpy, the fastest of three ways by one thread or all. The roof's flat part
is one large product.

Prints a table; writes decode.json and, with matplotlib, decode.png in `out`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import jax
import numpy as np

from benchmarks import limits, records
from benchmarks.compiles import Compiled, compilations, kept_programs
from benchmarks.decode_plot import draw_plot
from benchmarks.drivers import DRAWN, Driver, drivers, prompt_tokens, slots_needed
from benchmarks.options import run
from benchmarks.peers import Prepare, decoding_peers, peer_names
from benchmarks.shapes import Subject, subject
from models.buckets import bucket
from models.errors import SettingsError

_FILLED = {True: 1060, False: 256}  # of a shape, of a checkpoint


@dataclass(frozen=True)
class Options:
    model: str = ""
    shape: str = ""
    batch: tuple[int, ...] = (1,)
    filled: tuple[int, ...] = ()  # 1,060 for a shape, 256 for a checkpoint
    slots: tuple[int, ...] = ()
    new_tokens: int = 128
    repeats: int = 7
    dtype: str = ""
    greedy: bool = True
    peers: str = "transformers"
    compiles: bool = True  # tell what a first and a second run compile
    out: str = "outputs/benchmarks"


@dataclass(frozen=True)
class Case:
    batch: int
    filled: int
    slots: int | None

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.filled} filled" + (f" of {self.slots}" if self.slots else "")


def cases(options: Options) -> list[Case]:
    """All combinations. Raises SettingsError where a buffer does not hold its tokens."""
    if not all((*options.batch, options.new_tokens, options.repeats)):
        raise SettingsError("batch, new_tokens and repeats: 0; allowed: whole numbers from 1 up")
    filled = options.filled or (_FILLED[bool(options.shape)],)
    slots = options.slots or (None,)
    made = [Case(*sizes) for sizes in product(options.batch, filled, slots)]
    for case in made:
        needed = slots_needed(case.filled, options.new_tokens)
        if case.slots is not None and case.slots < needed:
            raise SettingsError(
                f"slots: {case.slots}; allowed: from {needed} up, for {case.filled} filled"
                f" and new_tokens={options.new_tokens}"
            )
    return made


def first_and_second(runs: dict[str, Driver]) -> dict[str, tuple[Compiled, Compiled]]:
    """What each compiles, and what it does in the next process: between the two, JAX's memory is cleared."""
    jax.clear_caches()  # of what was compiled before, and so is not among what is kept
    first = {name: compilations(run) for name, run in runs.items()}
    jax.clear_caches()
    return {name: (first[name], compilations(run)) for name, run in runs.items()}


def prepare(what: Subject, planned: list[Case], options: Options) -> list[dict[str, Driver]]:
    """Our own contestants, case by case."""
    return [
        drivers(what, case.batch, case.filled, case.slots, options.new_tokens, greedy=options.greedy)
        for case in planned
    ]


def named(planned: list[Case], ours: list[dict[str, Driver]]) -> dict[str, Driver]:
    """All of them in one."""
    pairs = zip(planned, ours, strict=True)
    return {f"{case}, {name}": run for case, runs in pairs for name, run in runs.items()}


def measure(
    what: Subject,
    case: Case,
    options: Options,
    ours: dict[str, Driver],
    peers: dict[str, Prepare],
    bandwidth: Callable[[], float],
) -> dict[str, Any]:
    """Seconds per step of each contestant in each repeat, and the bandwidth before it."""
    contestants = dict(ours)
    tokens = prompt_tokens(what, case.batch, case.filled)
    for name, prepared in peers.items():
        contestants[name] = prepared(tokens, options.new_tokens)
    for contestant in contestants.values():
        contestant()
    rates: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeats):
        rates.append(bandwidth())
        for name, contestant in contestants.items():
            seconds[name].append(contestant())
    return figures(what, case, options, np.array(rates), seconds)


def figures(
    what: Subject, case: Case, options: Options, rates: np.ndarray, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """A case's numbers from its repeats' seconds per step and bytes per second."""
    filled = case.filled + options.new_tokens / 2  # on average
    weights = limits.weight_bytes(what.model, case.batch)
    cache = limits.cache_bytes(what.model, case.batch, filled)
    slots = bucket(case.slots or slots_needed(case.filled, options.new_tokens), 256)
    by_name = {}
    for name, each in seconds.items():
        taken = np.array(each)
        by_name[name] = {
            "tokens_per_second": records.spread(case.batch / taken),
            "ms_per_token": records.spread(1e3 * taken),
            "gigabytes_per_second": records.spread((weights + cache) / taken / 1e9),
            "percent_of_limit": records.spread(100 * (weights + cache) / rates / taken),
        }
    return {
        **asdict(case),
        "slots": slots,
        "filled_on_average": filled,
        "bytes": {"weights": weights, "cache_filled": cache},
        "cache_buffer_bytes": limits.cache_bytes(what.model, case.batch, slots),
        "operations_per_step": limits.step_operations(what.model, case.batch, filled),
        "bandwidth": records.spread(rates),
        "limit_tokens_per_second": records.spread(case.batch * rates / (weights + cache)),
        "contestants": by_name,
        "ratios": ratios({name: np.array(each) for name, each in seconds.items()}),
    }


def ratios(seconds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of speeds, repeat by repeat: streaming over `sample`, and over the fastest peer."""
    made = {"streaming / sample": records.spread(seconds["sample"] / seconds["streaming"])}
    peers = [name for name in seconds if name not in ("streaming", "sample")]
    if peers:
        best = min(peers, key=lambda name: float(np.median(seconds[name])))
        made[f"streaming / {best}"] = records.spread(seconds[best] / seconds["streaming"])
    return made


def table(content: dict[str, Any]) -> str:
    """In Markdown: a row per case and contestant, and below it what else was found."""
    lines = [
        "| batch | filled | slots | | tokens/s | ms per token | GB/s | % of the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    below = []
    for case in content["cases"]:
        where = f"batch {case['batch']}, {case['filled']} filled of {case['slots']}"
        for name, found in case["contestants"].items():
            cells = " | ".join(
                records.shown(found[key], digits)
                for key, digits in (
                    ("tokens_per_second", 0),
                    ("ms_per_token", 2),
                    ("gigabytes_per_second", 1),
                    ("percent_of_limit", 0),
                )
            )
            lines.append(f"| {case['batch']} | {case['filled']} | {case['slots']} | {name} | {cells} |")
        limit = f"limit {records.shown(case['limit_tokens_per_second'], 0)} tokens/s"
        gigabytes = {key: case["bandwidth"][key] / 1e9 for key in ("median", "low", "high")}
        speed = f"at {records.shown(gigabytes, 1)} GB/s"
        made = "; ".join(f"{name} {records.shown(ratio, 2)}" for name, ratio in case["ratios"].items())
        below.append(f"{where}: {limit} {speed}; {made}")
    for name, both in content["compile"].items():
        first, second = (Compiled(**run) for run in both)
        below.append(f"{name}: first run {first}; second run {second}")
    if content["peak_bytes"] is not None:
        needed = content["parameter_bytes"] + max(case["cache_buffer_bytes"] for case in content["cases"])
        share = content["peak_bytes"] / needed
        below.append(
            f"peak memory {content['peak_bytes'] / 1e9:.2f} GB, {share:.2f} of weights + largest cache"
        )
    return "\n".join([*lines, "", *below])


def benchmark(options: Options) -> dict[str, Any]:
    """Measure, print, write; returns what it wrote."""
    planned = cases(options)
    names = peer_names(options.peers, plain=options.greedy)
    with kept_programs():
        what = subject(options.model, options.shape, options.dtype, vision=False)
        how, bandwidth = limits.bandwidth_meter(limits.weight_bytes(what.model))
        ours = prepare(what, planned, options)
        compiled = first_and_second(named(planned, ours)) if options.compiles else {}
        for run_once in named(planned, ours).values():
            run_once()
        peak = records.peak_memory()
        peers = decoding_peers(what, options.peers, None if options.greedy else DRAWN)
        measured = [
            measure(what, case, options, runs, peers, bandwidth)
            for case, runs in zip(planned, ours, strict=True)
        ]
        roof = limits.compute_rate(what.model.dtype)
    content = {
        "benchmark": "decode",
        **records.environment(),
        "options": asdict(options),
        "dtype": np.dtype(what.model.dtype).name,
        "bandwidth_is": how,
        "parameter_bytes": limits.parameter_bytes(what.params),
        "operations_per_second": roof,
        "compile": {name: [run._asdict() for run in both] for name, both in compiled.items()},
        "peak_bytes": peak,  # with a prompt of each case fed and decoded, before anything else is measured
        "cases": measured,
    }
    print(
        f"{records.heading(content)} {what.name}, {content['dtype']}, {'greedy' if options.greedy else DRAWN}"
    )
    print(f"median (lowest..highest) of {options.repeats} repeats of {options.new_tokens} tokens\n")
    print(table(content))
    if not names and options.peers != "none":
        print("torch is not installed, so no peer was measured")
    written = [records.write(options.out, "decode", content), draw_plot(options.out, content)]
    print("written:", ", ".join(str(path) for path in written if path))
    return content


if __name__ == "__main__":
    run(benchmark, Options, __doc__ or "")
