"""Products of a few rows with a large matrix, `[out, in]`: what comes before and behind is part of the kernel.

Each program has some rows of the weights, which are read once. One row of activations is multiplied on the
ordinary cores, several on the tensor cores. Roundings are those of the layer: to the activations' dtype behind
the norm, the product, and the sum.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from models.kernels.launch import launch

_FEWEST = 16  # rows of a product on tensor cores


class Tiles(NamedTuple):
    """How a product is cut: `rows` of the weights for each program, `width` of them at once."""

    rows: int
    width: int
    warps: int
    stages: int


def product(
    x: Float[Array, "B I"], weight: Float[Array, "O I"], scale: Float[Array, "I"], eps: float
) -> Float[Array, "B O"]:
    """`rms_norm(x) @ weight.T`."""
    return _launch(partial(_normed, eps), _as_it_is, 1, x, weight, scale)


def onto(residual: Float[Array, "B O"], x: Float[Array, "B I"], weight: Float[Array, "O I"]) -> Float[Array, "B O"]:
    """`residual + x @ weight.T`."""
    return _launch(_unnormed, _added, 1, x, weight, residual)


def gated(
    x: Float[Array, "B I"], weight: Float[Array, "twice_O I"], scale: Float[Array, "I"], eps: float
) -> Float[Array, "B O"]:
    """`silu(rms_norm(x) @ gate.T) * (rms_norm(x) @ up.T)`, with the weights of both below one another."""
    return _launch(partial(_normed, eps), _gated, 2, x, weight, scale)
