"""Fresh test scenes, painted without training's variations and stored as a user's pictures would be."""

import io
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32
from PIL import Image

from train.art import Pack
from train.batches import lay_out
from train.compose import Layout, Variation, compose, premultiplied
from train.groups import Group, groups
from train.questions import Turn, World
from train.scenes import FEW, Catalogue, Scene, scene
from train.things import Thing

LARGEST = 2 / 3  # side of the largest thing over the shorter side of the picture
SIDES = (256, 1024)  # pixels of the longer side; the shorter one is at least 128
# Rows and columns of 32 x 32 pixels that scenes are painted on, from 1:3 to 3:1, before they are scaled.
_SHAPES = ((16, 16), (12, 16), (18, 12), (8, 24), (24, 8), (12, 21))
_TOGETHER = 20  # pictures painted at once


class Case(NamedTuple):
    """A picture, a question and what was placed."""

    picture: bytes  # JPEG
    turn: Turn
    things: tuple[Thing, ...]  # each name once


class Painter:
    """Paints scenes of a pack's art in given styles; `art` is that art where it is on the device already."""

    def __init__(self, pack: Pack, art: UInt32[Array, "N S S"] | None = None) -> None:
        self.things, self.world = pack.things, World.of(pack.things)
        self.styles = list(pack.rows)
        self.art = premultiplied(pack.art) if art is None else art
        self.art_rows = np.stack(list(pack.rows.values()))
        self._paint = jax.jit(compose, static_argnums=(3, 4, 5))

    def catalogue(self, styles: Iterable[str]) -> Catalogue:
        """Only the things and styles that have art."""
        kept = [i for i, s in enumerate(self.styles) if s in set(styles)]
        return Catalogue(
            [t.name for t in self.things],
            [[k for k in kept if column[k] >= 0] for column in self.art_rows.T],
            [1.0] * len(self.styles),
        )

    def cases(
        self,
        seed: str,
        number: int,
        styles: Iterable[str],
        ask: Callable[[random.Random, Scene, list[Group], World], Turn | None],
        least: int = 1,
        most: int = 3,
    ) -> list[Case]:
        """Scenes of `least` to `most` things for which `ask` has a question."""
        rng = random.Random(f"evaluation-{seed}")
        catalogue = self.catalogue(styles)
        scenes, turns = [], []
        while len(scenes) < number:
            shape = _SHAPES[len(scenes) // _TOGETHER % len(_SHAPES)]
            made = scene(rng, catalogue, shape, most, least=least, largest=LARGEST, overlap=0.1)
            turn = ask(rng, made, groups(made, self.things), self.world)
            if turn is not None:
                scenes.append(made)
                turns.append(turn)
        pictures = [_jpeg(p, rng) for p in self.paint(scenes, rng.randrange(2**31))]
        things = [tuple(g.thing for g in groups(s, self.things)) for s in scenes]
        return [Case(*c) for c in zip(pictures, turns, things, strict=True)]

    def paint(self, scenes: Sequence[Scene], seed: int) -> list[Image.Image]:
        """The scenes, twenty by twenty; those of a twenty are of one shape."""
        pictures, together = [], min(_TOGETHER, len(scenes))
        for start in range(0, len(scenes), together):
            part = list(scenes[start : start + together])
            part += [part[-1]] * (together - len(part))
            layout = Layout(*map(jnp.asarray, lay_out(part, self.art_rows)))
            key = jax.random.key(seed + start, impl="rbg")
            plain = Variation(art=0.0, picture=0.0)
            crowded = together if any(len(s.placed) > FEW for s in part) else 0
            painted, _ = self._paint(self.art, layout, key, part[0].grid, crowded, plain)
            pictures += [Image.fromarray(p) for p in (np.asarray(painted) * 255).round().astype(np.uint8)]
        return pictures[: len(scenes)]


def _jpeg(picture: Image.Image, rng: random.Random) -> bytes:
    """Scaled to some size, and stored in some quality."""
    longer, shorter = max(picture.size), min(picture.size)
    side = max(rng.uniform(*SIDES), 128 * longer / shorter)
    size = (round(picture.width * side / longer), round(picture.height * side / longer))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=rng.randint(70, 95))
    return buffer.getvalue()
