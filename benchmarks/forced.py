"""A text fed token for token through the cache of an endless stream, as if the stream had drawn it.

Renewals are the very steps that streams take. What is between two of them is fed in one piece, which gives
the same surprisals as one decode step per token.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models import InputError, Model
from models.cache import KVCache
from sample import SamplingConfig, StreamConfig
from sample.endless import EndlessCache
from sample.logits import SamplingParams, sampling_params
from sample.loops import history_of
from sample.request import Request, make_request
from sample.step import DecodeState, prefill, unpack_taken

GIVEN = 4  # tokens that are not foreseen: the prompt, and the sinks are in it
_PIECE = 512  # tokens fed at once, at most


class Policy(NamedTuple):
    """How a cache goes on when it is full."""

    name: str
    stream: StreamConfig
    turned: bool = True  # what moves down gets the positions of its new slots
    published: str = ""  # what others measured with it


class Run(NamedTuple):
    """What one policy made of the text, a value per foreseen token."""

    surprisals: Float[np.ndarray, " N"]  # nats
    seen: Int[np.ndarray, " N"]  # slots that it was foreseen from


def foresee(
    model: Model, params: Any, tokens: Int[np.ndarray, " T"], policy: Policy, piece: int = _PIECE
) -> Run:
    """Feed the text through a stream's cache.

    Args:
        tokens: the first `GIVEN` are the prompt.
        piece: how many tokens are fed at once, at most; 1 is what a stream does.

    Raises:
        InputError: a token could not be forced upon a step that draws.
    """
    feeder = Feeder(model, params, tokens, policy)
    while not feeder.ended:
        feeder.advance(piece)
    return Run(np.concatenate(feeder.surprisals), np.concatenate(feeder.seen))


class Feeder:
    """A stream whose tokens are known."""

    def __init__(self, model: Model, params: Any, tokens: Int[np.ndarray, " T"], policy: Policy) -> None:
        self._model, self._params = model, model.decoder_params(params)
        self._tokens, self._turned = tokens.astype(np.int32), policy.turned
        self.surprisals: list[np.ndarray] = []
        self.seen: list[np.ndarray] = []
        prompt, request = tokens[None, :GIVEN], _request(model, tokens, policy.stream)
        assert request.plan is not None
        self._endless = EndlessCache(request.plan, None)
        sampling = forced(int(tokens[GIVEN]), model.vocab_size)
        arguments = (request.prompt, None, sampling, request.key, request.history)
        self.state, packed = prefill(model, self._params, *arguments, slots=request.slots, top=0)
        self._drawn(packed, prompt.shape[1])

    @property
    def ended(self) -> bool:
        return self._endless.total >= len(self._tokens)

    @property
    def filled(self) -> int:
        """Slots of the cache."""
        return self._endless.filled

    def advance(self, piece: int = _PIECE) -> None:
        """Feed up to `piece` tokens where there is room, or renew the cache where there is none."""
        room = self._endless.plan.context - self.filled
        if room:
            self._feed(min(room, piece))
        else:
            self._renew()

    def _feed(self, width: int) -> None:
        """The pending token and those behind it; the last piece is padded."""
        begin, filled = self._endless.total - 1, self._endless.filled
        pieces = np.zeros((2, 1, width), np.int32)
        count = min(width, len(self._tokens) - 1 - begin)
        pieces[0, 0, :count] = self._tokens[begin : begin + count]
        pieces[1, 0, :count] = self._tokens[begin + 1 : begin + 1 + count]
        state = self.state
        cache, surprisals = _fed(self._model, self._params, state.cache, state.length, state.delta, *pieces)
        pending = jnp.asarray(pieces[1, :, count - 1])
        self.state = state._replace(cache=cache, length=state.length + count, token=pending)
        self.surprisals.append(np.asarray(surprisals, np.float64)[:count])
        self.seen.append(filled + 1 + np.arange(count))
        self._endless.total += count

    def _renew(self) -> None:
        """The step that a stream takes when its cache is full."""
        if not self._turned:
            self._leave_positions()
        sampling = forced(int(self._tokens[self._endless.total]), self._model.vocab_size)
        state = self._remembering(self.state)
        self.state, packed, _, _ = self._endless.steps(self._model, self._params, state, sampling, 0, 1)
        self._drawn(packed, self._endless.filled)

    def _drawn(self, packed: Array, seen: int) -> None:
        output, expected = unpack_taken(np.asarray(packed)), self._tokens[GIVEN + sum(map(len, self.seen))]
        if output.token[0, 0] != expected:
            raise InputError(f"token {expected} could not be forced: {output.token[0, 0]} was drawn")
        self.surprisals.append(-output.raw_logprob[0].astype(np.float64))
        self.seen.append(np.array([seen]))

    def _remembering(self, state: DecodeState) -> DecodeState:
        """With the history that a stream would have by now: what is fed in pieces is not put down there."""
        width = state.history.tokens.shape[1]
        tokens = self._tokens[: self._endless.total]
        return state._replace(history=jax.device_put(history_of([tokens], width, 0))) if width else state

    def _leave_positions(self) -> None:
        """Let the sinks' delta grow by what leaves, so that nothing that moves is turned."""
        endless = self._endless
        dropped = endless.filled - endless.plan.anchor - (endless.plan.tail - 1)
        sinks = endless.plan.sinks._replace(deltas=np.asarray(self.state.delta) + np.int32(dropped))
        endless.plan = endless.plan._replace(sinks=sinks)


