"""Things and art for the tests of the recipe, made without a network."""

import numpy as np

from train.art import SIZE, Pack
from train.things import Thing, read_namings


def named_things() -> tuple[Thing, ...]:
    """All things of things.txt, without what only the emoji data knows."""
    return tuple(
        Thing(n.emoji, n.emoji, n.emoji, n.name, n.plural, n.article, n.synonyms, n.kind, "", "")
        for n in read_namings()
    )


def synthetic_pack(count: int = 8) -> Pack:
    """Things of different kinds, each a square of its own colour, in a style of each sort."""
    rng = np.random.default_rng(0)
    art = np.zeros((count, SIZE, SIZE, 4), np.uint8)
    art[:, 16:-16, 16:-16, :3] = rng.integers(0, 255, (count, 1, 1, 3))
    art[:, 16:-16, 16:-16, 3] = 255
    kept = {t.name: t for t in named_things()}
    styles = ("noto", "game-icons", "openmoji")
    return Pack(tuple(kept.values())[::70][:count], art, dict.fromkeys(styles, np.arange(count)))
