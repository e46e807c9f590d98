"""Loops, by sequence and not by token: n-grams that would come once too often, and patterns that repeat.

A token-level penalty weakens words for being words; here a token is removed only where it would complete an
n-gram that was already there a number of times, and every such token is, so that no loop has another exit.
With a threshold of 1 this is transformers' NoRepeatNGramLogitsProcessor.

Both questions have one answer, kept from step to step at a cost of one comparison per remembered token:
`matched[p]`, how many tokens up to p equal the newest ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

LONGEST_PATTERN = 64  # tokens
HostOrDevice = Array | np.ndarray


class History(NamedTuple):
    """The latest tokens of each row, prompt included, the newest last; -1 where nothing was.

    W and M <= W are static; either is 0 where nothing asks for it. Sizes do not grow.
    """

    tokens: Int32[HostOrDevice, "B W"]
    matched: Int32[HostOrDevice, "B M"]  # of the newest M: how many tokens up to here equal the newest ones


def empty_history(rows: int, width: int = 0, watched: int = 0) -> History:
    """Of rows that have no token yet, on the host."""
    return History(np.full((rows, width), -1, np.int32), np.zeros((rows, watched), np.int32))


def history_of(rows: Sequence[Int[np.ndarray, "_"]], width: int, watched: int) -> History:
    """The history behind these tokens, on the host.

    Args:
        width: W, how many are remembered.
        watched: M, how many of them are compared with the newest.
    """
    history = empty_history(len(rows), width, watched)
    for tokens, matched, row in zip(*history, rows, strict=True):
        kept = row[len(row) - min(len(row), width) :]
        tokens[width - len(kept) :] = kept
        matched[:] = _matched(tokens)[width - watched :]
    return history


def _matched(tokens: Int[np.ndarray, " W"]) -> Int[np.ndarray, " W"]:
    """How many tokens up to each place equal the newest ones."""
    lengths = np.zeros(len(tokens), np.int32)
    alive = np.arange(len(tokens))
    for back in range(len(tokens)):
        alive = alive[alive >= back]
        alive = alive[(tokens[alive - back] == tokens[-1 - back]) & (tokens[alive - back] >= 0)]
        lengths[alive] += 1
        if len(alive) <= 1:  # the newest token alone, which equals itself to the end
            break
    return lengths


def pushed(history: History, token: Int[Array, " B"], running: Bool[Array, " B"]) -> History:
    """The history with one more token in the rows that run."""

    def appended() -> History:
        tokens = jnp.concatenate([history.tokens[:, 1:], token[:, None]], axis=1)
        compared = tokens[:, W - M :] == token[:, None]
        return History(tokens, jnp.where(compared, history.matched + 1, 0))

    W, M = history.tokens.shape[1], history.matched.shape[1]
    if not W:
        return history
    return jax.tree.map(lambda new, old: jnp.where(running[:, None], new, old), appended(), history)


def blocked_followers(
    history: History,
    size: Int[HostOrDevice, " B"],
    threshold: Int[HostOrDevice, " B"],
    window: Int[HostOrDevice, " B"],
    exempt: Int[HostOrDevice, "B E"],
    vocab_size: int,
) -> Bool[Array, "B V"]:
    """The tokens that would complete an n-gram which is in the window `threshold` times or more.

    Args:
        size: n, at least 2; 0 blocks nothing.
        threshold: at least 1.
        window: the newest tokens that count, at most the M that are watched.
        exempt: ids that are never blocked; -1 is unused.
        vocab_size: V.
    """
    rows = jnp.arange(history.tokens.shape[0])[:, None]
    seen = _earlier_beginnings(history, size, window)
    followers = history.tokens[:, history.tokens.shape[1] - seen.shape[1] :]
    # An index of -1 would wrap around to the last token; V is out of range and so dropped.
    counts = jnp.zeros((rows.shape[0], vocab_size), jnp.int32)
    counts = counts.at[rows, jnp.where(seen, followers, vocab_size)].add(1, mode="drop")
    blocked = (counts >= threshold[:, None]) & (size > 0)[:, None]
    return blocked.at[rows, jnp.where(exempt < 0, vocab_size, exempt)].set(False, mode="drop")


def may_block(
    history: History,
    size: Int[HostOrDevice, " B"],
    threshold: Int[HostOrDevice, " B"],
    window: Int[HostOrDevice, " B"],
) -> Bool[Array, " B"]:
    """Rows for which `blocked_followers` has work: the newest n - 1 tokens were there often enough."""
    return (_earlier_beginnings(history, size, window).sum(1) >= threshold) & (size > 0)


def _earlier_beginnings(
    history: History, size: Int[HostOrDevice, " B"], window: Int[HostOrDevice, " B"]
) -> Bool[Array, "B later"]:
    """Of each place but the first: whether an n-gram ends there that begins as the next one would."""
    M = history.matched.shape[1]
    ends = jnp.arange(1, M)
    inside = ends - (size[:, None] - 1) >= M - window[:, None]
    return (jnp.asarray(history.matched)[:, :-1] >= size[:, None] - 1) & inside


def repeated_pattern(
    history: History, repeats: Int[HostOrDevice, " B"], drawn: Int[HostOrDevice, " B"]
) -> Bool[Array, " B"]:
    """Rows whose newest tokens are `repeats` times the same 1 to 64 tokens.

    Args:
        history: with more than 64 watched places.
        repeats: at least 2; 0 is off.
        drawn: how many of the tokens were generated: the prompt may repeat what it likes.
    """
    periods = jnp.arange(1, LONGEST_PATTERN + 1)
    M = history.matched.shape[1]
    again = jnp.asarray(history.matched)[:, M - 1 - LONGEST_PATTERN : M - 1][:, ::-1]
    needed = repeats[:, None] * periods
    return ((again >= needed - periods) & (drawn[:, None] >= needed)).any(1) & (repeats > 0)
