"""Training batches, made on the host in worker processes: batch i is the same wherever it is made."""

import multiprocessing
import os
import random
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from train.language import turn, without_picture
from train.questions import World
from train.scenes import BACKGROUNDS, CELLS, FEW, GRIDS, LARGE_GRIDS, SLOTS, Catalogue, Scene, room, scene
from train.tokenizer import Coder


class Pictures(NamedTuple):
    """`train.compose.Layout`, as numpy arrays."""

    art: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    background: np.ndarray
    rgb: np.ndarray


class Batch(NamedTuple):
    """A batch: all pictures of one grid, one exchange each."""

    grid: tuple[int, int]
    crowded: int  # rows that may hold more than FEW things
    pictures: Pictures
    label: np.ndarray  # [B, K] which name each slot bears; -1: none
    tokens: np.ndarray  # [B, T] int32, right padded
    prompts: np.ndarray  # [B] tokens of the user's part
    lengths: np.ndarray  # [B] tokens in all
    has_picture: np.ndarray  # [B]
    vision_rows: np.ndarray  # [B * room] which picture tokens there are, in order: row * room + cell


@dataclass(frozen=True)
class Source:
    """All that a batch is made from. `art_rows[style][thing]` is the picture's row in the art."""

    world: World
    catalogue: Catalogue
    art_rows: np.ndarray
    tokenizer: str
    batch_size: int
    long_every: int = 8  # batches of stories among the others
    crowded: float = 0.25
    small: float = 0.25
    close: float = 0.1
    repeating: tuple[float, float] = (0.2, 0.7)  # of scenes with few things and of the crowded ones
    without_picture: float = 0.03
    grids: Mapping[tuple[int, int], int] = field(default_factory=lambda: GRIDS)
    large_grids: Mapping[tuple[int, int], int] = field(default_factory=lambda: LARGE_GRIDS)
    large_from: int = 2**31  # from this batch on, half of them have pictures of the large grids
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """The names that the things bear, each once."""
        return sorted({t.name for t in self.world.things})

    def grids_of(self, index: int) -> Mapping[tuple[int, int], int]:
        return {**self.grids, **self.large_grids} if index >= self.large_from else self.grids

    def is_long(self, index: int) -> bool:
        return index % self.long_every == self.long_every - 1


def row_length(grid: tuple[int, int], long: bool) -> int:
    """Length of a batch's rows: room for the picture and most answers, or a story."""
    return room(grid) + (320 if long else 64)


def lay_out(scenes: list[Scene], art_rows: np.ndarray) -> Pictures:
    """Scenes as arrays, SLOTS wide."""
    shape = (len(scenes), SLOTS)
    art, x, y = np.full(shape, -1, np.int32), np.full(shape, 0.5, np.float32), np.full(shape, 0.5, np.float32)
    size = np.full(shape, 0.1, np.float32)
    for i, s in enumerate(scenes):
        for k, p in enumerate(s.placed):
            art[i, k], x[i, k], y[i, k], size[i, k] = art_rows[p.style, p.thing], p.x, p.y, p.size
    return Pictures(
        art,
        x,
        y,
        size,
        np.array([BACKGROUNDS.index(s.background) for s in scenes], np.int32),
        np.array([s.rgb for s in scenes], np.float32),
    )


class Maker:
    """Makes batches by number."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.coder = Coder.of(Tokenizer.from_str(source.tokenizer))
        number = {name: i for i, name in enumerate(source.names)}
        self.numbers = np.array([number[t.name] for t in source.world.things])

    def make(self, index: int, grid: tuple[int, int] | None = None) -> Batch:
        """Batch `index`, of the grid that falls to it or of a given one."""
        s = self.source
        rng = random.Random(f"{s.seed}-{index}")
        shapes = s.grids_of(index)
        grid = grid or rng.choices(list(shapes), list(shapes.values()))[0]
        long = s.is_long(index)
        cells = grid[0] * grid[1]
        size = s.batch_size * CELLS[0] // room(grid)  # larger pictures, fewer of them
        crowded = int(size * s.crowded)
        tokens = np.full((size, row_length(grid, long)), self.coder.pad, np.int32)
        prompts, lengths = np.zeros(size, np.int32), np.zeros(size, np.int32)
        has_picture = np.array([rng.random() >= s.without_picture for _ in range(size)])
        scenes, label = [], np.full((size, SLOTS), -1, np.int32)
        for i in range(size):
            most, repeating = (SLOTS, s.repeating[1]) if i < crowded else (FEW, s.repeating[0])
            scenes.append(
                scene(rng, s.catalogue, grid, most, small=s.small, close=s.close, repeating=repeating)
            )
            rows = [p.thing for p in scenes[-1].placed]
            label[i, : len(rows)] = self.numbers[rows]
            ids, prompts[i] = self._exchange(
                rng, scenes[-1], long, cells if has_picture[i] else 0, tokens.shape[1]
            )
            tokens[i, : len(ids)], lengths[i] = ids, len(ids)
        seen = (np.flatnonzero(has_picture)[:, None] * room(grid) + np.arange(cells)).reshape(-1)
        vision_rows = np.zeros(size * room(grid), np.int32)
        vision_rows[: len(seen)] = seen
        pictures = lay_out(scenes, s.art_rows)
        return Batch(grid, crowded, pictures, label, tokens, prompts, lengths, has_picture, vision_rows)

    def _exchange(
        self, rng: random.Random, made: Scene, long: bool, cells: int, room: int
    ) -> tuple[list[int], int]:
        while True:
            said = (
                turn(rng, made, self.source.world, long=long)
                if cells
                else without_picture(rng, self.source.world.things)
            )
            ids, prompt = self.coder.encode(said, cells)
            if len(ids) <= room:
                return ids, prompt


_maker: list[Maker] = []


def _start(source: Source) -> None:
    _maker[:] = [Maker(source)]


def _make(index: int) -> Batch:
    return _maker[0].make(index)


def batches(source: Source, first: int, last: int, workers: int | None = None) -> Iterator[Batch]:
    """Batches `first` to `last - 1` in order, made ahead by worker processes (0 workers: made here).

    The processes begin at once, not with the first batch that is asked for.
    """
    workers = max(1, (os.cpu_count() or 2) - 1) if workers is None else workers
    if not workers:
        return map(Maker(source).make, range(first, last))
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start, initargs=(source,))
    numbers = iter(range(first, last))
    waiting = deque(pool.submit(_make, index) for index in islice(numbers, 3 * workers))
    return _in_order(pool, numbers, waiting)


def _in_order(pool: ProcessPoolExecutor, numbers: Iterator[int], waiting: deque) -> Iterator[Batch]:
    with pool:
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(_make, index) for index in islice(numbers, 1))
            yield made