def _request(model: Model, tokens: Int[np.ndarray, " T"], stream: StreamConfig) -> Request:
    config = SamplingConfig(temperature=0, max_new_tokens=max(len(tokens), stream.context))
    return make_request(model, tokens[None, :GIVEN], config, jax.random.key(0), stream=stream)


def forced(token: int, vocab_size: int) -> SamplingParams:
    """Parameters under which this token is drawn; its log-probability is that of the raw logits."""
    config = SamplingConfig(temperature=0, max_new_tokens=2**31 - 1, logit_bias={token: 100.0})
    return sampling_params([config], vocab_size=vocab_size)


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _fed(
    model: Model,
    params: Any,
    cache: KVCache,
    start: Int[Array, " 1"],
    delta: Int[Array, " 1"],
    tokens: Int[Array | np.ndarray, "1 C"],
    following: Int[Array | np.ndarray, "1 C"],
) -> tuple[KVCache, Float[Array, " C"]]:
    """C decode steps at once: the cache behind them, and the surprisals of what follows each token."""
    tokens, following = jnp.asarray(tokens), jnp.asarray(following)
    places = (start + delta)[:, None] + jnp.arange(tokens.shape[1])
    positions = jnp.broadcast_to(places, (model.position_axes, *tokens.shape))
    hidden, cache = model.call("forward", params, tokens, positions, start, cache)
    logprobs = jax.nn.log_softmax(model.call("head", params, hidden[0]))
    return cache, -jnp.take_along_axis(logprobs, following[0, :, None], axis=1)[:, 0]


def windowed(
    model: Model, params: Any, tokens: Int[np.ndarray, " T"], stream: StreamConfig, every: int
) -> Run:
    """What the policy "window" makes of the text, which computes all anew for each token.

    Args:
        every: of how many tokens one is foreseen, once the cache is full; the others' surprisals are NaN.
    """
    params, sinks = model.decoder_params(params), stream.sinks or 0
    surprisals = np.full(len(tokens) - GIVEN, np.nan)
    for place in range(stream.context, len(tokens), every):
        latest = tokens[place - (stream.context - sinks) : place]
        seen = np.concatenate([tokens[:sinks], latest])[None]
        surprisals[place - GIVEN] = _foreseen(model, params, seen, tokens[place])
    return Run(surprisals, np.full(len(surprisals), stream.context))


@partial(jax.jit, static_argnames="model")
def _foreseen(
    model: Model, params: Any, seen: Int[Array | np.ndarray, "1 C"], token: Int[Array | np.ndarray, ""]
) -> Float[Array, ""]:
    """The surprisal of the token that follows those seen."""
    width = seen.shape[1]
    positions = jnp.broadcast_to(jnp.arange(width), (model.position_axes, 1, width))
    start = jnp.zeros(1, jnp.int32)
    hidden, _ = model.call("forward", params, jnp.asarray(seen), positions, start, None, None, width)
    return -jax.nn.log_softmax(model.call("head", params, hidden[0, -1]))[token]
