"""Train the checkpoint that ships, from art to `models/embedded/`, with one command:

    uv run --extra train python -m train.recipe             # one GPU, about half an hour
    uv run --extra train python -m train.recipe --smoke     # tiny, on a CPU, a few minutes

Several GPUs: a run on each, with `--start` the same checkpoint and a `--seed` of its own, then their mean:
`train.average`.

A run that was cut short goes on from its last checkpoint: give the same command again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from models import load_model
from models.config import Qwen3VLConfig
from models.kernels.choice import plain_jax
from models.load import EMBEDDED
from models.qwen3_vl import Qwen3VL, VisionEmbeddings
from models.weights import load_params
from train.art import PACK, Pack, load_pack, make_pack
from train.art_sets import ICON_STYLES, TRAINING_STYLES
from train.batches import Batch, Maker, Source, batches, row_length
from train.compose import Layout, Variation, compose, patches, premultiplied
from train.evaluate import measure, report
from train.export import export
from train.model import FULL, TINY, model_config
from train.painter import Painter
from train.questions import World
from train.scenes import GRIDS, LARGE_GRIDS, Catalogue, room
from train.tokenizer import Coder, corpus, train_tokenizer

OUT = Path(__file__).parent / "out"
_SAVE_EVERY = 180.0  # seconds
_ICON_WEIGHT = 0.5  # of a set of icons, beside 1 for a whole set of emoji
_VARIATION = Variation()
# Words that say whether a picture was understood, where most others are a choice of wording.
_TELLING = (
    "yes", "no", "left", "right", "above", "below", "top", "bottom", "middle",
    "one", "two", "three", "four", "five", "six",
)  # fmt: skip

# What can be left out, to see what it is worth.
ABLATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "icons": {"icon_weight": 0.0},
    "outlines": {"variation": Variation(outlines=0.0)},
    "palette": {"variation": Variation(palette=0.0)},
    "shape": {"variation": Variation(shape=0.0)},
    "redrawing": {"variation": Variation(art=0.0)},
}


@dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    sizes: dict[str, int]
    vocabulary: int = 2560
    batch: int = 512
    steps: int = 15000
    warmup: int = 200
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seeing: float = 0.3  # weight of the auxiliary loss: which thing does each picture token show?
    telling: float = 3.0  # weight of the answers' telling words, beside 1 for the other tokens
    optimizer: str = "muon"
    variation: Variation = _VARIATION
    icon_weight: float = _ICON_WEIGHT
    grids: Mapping[tuple[int, int], int] = field(default_factory=lambda: GRIDS)
    large_grids: Mapping[tuple[int, int], int] = field(default_factory=lambda: LARGE_GRIDS)
    large: float = 0.3  # the last share of the steps, half of them with larger pictures
    start: Path | None = None  # a checkpoint whose weights to begin with
    seed: int = 0
    workers: int | None = None

    @property
    def all_grids(self) -> list[tuple[int, int]]:
        """Those of all its batches."""
        return list(dict.fromkeys([*self.grids, *(self.large_grids if self.large else ())]))


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


class State(NamedTuple):
    """Everything that a checkpoint holds."""

    params: Any  # {"model": the model's float32 parameters, "seeing": the auxiliary head}
    optimizer: Any
    step: Array


# ---------------------------------------------------------------- one step


class Inputs(NamedTuple):
    """A batch on the device, its pictures still to be painted."""

    layout: Layout
    label: Array
    tokens: Array
    positions: Array  # [2, 3, T]: without and with a picture
    prompts: Array
    lengths: Array
    has_picture: Array
    vision_rows: Array


@partial(jax.jit, static_argnames=("grid", "crowded", "variation", "names"))
def paint(
    art: Array,
    layout: Layout,
    label: Array,
    key: Array,
    *,
    grid: tuple[int, int],
    crowded: int,
    variation: Variation,
    names: int,
) -> tuple[Array, Array]:
    """Patches [B, 4 * room, patch_dim], and what each cell shows as shares of all names and of nothing."""
    picture, shares = compose(art, layout, key, grid, crowded, variation)
    flat = patches(picture).astype(jnp.bfloat16)
    flat = jnp.pad(flat, ((0, 0), (0, 4 * room(grid) - flat.shape[1]), (0, 0)))
    shown = shares @ jax.nn.one_hot(label, names + 1)  # label -1 is none of them
    shown = shown.at[..., -1].set(1 - shown[..., :-1].sum(-1))
    return flat, jnp.pad(shown, ((0, 0), (0, room(grid) - shown.shape[1]), (0, 0))).astype(jnp.bfloat16)


def losses(
    model: Qwen3VL,
    params: Any,
    inputs: Inputs,
    pixels: Array,
    shown: Array,
    places: Any,
    weights: Float[Array, " vocabulary"],
) -> dict[str, Array]:
    """Mean cross entropy of the answers' tokens, by weight, and of the cells; and how often each is right."""
    encode = partial(model.apply, {"params": params["model"]}, method="encode_vision")
    seen: Any = jax.vmap(lambda p: encode(p, places))(pixels)
    D = seen.embeddings.shape[-1]
    vision = VisionEmbeddings(
        seen.embeddings.reshape(-1, D)[inputs.vision_rows],
        seen.deepstack.swapaxes(0, 1).reshape(seen.deepstack.shape[1], -1, D)[:, inputs.vision_rows],
    )
    tokens = inputs.tokens
    positions = jnp.where(
        inputs.has_picture[:, None], inputs.positions[1][:, None], inputs.positions[0][:, None]
    )
    logits: Any = model.apply({"params": params["model"]}, tokens, positions, vision, method="logits")
    logits = logits[:, :-1]
    at = jnp.arange(1, tokens.shape[1])
    answer = (at >= inputs.prompts[:, None]) & (at < inputs.lengths[:, None])
    right = (logits.argmax(-1) == tokens[:, 1:]) & answer
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    weight = weights[tokens[:, 1:]] * answer
    cell_logits = seen.embeddings.astype(jnp.float32) @ params["seeing"]["kernel"] + params["seeing"]["bias"]
    cell = optax.softmax_cross_entropy(cell_logits, shown.astype(jnp.float32))
    there = shown.sum(-1) > 0.5  # not padding
    full = there & (shown[..., :-1].max(-1) > 0.6)
    hit = (cell_logits.argmax(-1) == shown.argmax(-1)) & full
    return {
        "answer": (entropy * weight).sum() / weight.sum(),
        "cells": (cell * there).sum() / there.sum(),
        "answer right": right.sum() / answer.sum(),
        "cells right": hit.sum() / jnp.maximum(full.sum(), 1),
    }


