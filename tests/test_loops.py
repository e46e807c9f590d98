"""N-grams and patterns on the device against a tracker in plain Python, and in both drivers."""

from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample.loops import blocked_followers, history_of, may_block, pushed, repeated_pattern

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


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=100, deadline=None)
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
