"""What a long stream leaves behind: nothing. `benchmarks/endless.py` runs the same for a million tokens."""

import jax
import numpy as np
import pytest

from benchmarks.endless import Reading, growth, readings
from sample import SamplingConfig, StreamConfig, sample_streaming


@pytest.mark.parametrize("policy", ["reseed", "shift"])
@pytest.mark.slow
def test_nothing_grows_behind_the_second_reseed(tiny, policy):
    model, params, processor = tiny()
    prompt = np.arange(30, dtype=np.int32)[None]
    cfg = SamplingConfig(max_new_tokens=10**6, no_repeat_ngram_size=4, no_repeat_ngram_window=64)
    stream = sample_streaming(
        model,
        params,
        prompt,
        cfg,
        jax.random.key(0),
        tokenizer=processor.tokenizer,
        stream=StreamConfig(policy=policy, context=112, tail=24),
    )
    with stream:
        taken = list(readings(stream, intervals=4, tokens=1500))
    assert taken[-1].tokens == stream.stats.new_tokens == 1500
    assert taken[-1].reseeds > 20
    timeless = [reading._replace(microseconds=None) for reading in taken]
    assert growth(timeless) == []


def test_what_grows_is_told():
    flat = Reading(1000, 3, 500 << 20, 150, 10**6, 7, None)
    later = flat._replace(tokens=2000, microseconds=100.0)
    assert growth([flat, later, later]) == []
    assert growth([flat, later._replace(resident=520 << 20)]) == ["resident memory grew by 20.0 MiB"]
    assert growth([flat, later._replace(arrays=154)]) == []
    assert growth([flat, later._replace(arrays=155)]) == ["device arrays grew by 5"]
    assert growth([flat, later._replace(array_bytes=10**6 + 2**17)]) == ["device array_bytes grew by 131072"]
    assert growth([flat, later._replace(programs=9)]) == ["2 programs were compiled"]
    slower = later._replace(microseconds=130.0)
    assert growth([flat, later, later, slower, slower]) == ["a token took 100 us, later 130 us"]
