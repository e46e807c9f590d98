"""`sample_streaming`: a Python loop over the jitted steps, one program ahead of the host."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from models.errors import InputError
from models.model import Model
from sample.config import SamplingConfig
from sample.endless import EndlessCache
from sample.inputs import VLMInputs
from sample.outcome import Alternatives, FinishReason, alternatives, finish_reason
from sample.pace import PROMPT, Pace, decode, fitting
from sample.perplexity import PerplexityTracker
from sample.request import Request, make_request
from sample.stats import Reseed, StreamStats
from sample.step import EXHAUSTED, DecodeState, StepOutput, one_by_one, prefill, unpack_taken
from sample.stream_config import StreamConfig
from sample.summary import SummarySidecar
from sample.text import TextStream
from sample.transfer import to_host


class Token(NamedTuple):
    """One generated token, the text that became safe to show with it, and its log-probability in nats."""

    token_id: int
    text: str
    logprob: float


def sample_streaming(
    model: Model,
    params: Any,
    inputs: VLMInputs | Array | np.ndarray,
    cfg: SamplingConfig | Sequence[SamplingConfig],
    rng: Array,
    *,
    tokenizer: Any = None,
    stream: StreamConfig | None = None,
) -> "TokenStream":
    """Generate one sequence and yield its tokens as they are made.

    Args:
        inputs: of batch size 1; an int array `[1, T]` for text alone.
        cfg: one, or a list of one.
        rng: a key, old-style or new-style; `cfg.seed` comes before it. To repeat row i of
            `sample(rng=keys)`, pass `keys[i : i + 1]`.
        tokenizer: without one, the texts are empty.
        stream: how the stream goes on when its cache is full; without it, prompt and answer fit the model's
            context together.

    Returns:
        An iterator of `Token`; nothing runs before its first element is asked for. The texts, joined,
        are `sample().texts[0]`.

    Raises:
        InputError: a batch larger than 1, or inputs that do not fit the model.
        SettingsError: stop strings or a summary without a tokenizer, no key, not one configuration, or a
            `stream` that does not fit the model or the prompt.
    """
    request = make_request(model, inputs, cfg, rng, tokenizer, stream)
    if len(request.lengths) != 1:
        raise InputError(
            f"sample_streaming: a batch of {len(request.lengths)}; allowed: 1 (use sample() for more)"
        )
    if request.plan is None or stream is None or stream.summary is None:
        return TokenStream(model, params, request, tokenizer)
    sidecar = SummarySidecar.for_stream(
        stream.summary, model, params, tokenizer, request.configs[0].eos_ids, request.plan.budget
    )
    return TokenStream(model, params, request, tokenizer, sidecar)


class _Ahead(NamedTuple):
    """Steps that the device works on."""

    packed: Array
    reseed: Reseed | None
    begun: float


class _Made(NamedTuple):
    """A token that has reached the host."""

    output: StepOutput
    reseed: Reseed | None


class TokenStream(Iterator[Token]):
    """A running generation.

    `finish_reason` is None while it runs, and `stats` and `perplexity` grow with it. `surprisal` is minus the
    last token's log-probability in nats, under the raw logits; `top_logprobs` are the alternatives to it, as
    (id, logprob); `reseed` tells how room was made right before it, if it was. `summary` is what summarises
    beside the stream, if anything does. `rest` is text that was held back when `cancel`, an error, or a lack
    of tokens that do not repeat ended the stream between two tokens.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        request: Request,
        tokenizer: Any,
        summary: SummarySidecar | None = None,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.stats = StreamStats(request.lengths[0], request.image_tokens)
        self.perplexity = PerplexityTracker()
        self.surprisal = float("nan")
        self.top_logprobs: Alternatives = []
        self.reseed: Reseed | None = None
        self.summary = summary
        self.rest = ""
        config, plan = request.configs[0], request.plan
        self._model, self._params, self._config = model, model.decoder_params(params), config
        self._request: Request | None = request  # None behind the end, as all that is on the device
        self._text = None if tokenizer is None else TextStream(tokenizer, config.stop, config.eos_ids)
        self._endless = None if plan is None else EndlessCache(plan, request.vision, summary)
        self._state: DecodeState | None = None
        self._ahead: _Ahead | None = None
        self._made: deque[_Made] = deque()
        self._pace = Pace()
        self._failure: Exception | None = None  # of a dispatch, told behind the tokens before it
        self._dispatched = 0
        self._cancelled = False

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> Token:
        request = self._request
        if request is None:
            raise StopIteration
        if self._cancelled:
            self._finish("cancelled")
            raise StopIteration
        try:
            if not self._made:
                self._made.extend(self._next_outputs(request))
            token = self._token(*self._made.popleft())
        except KeyboardInterrupt:
            self._finish("cancelled")
            raise
        except Exception:
            self._finish("error")
            raise
        if token is None:
            raise StopIteration
        self.stats.record_token()
        return token

    def cancel(self) -> None:
        """End the stream before its next token; callable from any thread."""
        self._cancelled = True

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.finish_reason is None:
            self._finish("cancelled")

    def _next_outputs(self, request: Request) -> Iterator[_Made]:
        """Dispatch the steps behind those that are waited for, so that the device is never idle.

        Not behind the prefill: the first token would wait for them to be dispatched, or compiled.
        """
        entered = time.perf_counter()
        if self._failure is not None:
            raise self._failure
        ahead = self._ahead or self._dispatch(request)
        self._ahead = None
        if 1 < self._dispatched < self._config.max_new_tokens:
            try:
                self._ahead = self._dispatch(request)
            except RuntimeError as error:  # JAX's kind, for the device; the tokens before it are whole
                self._failure = error
        output = unpack_taken(np.asarray(ahead.packed))
        now = time.perf_counter()
        self._pace.arrived(now, ahead.begun, len(output.token) if self.stats.new_tokens else PROMPT)
        reseed = ahead.reseed and ahead.reseed._replace(pause=now - entered)
        for i, step in enumerate(one_by_one(output)):
            yield _Made(step, None if i else reseed)

    def _dispatch(self, r: Request) -> _Ahead:
        begun = time.perf_counter()
        most = min(self._pace.steps, self._config.max_new_tokens - self._dispatched)
        common, reseed = (self._model, self._params), None
        if self._state is None:
            self._state, packed = prefill(*common, *r.arguments, slots=r.slots, top=r.top)
            most = 1
        elif self._endless is not None:
            self._state, packed, most, reseed = self._endless.steps(
                *common, self._state, r.sampling, r.top, most
            )
        else:
            most = fitting(most)
            self._state, packed = decode(*common, self._state, r.sampling, (most,), top=r.top)
        packed = to_host(packed, behind_prompt=not self._dispatched)
        self._dispatched += most
        return _Ahead(packed, reseed, begun)

    def _tell_reseed(self, reseed: Reseed | None) -> None:
        self.reseed = None
        if reseed is None:
            return
        self.stats.reseeds += 1
        if reseed.policy != "window":  # which computes anew at each token
            self.reseed = reseed
            self.stats.recent_reseeds.append(reseed)
            self.perplexity.mark_reseed()

    def _token(self, output: StepOutput, reseed: Reseed | None) -> Token | None:
        token, status = int(output.token[0]), int(output.status[0])
        ended = finish_reason(status)
        if ended is not None and status == EXHAUSTED:
            self._finish(ended)
            return None
        self._tell_reseed(reseed)
        self._count_surprisal(-float(output.raw_logprob[0]))
        self.top_logprobs = alternatives(output.top_ids[0], output.top_logprobs[0], self._config)
        if self._endless is not None:
            self._endless.delivered(token)
        text = ""
        if self._text is not None:
            text = self._text.push(token)
            if ended is not None:
                text += self._text.close()
            if self._text.stopped:
                ended = "stop"
        if ended is not None:
            self._finish(ended)
        return Token(token, text, float(output.logprob[0]))

    def _count_surprisal(self, surprisal: float) -> None:
        self.surprisal = surprisal
        try:
            self.perplexity.add(surprisal)
        except InputError:
            self.stats.surprisal_errors += 1

    def _finish(self, reason: FinishReason) -> None:
        """Let go of the device's memory and of the text that was held back."""
        self.finish_reason = reason
        self._request = self._params = self._state = self._ahead = self._failure = None
        self._made.clear()
        if self._endless is not None:
            self._endless.close()
            self._endless = None
        self.rest = "" if self._text is None else self._text.close()
