"""How a sequence ended, and what else its tokens could have been: what both drivers tell alike."""

from typing import Literal

import numpy as np

from sample.config import SamplingConfig
from sample.step import OUT_OF_LENGTH, RUNNING, STOPPED

FinishReason = Literal["stop", "length", "repetition", "cancelled", "error"]
Alternatives = list[tuple[int, float]]  # (token id, logprob), the likeliest first

_REASONS: dict[int, FinishReason | None] = {RUNNING: None, STOPPED: "stop", OUT_OF_LENGTH: "length"}


def finish_reason(status: int) -> FinishReason | None:
    """What a row's status says; None while it runs."""
    return _REASONS.get(status, "repetition")


def alternatives(ids: np.ndarray, logprobs: np.ndarray, config: SamplingConfig) -> Alternatives:
    """As many of one token's alternatives as `config` asks for."""
    wanted = config.top_logprobs
    if not wanted:
        return []
    return list(zip(ids[:wanted].tolist(), logprobs[:wanted].tolist(), strict=True))
