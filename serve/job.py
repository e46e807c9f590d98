"""One stream as the engine sees it: what it asks for, who takes its tokens, how far it is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from models.errors import SettingsError
from models.model import Model
from sample.config import SamplingConfig
from sample.logits import SamplingParams, Wanted, sampling_params
from sample.outcome import Alternatives, FinishReason, finish_reason
from sample.step import EXHAUSTED
from sample.stream_config import StreamConfig
from sample.text import TextStream
from serve.endless import EndlessRow
from serve.engine_config import EngineConfig
from serve.prompt import PreparedPrompt


class Piece(NamedTuple):
    """A token, the text that became safe to show with it, and its log-probability in nats."""

    token_id: int
    text: str
    logprob: float
    top_logprobs: Alternatives


class Consumer(Protocol):
    """Who takes a stream's tokens. The engine's thread calls it and waits for none of it.

    Behind `finish` or `fail`, of which there is one at most, nothing is called.
    """

    @property
    def closed(self) -> bool:
        """Whether it takes no more: the engine then frees the row, and says nothing."""
        ...

    def room(self, in_flight: int) -> int:
        """How many more tokens may be made, beside those that are on their way."""
        ...

    def prefilling(self) -> None:
        """The stream has left the queue."""
        ...

    def reseeding(self) -> None:
        """Room is being made for the next token."""
        ...

    def push(self, piece: Piece) -> None:
        """The next token."""
        ...

    def finish(self, reason: FinishReason, rest: str) -> None:
        """The stream has ended, with text that was held back behind its last token."""
        ...

    def fail(self, code: str) -> None:
        """The stream has ended by an error: `prefill_failed`, `step_failed`, `text_failed`, `engine_dead`."""
        ...


class Job:
    """A stream from its submission to its end."""

    def __init__(
        self,
        prompt: PreparedPrompt,
        config: SamplingConfig,
        consumer: Consumer,
        tokenizer: Any,
        endless: EndlessRow | None = None,
    ) -> None:
        self.prompt, self.config, self.consumer = prompt, config, consumer
        self.endless = endless
        self.ended = False
        self._text = TextStream(tokenizer, config.stop, config.eos_ids)
        self._dispatched = self._delivered = 0

    @property
    def over(self) -> bool:
        """Whether no more of it is wanted."""
        return self.ended or self.consumer.closed

    @property
    def room(self) -> int:
        """How many steps its row may take."""
        room = self._wanted
        return room if self.endless is None else min(room, self.endless.room)

    @property
    def filled(self) -> int:
        """How many slots of its row are, once it has one; the newest token is in none yet."""
        if self.endless is not None:
            return self.endless.filled
        return len(self.prompt.tokens) + self._dispatched - 1

    @property
    def wants_room(self) -> bool:
        """Whether its row is full, and all tokens are there of which a new beginning is made."""
        settled = self._dispatched == self._delivered
        return self.endless is not None and self.endless.is_full and settled and self._wanted > 0

    @property
    def _wanted(self) -> int:
        if self.over:
            return 0
        left = self.config.max_new_tokens - self._dispatched
        return min(left, self.consumer.room(self._dispatched - self._delivered))

    def stepped(self, steps: int) -> None:
        """Its row takes so many steps."""
        self.dispatched(steps)
        if self.endless is not None:
            self.endless.stepped(steps)

    def add_stop(self, stop: Sequence[str]) -> None:
        """More strings that end it, in the text that is to come; from any thread.

        Raises:
            SettingsError: one of them is no string, or empty.
        """
        self.config = replace(self.config, stop=(*self.config.stop, *stop))
        self._text.add_stop(stop)

    def dispatched(self, tokens: int) -> None:
        """So many tokens of it are on their way."""
        self._dispatched += tokens

    def deliver(self, status: int, token: int, logprob: float, top: Alternatives) -> None:
        """Hand over the token of a step that its row took."""
        self._delivered += 1
        if self.over:
            return
        ended = finish_reason(status)
        if status == EXHAUSTED:
            self._finish(ended or "repetition", self._text.close())
            return
        if self.endless is not None:
            self.endless.delivered(token)
        text = self._text.push(token)
        if ended is not None:
            text += self._text.close()
        if self._text.stopped:
            ended = "stop"
        self.consumer.push(Piece(token, text, logprob, top))
        if ended is not None and not self.consumer.closed:
            self._finish(ended, "")

    def fail(self, code: str) -> None:
        """End it by an error, unless it has ended."""
        if not self.over:
            self.ended = True
            self.consumer.fail(code)

    def _finish(self, reason: FinishReason, rest: str) -> None:
        self.ended = True
        self.consumer.finish(reason, rest)


def check_job(
    model: Model,
    config: EngineConfig,
    prompt: PreparedPrompt,
    asked: SamplingConfig,
    stream: StreamConfig | None = None,
) -> None:
    """Whether the engine's programs have room for a stream.

    Raises:
        SettingsError: more tokens, alternatives, biases or ids than it is made for, ids beyond the
            vocabulary, or no seed.
    """
    sampling_params([asked], vocab_size=model.vocab_size)
    length, context = len(prompt.tokens), config.context_of(model)
    if stream is None:
        _check_length(length, asked.max_new_tokens, context)
    else:
        _check_stream(length, stream, context)
    if asked.seed is None:
        raise SettingsError("seed: None; allowed: an integer, as a stream has no other key")
    for name, given, allowed in (
        ("top_logprobs", asked.top_logprobs, min(config.top_logprobs, model.vocab_size)),
        ("logit_bias", len(list(asked.logit_bias)), config.logit_biases),
        ("eos_id", len(asked.eos_ids), config.token_ids),
        ("no_repeat_ngram_exempt", len(asked.exempt_ids), config.token_ids),
    ):
        if given > allowed:
            raise SettingsError(f"{name}: {given}; allowed: up to {allowed}")


def _check_length(prompt: int, answer: int, context: int) -> None:
    if prompt + answer > context:
        raise SettingsError(
            f"max_new_tokens: {prompt} prompt tokens + {answer} = {prompt + answer}; "
            f"allowed: up to {context} together"
        )


def _check_stream(prompt: int, stream: StreamConfig, context: int) -> None:
    if stream.policy != "reseed" or stream.summary is not None:
        raise SettingsError(f"policy: {stream.policy}; allowed: reseed, without a summary")
    if stream.context > context:
        raise SettingsError(f"context: {stream.context}; allowed: up to {context}")
    if prompt >= stream.context:
        raise SettingsError(
            f"context: {stream.context} with {prompt} prompt tokens; allowed: more than the prompt"
        )


def sampling_row(model: Model, config: EngineConfig, asked: SamplingConfig) -> SamplingParams:
    """One row of what `asked` says, in arrays of the engine's widths, on the host."""
    params = sampling_params([asked], vocab_size=model.vocab_size)
    return params._replace(
        wanted=Wanted(),  # a step knows what all of its rows ask for
        bias_ids=_widened(params.bias_ids, config.logit_biases, -1),
        bias_values=_widened(params.bias_values, config.logit_biases, 0),
        eos_ids=_widened(params.eos_ids, config.token_ids, -1),
        no_repeat_ngram_exempt=_widened(params.no_repeat_ngram_exempt, config.token_ids, -1),
    )


def _widened(array: Any, width: int, fill: int) -> np.ndarray:
    kept = np.asarray(array)[:, :width]
    return np.pad(kept, [(0, 0), (0, width - kept.shape[1])], constant_values=fill)
