"""Sampling: one step, `sample` and `sample_streaming` over it, inputs before it and text behind it."""

from sample.batch import SampleResult, sample
from sample.config import SamplingConfig
from sample.inputs import VLMInputs, prepare_inputs
from sample.perplexity import PerplexityTracker, model_surprisal
from sample.request import make_request
from sample.reseed import clear_and_reseed
from sample.stats import Reseed, StreamStats
from sample.step import Prompt, decode_step, prefill, unpack
from sample.stream_config import StreamConfig
from sample.streaming import Token, TokenStream, sample_streaming
from sample.summary_config import SummaryConfig

__all__ = [
    "PerplexityTracker",
    "Prompt",
    "Reseed",
    "SampleResult",
    "SamplingConfig",
    "StreamConfig",
    "StreamStats",
    "SummaryConfig",
    "Token",
    "TokenStream",
    "VLMInputs",
    "clear_and_reseed",
    "decode_step",
    "make_request",
    "model_surprisal",
    "prefill",
    "prepare_inputs",
    "sample",
    "sample_streaming",
    "unpack",
]
