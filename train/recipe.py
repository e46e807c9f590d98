"""Train the checkpoint that ships, from art to `models/embedded/`, with one command:

    uv run --extra train python -m train.recipe             # one GPU, about 20 minutes
    uv run --extra train python -m train.recipe --smoke     # tiny, on a CPU, a few minutes

A run that was cut short goes on from its last checkpoint: give the same command again.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from tokenizers import Tokenizer

from models.config import Qwen3VLConfig
from models.qwen3_vl import Qwen3VL, VisionEmbeddings
from models.weights import load_params
from train.art import PACK, TRAINING_STYLES, Pack, load_pack, make_pack
from train.batches import CELLS, Batch, Maker, Source, batches
from train.compose import Layout, Variation, compose, patches, premultiplied
from train.export import export
from train.language import World
from train.model import FULL, TINY, model_config
from train.scenes import GRID_WEIGHTS, GRIDS, Catalogue
from train.tokenizer import Coder, corpus, train_tokenizer

OUT = Path(__file__).parent / "out"
EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"


_VARIATION = Variation()


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
    optimizer: str = "muon"
    variation: Variation = _VARIATION
    grids: tuple[tuple[int, int], ...] = GRIDS
    start: Path | None = None  # a checkpoint whose weights to begin with
    seed: int = 0
    workers: int | None = None


SMOKE = Settings(TINY, vocabulary=1024, batch=8, steps=20, warmup=4, workers=0)


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
    """Patches [B, 4 * CELLS, patch_dim], and what each cell shows as shares of all names and of nothing."""
    picture, shares = compose(art, layout, key, grid, crowded, variation)
    flat = patches(picture).astype(jnp.bfloat16)
    flat = jnp.pad(flat, ((0, 0), (0, 4 * CELLS - flat.shape[1]), (0, 0)))
    rows = jnp.arange(label.shape[0])[:, None, None]
    cells = jnp.arange(shares.shape[1])[None, :, None]
    shown = jnp.zeros((*shares.shape[:2], names + 1)).at[rows, cells, label[:, None, :]].add(shares)
    shown = shown.at[..., -1].set(1 - shown[..., :-1].sum(-1))  # label -1 is the last column
    return flat, jnp.pad(shown, ((0, 0), (0, CELLS - shown.shape[1]), (0, 0))).astype(jnp.bfloat16)


def losses(
    model: Qwen3VL, params: Any, inputs: Inputs, pixels: Array, shown: Array, places: Any
) -> dict[str, Array]:
    """Mean cross entropy of the answers' tokens and of the cells; and how often each is right."""
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
    cell_logits = seen.embeddings.astype(jnp.float32) @ params["seeing"]["kernel"] + params["seeing"]["bias"]
    cell = optax.softmax_cross_entropy(cell_logits, shown.astype(jnp.float32))
    there = shown.sum(-1) > 0.5  # not padding
    full = there & (shown[..., :-1].max(-1) > 0.6)
    hit = (cell_logits.argmax(-1) == shown.argmax(-1)) & full
    return {
        "answer": (entropy * answer).sum() / answer.sum(),
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
    inputs: Inputs,
    pixels: Array,
    shown: Array,
    places: Any,
) -> tuple[State, dict[str, Array]]:
    def objective(params: Any) -> tuple[Array, dict[str, Array]]:
        found = losses(model, params, inputs, pixels, shown, places)
        return found["answer"] + seeing * found["cells"], found

    gradients, found = jax.grad(objective, has_aux=True)(state.params)
    found["gradient"] = optax.global_norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), found


