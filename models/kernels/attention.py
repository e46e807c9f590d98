"""Attention of one new token per row over the filled part of the cache, which it is written to.

Rows, key heads and splits of the filled slots are programs of one kernel, so that a single row fills a GPU
too; a second one joins the splits. Source: Flash-Decoding (Dao et al., 2023), online softmax as in
arXiv:2205.14135.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from models.kernels.choice import SLOTS
from models.kernels.launch import launch

_PROGRAMS = 512  # about four for each of a GPU's processors
_FEWEST = 16  # rows of a product on tensor cores
_MASKED = -1e30


class _Shape(NamedTuple):
    kv_heads: int
    group: int  # query heads to a key head
    head_dim: int
    splits: int


def decode_attention(
    qkv: Float[Array, "parts B projected"],
    norms: tuple[Float[Array, "d"], Float[Array, "d"]] | None,
    angles: Float[Array, "B half"],
    filled: Int[Array, "B"],
    keys: Float[Array, "B H d S"],
    values: Float[Array, "B H S d"],
    eps: float,
) -> tuple[Float[Array, "B mixed"], Float[Array, "B H d S"], Float[Array, "B H S d"]]:
    """Norm, rotate and store the new token's key and value, and mix the values that its queries see.

    Args:
        qkv: queries, keys and values of one token a row, as projected, head by head, in parts to be summed.
        norms: the scales of the RMS norms of queries and of keys, for families that have them.
        angles: of the rotation, in radians.
        filled: each row's filled slots; the new key and value go into the next one.

    Returns:
        The heads' mixed values side by side, and the two buffers, written in place where they are donated.
    """
    B, H, D, _ = keys.shape
    heads = qkv.shape[2] // D
    shape = _Shape(H, (heads - 2 * H) // H, D, _splits(B * H))
    partial_shape = (B, heads - 2 * H, shape.splits)
    out = (
        jax.ShapeDtypeStruct(keys.shape, keys.dtype),
        jax.ShapeDtypeStruct(values.shape, values.dtype),
        jax.ShapeDtypeStruct((*partial_shape, D), jnp.float32),
        jax.ShapeDtypeStruct((*partial_shape, 2), jnp.float32),
    )
    ones = jnp.ones(D, keys.dtype)
    keys, values, mixed, sums = launch(
        partial(_attend, shape, eps if norms else None),
        out,
        (B, H, shape.splits),
        qkv.reshape(-1, B, heads, D),
        *(norms or (ones, ones)),
        jnp.cos(angles),
        jnp.sin(angles),
        filled,
        keys,
        values,
        warps=4,
        stages=2,
        aliases={6: 0, 7: 1},
    )
    joined = launch(
        partial(_join, shape.splits, D),
        jax.ShapeDtypeStruct((B, (heads - 2 * H) * D), keys.dtype),
        (B, heads - 2 * H),
        mixed,
        sums,
        warps=4,
    )
    return joined, keys, values


def _splits(programs: int) -> int:
    """A power of two, so that one split's programs times the splits fill the device."""
    splits = 1
    while programs * splits * 2 <= _PROGRAMS and splits < 32:
        splits *= 2
    return splits


