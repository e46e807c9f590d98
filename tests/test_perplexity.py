"""Surprisal and perplexity: against scipy's log-softmax and the definition, and what is not finite."""

import math
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from models.errors import InputError
from sample.perplexity import PerplexityTracker, model_surprisal

NATS = st.floats(0, 50)


def test_surprisal_is_minus_the_log_of_the_softmax():
    logits = np.random.default_rng(0).normal(0, 30, (3, 4, 77)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, 77, (3, 4))
    expected = -np.take_along_axis(log_softmax(logits.astype(np.float64), -1), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(model_surprisal(logits, tokens), expected, rtol=1e-12)
    np.testing.assert_allclose(
        model_surprisal(jnp.asarray(logits), jnp.asarray(tokens)), expected, rtol=1e-12
    )


def test_surprisal_of_equal_logits_is_the_log_of_their_number_however_large_they_are():
    assert float(model_surprisal(np.full(8, 3e38, np.float32), 5)) == pytest.approx(math.log(8))


def test_surprisal_of_an_impossible_token_is_infinite_and_of_a_broken_row_not_a_number():
    assert float(model_surprisal(np.array([0.0, -np.inf]), 1)) == math.inf
    assert math.isnan(float(model_surprisal(np.array([0.0, np.nan]), 0)))


@pytest.mark.parametrize(
    ("logits", "token", "part"),
    [
        (np.zeros(4), 4, "allowed: 0..3"),
        (np.zeros(4), -1, "allowed: 0..3"),
        (np.zeros((2, 4)), 1, "[..., V]"),
        (np.zeros(4), 1.0, "[..., V]"),
        (np.float32(1), 0, "[..., V]"),
    ],
)
def test_what_does_not_fit_is_one_line(logits, token, part):
    with pytest.raises(InputError, match="model_surprisal") as caught:
        model_surprisal(logits, token)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.one_of(NATS, st.none()), max_size=60), st.integers(1, 20))
def test_perplexity_is_exp_of_the_mean_in_whole_in_window_and_in_segments(steps, window):
    """None in `steps` is a reseed."""
    tracker, nats, parts = PerplexityTracker(window), [], [[]]
    for step in steps:
        if step is None:
            tracker.mark_reseed()
            parts.append([])
        else:
            tracker.add(step)
            nats.append(step)
            parts[-1].append(step)
    assert tracker.tokens == len(nats)
    if not nats:
        assert tracker.perplexity is None
        assert tracker.window_perplexity is None
    else:
        assert tracker.perplexity == pytest.approx(math.exp(np.mean(nats)))
        assert tracker.window_perplexity == pytest.approx(math.exp(np.mean(nats[-window:])))
    *ended, growing = tracker.segments
    assert [s.tokens for s in ended] == [len(part) for part in parts[:-1] if part]
    assert growing.tokens == len(parts[-1])
    for segment in tracker.segments:
        own = nats[segment.start : segment.start + segment.tokens]
        assert segment.perplexity == (pytest.approx(math.exp(np.mean(own))) if own else None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), jnp.inf])
def test_what_is_not_finite_is_an_error_for_its_token_alone(value):
    tracker = PerplexityTracker(4)
    tracker.add(1.0)
    with pytest.raises(InputError, match="for token 1; allowed: a finite number"):
        tracker.add(value)
    tracker.add(3.0)
    assert tracker.tokens == 2
    assert tracker.perplexity == tracker.window_perplexity == pytest.approx(math.exp(2))
    assert [segment.tokens for segment in tracker.segments] == [2]


def test_sums_are_float64():
    tracker = PerplexityTracker()
    for _ in range(200_000):
        tracker.add(0.1)
    assert tracker.perplexity == pytest.approx(math.exp(0.1), rel=1e-10)


def test_a_perplexity_beyond_float64_is_infinite_and_no_error():
    tracker = PerplexityTracker(1)
    tracker.add(1e6)
    assert tracker.perplexity == math.inf
    tracker.add(1.0)
    assert tracker.window_perplexity == pytest.approx(math.e)


def test_memory_is_bounded():
    tracker = PerplexityTracker()

    def grow() -> None:
        for _ in range(6000):
            tracker.add(1.0)
            tracker.mark_reseed()

    grow()
    tracemalloc.start()
    try:
        grow()
        before = tracemalloc.get_traced_memory()[0]
        grow()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()
    assert len(tracker.segments) == 4096


def test_a_window_without_tokens_is_refused():
    with pytest.raises(InputError, match="window: got 0"):
        PerplexityTracker(0)
