"""What a full cache costs in sense: perplexity of real English, fed token for token, policy by policy.

    uv run python -m benchmarks.perplexity MODEL [--tokens 20000] [--context 512] [--text FILE] [--out DIR]

MODEL is a checkpoint with real text weights (`benchmarks/real_text.py` writes one). Without --text the text
is the prose of Debian's package `debian-reference-en`: paragraphs, headings and list items, without tables
and listings; apt-get fetches it. Every policy is fed the same tokens, as a stream would feed what it draws,
and foresees each of them; the first four are given.

The first base has a cache of the model's whole context. When that is full it keeps the latest half of it,
computed anew: but for the beginning, each token is foreseen from half a context to a whole one. "Segments
apart" keeps nothing instead: the second, weaker base. `window` computes its whole cache for each token, so it
foresees one token of --every alone, and is compared with the bases on these.

Written to --out, after each policy: perplexity.json, surprisals.npz (nats), and perplexity.png (the extra
`plot`). A ratio's margin is its standard error, from blocks of 500 tokens.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.english import PACKAGE, debian_reference
from benchmarks.forced import GIVEN, Policy, Run, foresee, windowed
from models import InputError, load_model
from sample import StreamConfig
from sample.stream_config import Policy as Kind

_BLOCK = 500  # tokens of a standard error's blocks
_ROLLING = 1000  # tokens of the plot
_NEARLY_EQUAL = 1.4  # ratios that the plot shows from near by

# BlinkKV's, on a text that is not known here; nor is how its plain eviction treats positions.
_RESEED = "1.079 (SmolLM2-1.7B), 1.028 to 1.146 (four others)"
_WITHOUT_SINKS, _WITH_SINKS = "33 (SmolLM2-1.7B, plain eviction)", "7 (SmolLM2-1.7B, plain eviction)"


class Ratio(NamedTuple):
    """Of two perplexities."""

    value: float
    error: float  # standard error

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.value == 1 else f"{self.value:.3f} ± {self.error:.3f}"


class Row(NamedTuple):
    """A policy beside the bases."""

    name: str
    perplexity: float
    whole: Ratio  # to the full context
    apart: Ratio | None  # to the full context, segments apart


def policies(context: int, whole: int) -> list[Policy]:
    """The base first; `whole` is its context. The others keep half of theirs, a small part, or nearly all."""
    half, step = context // 2, context // 32

    def kept(policy: Kind, sinks: int, both: int) -> StreamConfig:
        return StreamConfig(policy=policy, context=context, sinks=sinks, tail=both - sinks)

    def named(stream: StreamConfig, published: str = "", turned: bool = True) -> Policy:
        name = f"{stream.policy} {stream.sinks} + {stream.tail}"
        return Policy(name if turned else f"{name}, old positions", stream, turned, published)

    return [
        Policy("full context", StreamConfig(context=whole, sinks=0, tail=whole // 2)),
        Policy("full context, segments apart", StreamConfig(context=whole, sinks=0, tail=1)),
        named(kept("reseed", 4, half), _RESEED),
        named(kept("reseed", 0, half)),
        named(kept("shift", 4, half)),
        named(kept("shift", 0, half), _WITHOUT_SINKS),
        named(kept("shift", 4, context - step)),
        named(kept("shift", 0, context - step)),
        named(kept("shift", 4, half), _WITH_SINKS, turned=False),
        Policy(
            f"reseed 4 + {half - 4} of {4 * context}",
            StreamConfig(context=4 * context, sinks=4, tail=half - 4),
        ),
        named(kept("reseed", 4, context - 4 * step)),
    ]


def row_of(name: str, run: Run, bases: Sequence[Run]) -> Row:
    ratios = [ratio_of(run, base) for base in bases]
    return Row(name, math.exp(np.nanmean(run.surprisals)), ratios[0], ratios[1] if ratios[1:] else None)


def ratio_of(run: Run, base: Run) -> Ratio:
    """The ratio of perplexities; its standard error is that of the mean differences of blocks.

    Tokens that the run did not foresee (NaN) are left out on both sides.
    """
    excess = run.surprisals - base.surprisals
    ratio = math.exp(np.nanmean(excess))
    whole = excess[: len(excess) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    blocks = np.nanmean(whole[np.isfinite(whole).any(1)], axis=1)
    error = float(blocks.std(ddof=1) / math.sqrt(len(blocks))) if len(blocks) > 1 else math.nan
    return Ratio(ratio, ratio * error)


def by_seen(run: Run, base: Run, bins: int = 4) -> list[tuple[int, int, float, float]]:
    """Once the cache has been renewed: foreseen from how many tokens to how many, the ratio and its error."""
    after = np.arange(len(run.seen)) > np.argmin(np.diff(run.seen) > 0)
    edges = np.linspace(run.seen[after].min(), run.seen[after].max() + 1, bins + 1).astype(int)
    rows = []
    for low, high in itertools.pairwise(edges):
        excess = (run.surprisals - base.surprisals)[after & (run.seen >= low) & (run.seen < high)]
        ratio = math.exp(excess.mean())
        rows.append((int(low), int(high) - 1, ratio, ratio * float(excess.std() / math.sqrt(len(excess)))))
    return rows


def write_results(
    folder: Path, settings: dict[str, Any], runs: dict[str, Run], ways: list[Policy]
) -> list[Row]:
    """The files of --out; the first two runs are the bases."""
    folder.mkdir(parents=True, exist_ok=True)
    base, *rest = runs.values()
    rows = [row_of(name, run, [base, *rest[:1]]) for name, run in runs.items()]
    renewed = {
        way.name: by_seen(runs[way.name], base)
        for way in ways
        if way.name in runs and way.stream.policy == "reseed" and len(base.seen) > way.stream.context
    }
    content = settings | {"rows": [_plain(row) for row in rows], "ratio_by_tokens_seen": renewed}
    (folder / "perplexity.json").write_text(json.dumps(content, indent=2))
    np.savez_compressed(
        folder / "surprisals.npz",
        **{name: run.surprisals.astype(np.float32) for name, run in runs.items()},  # pyright: ignore[reportArgumentType]
    )
    drawn = {name: run.surprisals for name, run in runs.items() if np.isfinite(run.surprisals).all()}
    draw(folder / "perplexity.png", drawn)
    return rows


def _plain(row: Row) -> dict[str, Any]:
    return row._asdict() | {"whole": row.whole._asdict(), "apart": row.apart and row.apart._asdict()}


def draw(path: Path, surprisals: dict[str, np.ndarray]) -> None:
    """Rolling perplexity along the text, and its ratio to the base where that is near; needs matplotlib."""
    from matplotlib import colormaps  # noqa: PLC0415  (an extra)
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    figure = Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    base = next(iter(surprisals.values()))
    window = np.full(min(_ROLLING, len(base)), 1 / min(_ROLLING, len(base)))
    places = np.arange(len(window) - 1, len(base))
    for number, (name, values) in enumerate(surprisals.items()):
        style: dict[str, Any] = {"linewidth": 1, "color": colormaps["tab20"](number % 20)}
        above.plot(places, np.exp(np.convolve(values, window, "valid")), label=name, **style)
        if math.exp((values - base).mean()) < _NEARLY_EQUAL:
            below.plot(places, np.exp(np.convolve(values - base, window, "valid")), **style)
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:.0f}")
    above.yaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel(f"perplexity, latest {len(window)} tokens")
    below.set_ylabel("ratio to the full context")
    below.set_xlabel("token")
    figure.legend(fontsize="small", loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument(
        "--every", type=int, default=32, help="of how many tokens `window` foresees one; 0: none"
    )
    parser.add_argument("--text", type=Path, help="a plain text to read instead")
    parser.add_argument("--out", type=Path, default=Path("outputs/perplexity"))
    args = parser.parse_args()
    try:
        measure(args.model, args.tokens, args.context, args.every, args.text, args.out)
    except (OSError, ValueError) as error:  # a SaccadeError is a ValueError
        sys.exit(f"error: {error}")


def measure(name: str, count: int, context: int, every: int, file: Path | None, out: Path) -> None:
    text = debian_reference() if file is None else file.read_text(encoding="utf-8")
    model, params, processor = load_model(name)
    tokens = np.asarray(processor.tokenizer(text)["input_ids"], np.int32)
    if len(tokens) < GIVEN + count:
        raise InputError(f"--tokens: {count}; allowed: up to {len(tokens) - GIVEN}, what the text has")
    tokens = tokens[: GIVEN + count]
    settings = {"text": PACKAGE if file is None else file.name, "tokens": count, "context": context}
    print(f"{count} tokens of {settings['text']}, context {context}, base {model.context_length}\n")
    print("| | perplexity | ratio to full context | to segments apart | published |\n|---|---|---|---|---|")
    runs: dict[str, Run] = {}
    ways = policies(context, model.context_length)
    for way in ways:
        runs[way.name] = foresee(model, params, tokens, way)
        show(write_results(out, settings, runs, ways)[-1], way.published)
    if every:
        name = f"window 0 + {context}, one token of {every}"
        stream = StreamConfig("window", context=context, sinks=0)
        runs[name] = windowed(model, params, tokens, stream, every)
        show(write_results(out, settings, runs, ways)[-1])


def show(row: Row, published: str = "") -> None:
    print(
        f"| {row.name} | {row.perplexity:.2f} | {row.whole} | {row.apart or ''} | {published} |", flush=True
    )


if __name__ == "__main__":
    main()
