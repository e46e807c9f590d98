"""Train the checkpoint that ships, from art to `models/embedded/`, with one command:

    uv run --extra train python -m train.recipe             # one GPU, about half an hour
    uv run --extra train python -m train.recipe --smoke     # tiny, on a CPU, a few minutes

Several GPUs: a run on each, with `--start` the same checkpoint and a `--seed` of its own, then their mean:
`train.average`.

A run that was cut short goes on from its last checkpoint: give the same command again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from models import load_model
from models.load import EMBEDDED
from train.art import PACK, Pack, load_pack, make_pack
from train.compose import Variation
from train.evaluate import measure, report
from train.export import export
from train.model import FULL, TINY
from train.painter import Painter
from train.run import Run, Settings, train
from train.scenes import room

OUT = Path(__file__).parent / "out"

SMOKE = Settings(
    TINY,
    vocabulary=1024,
    batch=8,
    steps=20,
    warmup=4,
    workers=0,
    grids={(4, 5): 1},
    large_grids={(5, 6): 1},
    large=0.15,
)

# What can be left out, to see what it is worth.
ABLATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "icons": {"icon_weight": 0.0},
    "outlines": {"variation": Variation(outlines=0.0)},
    "palette": {"variation": Variation(palette=0.0)},
    "shape": {"variation": Variation(shape=0.0)},
    "redrawing": {"variation": Variation(art=0.0)},
}


def plot(log: Path, target: Path) -> None:
    """The losses over the steps."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (only this needs it)

    entries = json.loads(log.read_text())
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [e["step"] for e in entries]
    for name in ("answer", "cells"):
        left.plot(steps, [e[name] for e in entries], label=f"{name} loss", linewidth=0.8)
        right.plot(steps, [e[f"{name} right"] for e in entries], label=f"{name} right", linewidth=0.8)
    left.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.legend()
    figure.savefig(target, dpi=80)


def make(
    run: Run, pack: Pack, out: Path, folder: Path, *, minutes: float = float("inf"), cases: int, seeds: int
) -> None:
    """All of it: train, export to `folder`, plot, evaluate and write the model card's table.

    Args:
        out: where the run keeps its checkpoints and its log.
        minutes: stop training after so many; what it has learned so far is exported to `out` then.
        cases: of each measure of the evaluation; 0: no evaluation.
        seeds: for each temperature, of the example pictures.
    """
    state = train(run, out, minutes)
    whole = int(state.step) == run.settings.steps
    folder = folder if whole else out / "unfinished"
    largest = max(map(room, run.settings.all_grids))
    export(folder, run.model, state.params["model"], run.tokenizer, run.config, largest)
    if not whole:
        at = f"step {int(state.step)} of {run.settings.steps}"
        print(f"stopped at {at}: the same command goes on; what it has learned so far: {folder}")
        return
    plot(out / "log.json", folder / "loss.png")
    print(f"wrote {folder}", flush=True)
    if cases:
        painter = Painter(pack, run.art)
        report(folder, painter, measure(load_model(folder), painter, cases, seeds, slice(None)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the checkpoint that ships.")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps, for a CPU")
    parser.add_argument("--steps", type=int, help="length of the whole run")
    parser.add_argument(
        "--start", type=Path, help="a checkpoint to begin with, its weights and its tokenizer"
    )
    parser.add_argument("--without", choices=ABLATIONS, default="nothing", help="leave a part out")
    parser.add_argument("--large", type=float, help="the last share of the steps, with larger pictures too")
    parser.add_argument("--workers", type=int, help="processes that make batches (default: a core each)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of all scenes")
    parser.add_argument("--learning-rate", type=float, help="the highest one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop early, to go on later")
    parser.add_argument("--cases", type=int, help="of each measure of the evaluation; 0 for none")
    parser.add_argument("--out", type=Path, default=OUT, help="checkpoints and log (default: %(default)s)")
    parser.add_argument(
        "--export", type=Path, help=f"folder of the result (default: {EMBEDDED}, or in --out)"
    )
    given = parser.parse_args()
    if not (PACK / "things.json").exists():
        make_pack()
    settings = SMOKE if given.smoke else Settings(FULL)
    settings = replace(
        settings,
        steps=given.steps or settings.steps,
        start=given.start,
        seed=given.seed,
        learning_rate=given.learning_rate or settings.learning_rate,
        workers=settings.workers if given.workers is None else given.workers,
        large=settings.large if given.large is None else given.large,
        **ABLATIONS[given.without],
    )
    jax.config.update("jax_compilation_cache_dir", str(given.out / "compiled"))
    pack = load_pack()
    folder = given.export or (given.out / "model" if given.smoke else EMBEDDED)
    cases, seeds = (2, 1) if given.smoke else (500, 10)
    cases = cases if given.cases is None else given.cases
    make(Run(settings, pack), pack, given.out, folder, minutes=given.minutes, cases=cases, seeds=seeds)


if __name__ == "__main__":
    main()
