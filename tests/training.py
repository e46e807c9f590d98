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
    """Things of different kinds, each a square of its own colour in one style of the training's."""
    rng = np.random.default_rng(0)
    art = np.zeros((count, SIZE, SIZE, 4), np.uint8)
    art[:, 16:-16, 16:-16, :3] = rng.integers(0, 255, (count, 1, 1, 3))
    art[:, 16:-16, 16:-16, 3] = 255
    kept = {t.name: t for t in named_things()}
    return Pack(tuple(kept.values())[::70][:count], {"noto": art}, {"noto": np.ones(count, bool)})