def make_optimizer(s: Settings) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the matrices, AdamW for tables, norms and biases; or AdamW for all."""
    rate = optax.warmup_cosine_decay_schedule(0.0, s.learning_rate, s.warmup, s.steps, s.learning_rate * 0.01)

    def matrices(params: Any, yes: Any, no: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                yes if x.ndim == 2 and path[-1].key == "kernel" and path[0].key == "model" else no
            ),
            params,
        )

    if s.optimizer == "adamw":
        decay = partial(matrices, yes=True, no=False)
        inner = optax.adamw(rate, b2=0.95, weight_decay=s.weight_decay, mask=decay)
    else:
        dims = optax.contrib.MuonDimensionNumbers()
        inner = optax.contrib.muon(
            rate,
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
        styles = [style for style in TRAINING_STYLES if style in pack.styles]
        available = np.stack([pack.available[style] for style in styles])
        rows = np.where(available, np.cumsum(available).reshape(available.shape) - 1, -1)
        self.art = jnp.asarray(
            premultiplied(np.concatenate([pack.styles[s][a] for s, a in zip(styles, available, strict=True)]))
        )
        world = World.of(pack.things)
        catalogue = Catalogue(
            [t.name for t in pack.things], [np.flatnonzero(column).tolist() for column in available.T]
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
            grid_weights=tuple(GRID_WEIGHTS[GRIDS.index(g)] if g in GRIDS else 1 for g in settings.grids),
            seed=settings.seed,
        )
        self.config = model_config(self.tokenizer, settings.sizes)
        self.model = Qwen3VL(Qwen3VLConfig.from_dict(self.config), dtype=jnp.bfloat16)
        self.optimizer = make_optimizer(settings)
        self.names = len(self.source.names)
        self.places = {grid: self._places(grid) for grid in settings.grids}

    def _places(self, grid: tuple[int, int]) -> tuple[Any, dict[int, np.ndarray]]:
        """The tower's layout for a grid, and the prompt's positions [2, 3, T] for both lengths."""
        thw = np.array([[1, grid[0] * 2, grid[1] * 2]])
        cells = grid[0] * grid[1]
        head = len(Coder.of(self.tokenizer).head) + 1
        positions = {}
        for T in (self.source.short, self.source.long):
            row = np.zeros((1, T), np.int32)
            text, _ = self.model.prompt_positions(row, np.zeros((0, 3), np.int64), np.array([T]))
            row[0, head : head + cells] = self.model.image_pad_id
            pictured, _ = self.model.prompt_positions(row, thw, np.array([T]))
            positions[T] = np.stack([text[:, 0], pictured[:, 0]])
        return self.model.vision_layout(thw, 4 * CELLS), positions

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
        pixels, shown = self.paint(batch, inputs, index)
        return update(self.model, self.optimizer, self.settings.seeing, state, inputs, pixels, shown, places)

    def compile(self, state: State) -> None:
        """Fill the compile cache for all grids and both lengths, in threads: in turn it takes minutes."""
        maker = Maker(self.source)
        every = self.source.long_every
        made = [maker.make(0, grid) for grid in self.source.grids]
        made.append(maker.make(every - 1, self.source.grids[0]))
        ready = [(batch, *self.inputs(batch)) for batch in made]
        paints = [self.paint(batch, inputs, 0, paint.lower) for batch, inputs, _ in ready[:-1]]
        pixels, shown = jax.eval_shape(partial(self.paint, *ready[0][:2], 0))
        static = (self.model, self.optimizer, self.settings.seeing, state)
        updates = [
            update.lower(*static, inputs, pixels, shown, places)
            for _, inputs, places in (ready[0], ready[-1])
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda lowered: lowered.compile(), updates + paints))


def train(run: Run, folder: Path, minutes: float = float("inf")) -> State:
    """Train to the last step, or for so many minutes; the checkpoint in `folder` is where it goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    state, log = _resume(run, folder)
    run.compile(state)
    began, first = time.monotonic(), int(state.step)
    shown_at, shown_step = began, first
    for index, batch in _numbered(run, first):
        state, found = run.update(state, batch, index)
        done = index + 1
        if done % 50 == 0 or done in (1, 10, run.settings.steps):
            values = {k: float(v) for k, v in found.items()}
            now = time.monotonic()
            values["scenes/s"] = (done - shown_step) * run.settings.batch / (now - shown_at)
            shown_at, shown_step = now, done
            log.append({"step": done, "length": int(batch.tokens.shape[1]), **values})
            if done % 200 == 0 or done <= 100:
                print(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
            if not np.isfinite(values["answer"]):
                raise FloatingPointError(f"step {done}: the loss is not finite")
        if time.monotonic() - began > minutes * 60:
            break
    _save(folder, state, log)
    return state


def _numbered(run: Run, first: int) -> Iterator[tuple[int, Batch]]:
    made = batches(run.source, first, run.settings.steps, run.settings.workers)
    return enumerate(made, first)


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


def plot(folder: Path) -> None:
    """The losses over the steps, as `loss.png`."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (only this needs it)

    log = json.loads((folder / "log.json").read_text())
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("answer", "cells"):
        left.plot([e["step"] for e in log], [e[name] for e in log], label=f"{name} loss", linewidth=0.8)
        right.plot(
            [e["step"] for e in log], [e[f"{name} right"] for e in log], label=f"{name} right", linewidth=0.8
        )
    left.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.legend()
    figure.savefig(folder / "loss.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the checkpoint that ships.")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps, for a CPU")
    parser.add_argument("--steps", type=int, help="length of the whole run")
    parser.add_argument(
        "--start", type=Path, help="a checkpoint to begin with, its weights and its tokenizer"
    )
    parser.add_argument("--learning-rate", type=float, help="the highest one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop early, to go on later")
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
        learning_rate=given.learning_rate or settings.learning_rate,
    )
    jax.config.update("jax_compilation_cache_dir", str(given.out / "compiled"))
    run = Run(settings, load_pack(styles=TRAINING_STYLES))
    state = train(run, given.out, given.minutes)
    plot(given.out)
    if int(state.step) == settings.steps:
        folder = given.export or (given.out / "model" if given.smoke else EMBEDDED)
        export(folder, run.model, state.params["model"], run.tokenizer, run.config)
        print(f"wrote {folder}")


if __name__ == "__main__":
    main()
