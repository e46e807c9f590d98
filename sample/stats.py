"""What a stream tells of itself: counts and times."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_REMEMBERED = 65536  # latencies, so that an endless stream stays bounded
_RESEEDS = 4096  # remembered


class Reseed(NamedTuple):
    """How room was made in a full cache, by the policies "reseed" and "shift". Counts are tokens."""

    token: int  # index among the generated ones: the first that was drawn behind it
    policy: str
    sinks: int  # of the prompt
    summary: int  # behind them, of the summary
    tail: int  # the most recent ones that stayed
    evicted: int  # that left the cache
    pause: float = 0.0  # seconds that the host waited for that token


@dataclass
class StreamStats:
    """Counts are tokens, times seconds on the host's clock, from the call that began the stream.

    Tokens of one program reach the host together: between them is next to no time.
    """

    prompt_tokens: int
    image_tokens: int
    new_tokens: int = 0
    time_to_first_token: float | None = None
    inter_token_latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    reseeds: int = 0  # how often the cache was renewed, by any policy
    recent_reseeds: deque[Reseed] = field(default_factory=lambda: deque(maxlen=_RESEEDS))
    surprisal_errors: int = 0  # tokens whose surprisal was no finite number
    _begun: float = field(default_factory=time.perf_counter, repr=False)
    _first: float = field(default=0.0, repr=False)
    _last: float = field(default=0.0, repr=False)

    def record_token(self) -> None:
        """A token has reached the host."""
        now = time.perf_counter()
        if self.new_tokens == 0:
            self.time_to_first_token = now - self._begun
            self._first = now
        else:
            self.inter_token_latencies.append(now - self._last)
        self._last = now
        self.new_tokens += 1

    @property
    def tokens_per_second(self) -> float | None:
        """Behind the first token; None before there are two."""
        elapsed = self._last - self._first
        return (self.new_tokens - 1) / elapsed if elapsed > 0 else None

    @property
    def median_latency(self) -> float | None:
        """Median time between two tokens."""
        return self._latency(50.0)

    @property
    def p99_latency(self) -> float | None:
        """99th percentile of the time between two tokens."""
        return self._latency(99.0)

    def _latency(self, percentile: float) -> float | None:
        if not self.inter_token_latencies:
            return None
        return float(np.percentile(np.asarray(self.inter_token_latencies), percentile))
