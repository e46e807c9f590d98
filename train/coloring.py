"""One-colour icons coloured in, as if with a few felt pens: ink of one colour, and in its gaps others."""

import colorsys
import random

import numpy as np
from PIL import Image
from scipy import ndimage

_SOLID = 0.6  # share of ink in the whole shape from which an icon is a silhouette rather than a line drawing
_SMALLEST = 12  # pixels of a gap; smaller ones are the edges' own


def color_in(icon: Image.Image, rng: random.Random) -> Image.Image:
    """An icon drawn with its alpha alone: gaps that the ink closes off are filled, each in one colour.

    One in five stays as it is, in ink of some colour.
    """
    ink = np.asarray(icon)[..., 3] / 255.0
    gaps = np.zeros((ink.shape[0] + 2, ink.shape[1] + 2), np.int32)
    ndimage.label(np.pad(ink < 0.5, 1, constant_values=True), output=gaps)
    gaps = np.where(gaps == gaps[0, 0], 0, gaps)[1:-1, 1:-1]
    inside = gaps > 0
    solid = (ink >= 0.5).sum() > _SOLID * ((ink >= 0.5) | inside).sum()
    pen = _color(rng) if solid or rng.random() < 0.2 else _dark(rng)
    fill, alpha = np.zeros((*ink.shape, 3)), ink.copy()
    if rng.random() < 0.8:
        pens = [(1.0, 1.0, 1.0) if rng.random() < 0.3 else _color(rng) for _ in range(rng.randint(1, 3))]
        for gap in range(1, int(np.max(gaps)) + 1):
            where = gaps == gap
            if where.sum() >= _SMALLEST:
                where = np.asarray(ndimage.binary_dilation(where), bool)  # under the soft edge of the ink
                fill[where] = rng.choice(pens)
                alpha[where] = 1.0
    color = fill + (np.array(pen) - fill) * np.where(alpha > ink, ink, 1.0)[..., None]
    whole = np.concatenate([color, alpha[..., None]], -1)
    return Image.fromarray((whole * 255).round().astype(np.uint8), "RGBA")


def _color(rng: random.Random) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.25, 0.9), rng.uniform(0.6, 1.0))


def _dark(rng: random.Random) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.6), rng.uniform(0.0, 0.3))
