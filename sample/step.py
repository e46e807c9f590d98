"""The one prefill and the one decode step. Batch, stream and server are loops over them.

Everything that a request may choose is traced, a row per sequence; static are the model and the shapes.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from models.cache import KVCache
from models.decoder import VisionEmbeddings
from models.kernels.choice import on_cpu
from models.model import Model
from sample.logits import (
    LogProbabilities,
    SamplingParams,
    allowed_logits,
    draw,
    log_probabilities,
    process_logits,
)
from sample.loops import LONGEST_PATTERN, History, pushed, repeated_pattern

# How a row stands. EXHAUSTED: no token was left to draw, so none was.
RUNNING, STOPPED, OUT_OF_LENGTH, REPEATING, EXHAUSTED = range(5)
NOT_TAKEN = -1  # status of a step that a row did not take
STEPS = 64  # in one program, at most: the host looks at stop strings and interrupts in between
ROUND = 4  # steps between two looks at whether any row goes on, where the host reads a loop's condition
HostOrDevice = Array | np.ndarray
_FIXED = 4  # columns of a packed row before its alternatives


class Prompt(NamedTuple):
    """Right-padded prompts, with room for later tokens' positions: token index + delta."""

    tokens: Int[Array | np.ndarray, "B T"]
    positions: Int[Array | np.ndarray, "axes B T"]
    lengths: Int[Array | np.ndarray, "B"]
    deltas: Int[Array | np.ndarray, "B"]
    vision_rows: Int[Array | np.ndarray, "B T"]  # the row of the pictures' embeddings; -1: text

    def part(self, start: int, end: int, width: int) -> "Prompt":
        """On the host: the tokens from `start` to before `end`, as far as there are any; rows of `width`."""

        def cut(array: HostOrDevice, fill: int = 0) -> np.ndarray:
            kept = np.asarray(array)[..., start:end]
            padding = [(0, 0)] * (kept.ndim - 1) + [(0, width - kept.shape[-1])]
            return np.pad(kept, padding, constant_values=fill)

        return Prompt(
            tokens=cut(self.tokens),
            positions=cut(self.positions),
            lengths=np.clip(np.asarray(self.lengths) - start, 0, end - start),
            deltas=np.asarray(self.deltas),
            vision_rows=cut(self.vision_rows, -1),
        )


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
    status: Int[Array, "B"]  # RUNNING, or how the row ended
    history: History  # prompt and drawn tokens, as many as anything asks for


class StepOutput(NamedTuple):
    """What one step tells the host: B rows, and `top` alternatives to each token. EXHAUSTED: no token.

    Of `decode_steps` there is one more axis before them all, the steps.
    """

    token: np.ndarray  # int32 [B]
    logprob: np.ndarray  # float32 [B]
    raw_logprob: np.ndarray  # float32 [B], whatever `logprob` is
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
    history: History,
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
        jnp.asarray(prompt.vision_rows),
    )
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
        history=jax.tree.map(jnp.asarray, history),
    )
    return draw_next(model, params, state, last_of(hidden, state.length), sampling, top)


