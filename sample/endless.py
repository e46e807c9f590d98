"""A stream that is longer than its cache: what the cache keeps, and when, as the host knows it.

The host counts what it dispatches, so it need not wait for a token to know that the cache is full.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Int

from models.buckets import bucket
from models.decoder import VisionEmbeddings
from models.errors import SettingsError
from models.model import Model
from sample.logits import SamplingParams
from sample.pace import decode, fitting
from sample.reseed import clear_and_reseed, shift_tail
from sample.stats import Reseed
from sample.step import DecodeState, Prompt
from sample.stream_config import StreamConfig

_NARROWEST = 64  # tokens of the sinks, and of a reseed's program


class StreamPlan(NamedTuple):
    """What a stream's cache keeps; sizes in tokens."""

    config: StreamConfig
    prompt: Int[np.ndarray, " T"]
    sinks: Prompt  # one row of S tokens, with room for a summary
    floor: int  # the first token that a tail may begin with: it is behind the sinks and all pictures
    budget: int  # of a summary
    width: int  # of a reseed's program

    @property
    def anchor(self) -> int:
        """S, the prompt's tokens among the sinks."""
        return int(self.sinks.lengths[0])

    @property
    def context(self) -> int:
        """What the cache holds."""
        return self.config.context

    @property
    def tail(self) -> int:
        """T, the most recent tokens that stay."""
        return self.context - self.anchor if self.config.policy == "window" else self.config.tail

    @property
    def remembered(self) -> int:
        """The history that the device needs for it."""
        return 0 if self.config.policy == "shift" else self.tail

    def renewed(self, tail: Int[np.ndarray, " T"]) -> Prompt:
        """The sinks, and behind them these tokens: what a reseed computes anew, as one prompt."""
        whole = _sinks(self.sinks, self.anchor, self.anchor + len(tail))
        whole.tokens[0, self.anchor :] = tail
        return whole._replace(lengths=_row(self.anchor + len(tail)))

    @property
    def has_pictures(self) -> bool:
        """Whether there is a picture among the sinks."""
        return bool((self.sinks.vision_rows >= 0).any())


class Sidecar(Protocol):
    """What summarises beside the stream; see `sample/summary.py`. None of these may wait."""

    def summarise(self, evicted: Sequence[int], /) -> None:
        """These tokens will leave the cache at the next reseed, or have left."""
        ...

    def take(self) -> Sequence[int]:
        """The tokens of the present summary."""
        ...

    def close(self) -> None:
        """The stream has ended."""
        ...


def make_plan(model: Model, prompt: Prompt, grid_thw: np.ndarray, config: StreamConfig) -> StreamPlan:
    """What the cache keeps of a stream with this prompt, one row.

    Raises:
        SettingsError: more sinks than the prompt has tokens, sinks that end inside a picture, or sinks, a
            summary and a tail that do not fit the context together.
    """
    length = int(prompt.lengths[0])
    anchor = length if config.sinks is None else config.sinks
    if anchor > length:
        raise SettingsError(f"sinks: {anchor}; allowed: up to {length}, the tokens of the prompt")
    tokens = np.asarray(prompt.tokens[0, :length])
    pictures = model.picture_spans(tokens, grid_thw) if len(grid_thw) else []
    for first, end in pictures:
        if first < anchor < end:
            raise SettingsError(
                f"sinks: {anchor} tokens end inside a picture, at {first} to {end - 1}; "
                f"allowed: up to {first}, or {end} or more"
            )
    budget = config.summary_budget(anchor)
    config.check_sinks(anchor, budget)
    plan = StreamPlan(
        config=config,
        prompt=tokens,
        sinks=_sinks(prompt, anchor, bucket(anchor + budget, _NARROWEST)),
        floor=max(anchor, *(end for _, end in pictures), 0),
        budget=budget,
        width=0,
    )
    return plan._replace(width=bucket(anchor + budget + plan.tail, _NARROWEST))


def _sinks(prompt: Prompt, anchor: int, width: int) -> Prompt:
    """The prompt's first tokens, in rows of `width`; behind them stands text."""

    sinks = prompt.part(0, anchor, width)
    delta = int(np.max(prompt.positions[:, 0, :anchor], initial=-1)) + 1 - anchor
    sinks.positions[:, :, anchor:] = np.arange(anchor, width) + delta
    return sinks._replace(deltas=np.array([delta], np.int32))


