"""The one prefill and the one decode step. Batch, stream and server are loops over them.

Everything that a request may choose is traced, a row per sequence; static are the model and the shapes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from models.cache import KVCache
from models.decoder import VisionEmbeddings
from models.model import Model
from sample.logits import LogProbabilities, SamplingParams, draw, log_probabilities, process_logits

RUNNING, STOPPED, OUT_OF_LENGTH = 0, 1, 2  # how a row stands


class Prompt(NamedTuple):
    """Right-padded prompts, with room for later tokens' positions: token index + delta."""

    tokens: Int[Array | np.ndarray, "B T"]
    positions: Int[Array | np.ndarray, "axes B T"]
    lengths: Int[Array | np.ndarray, "B"]
    deltas: Int[Array | np.ndarray, "B"]


class DecodeState(NamedTuple):
    """All that a running batch needs on the device. The step donates it, so it is used once."""

    cache: KVCache
    token: Int[Array, "B"]  # drawn, not yet in the cache
    length: Int[Array, "B"]  # filled slots
    delta: Int[Array, "B"]  # rotary position = slot + delta
    count: Int[Array, "B"]  # tokens drawn
    key: UInt32[Array, "B words"]  # a row's own; token n is drawn with fold_in(key, n)
    in_prompt: Bool[Array, "B V"]
    drawn: Int[Array, "B V"]  # how often each token was drawn
    status: Int[Array, "B"]  # RUNNING, STOPPED or OUT_OF_LENGTH


class StepOutput(NamedTuple):
    """What one step tells the host: B rows, and `top` alternatives to each token."""

    token: np.ndarray  # int32 [B]
    logprob: np.ndarray  # float32 [B]
    status: np.ndarray  # int32 [B]
    top_ids: np.ndarray  # int32 [B, top]
    top_logprobs: np.ndarray  # float32 [B, top]


@partial(jax.jit, static_argnames=("model", "slots", "top"))
def prefill(
    model: Model,
    params: Any,
    prompt: Prompt,
    vision: VisionEmbeddings | None,
    sampling: SamplingParams,
    key: UInt32[Array, "B words"],
    *,
    slots: int,
    top: int,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    """Feed the prompts into a new cache of `slots` and draw each row's first token from their last logits.

    Returns:
        The state, and the packed `StepOutput` of the first tokens (see `unpack`).
    """
    B, T = prompt.tokens.shape
    start = jnp.zeros(B, jnp.int32)
    hidden, cache = model.call(
        "forward",
        params,
        jnp.asarray(prompt.tokens),
        jnp.asarray(prompt.positions),
        start,
        model.empty_cache(B, slots),
        vision,
        T,
    )
    last = jnp.take_along_axis(hidden, (prompt.lengths - 1)[:, None, None], axis=1)[:, 0]
    rows = jnp.arange(B)[:, None]
    real = jnp.arange(T) < prompt.lengths[:, None]
    state = DecodeState(
        cache=cache,
        token=start,
        length=jnp.asarray(prompt.lengths),
        delta=jnp.asarray(prompt.deltas),
        count=start,
        key=key,
        in_prompt=jnp.zeros((B, model.vocab_size), bool).at[rows, prompt.tokens].max(real),
        drawn=jnp.zeros((B, model.vocab_size), jnp.int32),
        status=start,
    )
    return _draw_next(model, params, state, last, sampling, top)


def _step(
    model: Model, params: Any, state: DecodeState, sampling: SamplingParams, top: int
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    B = state.token.shape[0]
    positions = jnp.broadcast_to((state.length + state.delta)[:, None], (model.position_axes, B, 1))
    hidden, cache = model.call("forward", params, state.token[:, None], positions, state.length, state.cache)
    running = state.status == RUNNING
    state = state._replace(cache=cache, length=state.length + running)
    return _draw_next(model, params, state, hidden[:, 0], sampling, top)


@partial(jax.jit, static_argnames=("model", "top"), donate_argnames="state")
def decode_step(
    model: Model, params: Any, state: DecodeState, sampling: SamplingParams, *, top: int
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    """Feed each running row's last token and draw the next. Rows that have ended stay as they are."""
    return _step(model, params, state, sampling, top)


@partial(jax.jit, static_argnames=("model", "steps", "top"), donate_argnames="state")
def decode_steps(
    model: Model,
    params: Any,
    state: DecodeState,
    sampling: SamplingParams,
    ended: Bool[Array, "B"],
    *,
    steps: int,
    top: int,
) -> tuple[DecodeState, Int[Array, "steps B packed"], Int[Array, ""]]:
    """Up to `steps` steps in one program; it leaves off once every row has ended.

    Args:
        ended: rows that the host has ended (by a stop string).

    Returns:
        The state, the packed outputs, and how many of them were made.
    """
    state = state._replace(status=jnp.where(ended & (state.status == RUNNING), STOPPED, state.status))
    outputs = jnp.zeros((steps, state.token.shape[0], 3 + 2 * top), jnp.int32)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        state, _, i = carry
        return (i < steps) & (state.status == RUNNING).any()

    def body(carry: tuple) -> tuple:
        state, outputs, i = carry
        state, packed = _step(model, params, state, sampling, top)
        return state, outputs.at[i].set(packed), i + 1

    return jax.lax.while_loop(unfinished, body, (state, outputs, jnp.int32(0)))


def _draw_next(
    model: Model,
    params: Any,
    state: DecodeState,
    hidden: Float[Array, "B D"],
    sampling: SamplingParams,
    top: int,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    logits = model.call("head", params, hidden)
    processed = process_logits(logits, sampling, state.in_prompt, state.drawn)
    token = draw(jax.vmap(jax.random.fold_in)(state.key, state.count), processed, sampling)
    logprob = log_probabilities(logits, processed, token, sampling, top)
    running = state.status == RUNNING
    count = state.count + running
    stopped = (token[:, None] == sampling.eos_ids).any(-1)
    status = jnp.where(stopped, STOPPED, jnp.where(count >= sampling.max_new_tokens, OUT_OF_LENGTH, RUNNING))
    rows = jnp.arange(token.shape[0])
    state = state._replace(
        token=jnp.where(running, token, state.token),
        count=count,
        drawn=state.drawn.at[rows, token].add(running.astype(jnp.int32)),
        status=jnp.where(running, status, state.status),
    )
    return state, _pack(state, logprob)


def _pack(state: DecodeState, logprob: LogProbabilities) -> Int[Array, "B packed"]:
    """One array, so that a step costs one transfer: token, status, logprob, alternatives."""
    bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
    columns = [state.token[:, None], state.status[:, None], bits(logprob.token)[:, None]]
    return jnp.concatenate([*columns, logprob.top_ids, bits(logprob.top)], axis=1)


def unpack(packed: np.ndarray) -> StepOutput:
    """`packed [..., B, 3 + 2 top]` on the host, as it is named there."""
    top = (packed.shape[-1] - 3) // 2
    floats = packed.view(np.float32)
    return StepOutput(
        token=packed[..., 0],
        logprob=floats[..., 2],
        status=packed[..., 1],
        top_ids=packed[..., 3 : 3 + top],
        top_logprobs=floats[..., 3 + top :],
    )
