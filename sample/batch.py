"""`sample`: whole answers for a batch; the loop over the step runs on the device."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from models.errors import SettingsError
from models.qwen3_vl import Qwen3VL
from sample.config import SamplingConfig
from sample.inputs import VLMInputs
from sample.request import make_request
from sample.step import RUNNING, STOPPED, StepOutput, decode_steps, prefill, unpack
from sample.streaming import FinishReason
from sample.text import TextStream

_STEPS = 64  # steps per program: the host looks at stop strings and interrupts in between


class SampleResult(NamedTuple):
    """A row's answer ends with its end token, if it has one; behind it are `pad_id` and 0."""

    tokens: Int[np.ndarray, "B n"]
    logprobs: Float[np.ndarray, "B n"]
    texts: list[str]
    finish_reasons: list[FinishReason]


def sample(
    model: Qwen3VL,
    params: Any,
    inputs: VLMInputs | Array | np.ndarray,
    cfg: SamplingConfig | list[SamplingConfig],
    rng: Array,
    *,
    tokenizer: Any = None,
) -> SampleResult:
    """Generate until every row has ended.

    Args:
        inputs: pictures and prompts of any batch size; an int array `[B, T]` for text alone.
        cfg: one for all rows, or one per row.
        rng: one key (row i draws from `fold_in(rng, i)`) or one key per row; a row's `seed` comes before it.
        tokenizer: without one, the texts are empty.

    Raises:
        InputError: inputs that do not fit the model.
        SettingsError: stop strings without a tokenizer, or not one configuration or key per row.
    """
    request = make_request(model, inputs, cfg, rng)
    if tokenizer is None and any(c.stop for c in request.configs):
        raise SettingsError("stop: stop strings need a tokenizer")
    rows = [_Row(c, tokenizer) for c in request.configs]
    params = model.decoder_params(params)
    state, packed = prefill(
        model,
        params,
        request.prompt,
        request.vision,
        request.sampling,
        request.key,
        slots=request.slots,
        top=request.top,
    )
    _record(rows, unpack(np.asarray(packed)[None]))
    padding = [True] * (len(request.prompt.lengths) - len(rows))
    while any(row.status == RUNNING for row in rows):
        ended = np.array([row.status != RUNNING for row in rows] + padding)
        state, outputs, made = decode_steps(
            model, params, state, request.sampling, ended, steps=_STEPS, top=request.top
        )
        _record(rows, unpack(np.asarray(outputs)[: int(made)]))
    return _result(rows)


class _Row:
    """A row's answer as it grows on the host."""

    def __init__(self, config: SamplingConfig, tokenizer: Any) -> None:
        self.pad_id = config.pad_id
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.pieces: list[str] = []
        self.status = RUNNING
        self._text = None if tokenizer is None else TextStream(tokenizer, config.stop, config.eos_ids)

    def add(self, token: int, logprob: float, status: int) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.status = status
        if self._text is not None:
            self.pieces.append(self._text.push(token))
            if status != RUNNING:
                self.pieces.append(self._text.close())
            if self._text.stopped:
                self.status = STOPPED


def _record(rows: list[_Row], outputs: StepOutput) -> None:
    for i, row in enumerate(rows):
        columns = (outputs.token[:, i], outputs.logprob[:, i], outputs.status[:, i])
        for token, logprob, status in zip(*(c.tolist() for c in columns), strict=True):
            if row.status == RUNNING:
                row.add(token, logprob, status)


def _result(rows: list[_Row]) -> SampleResult:
    longest = max(len(row.tokens) for row in rows)
    tokens = np.array([row.tokens + [row.pad_id] * (longest - len(row.tokens)) for row in rows], np.int32)
    logprobs = np.array([row.logprobs + [0.0] * (longest - len(row.logprobs)) for row in rows], np.float32)
    reasons: list[FinishReason] = ["stop" if row.status == STOPPED else "length" for row in rows]
    return SampleResult(tokens, logprobs, ["".join(row.pieces) for row in rows], reasons)
