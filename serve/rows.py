"""What the engine does with rows on the device, beside the step: they join, leave, and move."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sample.logits import SamplingParams
from sample.step import DecodeState


class Rows(NamedTuple):
    """Sequences, and what each asks for. The first axis of every array is the row."""

    state: DecodeState
    sampling: SamplingParams

    @property
    def count(self) -> int:
        """Rows, taken or free."""
        return self.state.token.shape[0]


@partial(jax.jit, donate_argnames="rows")
def insert(rows: Rows, row: Rows, index: Int[Array | np.ndarray, ""]) -> Rows:
    """`rows` with the single `row` at `index`, written in place."""
    return jax.tree.map(
        lambda all_rows, one: jax.lax.dynamic_update_slice_in_dim(all_rows, one, index, axis=0), rows, row
    )


@jax.jit
def resized(rows: Rows, sources: Int[Array | np.ndarray, "N"]) -> Rows:
    """N rows: the ones that `sources` names, and empty ones where it names none (beyond the last)."""
    return jax.tree.map(
        lambda array: jnp.take(array, sources, axis=0, mode="fill", fill_value=array.dtype.type(0)), rows
    )


@partial(jax.jit, donate_argnames="rows")
def vacate(rows: Rows, index: Int[Array | np.ndarray, ""]) -> Rows:
    """`rows` with nothing filled at `index`, so that a kernel need not read as far as it did."""
    return rows._replace(state=rows.state._replace(length=rows.state.length.at[index].set(0)))
