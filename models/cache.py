"""The key/value cache: one buffer per layer, written in place where its owner donates it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.rope import rotate


class KVCache(NamedTuple):
    """Keys (already rotated) and values of all layers.

    A row's tokens fill its slots 0, 1, 2, ... without a gap; what lies behind them has no effect.
    """

    keys: tuple[Float[Array, "B H D S"], ...]  # transposed, as the product with queries reads them
    values: tuple[Float[Array, "B H S D"], ...]

    @classmethod
    def empty(
        cls, layers: int, batch: int, heads: int, slots: int, head_dim: int, dtype: DTypeLike
    ) -> "KVCache":
        """A cache of zeros, `layers` times two buffers."""
        keys = tuple(jnp.zeros((batch, heads, head_dim, slots), dtype) for _ in range(layers))
        values = tuple(jnp.zeros((batch, heads, slots, head_dim), dtype) for _ in range(layers))
        return cls(keys, values)


def write_keys(
    buffer: Float[Array, "rows H D S"],
    new: Float[Array, "B T H D"],
    start: int | Int[Array, "B"],
    row: int | Int[Array, ""] = 0,
) -> Float[Array, "rows H D S"]:
    """Store each row's T new keys from its own slot `start` on, or all rows' from one.

    `start + T` must not pass S.

    Args:
        row: the buffer's first of these rows; another than 0 only where `start` is one for all.
    """
    return _write(buffer, jnp.transpose(new, (0, 2, 3, 1)), lambda at: (0, 0, at), start, row)


def write_values(
    buffer: Float[Array, "rows H S D"],
    new: Float[Array, "B T H D"],
    start: int | Int[Array, "B"],
    row: int | Int[Array, ""] = 0,
) -> Float[Array, "rows H S D"]:
    """The same with values."""
    return _write(buffer, new.swapaxes(1, 2), lambda at: (0, at, 0), start, row)


def shift_slots(
    cache: KVCache, kept: Int[Array, "B"], dropped: Int[Array, "B"], angles: Float[Array, "B half"]
) -> KVCache:
    """Each row's slots behind its first `kept + dropped` move down behind the first `kept`.

    Args:
        angles: what turns the moved keys to their new positions, in radians.
    """
    S = cache.values[0].shape[2]
    slots = jnp.arange(S)
    moves = slots >= kept[:, None]
    source = jnp.where(moves, jnp.minimum(slots + dropped[:, None], S - 1), slots)[:, None, :, None]
    turns = jnp.where(moves[..., None], angles[:, None], 0.0)  # [B, S, half]

    def keys(buffer: Float[Array, "B H D S"]) -> Float[Array, "B H D S"]:
        moved = jnp.take_along_axis(buffer, source.swapaxes(2, 3), axis=3)
        turned = rotate(moved.transpose(0, 3, 1, 2), turns)
        return turned.transpose(0, 2, 3, 1)

    def values(buffer: Float[Array, "B H S D"]) -> Float[Array, "B H S D"]:
        return jnp.take_along_axis(buffer, source, axis=2)

    return KVCache(tuple(map(keys, cache.keys)), tuple(map(values, cache.values)))


def _write(
    buffer: Array, new: Array, corner: Callable[[Any], tuple], start: int | Array, row: int | Array
) -> Array:
    if isinstance(start, int):  # no scatter, which takes copies
        return jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), (row, *corner(start)))

    def one_row(row: Array, entries: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, entries, corner(at))

    return jax.vmap(one_row)(buffer, new.astype(buffer.dtype), start)
