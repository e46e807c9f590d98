"""Sampling: one step, `sample` and `sample_streaming` over it, inputs before it and text behind it."""

from sample.batch import SampleResult, sample
from sample.config import SamplingConfig
from sample.inputs import VLMInputs, prepare_inputs
from sample.stats import StreamStats
from sample.streaming import Token, TokenStream, sample_streaming

__all__ = [
    "SampleResult",
    "SamplingConfig",
    "StreamStats",
    "Token",
    "TokenStream",
    "VLMInputs",
    "prepare_inputs",
    "sample",
    "sample_streaming",
]
