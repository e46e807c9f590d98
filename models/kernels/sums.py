"""The residual sum behind a product of several rows, and the RMS norm that follows it, as one kernel.

Between two products both would be kernels of XLA's, and the sum of a product's parts a part of one of them.
Roundings are those of the layer: to the activations' dtype behind the product, the sum and the norm.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from models.kernels.launch import launch


def sum_and_norm(
    residual: Float[Array, "B D"], parts: Float[Array, "parts B D"], scale: Float[Array, "D"], eps: float
) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
    """`residual + parts.sum(0)`, and `rms_norm` of it."""
    out = jax.ShapeDtypeStruct(residual.shape, residual.dtype)
    grid = (len(residual),)
    return launch(partial(_program, eps), (out, out), grid, residual, parts, scale, warps=16)


def _program(eps: float, residual: Any, parts: Any, scale: Any, summed: Any, normed: Any) -> None:
    """One row."""
    row, width, dtype = pl.program_id(0), residual.shape[1], residual.dtype
    at = jnp.arange(pl.next_power_of_2(width))
    load, store = partial(triton.load, mask=at < width, other=0), partial(triton.store, mask=at < width)
    product = sum(load(parts.at[part, row, at]) for part in range(parts.shape[0]))
    total = jnp.asarray(product, dtype) + load(residual.at[row, at])
    store(summed.at[row, at], total)
    wide = total.astype(jnp.float32)
    factor = jax.lax.rsqrt((wide * wide).sum() / width + eps)
    store(normed.at[row, at], (wide * factor).astype(dtype) * load(scale.at[at]))
