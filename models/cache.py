"""The key/value cache: one buffer per layer, written in place where its owner donates it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class KVCache(NamedTuple):
    """Keys (already rotated) and values of all layers.

    A row's tokens fill its slots 0, 1, 2, ... without a gap; what lies behind them is never read.
    """

    keys: tuple[Float[Array, "B H S D"], ...]
    values: tuple[Float[Array, "B H S D"], ...]

    @classmethod
    def empty(
        cls, layers: int, batch: int, heads: int, slots: int, head_dim: int, dtype: jnp.dtype
    ) -> "KVCache":
        """A cache of zeros: `layers` times two buffers `[batch, heads, slots, head_dim]`."""
        shape = (batch, heads, slots, head_dim)
        make = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(layers))  # noqa: E731
        return cls(make(), make())


def write(
    buffer: Float[Array, "B H S D"], new: Float[Array, "B T H D"], start: Int[Array, "B"]
) -> Float[Array, "B H S D"]:
    """Store each row's T new entries from its own slot `start` on; `start + T` must not pass S."""
    one_row = lambda row, entries, at: jax.lax.dynamic_update_slice(row, entries, (0, at, 0))  # noqa: E731
    return jax.vmap(one_row)(buffer, new.swapaxes(1, 2).astype(buffer.dtype), start)
