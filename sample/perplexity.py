"""How well a model foresees a text: surprisal of a token, perplexity of a stream, in parts and as a whole."""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float64

from models.errors import InputError

WINDOW = 256  # tokens of the rolling window
_SEGMENTS = 4096  # remembered, so that an endless stream stays bounded


def model_surprisal(
    logits: Array | np.ndarray, token: Array | np.ndarray | int
) -> Float64[np.ndarray, "..."]:
    """Minus the log-probability, in nats, that the model gave to `token`: -log softmax(logits)[token].

    Args:
        logits: [..., V], raw: before temperature, penalties and filters. Summed in float64.
        token: ids [...].

    Raises:
        InputError: shapes that do not belong together, or an id outside 0..V-1.
    """
    values, ids = np.asarray(logits, np.float64), np.asarray(token)
    if values.ndim == 0 or values.shape[:-1] != ids.shape or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"model_surprisal: logits {list(values.shape)} and tokens {ids.dtype}{list(ids.shape)}; "
            "allowed: [..., V] and integers [...]"
        )
    vocabulary = values.shape[-1]
    if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise InputError(f"model_surprisal: token {ids.min()}..{ids.max()}; allowed: 0..{vocabulary - 1}")
    with np.errstate(all="ignore"):  # logits that are not finite give a surprisal that is not, and no more
        below = values - values.max(-1, keepdims=True)
        return np.asarray(
            np.log(np.exp(below).sum(-1)) - np.take_along_axis(below, ids[..., None], -1)[..., 0]
        )


class Segment(NamedTuple):
    """The tokens between two reseeds."""

    start: int  # index of the first, counted over the stream
    tokens: int
    perplexity: float | None  # None: no token


class PerplexityTracker:
    """exp(mean surprisal) of a stream: over all of it, between reseeds, and over the latest tokens.

    Sums are float64. Memory is bounded: the rolling window, and the latest segments.
    The measure is that of transformers' guide "Perplexity of fixed-length models", on generated tokens.

    Args:
        window: tokens of the rolling window.
    """

    tokens: int  # that count

    def __init__(self, window: int = WINDOW) -> None:
        if window < 1:
            raise InputError(f"window: got {window}; allowed: 1 token or more")
        self.tokens = 0
        self._sum = 0.0
        self._latest: deque[float] = deque(maxlen=window)
        self._ended: deque[Segment] = deque(maxlen=_SEGMENTS - 1)
        self._segment_start, self._segment_sum = 0, 0.0

    def add(self, surprisal: float) -> None:
        """Count a token, in nats.

        Raises:
            InputError: not a finite number. Nothing has changed, and the next token counts as ever.
        """
        value = float(surprisal)
        if not math.isfinite(value):
            raise InputError(
                f"surprisal: got {value} for token {self.tokens}; allowed: a finite number of nats"
            )
        self.tokens += 1
        self._sum += value
        self._segment_sum += value
        self._latest.append(value)

    def mark_reseed(self) -> None:
        """A segment ends here. One without tokens is none."""
        segment = self._segment()
        if segment.tokens:
            self._ended.append(segment)
        self._segment_start, self._segment_sum = self.tokens, 0.0

    @property
    def perplexity(self) -> float | None:
        """Over all tokens; None before the first."""
        return _perplexity(self._sum, self.tokens)

    @property
    def window_perplexity(self) -> float | None:
        """Over the rolling window; None before the first token."""
        return _perplexity(math.fsum(self._latest), len(self._latest))

    @property
    def segments(self) -> list[Segment]:
        """The latest segments, oldest first; the last of them is still growing."""
        return [*self._ended, self._segment()]

    def _segment(self) -> Segment:
        tokens = self.tokens - self._segment_start
        return Segment(self._segment_start, tokens, _perplexity(self._segment_sum, tokens))


def _perplexity(total: float, tokens: int) -> float | None:
    if not tokens:
        return None
    mean = total / tokens
    return math.exp(mean) if mean < 700 else math.inf  # 709 nats are float64's largest power of e
