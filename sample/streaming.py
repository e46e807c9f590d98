"""`sample_streaming`: a Python loop over the jitted step, one step ahead of the host."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array

from models.errors import InputError
from models.model import Model
from sample.config import SamplingConfig
from sample.inputs import VLMInputs
from sample.request import Request, make_request
from sample.stats import StreamStats
from sample.step import RUNNING, STOPPED, DecodeState, StepOutput, decode_step, prefill, unpack
from sample.text import TextStream

FinishReason = Literal["stop", "length", "cancelled", "error"]
Alternatives = list[tuple[int, float]]  # (token id, logprob), the likeliest first


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
) -> "TokenStream":
    """Generate one sequence and yield its tokens as they are made.

    Args:
        inputs: of batch size 1; an int array `[1, T]` for text alone.
        cfg: one, or a list of one.
        rng: a key, old-style or new-style; `cfg.seed` comes before it. To repeat row i of
            `sample(rng=keys)`, pass `keys[i : i + 1]`.
        tokenizer: without one, the texts are empty.

    Returns:
        An iterator of `Token`; nothing runs before its first element is asked for. The texts, joined,
        are `sample().texts[0]`.

    Raises:
        InputError: a batch larger than 1, or inputs that do not fit the model.
        SettingsError: stop strings without a tokenizer, no key, or not one configuration.
    """
    request = make_request(model, inputs, cfg, rng, tokenizer)
    if len(request.lengths) != 1:
        raise InputError(
            f"sample_streaming: a batch of {len(request.lengths)}; allowed: 1 (use sample() for more)"
        )
    return TokenStream(model, params, request, tokenizer)


class TokenStream(Iterator[Token]):
    """A running generation.

    `finish_reason` is None while it runs, `stats` grows with it, `top_logprobs` are the alternatives to
    the last token, as (id, logprob), and `rest` is text that was held back when `cancel` or an error
    ended the stream between two tokens.
    """

    def __init__(self, model: Model, params: Any, request: Request, tokenizer: Any) -> None:
        self.finish_reason: FinishReason | None = None
        self.stats = StreamStats(request.lengths[0], request.image_tokens)
        self.top_logprobs: Alternatives = []
        self.rest = ""
        self._model, self._params, self._request = model, model.decoder_params(params), request
        config = request.configs[0]
        self._text = None if tokenizer is None else TextStream(tokenizer, config.stop, config.eos_ids)
        self._state: DecodeState | None = None
        self._ahead: Any = None  # the packed output of the step that runs
        self._dispatched = 0
        self._cancelled = False

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> Token:
        if self.finish_reason is not None:
            raise StopIteration
        if self._cancelled:
            self._finish("cancelled")
            raise StopIteration
        try:
            token = self._token(self._next_output())
        except KeyboardInterrupt:
            self._finish("cancelled")
            raise
        except Exception:
            self._finish("error")
            raise
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

    def _next_output(self) -> StepOutput:
        """Dispatch the step behind the one that is waited for, so that the device is never idle."""
        if self._ahead is None:
            self._dispatch()
        waited_for = self._ahead
        if self._dispatched < self._request.configs[0].max_new_tokens:
            self._dispatch()
        return unpack(np.asarray(waited_for))

    def _dispatch(self) -> None:
        r = self._request
        if self._state is None:
            self._state, self._ahead = prefill(
                self._model, self._params, r.prompt, r.vision, r.sampling, r.key, slots=r.slots, top=r.top
            )
        else:
            self._state, self._ahead = decode_step(
                self._model, self._params, self._state, r.sampling, top=r.top
            )
        self._ahead.copy_to_host_async()
        self._dispatched += 1

    def _token(self, output: StepOutput) -> Token:
        token, status = int(output.token[0]), int(output.status[0])
        self.top_logprobs = alternatives(output.top_ids[0], output.top_logprobs[0], self._request.configs[0])
        text = ""
        if self._text is not None:
            text = self._text.push(token)
            if status != RUNNING:
                text += self._text.close()
            if self._text.stopped:
                status = STOPPED
        if status != RUNNING:
            self._finish("stop" if status == STOPPED else "length")
        return Token(token, text, float(output.logprob[0]))

    def _finish(self, reason: FinishReason) -> None:
        """Let go of the device's memory and of the text that was held back."""
        self.finish_reason = reason
        self._state = self._ahead = None
        self.rest = "" if self._text is None else self._text.close()


def alternatives(ids: np.ndarray, logprobs: np.ndarray, config: SamplingConfig) -> Alternatives:
    """As many of one token's alternatives as `config` asks for."""
    wanted = config.top_logprobs
    return list(zip(ids[:wanted].tolist(), logprobs[:wanted].tolist(), strict=True))
