"""A few rows times a large matrix `[out, in]`, with what comes before and behind it.

All time goes into reading the matrix. One row's product is one kernel: each program has some of the matrix's
rows, and their first weights are on the way before the row is read. Several rows' are left to XLA, whose
products measured faster than ours (benchmarks/README.md), but in parts, which the next kernel sums. Roundings
are those of the layer: to the activations' dtype behind the norm, the product and the sum.
"""

from functools import partial
from math import gcd
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from models.blocks import rms_norm
from models.kernels.launch import launch
from models.kernels.sums import sum_and_norm


class Tiles(NamedTuple):
    """How a product is cut: `rows` of the matrix for each program, `width` of their weights at a time."""

    rows: int
    width: int
    warps: int


USUAL = Tiles(8, 512, 4)
TILES = {  # measured on an H200, by kind and columns of the matrix
    ("product", 2048): Tiles(4, 512, 4),
    ("gated", 2048): Tiles(2, 1024, 4),
    ("onto", 2048): Tiles(2, 2048, 8),
    ("onto", 6144): Tiles(2, 1024, 4),
    ("product", 4096): Tiles(16, 512, 4),
    ("gated", 4096): Tiles(2, 1024, 4),
    ("onto", 4096): Tiles(16, 2048, 8),
    ("onto", 12288): Tiles(16, 512, 8),
}
_MOST_PARTS = 8


class Hidden(NamedTuple):
    """What a layer's products read: rows and their RMS norm, which the kernels of one row make themselves."""

    rows: Float[Array, "B D"]
    normed: Float[Array, "B D"]
    scale: Float[Array, "D"]


def hidden(rows: Float[Array, "B D"], scale: Float[Array, "D"], eps: float) -> Hidden:
    """With the norm in plain JAX, which costs nothing where nobody reads it."""
    return Hidden(rows, rms_norm(rows, scale, eps), scale)


def product(x: Hidden, weight: Float[Array, "O I"], eps: float) -> Float[Array, "parts B O"]:
    """`x.normed @ weight.T`, as parts of the sum."""
    if len(x.rows) == 1:
        return _launch("product", 1, eps, x.rows, x.scale, weight)[None]
    return _in_parts(x.normed, weight)


def gated(x: Hidden, weight: Float[Array, "twice_O I"], eps: float) -> Float[Array, "B O"]:
    """`silu(x.normed @ gate.T) * (x.normed @ up.T)`; `weight` is `gate` above `up`."""
    if len(x.rows) == 1:
        return _launch("gated", 2, eps, x.rows, x.scale, weight)
    gate, up = jnp.split(jnp.matmul(x.normed, weight.T), 2, axis=1)
    return nn.silu(gate) * up


def onto(
    residual: Float[Array, "B O"],
    x: Float[Array, "B I"],
    weight: Float[Array, "O I"],
    scale: Float[Array, "O"],
    eps: float,
) -> Hidden:
    """`residual + x @ weight.T`; `scale` is that of the norm behind it."""
    if len(x) == 1:
        return hidden(_launch("onto", 1, None, x, residual, weight), scale, eps)
    return Hidden(*sum_and_norm(residual, _in_parts(x, weight), scale, eps), scale)


def _in_parts(x: Float[Array, "B I"], weight: Float[Array, "O I"]) -> Float[Array, "parts B O"]:
    """`x @ weight.T` of equal parts of the inputs, unsummed: as many as XLA would take, and sum by itself."""
    outputs, inputs = weight.shape
    parts = 1
    while parts < _MOST_PARTS and 2 * parts * outputs <= _MOST_PARTS * inputs:
        parts *= 2
    x, weight = x.reshape(len(x), parts, -1), weight.reshape(outputs, parts, -1)
    return jnp.einsum("bpi,opi->pbo", x, weight, preferred_element_type=jnp.float32)


def _launch(kind: str, parts: int, eps: float | None, x: Array, extra: Array, weight: Array) -> Array:
    outputs, inputs = weight.shape[0] // parts, weight.shape[1]
    rows, width, warps = TILES.get((kind, inputs), USUAL)
    tiles = Tiles(gcd(rows, outputs), gcd(width, inputs), warps)
    return launch(
        partial(_program, tiles, parts, eps),
        jax.ShapeDtypeStruct((1, outputs), x.dtype),
        (outputs // tiles.rows,),
        x.reshape(-1),
        extra.reshape(-1),
        weight,
        warps=warps,
    )


def _program(tiles: Tiles, parts: int, eps: float | None, x: Any, extra: Any, weight: Any, out: Any) -> None:
    """Some outputs. `extra` is the scale of the norm where there is an `eps`, and else the residual."""
    outputs, inputs = out.shape[1], weight.shape[1]
    own = pl.program_id(0) * tiles.rows
    columns = [pl.ds(start, tiles.width) for start in range(0, inputs, tiles.width)]

    def weights(column: Any) -> list[Array]:
        return [
            triton.load(weight.at[pl.ds(part * outputs + own, tiles.rows), column]) for part in range(parts)
        ]

    ahead = weights(columns[0])
    row = [x[column].astype(jnp.float32) for column in columns]
    if eps is not None:
        factor = jax.lax.rsqrt(sum((part * part).sum() for part in row) / inputs + eps)
        scales = [extra[column] for column in columns]
        row = [
            ((part * factor).astype(x.dtype) * scale).astype(jnp.float32)
            for part, scale in zip(row, scales, strict=True)
        ]
    sums = [jnp.zeros((tiles.rows, tiles.width)) for _ in range(parts)]
    for i, part in enumerate(row):
        found = ahead if i == 0 else weights(columns[i])
        sums = [total + w.astype(jnp.float32) * part[None] for total, w in zip(sums, found, strict=True)]
    rounded = [total.sum(1).astype(x.dtype).astype(jnp.float32) for total in sums]
    if parts == 2:
        made = rounded[0] / (1 + jnp.exp(-rounded[0])) * rounded[1]
    elif eps is None:
        made = rounded[0] + extra[pl.ds(own, tiles.rows)].astype(jnp.float32)
    else:
        made = rounded[0]
    out[0, pl.ds(own, tiles.rows)] = made.astype(out.dtype)
