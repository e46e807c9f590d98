"""`sample`: whole answers for a batch; the loop over the step runs on the device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from models.model import Model
from sample.config import SamplingConfig
from sample.inputs import VLMInputs
from sample.outcome import Alternatives, FinishReason, alternatives, finish_reason
from sample.request import make_request
from sample.step import EXHAUSTED, NOT_TAKEN, STEPS, StepOutput, decode_steps, prefill, unpack_taken
from sample.text import TextStream


@dataclass(frozen=True, eq=False)
class SampleResult:
    """A batch's answers; unpacks to `tokens, logprobs, texts, finish_reasons`.

    Attributes:
        tokens: int32; a row ends with its end token, if it has one, and behind it is `pad_id`.
        logprobs: float32, in nats; 0 behind the end.
        texts: what the tokens say, without stop strings; empty without a tokenizer.
        finish_reasons: "stop", "length", "repetition", or "cancelled".
        lengths: int32, the tokens of each row, its end token counted.
        top_logprobs: of each row and token the likeliest (id, logprob), as many as the row asks for.
    """

    tokens: Int[np.ndarray, "B n"]
    logprobs: Float[np.ndarray, "B n"]
    texts: list[str]
    finish_reasons: list[FinishReason]
    lengths: Int[np.ndarray, " B"]
    top_logprobs: list[list[Alternatives]]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.tokens, self.logprobs, self.texts, self.finish_reasons))


def sample(
    model: Model,
    params: Any,
    inputs: VLMInputs | Array | np.ndarray,
    cfg: SamplingConfig | Sequence[SamplingConfig],
    rng: Array,
    *,
    tokenizer: Any = None,
    cancelled: Callable[[], bool] | None = None,
) -> SampleResult:
    """Generate until every row has ended.

    Args:
        inputs: pictures and prompts of any batch size; an int array `[B, T]` for text alone.
        cfg: one for all rows, or one per row.
        rng: one key (row i draws from `fold_in(rng, i)`) or one key per row; a row's `seed` comes before it.
        tokenizer: without one, the texts are empty.
        cancelled: asked after the first token and then every `STEPS`; True ends the rows that still run, with
            what they have.

    Raises:
        InputError: inputs that do not fit the model.
        SettingsError: stop strings without a tokenizer, or not one configuration or key per row.
    """
    request = make_request(model, inputs, cfg, rng, tokenizer)
    rows = [_Row(c, tokenizer) for c in request.configs]
    params = model.decoder_params(params)
    state, packed = prefill(
        model,
        params,
        *request.arguments,
        slots=request.slots,
        top=request.top,
    )
    _record(rows, unpack_taken(np.asarray(packed)))
    padding = [0] * (len(request.prompt.lengths) - len(rows))
    while running := [row for row in rows if row.finish_reason is None]:
        if cancelled is not None and cancelled():
            for row in running:
                row.finish("cancelled")
            break
        quota = np.array([STEPS * (row.finish_reason is None) for row in rows] + padding, np.int32)
        state, packed = decode_steps(model, params, state, request.sampling, quota, top=request.top)
        _record(rows, unpack_taken(np.asarray(packed)))
    return _result(rows)


class _Row:
    """A row's answer as it grows on the host."""

    def __init__(self, config: SamplingConfig, tokenizer: Any) -> None:
        self.config = config
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[Alternatives] = []
        self.pieces: list[str] = []
        self.finish_reason: FinishReason | None = None
        self._text = None if tokenizer is None else TextStream(tokenizer, config.stop, config.eos_ids)

    def add(self, token: int, logprob: float, status: int, top: Alternatives) -> None:
        ended = finish_reason(status)
        if status != EXHAUSTED:
            self.tokens.append(token)
            self.logprobs.append(logprob)
            self.top_logprobs.append(top)
            if self._text is not None:
                self.pieces.append(self._text.push(token))
        if ended is not None:
            self.finish(ended)
        if self._text is not None and self._text.stopped:
            self.finish_reason = "stop"

    def finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self._text is not None:
            self.pieces.append(self._text.close())


def _record(rows: list[_Row], outputs: StepOutput) -> None:
    for i, row in enumerate(rows):
        columns = (outputs.token[:, i], outputs.logprob[:, i], outputs.status[:, i])
        steps = zip(*(c.tolist() for c in columns), strict=True)
        for n, (token, logprob, status) in enumerate(steps):
            if row.finish_reason is None and status != NOT_TAKEN:
                top = alternatives(outputs.top_ids[n, i], outputs.top_logprobs[n, i], row.config)
                row.add(token, logprob, status, top)


def _result(rows: list[_Row]) -> SampleResult:
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    tokens = np.array([[row.config.pad_id] * max(lengths) for row in rows], np.int32)
    logprobs = np.zeros(tokens.shape, np.float32)
    for i, row in enumerate(rows):
        tokens[i, : lengths[i]] = row.tokens
        logprobs[i, : lengths[i]] = row.logprobs
    return SampleResult(
        tokens=tokens,
        logprobs=logprobs,
        texts=["".join(row.pieces) for row in rows],
        finish_reasons=[row.finish_reason for row in rows if row.finish_reason is not None],
        lengths=lengths,
        top_logprobs=[row.top_logprobs for row in rows],
    )
