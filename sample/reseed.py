"""What renews a full cache on the device: sinks and tail computed anew, or the tail moved down.

Sources: Han et al. 2024, LM-Infinite (arXiv:2308.16137); Xiao et al. 2023, StreamingLLM (arXiv:2309.17453).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from models.decoder import VisionEmbeddings
from models.errors import InputError
from models.model import Model
from sample.logits import SamplingParams
from sample.step import DecodeState, Prompt, draw_next, last_of


def clear_and_reseed(
    model: Model,
    params: Any,
    state: DecodeState,
    sinks: Prompt,
    vision: VisionEmbeddings | None,
    sampling: SamplingParams,
    tail: Int[Array | np.ndarray, "B"],
    *,
    width: int,
    top: int,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    """Clear each row's cache, compute its sinks and its latest tokens anew, and draw its next token.

    It stands in for a decode step: the last token of the tail is the one that was drawn last. All else that a
    row is goes on: its key and count, penalties, history, status. The same as a `prefill` of sinks and tail.

    Args:
        sinks: of S tokens a row, S >= 0, padded to any width. They keep their positions, and what is behind
            them goes on at `deltas`.
        vision: the pictures that `sinks.vision_rows` name; None where no row has any.
        tail: T, how many of `state.history`'s latest tokens stay, at most its width; S + T at least 1. All of
            them are text.
        width: static, at least S + T of every row, at most the slots of the cache.
        top: as in `prefill`.

    Returns:
        As `decode_step`: the state, with S + T slots filled, and the packed `StepOutput`.

    Raises:
        InputError: S, T, or `width` out of these bounds; the state is then as it was.
    """
    _check(state, sinks, np.asarray(tail), width)
    return _clear_and_reseed(model, params, state, sinks, vision, sampling, tail, width=width, top=top)


def _check(state: DecodeState, sinks: Prompt, tail: Int[np.ndarray, "B"], width: int) -> None:
    lengths, given = np.asarray(sinks.lengths), sinks.tokens.shape[1]
    remembered, slots = state.history.tokens.shape[1], state.cache.keys[0].shape[-1]
    if width > slots:
        raise InputError(f"width: {width}; allowed: up to {slots}, the slots of the cache")
    if lengths.min() < 0 or lengths.max() > given:
        raise InputError(f"sinks: lengths of {lengths.tolist()}; allowed: 0 to {given}, their tokens")
    if tail.min() < 0 or tail.max() > remembered:
        raise InputError(f"tail: {tail.tolist()}; allowed: 0 to {remembered}, what the history holds")
    filled = lengths + tail
    if filled.min() < 1 or filled.max() > width:
        raise InputError(f"sinks + tail: {filled.tolist()}; allowed: 1 to {width}, the width")


# The old cache is not read, but its memory is taken over.
@partial(jax.jit, static_argnames=("model", "width", "top"), donate_argnames="state", keep_unused=True)
def _clear_and_reseed(
    model: Model,
    params: Any,
    state: DecodeState,
    sinks: Prompt,
    vision: VisionEmbeddings | None,
    sampling: SamplingParams,
    tail: Int[Array | np.ndarray, "B"],
    *,
    width: int,
    top: int,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    lengths = jnp.asarray(sinks.lengths + tail)
    slots = jnp.arange(width)
    in_sinks = slots < sinks.lengths[:, None]
    remembered = state.history.tokens.shape[1]
    recent = jnp.clip(remembered - lengths[:, None] + slots, 0, max(remembered - 1, 0))
    latest = jnp.take_along_axis(state.history.tokens, recent, axis=1) if remembered else jnp.int32(0)
    real = slots < lengths[:, None]
    tokens = jnp.where(in_sinks, _widened(sinks.tokens, width), latest)
    positions = jnp.where(in_sinks, _widened(sinks.positions, width), slots + sinks.deltas[:, None])
    hidden, cache = model.call(
        "forward",
        params,
        jnp.where(real, tokens, 0),
        jnp.broadcast_to(positions, (model.position_axes, *real.shape)),
        jnp.zeros_like(lengths),
        jax.tree.map(jnp.zeros_like, state.cache),
        vision,
        width,
        jnp.where(in_sinks, _widened(sinks.vision_rows, width), -1),
    )
    state = state._replace(cache=cache, length=lengths, delta=jnp.asarray(sinks.deltas))
    return draw_next(model, params, state, last_of(hidden, lengths), sampling, top)


def _widened(array: Array | np.ndarray, width: int) -> Array:
    """The same, with `width` places on its last axis; what is added or cut off is padding."""
    array = jnp.asarray(array)[..., :width]
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def shift_tail(
    model: Model,
    state: DecodeState,
    sinks: Int[Array | np.ndarray, "B"],
    delta: Int[Array | np.ndarray, "B"],
    tail: Int[Array | np.ndarray, "B"],
) -> DecodeState:
    """Keep each row's first `sinks` slots, and move its last `tail` ones down behind them.

    Args:
        delta: of the sinks: a token behind them stands at its slot + delta.
        tail: slots; all of them hold text, and sinks + tail are at most those that are filled.
    """
    sinks, delta = jnp.asarray(sinks), jnp.asarray(delta)
    dropped = state.length - sinks - tail
    cache = model.shifted_cache(state.cache, sinks, dropped, dropped + state.delta - delta)
    return state._replace(cache=cache, length=sinks + tail, delta=delta)
