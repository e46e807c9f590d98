"""A batch's result as rows and statistics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.requests import Request

if TYPE_CHECKING:
    from sample import SampleResult, VLMInputs


def rows_of(requests: Sequence[Request], result: "SampleResult") -> list[dict[str, Any]]:
    """What is known of each answer; tokens without the padding behind a shorter one."""
    rows = []
    for index, (request, length) in enumerate(zip(requests, result.lengths.tolist(), strict=True)):
        row = {
            "index": index,
            "images": list(request.images),
            "prompt": request.prompt,
            "text": result.texts[index],
            "finish_reason": result.finish_reasons[index],
            "token_ids": result.tokens[index, :length].tolist(),
            "logprobs": result.logprobs[index, :length].tolist(),
        }
        if any(result.top_logprobs[index]):
            row["top_logprobs"] = result.top_logprobs[index]
        rows.append(row)
    return rows


def batch_summary(rows: Sequence[dict[str, Any]], inputs: "VLMInputs", seconds: float) -> dict[str, Any]:
    """The statistics of a batch; `seconds` is the time that `sample` took, compiling and prompts included."""
    tokens = np.asarray(inputs.prompt_tokens)
    mask = np.ones(tokens.shape, bool) if inputs.attention_mask is None else np.asarray(inputs.attention_mask)
    new_tokens = sum(len(row["token_ids"]) for row in rows)
    return {
        "finish_reasons": [row["finish_reason"] for row in rows],
        "prompt_tokens": int(mask.sum()),
        "image_tokens": int((mask & (tokens == inputs.image_pad_id)).sum()),
        "new_tokens": new_tokens,
        "seconds": seconds,
        "tokens_per_second": new_tokens / seconds,
    }
