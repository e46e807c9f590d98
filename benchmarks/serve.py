"""The server under 1 to 64 streams, against `sample` at the same batch size in the same run.

    uv run python -m benchmarks.serve [--streams 1,4,16,64] [--tokens 256] [--plot docs/serve.png]

The server is a process of its own; its readers are in this one, on the same cores, and `sample` runs when the
server has nothing to do. The speed of both is that of the tokens behind the first ones, while all run.
Both draw alike, as the checkpoint says: what a request leaves open, the server takes from there.
The server's own cost is the processor time that a token takes beyond one of `sample`, whatever else runs on
the machine: on a CPU, where both compute on the same threads, that is all but the model.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.drivers import DRAWN
from benchmarks.load import Read, Server, read_streams, serving
from benchmarks.measure import Spread
from models import load_model
from models.load import LoadedModel
from sample import SamplingConfig, prepare_inputs, sample

PROMPT = "Describe this image"
FEW, REPEATS = 8, 3  # tokens, and runs


class Figures(NamedTuple):
    """Of one run with so many streams; times in seconds."""

    rate: float  # tokens per second of all streams
    first: float  # median time to the first token
    gaps: np.ndarray  # between the tokens of a stream


def body(tokens: int, seed: int, eos: tuple[int, ...]) -> dict[str, Any]:
    """A request that does not end early."""
    return {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "seed": seed,
        **DRAWN,
        "logit_bias": {str(token): -100 for token in eos},
    }


def run_streams(server: Server, count: int, tokens: int, eos: tuple[int, ...]) -> list[Read]:
    return read_streams(server, [body(tokens, n, eos) for n in range(count)])


def figures(reads: list[Read]) -> Figures:
    """While all streams run: from the last first token to the first last one."""
    begun, ended = max(r.deltas[0] for r in reads), min(r.deltas[-1] for r in reads)
    inside = [np.array([t for t in r.deltas if begun <= t <= ended]) for r in reads]
    return Figures(
        rate=sum(len(times) for times in inside) / (ended - begun),
        first=float(np.median([r.deltas[0] - r.asked for r in reads])),
        gaps=np.concatenate([np.diff(times) for times in inside]),
    )


def sample_rate(loaded: LoadedModel, count: int, tokens: int) -> tuple[float, float]:
    """Tokens per second behind the first ones, and the processor's seconds per token."""
    model, params, processor = loaded
    inputs = prepare_inputs(model, params, processor, prompt=[PROMPT] * count, images=[[]] * count)

    def seconds(new_tokens: int) -> np.ndarray:
        configs = [
            SamplingConfig(
                seed=n,
                max_new_tokens=new_tokens,
                logit_bias=dict.fromkeys(processor.eos_ids, -100.0),
                **DRAWN,
            )
            for n in range(count)
        ]
        begun = np.array([time.perf_counter(), time.process_time()])
        sample(model, params, inputs, configs, jax.random.key(0), tokenizer=processor.tokenizer)
        return np.array([time.perf_counter(), time.process_time()]) - begun

    for new_tokens in (1, tokens):
        seconds(new_tokens)
    per_token = (seconds(tokens) - seconds(1)) / (count * (tokens - 1))
    return 1 / per_token[0], per_token[1]


def measure(server: Server, loaded: LoadedModel, count: int, tokens: int, repeats: int) -> dict[str, Any]:
    """The server and `sample` in turns."""
    eos = tuple(loaded.processor.eos_ids)

    def run(new_tokens: int) -> tuple[list[Read], float]:
        before = server.cpu()
        return run_streams(server, count, new_tokens, eos), server.cpu() - before

    run(FEW)
    runs, costs, peers = [], [], []
    for _ in range(repeats):
        reads, worked = run(tokens)
        worked -= run(FEW)[1]
        peer, peer_worked = sample_rate(loaded, count, tokens)
        runs.append(figures(reads))
        peers.append(peer)
        costs.append(1e6 * (worked / (count * (tokens - FEW)) - peer_worked))
    all_gaps = np.concatenate([ran.gaps for ran in runs])
    rate, peer = np.array([ran.rate for ran in runs]), np.array(peers)
    return {
        "streams": count,
        "server": rate,
        "sample": peer,
        "ratio": rate / peer,
        "cost": np.array(costs),
        "first": float(np.median([ran.first for ran in runs])),
        "p50": float(np.percentile(all_gaps, 50)),
        "p99": float(np.percentile(all_gaps, 99)),
    }


def plot(rows: list[dict[str, Any]], path: str, title: str) -> None:
    """Speeds and latencies over the number of streams; needs matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (an extra)

    streams = [row["streams"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for name, mark in (("sample", "o--"), ("server", "o-")):
        speed.plot(streams, [np.median(row[name]) for row in rows], mark, label=name)
    speed.set(title="tokens per second, all streams", xlabel="streams")
    for name, label in (
        ("first", "to the first token"),
        ("p99", "between tokens, p99"),
        ("p50", "between tokens, p50"),
    ):
        latency.plot(streams, [1e3 * row[name] for row in rows], "o-", label=label)
    latency.set(title="milliseconds", xlabel="streams", yscale="log")
    for axes in (speed, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(streams, [str(n) for n in streams])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--streams", default="1,4,16,64")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--plot")
    args = parser.parse_args()
    counts = [int(count) for count in args.streams.split(",")]
    loaded = load_model(args.model)
    settings = (
        f"model.name={args.model}",
        f"serve.rows={counts}".replace(" ", ""),
        f"serve.waiting={max(counts)}",
        "stream_registry.adaptive_limits.enabled=false",
        "stream_registry.adaptive_limits.min_streams=1",
        f"stream_registry.adaptive_limits.max_streams={max(counts)}",
    )
    with serving(*settings) as server:
        rows = [measure(server, loaded, count, args.tokens, args.repeats) for count in counts]
    device = jax.devices()[0].device_kind
    print(f"{device}, {args.model}: {args.tokens} new tokens, median (lowest..highest) of {args.repeats}\n")
    print(
        "| streams | server, tokens/s | sample, tokens/s | server / sample | cost, µs per token and stream ",
        end="",
    )
    print("| TTFT, ms | ITL p50, ms | ITL p99, ms |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        spreads = " | ".join(str(Spread.of(row[name])) for name in ("server", "sample", "ratio", "cost"))
        times = " | ".join(f"{1e3 * row[name]:.1f}" for name in ("first", "p50", "p99"))
        print(f"| {row['streams']} | {spreads} | {times} |")
    if args.plot:
        plot(rows, args.plot, f"{args.model} on {device}")


if __name__ == "__main__":
    main()
