"""What stands where: scenes drawn at random on the host, before anything is painted or said."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SLOTS = 6  # things in a scene, at most
FEW = 3
SMALLEST, SMALL, LARGEST = 0.1, 0.2, 0.9  # side of a thing over the shorter side of the picture

# Rows and columns of 32 x 32 pixel cells, and how often: what the preprocessor makes of pictures from 1:3 to
# 3:1. Up to 64 cells (about 256 x 256 pixels) for most of the training; at its end up to 144 (384 x 384) too.
GRIDS = {
    (8, 8): 40, (7, 8): 10, (7, 9): 8, (6, 9): 16, (9, 6): 9, (6, 10): 7, (5, 11): 4, (4, 13): 3, (13, 4): 3,
}  # fmt: skip
LARGE_GRIDS = {
    (12, 12): 30, (10, 13): 9, (13, 10): 5, (9, 14): 6, (14, 9): 10, (9, 15): 7, (9, 16): 4, (16, 9): 4,
    (8, 16): 3, (6, 20): 4, (20, 6): 4, (10, 10): 6, (9, 11): 3, (11, 9): 3, (5, 17): 2,
}  # fmt: skip
CELLS = (64, 144)  # what the pictures of a batch are padded to


def room(grid: tuple[int, int]) -> int:
    """Cells that a batch with this grid is padded to."""
    return next(cells for cells in CELLS if grid[0] * grid[1] <= cells)


DRAWN = (
    "sky", "grass", "sea", "desk", "night", "snow", "city", "room", "forest", "runway", "beach", "hills",
)  # fmt: skip
BACKGROUNDS = ("plain", "gradient", *DRAWN)

# Hue in degrees, saturation and value in percent: a middle, and how far around it the name still holds.
COLORS = {
    "white": ((0, 360), (0, 4), (95, 100)),
    "gray": ((0, 360), (0, 6), (40, 72)),
    "black": ((0, 360), (0, 25), (0, 14)),
    "red": ((-8, 8), (70, 100), (65, 95)),
    "orange": ((20, 36), (75, 100), (88, 100)),
    "yellow": ((48, 58), (60, 100), (90, 100)),
    "green": ((95, 150), (45, 100), (40, 85)),
    "turquoise": ((168, 186), (50, 100), (60, 92)),
    "blue": ((205, 238), (55, 100), (50, 98)),
    "light blue": ((192, 215), (15, 38), (90, 100)),
    "purple": ((265, 290), (45, 90), (45, 85)),
    "pink": ((322, 350), (18, 50), (92, 100)),
    "brown": ((16, 32), (45, 75), (28, 55)),
    "beige": ((32, 48), (12, 30), (86, 97)),
}


class Placed(NamedTuple):
    """A thing: its row of the art, the centre over the picture's sides, its side over the shorter one."""

    thing: int
    style: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Things on a background; `colors` and `rgb` (0 to 1) are those of a plain one or a gradient."""

    placed: tuple[Placed, ...]
    background: str
    colors: tuple[str, str]
    rgb: tuple[tuple[float, float, float], tuple[float, float, float]]
    grid: tuple[int, int]


class Catalogue(NamedTuple):
    """Which things there are to place: `styles[i]` lists the styles that have art of thing i.

    `weights[style]` says how often a style is drawn where a thing has several.
    """

    names: Sequence[str]
    styles: Sequence[Sequence[int]]
    weights: Sequence[float]

    def style(self, rng: random.Random, thing: int) -> int:
        styles = self.styles[thing]
        return rng.choices(styles, [self.weights[s] for s in styles])[0]


def scene(
    rng: random.Random,
    catalogue: Catalogue,
    grid: tuple[int, int],
    most: int = FEW,
    *,
    least: int = 1,
    largest: float = LARGEST,
    overlap: float = 0.3,
    inside: float = 0.05,
    small: float = 0.0,
    close: float = 0.0,
    repeating: float | None = None,
) -> Scene:
    """A scene of `least` to `most` things; some repeat a thing, so that there is something to count.

    Args:
        largest: the side of the largest thing over the shorter side of the picture.
        overlap: the share of scenes in which a thing may stand well in front of another.
        inside: the share of scenes in which a thing stands inside the largest one.
        small: the share of things that are among the smallest.
        close: the share of scenes in which a thing takes most of the picture.
        repeating: the share of scenes of several things in which one repeats; None: 15 %, or 60 % of those
            with more than `FEW` things.
    """
    if repeating is None:
        repeating = 0.15 if most <= FEW else 0.6
    things = _things(rng, catalogue, rng.randint(least, most), repeating)
    common = catalogue.style(rng, things[0])
    mixed = rng.random() < 0.3
    styles = [
        common if common in catalogue.styles[t] and not mixed else catalogue.style(rng, t) for t in things
    ]
    apart = rng.uniform(0.22, 0.46) if rng.random() < overlap else 0.46
    boxes = _boxes(rng, len(things), grid, largest, apart, small, close)
    if len(things) > 1 and rng.random() < inside:
        boxes[1] = _within(rng, boxes[0], grid)
    background = rng.choice(("plain", "gradient")) if rng.random() < 0.35 else rng.choice(DRAWN)
    colors = tuple(rng.sample(list(COLORS), 2))
    return Scene(
        tuple(Placed(t, s, *b) for t, s, b in zip(things, styles, boxes, strict=True)),
        background,
        (colors[0], colors[1]),
        (_color(rng, colors[0]), _color(rng, colors[1])),
        grid,
    )


def _things(rng: random.Random, catalogue: Catalogue, count: int, repeating: float) -> list[int]:
    """Rows of the catalogue; two rows that share a name are never placed as if they were two things."""
    repeats = rng.randint(2, count) if count > 1 and rng.random() < repeating else 1
    chosen: dict[str, int] = {}
    while len(chosen) < count - repeats + 1:
        row = rng.randrange(len(catalogue.names))
        if catalogue.styles[row]:
            chosen.setdefault(catalogue.names[row], row)
    rows = list(chosen.values())
    things = [rows[0]] * repeats + rows[1:]
    rng.shuffle(things)
    return things


def _boxes(
    rng: random.Random,
    count: int,
    grid: tuple[int, int],
    largest: float,
    apart: float,
    small: float,
    close: float,
) -> list[tuple[float, float, float]]:
    """Centres and sizes, largest first, each shrunk until it stands `apart` (0.5: no overlap)."""
    height, width = grid[0] / min(grid), grid[1] / min(grid)
    usual = largest if count < 3 else min(largest, 0.9 / count**0.5)
    sizes = [rng.uniform(SMALLEST, SMALL if small and rng.random() < small else usual) for _ in range(count)]
    if rng.random() < 0.25:
        sizes[0] = rng.uniform(SMALLEST, largest)
    if close and rng.random() < close:
        sizes[0] = rng.uniform(0.7, 1.0) * largest
    boxes: list[tuple[float, float, float]] = []
    for size in sorted(sizes, reverse=True):
        for attempt in range(200):
            side = max(size * 0.97**attempt, SMALLEST)
            x, y = rng.uniform(side / 2, width - side / 2), rng.uniform(side / 2, height - side / 2)
            if all(max(abs(x - a), abs(y - b)) > apart * (side + s) for a, b, s in boxes):
                break
        boxes.append((x, y, side))
    return [(x / width, y / height, side) for x, y, side in boxes]


def _within(
    rng: random.Random, box: tuple[float, float, float], grid: tuple[int, int]
) -> tuple[float, float, float]:
    """A small box inside another."""
    height, width = grid[0] / min(grid), grid[1] / min(grid)
    x, y, side = box
    size = max(side * rng.uniform(0.3, 0.42), SMALLEST)
    room = max(side - size, 0) * 0.35
    return x + rng.uniform(-room, room) / width, y + rng.uniform(-room, room) / height, size


def _color(rng: random.Random, name: str) -> tuple[float, float, float]:
    hue, saturation, value = (rng.uniform(*limits) for limits in COLORS[name])
    return _rgb(hue % 360 / 60, saturation / 100, value / 100)


def _rgb(sector: float, saturation: float, value: float) -> tuple[float, float, float]:
    def channel(n: int) -> float:
        k = (n + sector) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1.0))

    return channel(5), channel(3), channel(1)