def _attend(shape: _Shape, eps: float | None, *refs: Any) -> None:
    qkv, q_scale, k_scale, cos, sin, filled, _, _, keys, values, mixed_out, sums_out = refs
    H, group, D, splits = shape
    row, head, split = (pl.program_id(axis) for axis in range(3))
    length, half = filled[row], D // 2
    low, high = jnp.arange(half), half + jnp.arange(half)
    padded = max(_FEWEST, pl.next_power_of_2(group))
    turn = partial(_turned, cos[row, :], sin[row, :], eps)

    blocks = (length + SLOTS - 1) // SLOTS
    each = (blocks + splits - 1) // splits
    start, end = split * each, jnp.minimum(split * each + each, blocks)

    def visible(i: Array) -> Array:
        own = (i >= start) & (i < end)
        return i * SLOTS + jnp.arange(SLOTS) < jnp.where(own, length, 0)

    def block(i: Array) -> tuple[Array, Array, Array]:
        at = pl.ds(i * SLOTS, SLOTS)
        seen = jnp.broadcast_to(visible(i)[:, None], (SLOTS, D))
        return (
            triton.load(keys.at[row, head, pl.ds(0, half), at]),
            triton.load(keys.at[row, head, pl.ds(half, half), at]),
            triton.load(values.at[row, head, at, pl.ds(0, D)], mask=seen, other=0),
        )

    first = jnp.minimum(start, keys.shape[3] // SLOTS - 1)  # of a split that has none: another's, unseen
    ahead = block(first)  # on its way while queries and key are made

    def projected(*at: Any) -> Array:
        parts = [triton.load(qkv.at[jnp.int32(part), row, *at]) for part in range(qkv.shape[0])]
        return jnp.asarray(sum(part.astype(jnp.float32) for part in parts), keys.dtype)

    def halves(heads: Array) -> tuple[Array, Array]:
        return projected(heads[:, None], low[None]), projected(heads[:, None], high[None])

    queries = head * group + jnp.minimum(jnp.arange(padded), group - 1)  # the last one again, as padding
    q_low, q_high = turn(*halves(queries), q_scale)
    k_low, k_high = turn(*halves(H * group + head + jnp.arange(1)), k_scale)
    value = projected(H * group + H + head, pl.ds(0, D))

    @pl.when(split == 0)
    def _() -> None:
        triton.store(keys.at[row, head, low, length], k_low.reshape(half))
        triton.store(keys.at[row, head, high, length], k_high.reshape(half))
        triton.store(values.at[row, head, length, pl.ds(0, D)], value)

    def float32(x: Array) -> Array:
        return x.astype(jnp.float32)

    own = (float32(q_low) * float32(k_low) + float32(q_high) * float32(k_high)).sum(1) * D**-0.5
    new = split == 0  # this one adds the new token itself; its slot is read by no one
    top = jnp.where(new, own, jnp.full((padded,), _MASKED))
    total = jnp.where(new, jnp.ones((padded,)), jnp.zeros((padded,)))
    mixed = jnp.where(new, jnp.broadcast_to(float32(value)[None], (padded, D)), jnp.zeros((padded, D)))

    def add(
        i: Array, seen: tuple[Array, Array, Array], carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        (low, high, v), (top, total, mixed) = seen, carry
        scores = jnp.where(visible(i)[None], (_dot(q_low, low) + _dot(q_high, high)) * D**-0.5, _MASKED)
        new_top = jnp.maximum(top, scores.max(1))
        weights, fade = jnp.exp(scores - new_top[:, None]), jnp.exp(top - new_top)
        update = _dot(weights.astype(v.dtype), v)
        return new_top, total * fade + weights.sum(1), mixed * fade[:, None] + update

    carry = add(first, ahead, (top, total, mixed))
    top, total, mixed = jax.lax.fori_loop(start + 1, end, lambda i, c: add(i, block(i), c), carry)
    heads, real = head * group + jnp.arange(padded), jnp.arange(padded) < group
    whole = jnp.broadcast_to(real[:, None], (padded, D))
    triton.store(mixed_out.at[row, heads[:, None], split, jnp.arange(D)[None]], mixed, mask=whole)
    triton.store(sums_out.at[row, heads, split, 0], top, mask=real)
    triton.store(sums_out.at[row, heads, split, 1], total, mask=real)


def _dot(a: Array, b: Array) -> Array:
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _turned(
    cos: Array, sin: Array, eps: float | None, low: Array, high: Array, scale: Any
) -> tuple[Array, Array]:
    """Both halves of heads behind their norm, if they have one, and the rotation; rounded as in the layer."""
    dtype, half = low.dtype, low.shape[1]
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    if eps is not None:
        squares = (low * low).sum(-1, keepdims=True) + (high * high).sum(-1, keepdims=True)
        factor = jax.lax.rsqrt(squares / (2 * half) + eps)
        low = ((low * factor).astype(dtype) * scale[pl.ds(0, half)]).astype(jnp.float32)
        high = ((high * factor).astype(dtype) * scale[pl.ds(half, half)]).astype(jnp.float32)
    return (low * cos - high * sin).astype(dtype), (high * cos + low * sin).astype(dtype)


def _join(splits: int, head_dim: int, mixed: Any, sums: Any, out: Any) -> None:
    row, head = pl.program_id(0), pl.program_id(1)
    at = jnp.arange(splits)
    top, total = triton.load(sums.at[row, head, at, 0]), triton.load(sums.at[row, head, at, 1])
    weights = jnp.exp(top - top.max())
    parts = triton.load(mixed.at[row, head, pl.ds(0, splits), pl.ds(0, head_dim)])
    joined = (parts * weights[:, None]).sum(0) / (total * weights).sum()
    out[row, pl.ds(head * head_dim, head_dim)] = joined.astype(out.dtype)
