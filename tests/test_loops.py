"""N-grams and patterns on the device against a tracker in plain Python, and in both drivers."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import Qwen3VLConfig
from models.qwen3_vl import Qwen3VL
from sample import SamplingConfig, sample, sample_streaming
from sample.loops import blocked_followers, history_of, may_block, pushed, repeated_pattern
from tests.test_compiles import compilations
from tests.tiny import random_params, tiny_config

V = 7
WIDTH, WATCHED = 100, 80
push = jax.jit(pushed)
followers = jax.jit(blocked_followers, static_argnums=5)


class NgramTracker:
    """What the device has to agree with: counts every n-gram of the window anew at each question."""

    def __init__(self, size: int, threshold: int, window: int, exempt: Sequence[int]) -> None:
        self.size, self.threshold, self.window, self.exempt = size, threshold, window, exempt

    def blocked(self, tokens: Sequence[int]) -> set[int]:
        n, seen = self.size, tokens[-self.window :]
        ngrams = Counter(tuple(seen[i : i + n]) for i in range(len(seen) - n + 1))
        begun = tuple(tokens[len(tokens) - n + 1 :])
        return {
            token
            for token in range(V)
            if len(begun) == n - 1 and ngrams[(*begun, token)] >= self.threshold and token not in self.exempt
        }


def repeats(tokens: Sequence[int], times: int) -> bool:
    """Whether the last tokens are so many times the same 1 to 64."""
    return any(
        len(tokens) >= times * d and list(tokens[-times * d :]) == list(tokens[-d:]) * times
        for d in range(1, 65)
    )


def blocked(history, size: int, threshold: int = 2, window: int = WATCHED, exempt: Sequence[int] = ()):
    arrays = [np.array([x], np.int32) for x in (size, threshold, window)]
    found = followers(history, *arrays, np.array([[*exempt, *[-1] * (4 - len(exempt))]], np.int32), V)
    if found.any():
        assert bool(may_block(history, *arrays)[0])
    return set(np.flatnonzero(found[0]).tolist())


def grown(prompt: Sequence[int], drawn: Sequence[int]):
    history = history_of([np.array(prompt, np.int32)], WIDTH, WATCHED)
    for token in drawn:
        history = push(history, jnp.array([token], jnp.int32), jnp.array([True]))
    return history


# Two or three tokens make loops likely.
TOKENS = st.lists(st.integers(0, V - 1), max_size=60) | st.lists(st.integers(0, 1), max_size=120)


@settings(max_examples=80, deadline=None)
@given(
    prompt=TOKENS,
    drawn=TOKENS,
    size=st.integers(2, 6),
    threshold=st.integers(1, 3),
    window=st.integers(5, WATCHED),
    exempt=st.lists(st.integers(0, V - 1), max_size=3),
)
def test_the_device_blocks_what_the_tracker_blocks(prompt, drawn, size, threshold, window, exempt):
    tokens = [0, *prompt, *drawn]
    tracker = NgramTracker(size, threshold, window, exempt)
    assert blocked(grown([0, *prompt], drawn), size, threshold, window, exempt) == tracker.blocked(tokens)


def test_every_exit_of_a_loop_is_blocked():
    loop = [1, 2, 3, 4, 1, 2, 3, 5] * 2 + [1, 2, 3]
    assert blocked(grown([6], loop), 4) == {4, 5}


def test_the_third_occurrence_is_the_first_that_is_blocked():
    pair = [1, 2, 3]
    assert blocked(grown([0], [*pair, *pair[:2]]), 3) == set()
    assert blocked(grown([0], [*pair, *pair, *pair[:2]]), 3) == {3}
    assert blocked(grown([0], [*pair, *pair[:2]]), 3, threshold=1) == {3}


def test_the_prompt_counts_as_if_it_had_been_drawn():
    loop = [1, 2, 3, 4] * 3
    for split in (1, 5, 12):
        assert blocked(grown(loop[:split], loop[split:]), 3) == {1}


def test_exempt_tokens_are_left():
    assert blocked(grown([0], [1, 2] * 4), 2) == {1}
    assert blocked(grown([0], [1, 2] * 4), 2, exempt=[1]) == set()


def test_what_has_left_the_window_is_forgotten():
    tokens = [1, 2, 3, 1, 2, 3, *[0] * 20, 1, 2]
    assert blocked(grown([0], tokens), 3) == {3}
    assert blocked(grown([0], tokens), 3, window=28) == {3}
    assert blocked(grown([0], tokens), 3, window=27) == set()


def test_off_blocks_nothing():
    assert blocked(grown([0], [1] * 50), 0) == set()


@settings(max_examples=60, deadline=None)
@given(
    prompt=TOKENS,
    head=st.lists(st.integers(0, V - 1), max_size=20),
    pattern=st.lists(st.integers(0, V - 1), min_size=1, max_size=20),
    copies=st.integers(1, 5),
    times=st.integers(2, 4),
)
def test_the_detector_sees_what_repeats(prompt, head, pattern, copies, times):
    drawn = [*head, *pattern * copies]
    history = grown([0, *prompt], drawn)
    found = repeated_pattern(history, np.array([times], np.int32), np.array([len(drawn)], np.int32))
    assert bool(found[0]) == repeats(drawn, times)


@pytest.mark.parametrize("period", [1, 63, 64, 65])
def test_patterns_have_up_to_64_tokens(period):
    drawn = list(range(period)) * 2
    history = grown([0], drawn)
    found = repeated_pattern(history, np.array([2], np.int32), np.array([len(drawn)], np.int32))
    assert bool(found[0]) == (period <= 64)


def test_a_row_that_has_ended_keeps_its_history():
    rows = [np.array([1, 2], np.int32), np.array([3, 4, 5], np.int32)]
    history = history_of(rows, WIDTH, WATCHED)
    after = push(history, jnp.array([6, 6], jnp.int32), jnp.array([True, False]))
    assert after.tokens[0, -3:].tolist() == [1, 2, 6]
    assert after.tokens[1].tolist() == history.tokens[1].tolist()
    assert after.matched[1].tolist() == history.matched[1].tolist()


@pytest.fixture(scope="module")
def small():
    """A model of 16 tokens, 12 that of pictures, and one layer."""
    config = tiny_config()
    config["text_config"] |= {"num_hidden_layers": 1, "vocab_size": 16}
    config["vision_config"]["deepstack_visual_indexes"] = []
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    model = Qwen3VL(Qwen3VLConfig.from_dict(config | dict(zip(names, range(12, 16), strict=True))))
    return model, random_params(model)


# Every token behind 0, and 0 again; but for that of pictures, which no prompt of text has.
BEHIND_ZERO = [x for token in (*range(1, 12), 13, 14, 15) for x in (0, token)] + [0, 0]
NO_PICTURE = {"eos_id": 12, "ignore_eos": True}


def both(small, prompt: Sequence[int], **settings):
    """Tokens and reason of `sample`, once they are those of `sample_streaming`."""
    model, params = small
    cfg = SamplingConfig(**settings)
    arguments = (model, params, np.array([prompt], np.int32), cfg, jax.random.key(0))
    whole, stream = sample(*arguments), sample_streaming(*arguments)
    tokens = [t.token_id for t in stream]
    assert tokens == whole.tokens[0].tolist()
    assert [stream.finish_reason] == whole.finish_reasons
    assert len(tokens) == stream.stats.new_tokens == whole.lengths[0]
    return tokens, stream.finish_reason


@pytest.mark.parametrize(("size", "threshold"), [(2, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_no_ngram_comes_once_too_often_in_either_driver(small, size, threshold, temperature):
    prompt = [1, 2, 3]
    tokens, _ = both(
        small,
        prompt,
        temperature=temperature,
        max_new_tokens=100,
        no_repeat_ngram_size=size,
        no_repeat_ngram_threshold=threshold,
    )
    whole = [*prompt, *tokens]
    ngrams = Counter(tuple(whole[i : i + size]) for i in range(len(whole) - size + 1))
    assert max(ngrams.values()) == threshold
    free, _ = both(small, prompt, temperature=temperature, max_new_tokens=100)
    assert free != tokens


@pytest.mark.slow
def test_where_no_token_is_left_the_sequence_ends_without_one(small):
    tokens, reason = both(
        small, [1, 2], max_new_tokens=900, no_repeat_ngram_size=2, no_repeat_ngram_threshold=1
    )
    assert reason == "repetition"
    assert len(tokens) <= 16 * 16
    followers = {b for a, b in pairwise([1, 2, *tokens]) if a == tokens[-1]}
    assert followers == set(range(16))
    # Also where there is no first one.
    on = {"max_new_tokens": 9, "no_repeat_ngram_size": 2, "no_repeat_ngram_threshold": 1, **NO_PICTURE}
    assert both(small, BEHIND_ZERO, **on) == ([], "repetition")
    assert both(small, BEHIND_ZERO, **on, no_repeat_ngram_exempt=9)[0][0] == 9


@pytest.mark.slow
def test_a_row_without_tokens_stands_beside_others(small):
    model, params = small
    rows = np.array([BEHIND_ZERO, [3] * len(BEHIND_ZERO)], np.int32)
    on = SamplingConfig(max_new_tokens=5, no_repeat_ngram_size=2, no_repeat_ngram_threshold=1, **NO_PICTURE)
    off = SamplingConfig(max_new_tokens=5)
    keys = jax.random.split(jax.random.key(0), 2)
    result = sample(model, params, rows, [on, off], keys)
    alone = [sample(model, params, rows[i : i + 1], c, keys[i : i + 1]) for i, c in enumerate((on, off))]
    for i, reason in enumerate(["repetition", "length"]):
        assert result.finish_reasons[i] == alone[i].finish_reasons[0] == reason
        n = result.lengths[i]
        assert result.tokens[i, :n].tolist() == alone[i].tokens[0].tolist()
    assert result.lengths.tolist() == [0, 5]


@pytest.mark.parametrize("times", [2, 5])
def test_a_pattern_ends_both_drivers_with_its_last_token(small, times):
    bias = {"logit_bias": {5: 100.0}, "temperature": 0}
    assert both(small, [5, 5, 5], max_new_tokens=50, max_pattern_repeats=times, **bias) == (
        [5] * times,
        "repetition",
    )
    assert both(small, [5, 5, 5], max_new_tokens=times, max_pattern_repeats=times, **bias)[1] == "repetition"
    assert both(small, [5, 5, 5], max_new_tokens=times - 1, max_pattern_repeats=times, **bias)[1] == "length"
    assert both(small, [5, 5], max_new_tokens=9, max_pattern_repeats=2, eos_id=5, **bias) == ([5], "stop")


def test_ignored_end_tokens_are_never_drawn(small):
    ends = list(range(15))
    assert both(small, [1], max_new_tokens=9, eos_id=ends, ignore_eos=True) == ([15] * 9, "length")
    assert both(small, [1], max_new_tokens=9, eos_id=range(16))[1] == "stop"


@pytest.mark.slow
def test_what_a_loop_setting_is_compiles_nothing(small):
    on = {"max_new_tokens": 20, "no_repeat_ngram_window": 64}
    both(small, [1, 2], no_repeat_ngram_size=3, **on)
    with compilations() as again:
        both(small, [1, 2, 4], no_repeat_ngram_size=6, no_repeat_ngram_threshold=7, **on)
        both(small, [1], no_repeat_ngram_size=2, no_repeat_ngram_exempt=[3, 4], **on)
        both(small, [1], no_repeat_ngram_size=2, ignore_eos=True, eos_id=3, **on)
    assert again == []