class EndlessCache:
    """Steps of one stream, and what its policy does where the next token would not fit.

    In the cache are the sinks (with the summary: `front` slots) and behind them the tokens of the sequence
    from `tail_start` on, but for the last, which has been drawn and not yet been fed.
    """

    def __init__(
        self, plan: StreamPlan, vision: VisionEmbeddings | None, sidecar: Sidecar | None = None
    ) -> None:
        self.plan = plan
        self.front = self.tail_start = plan.anchor
        self.total = len(plan.prompt) + 1  # tokens, the one that the prefill draws among them
        self._vision = vision if plan.has_pictures else None
        self._sidecar = sidecar
        self._sinks = jax.device_put(plan.sinks)
        self._delivered = len(plan.prompt)
        self._recent = deque(plan.prompt[plan.anchor :].tolist())  # what is not yet known to leave
        # Where coming tails begin, as far as not all tokens before them have been delivered.
        self._leaves_at = deque([self._next_tail_start()])

    @property
    def filled(self) -> int:
        """Slots; all but the pending token."""
        return self.front + self.total - 1 - self.tail_start

    @property
    def _longest(self) -> int:
        """Steps of a program: what a summary is made of must be delivered well before it is wanted."""
        return self.plan.context if self._sidecar is None else max(self.plan.tail // 4, 1)

    def steps(
        self, model: Model, params: Any, state: DecodeState, sampling: SamplingParams, top: int, most: int
    ) -> tuple[DecodeState, jax.Array, int, Reseed | None]:
        """The next tokens, at most so many: packed, how many, and how room was made for the first of them."""
        reseed = None
        if self.filled >= self.plan.context and self.plan.config.policy == "shift":
            reseed = self._renewed(0)
            arrays = (self.plan.sinks.lengths, self.plan.sinks.deltas, _row(reseed.tail - 1))
            state, most = shift_tail(model, state, *arrays), 1  # whose pause is that of one token
        if self.filled < self.plan.context:
            most = fitting(min(most, self.plan.context - self.filled, self._longest))
            state, packed = decode(model, params, state, sampling, (most,), top=top)
        else:
            most = 1
            sinks, summary = self._sinks_and_summary()
            reseed = self._renewed(summary)
            state, packed = clear_and_reseed(
                model,
                params,
                state,
                sinks,
                self._vision,
                sampling,
                _row(reseed.tail),
                width=self.plan.width,
                top=top,
            )
        self.total += most
        return state, packed, most, reseed

    def delivered(self, token: int) -> None:
        """A token has reached the host; what is sure to leave the cache goes to the sidecar."""
        if self._sidecar is None:
            return
        self._recent.append(token)
        self._delivered += 1
        while self._leaves_at and self._delivered >= self._leaves_at[0]:
            known_from = self._delivered - len(self._recent)
            count = self._leaves_at.popleft() - known_from
            self._sidecar.summarise([self._recent.popleft() for _ in range(count)])

    def close(self) -> None:
        """The stream has ended."""
        if self._sidecar is not None:
            self._sidecar.close()

    def _sinks_and_summary(self) -> tuple[Prompt, int]:
        if self._sidecar is None:
            return self._sinks, 0
        summary = np.asarray(self._sidecar.take(), np.int32)[: self.plan.budget]
        anchor, sinks = self.plan.anchor, self.plan.sinks
        tokens = sinks.tokens.copy()
        tokens[0, anchor : anchor + len(summary)] = summary
        return sinks._replace(tokens=tokens, lengths=_row(anchor + len(summary))), len(summary)

    def _tail_start(self, total: int) -> int:
        """Where the tail begins once the sequence has so many tokens: behind the last picture that leaves."""
        return max(total - self.plan.tail, self.plan.floor)

    def _next_tail_start(self) -> int:
        """The same, where the cache will be full for the next time."""
        return self._tail_start(self.plan.context - self.front + self.tail_start + 1)

    def _renewed(self, summary: int) -> Reseed:
        """Count the tail as all that is left behind the sinks."""
        start = self._tail_start(self.total)
        reseed = Reseed(
            token=self.total - len(self.plan.prompt),
            policy=self.plan.config.policy,
            sinks=self.plan.anchor,
            summary=summary,
            tail=self.total - start,
            evicted=start - self.tail_start,
        )
        self.front, self.tail_start = self.plan.anchor + summary, start
        if self._sidecar is not None:
            self._leaves_at.append(self._next_tail_start())
        return reseed


def _row(value: int) -> np.ndarray:
    return np.array([value], np.int32)
