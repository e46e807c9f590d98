"""A run from its settings to its last step, which goes on from its checkpoint where it was cut short."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from models.config import Qwen3VLConfig
from models.qwen3_vl import Qwen3VL
from models.weights import load_params
from train.art import Pack
from train.art_sets import ICON_STYLES, TRAINING_STYLES
from train.batches import Batch, Maker, Source, batches, row_length
from train.compose import Layout, Variation, premultiplied
from train.model import model_config
from train.questions import World
from train.scenes import GRIDS, LARGE_GRIDS, Catalogue, room
from train.step import Inputs, State, make_optimizer, paint, update
from train.tokenizer import Coder, corpus, train_tokenizer

_SAVE_EVERY = 180.0  # seconds
_ICON_WEIGHT = 0.5  # of a set of icons, beside 1 for a whole set of emoji
_VARIATION = Variation()
# Words that say whether a picture was understood, where most others are a choice of wording.
_TELLING = (
    "yes", "no", "left", "right", "above", "below", "top", "bottom", "middle",
    "one", "two", "three", "four", "five", "six",
)  # fmt: skip


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
        self.optimizer = make_optimizer(settings.optimizer, settings.weight_decay)
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