@partial(jax.jit, static_argnames=("model", "top"), donate_argnames="state")
def prefill_chunk(
    model: Model,
    params: Any,
    state: DecodeState,
    chunk: Prompt,
    vision: VisionEmbeddings | None,
    sampling: SamplingParams,
    last: Bool[HostOrDevice, "B"],
    *,
    top: int,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    """Feed the next tokens of prompts, behind those that the cache holds: a `prefill` in several programs.

    The host has set all of the state but cache and length. Of a padded chunk, `length` + its width must not
    pass the slots.

    Args:
        chunk: right-padded; its `deltas` are not read.
        last: rows whose prompt ends here: they draw their first token.

    Returns:
        The state, and the packed `StepOutput` of the rows that drew.
    """
    hidden, cache = model.call(
        "forward",
        params,
        jnp.asarray(chunk.tokens),
        jnp.asarray(chunk.positions),
        state.length,
        state.cache,
        vision,
        None,
        jnp.asarray(chunk.vision_rows),
    )
    lengths = jnp.asarray(chunk.lengths)
    state = state._replace(cache=cache, length=state.length + lengths)
    return draw_next(model, params, state, last_of(hidden, lengths), sampling, top, last)


def last_of(hidden: Float[Array, "B T D"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
    """Each row's last token of a right-padded batch."""
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]


def _step(
    model: Model,
    params: Any,
    state: DecodeState,
    sampling: SamplingParams,
    top: int,
    live: Bool[HostOrDevice, "B"] | None = None,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    B = state.token.shape[0]
    positions = jnp.broadcast_to((state.length + state.delta)[:, None], (model.position_axes, B, 1))
    taken = _running(state, live)
    filled = jnp.max(jnp.where(taken, state.length, 0)) + 1  # a row that waits makes the others read no more
    hidden, cache = model.call(
        "forward", params, state.token[:, None], positions, state.length, state.cache, None, filled
    )
    state = state._replace(cache=cache, length=state.length + taken)
    state, packed = draw_next(model, params, state, hidden[:, 0], sampling, top, live)
    return state, packed if live is None else jnp.where(taken[:, None], packed, NOT_TAKEN)


@partial(jax.jit, static_argnames=("model", "top"), donate_argnames="state")
def decode_step(
    model: Model,
    params: Any,
    state: DecodeState,
    sampling: SamplingParams,
    live: Bool[HostOrDevice, "B"] | None = None,
    *,
    top: int,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    """Feed each running row's last token and draw the next. Rows that have ended stay as they are.

    Args:
        live: rows that take this step; the others stay as they are, too, and their outputs' status is
            `NOT_TAKEN`. Without it, all do.
    """
    return _step(model, params, state, sampling, top, live)


@partial(jax.jit, static_argnames=("model", "top", "most"), donate_argnames="state")
def decode_steps(
    model: Model,
    params: Any,
    state: DecodeState,
    sampling: SamplingParams,
    quota: Int[HostOrDevice, "B"],
    *,
    top: int,
    most: int = STEPS,
) -> tuple[DecodeState, Int[Array, "steps B packed"]]:
    """Up to `most` of `decode_step` in one program; it leaves off once no row may go on.

    Not at once where the host reads a loop's condition, and the device waits for it, as on a GPU: there it is
    looked at every `ROUND` steps, and in a program of so many never.

    Args:
        quota: how many tokens each row may draw; of more than `most`, `most`.
        most: a multiple of `ROUND`.

    Returns:
        The state, and the packed outputs (see `unpack`), with status `NOT_TAKEN` where a row took no step.
    """
    quota = jnp.minimum(quota, most)
    unseen = 1 if on_cpu() else ROUND
    outputs = jnp.full((most, state.token.shape[0], _FIXED + 2 * top), NOT_TAKEN, jnp.int32)

    def live(state: DecodeState, i: Int[Array, ""]) -> Bool[Array, "B"]:
        return _running(state, i < quota)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        state, _, i = carry
        return live(state, i).any()

    def step(_: Int[Array, ""], carry: tuple) -> tuple:
        state, outputs, i = carry
        state, packed = _step(model, params, state, sampling, top, live(state, i))
        return state, outputs.at[i].set(packed), i + 1

    def steps(carry: tuple) -> tuple:
        return jax.lax.fori_loop(0, unseen, step, carry)

    begin = state, outputs, jnp.int32(0)
    state, outputs, _ = jax.lax.while_loop(unfinished, steps, begin) if most > unseen else steps(begin)
    return state, outputs


def draw_next(
    model: Model,
    params: Any,
    state: DecodeState,
    hidden: Float[Array, "B D"],
    sampling: SamplingParams,
    top: int,
    live: Bool[HostOrDevice, "B"] | None = None,
) -> tuple[DecodeState, Int[Array, "B packed"]]:
    """Each running row's next token from its last hidden state, and how the row stands with it."""
    logits = model.call("head", params, hidden)
    allowed, exhausted = allowed_logits(logits, sampling, state.history)
    processed = process_logits(allowed, sampling, state.in_prompt, state.drawn)
    token = draw(jax.vmap(jax.random.fold_in)(state.key, state.count), processed, sampling)
    logprob = log_probabilities(logits, processed, token, sampling, top)
    running = _running(state, live)
    drawing = running & ~exhausted
    count = state.count + drawing
    history = pushed(state.history, token, drawing)
    status = jnp.where(exhausted, EXHAUSTED, _status(token, count, history, sampling))
    rows = jnp.arange(token.shape[0])
    state = state._replace(
        token=jnp.where(drawing, token, state.token),
        count=count,
        drawn=state.drawn.at[rows, token].add(drawing.astype(jnp.int32)),
        status=jnp.where(running, status, state.status),
        history=history,
    )
    return state, _pack(state, logprob)


def _running(state: DecodeState, live: Bool[HostOrDevice, "B"] | None) -> Bool[Array, "B"]:
    running = state.status == RUNNING
    return running if live is None else running & live


def _status(
    token: Int[Array, "B"], count: Int[Array, "B"], history: History, sampling: SamplingParams
) -> Int[Array, "B"]:
    """How a row stands that has just drawn this token."""
    status = jnp.where(count >= sampling.max_new_tokens, OUT_OF_LENGTH, RUNNING)
    if history.matched.shape[1] > LONGEST_PATTERN:
        repeating = repeated_pattern(history, sampling.max_pattern_repeats, count)
        status = jnp.where(repeating, REPEATING, status)
    # not `any` over an axis, which would be a kernel of its own
    ended = reduce(jnp.logical_or, (token == ids for ids in sampling.eos_ids.T))
    return jnp.where(ended, STOPPED, status)


def _pack(state: DecodeState, logprob: LogProbabilities) -> Int[Array, "B packed"]:
    """One array, so that a step costs one transfer: token, status, logprobs, alternatives."""
    bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
    floats = bits(jnp.stack([logprob.token, logprob.raw], axis=1))
    columns = [state.token[:, None], state.status[:, None], floats]
    return jnp.concatenate([*columns, logprob.top_ids, bits(logprob.top)], axis=1)


def unpack(packed: np.ndarray) -> StepOutput:
    """`packed [..., B, 4 + 2 top]` on the host, as it is named there."""
    top = (packed.shape[-1] - _FIXED) // 2
    floats = packed.view(np.float32)
    return StepOutput(
        token=packed[..., 0],
        logprob=floats[..., 2],
        raw_logprob=floats[..., 3],
        status=packed[..., 1],
        top_ids=packed[..., _FIXED : _FIXED + top],
        top_logprobs=floats[..., _FIXED + top :],
    )


def unpack_taken(packed: np.ndarray, most: int | None = None) -> StepOutput:
    """What one step packed or several, with their axis, `most` if given; as far as any row took a step."""
    output = unpack((packed if packed.ndim == 3 else packed[None])[:most])
    # As lists: behind a program numpy's comparison of a few numbers takes 150 µs, this a few.
    taken = sum(any(status != NOT_TAKEN for status in step) for step in output.status.tolist())
    return StepOutput(*(array[:taken] for array in output))


def one_by_one(steps: StepOutput) -> list[StepOutput]:
    """What `unpack_taken` gave, step by step."""
    return [StepOutput(*(array[i] for array in steps)) for i in range(len(steps.token))]