@partial(jax.jit, static_argnames=("model", "optimizer", "seeing"), donate_argnames="state")
def update(
    model: Qwen3VL,
    optimizer: Any,
    seeing: float,
    state: State,
    rate: Float[Array, ""],
    inputs: Inputs,
    pixels: Array,
    shown: Array,
    places: Any,
    weights: Array,
) -> tuple[State, dict[str, Array]]:
    def objective(params: Any) -> tuple[Array, dict[str, Array]]:
        with plain_jax():
            found = losses(model, params, inputs, pixels, shown, places, weights)
        return found["answer"] + seeing * found["cells"], found

    gradients, found = jax.grad(objective, has_aux=True)(state.params)
    found["gradient"] = optax.global_norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    updates = jax.tree.map(lambda x: rate * x, updates)
    return State(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), found


def make_optimizer(s: Settings) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the matrices, AdamW for tables, norms and biases; or AdamW for all.

    Its rate is 1: the step multiplies by the schedule's, so that runs of any length share their programs.
    """

    def matrices(params: Any, yes: Any, no: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                yes if x.ndim == 2 and path[-1].key == "kernel" and path[0].key == "model" else no
            ),
            params,
        )

    if s.optimizer == "adamw":
        decay = partial(matrices, yes=True, no=False)
        inner = optax.adamw(1.0, b2=0.95, weight_decay=s.weight_decay, mask=decay)
    else:
        dims = optax.contrib.MuonDimensionNumbers()
        inner = optax.contrib.muon(
            1.0,
            adam_b2=0.95,
            weight_decay=s.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=partial(matrices, yes=dims, no=None),
        )
    return optax.chain(optax.clip_by_global_norm(1.0), inner)


# ---------------------------------------------------------------- a run


class Run:
    """The model, the art on the device and the source of batches, for settings and a pack."""

    def __init__(self, settings: Settings, pack: Pack) -> None:
        self.settings = settings
        weights = dict.fromkeys(TRAINING_STYLES, 1.0)
        if settings.icon_weight:
            weights |= dict.fromkeys(ICON_STYLES, settings.icon_weight)
        styles = [style for style in weights if style in pack.rows]
        rows = np.stack([pack.rows[style] for style in styles])
        self.art = premultiplied(pack.art)
        world = World.of(pack.things)
        catalogue = Catalogue(
            [t.name for t in pack.things],
            [np.flatnonzero(column >= 0).tolist() for column in rows.T],
            [weights[style] for style in styles],
        )
        self.tokenizer = (
            Tokenizer.from_file(str(settings.start / "tokenizer.json"))
            if settings.start
            else train_tokenizer(corpus(world, catalogue, 8000), settings.vocabulary)
        )
        self.source = Source(
            world,
            catalogue,
            rows,
            self.tokenizer.to_str(),
            settings.batch,
            grids=settings.grids,
            large_grids=settings.large_grids,
            large_from=round(settings.steps * (1 - settings.large)),
            seed=settings.seed,
        )
        self.config = model_config(self.tokenizer, settings.sizes)
        self.model = Qwen3VL(Qwen3VLConfig.from_dict(self.config), dtype=jnp.bfloat16)
        self.optimizer = make_optimizer(settings)
        top, steps = settings.learning_rate, settings.steps
        schedule = optax.warmup_cosine_decay_schedule(0.0, top, settings.warmup, steps, top * 0.01)
        self.rates = np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float32)
        self.names = len(self.source.names)
        self.weights = jnp.asarray(token_weights(self.tokenizer, settings.telling))
        self.places = {grid: self._places(grid) for grid in settings.all_grids}

    def _places(self, grid: tuple[int, int]) -> tuple[Any, dict[int, np.ndarray]]:
        """The tower's layout for a grid, and the prompt's positions [2, 3, T] for both lengths."""
        thw = np.array([[1, grid[0] * 2, grid[1] * 2]])
        cells = grid[0] * grid[1]
        head = len(Coder.of(self.tokenizer).head) + 1
        positions = {}
        for T in (row_length(grid, long=False), row_length(grid, long=True)):
            row = np.zeros((1, T), np.int32)
            text, _ = self.model.prompt_positions(row, np.zeros((0, 3), np.int64), np.array([T]))
            row[0, head : head + cells] = self.model.image_pad_id
            pictured, _ = self.model.prompt_positions(row, thw, np.array([T]))
            positions[T] = np.stack([text[:, 0], pictured[:, 0]])
        return self.model.vision_layout(thw, 4 * room(grid)), positions

    def start(self) -> State:
        def init(key: Array) -> State:
            params = {
                "model": self.model.init_params(key),
                "seeing": {
                    "kernel": 0.02 * jax.random.normal(key, (self.settings.sizes["width"], self.names + 1)),
                    "bias": jnp.zeros(self.names + 1),
                },
            }
            return State(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

        state = jax.jit(init)(jax.random.key(self.settings.seed))
        if self.settings.start is None:
            return state
        loaded = load_params(self.settings.start, self.model, jnp.float32)
        return state._replace(params={**state.params, "model": loaded})

    def inputs(self, batch: Batch) -> tuple[Inputs, Any]:
        """A batch on the device, and where the patches of its grid stand."""
        places, positions = self.places[batch.grid]
        rest = (
            batch.tokens,
            positions[batch.tokens.shape[1]],
            batch.prompts,
            batch.lengths,
            batch.has_picture,
        )
        layout = Layout(*map(jnp.asarray, batch.pictures))
        return Inputs(layout, *map(jnp.asarray, (batch.label, *rest, batch.vision_rows))), places

    def paint(self, batch: Batch, inputs: Inputs, index: int, function: Any = paint) -> Any:
        key = jax.random.key(index + (self.settings.seed << 20), impl="rbg")
        return function(
            self.art, inputs.layout, inputs.label, key,
            grid=batch.grid, crowded=batch.crowded, variation=self.settings.variation, names=self.names,
        )  # fmt: skip

    def update(self, state: State, batch: Batch, index: int) -> tuple[State, dict[str, Array]]:
        inputs, places = self.inputs(batch)
        painted = self.paint(batch, inputs, index)
        return self._update(update, state, inputs, painted, places, index)

    def _update(
        self, function: Any, state: State, inputs: Inputs, painted: Any, places: Any, index: int
    ) -> Any:
        """`function` is `update`, or lowers it."""
        fixed = self.model, self.optimizer, self.settings.seeing
        return function(*fixed, state, self.rates[index], inputs, *painted, places, self.weights)

    def compile(self, state: State) -> None:
        """Fill the compile cache for all shapes to come, in threads: in turn it takes minutes."""
        with ThreadPoolExecutor() as pool:  # which compiles the first while the next are traced
            list(pool.map(lambda program: program.compile(), self._programs(state)))

    def _programs(self, state: State) -> Iterator[Any]:
        """Lowered; those that take longest to compile come first."""
        ready = [(batch, *self.inputs(batch)) for batch in self._one_of_each()]
        seen = set()
        for batch, inputs, places in ready:
            if (shape := (room(batch.grid), batch.tokens.shape)) not in seen:
                seen.add(shape)
                painted = jax.eval_shape(partial(self.paint, batch, inputs, 0))
                yield self._update(update.lower, state, inputs, painted, places, 0)
        seen = set()
        for batch, inputs, _ in ready:
            if batch.grid not in seen:
                seen.add(batch.grid)
                yield self.paint(batch, inputs, 0, paint.lower)

    def _one_of_each(self) -> Iterator[Batch]:
        """A batch of each grid, and one of stories of each room: rows of a room are padded alike."""
        source, maker = self.source, Maker(self.source)
        for first in {0, min(source.large_from, self.settings.steps - 1)}:
            grids = source.grids_of(first)
            for grid in {room(grid): grid for grid in grids}.values():
                yield maker.make(_next(first, source.is_long, True), grid)
            for grid in grids:
                yield maker.make(_next(first, source.is_long, False), grid)


def token_weights(tokenizer: Tokenizer, telling: float) -> Float[np.ndarray, " vocabulary"]:
    """What each token of an answer counts; telling words that take several tokens count as any other."""
    weights = np.ones(tokenizer.get_vocab_size(), np.float32)
    for word in _TELLING:
        for written in (word, word.capitalize(), f" {word}"):
            ids = tokenizer.encode(written, add_special_tokens=False).ids
            if len(ids) == 1:
                weights[ids] = telling
    return weights


def _next(first: int, test: Callable[[int], bool], wanted: bool) -> int:
    """The first number from `first` on for which `test` gives `wanted`."""
    return next(i for i in count(first) if test(i) == wanted)


def train(run: Run, folder: Path, minutes: float = float("inf")) -> State:
    """Train to the last step, or for so many minutes; the checkpoint in `folder` is where it goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    state, log = _resume(run, folder)
    first = int(state.step)
    made = batches(run.source, first, run.settings.steps, run.settings.workers)
    run.compile(state)
    began = time.monotonic()
    shown_at, shown_step, saved_at = began, first, began
    for index, batch in enumerate(made, first):
        state, found = run.update(state, batch, index)
        done = index + 1
        if done % 50 == 0 or done in (1, 10, run.settings.steps):
            values = {k: float(v) for k, v in found.items()}
            now = time.monotonic()
            values["scenes/s"] = (done - shown_step) * len(batch.tokens) / (now - shown_at)
            shown_at, shown_step = now, done
            log.append({"step": done, "length": int(batch.tokens.shape[1]), **values})
            if done % 200 == 0 or done <= 100:
                print(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
            if not np.isfinite(values["answer"]):
                raise FloatingPointError(f"step {done}: the loss is not finite")
        now = time.monotonic()
        if now - began > minutes * 60:
            break
        if now - saved_at > _SAVE_EVERY:
            saved_at = now
            _save(folder, state, log)
    _save(folder, state, log)
    return state


def _resume(run: Run, folder: Path) -> tuple[State, list[dict[str, float]]]:
    state = run.start()
    if not (folder / "state.npz").exists():
        return state, []
    leaves, tree = jax.tree.flatten(state)
    with np.load(folder / "state.npz") as saved:
        leaves = [jnp.asarray(saved[f"{i}"]) for i in range(len(leaves))]
    return jax.tree.unflatten(tree, leaves), json.loads((folder / "log.json").read_text())


def _save(folder: Path, state: State, log: list[dict[str, float]]) -> None:
    leaves: dict[str, Any] = {f"{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    np.savez(folder / "state.new.npz", **leaves)
    (folder / "state.new.npz").rename(folder / "state.npz")
    (folder / "log.json").write_text(json.dumps(log))


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
