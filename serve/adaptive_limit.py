"""How many streams may run at once: more while they start fast, fewer when they do not or nobody comes.

What is averaged is the time from the beginning of a prompt to its first token. The time in the queue is left
out on purpose: in an overload it grows whatever the limit is, and would pull the limit down to its minimum.
"""

import math
from dataclasses import dataclass
from typing import no_type_check

from models.errors import SettingsError
from sample.config import integer, number

_UP, _DOWN = 5, 2  # streams
_CALM = 0.8  # of the target: below it there is room for more, and above it the limit stays
_FORGIVING = 12  # adjustments without a breach until the ceiling rises by one


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class LimitConfig:
    """Times are seconds.

    Attributes:
        enabled: otherwise the limit is `max_streams`.
        min_streams, max_streams: what the limit moves between.
        initial: where it begins.
        target_ttft: the longest time to a first token that is good.
        target_queue: the longest time in the queue that is good.
        interval: between two adjustments.
        scale_up: the share of the limit in use above which it may rise.
        scale_down: the share below which it falls.

    Raises:
        SettingsError: a value has the wrong type, is out of range, or does not fit the others.
    """

    enabled: bool = True
    min_streams: int = 5
    max_streams: int = 50
    initial: int = 10
    target_ttft: float = 1.0
    target_queue: float = 0.1
    interval: float = 5.0
    scale_up: float = 0.8
    scale_down: float = 0.3

    def __post_init__(self):
        for name in ("min_streams", "max_streams", "initial"):
            integer(name, getattr(self, name), 1, 2**20)
        for name in ("target_ttft", "target_queue", "interval"):
            number(name, getattr(self, name), 0.001, 86400.0)
        for name in ("scale_up", "scale_down"):
            number(name, getattr(self, name), 0.0, 1.0)
        if self.min_streams > self.max_streams:
            raise SettingsError(
                f"min_streams: {self.min_streams}; allowed: up to {self.max_streams}, which is max_streams"
            )
        if self.scale_down >= self.scale_up:
            raise SettingsError(
                f"scale_down_threshold: {self.scale_down:g}; allowed: below {self.scale_up:g},"
                " which is scale_up_threshold"
            )


class DecayedMean:
    """A mean of numbers whose weight halves every so many seconds; None once nothing weighs much."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._sum = self._weight = 0.0
        self._at = 0.0

    def add(self, value: float, now: float) -> None:
        """One more number."""
        self._decay(now)
        self._sum += value
        self._weight += 1.0

    def value(self, now: float) -> float | None:
        """The mean now."""
        self._decay(now)
        return self._sum / self._weight if self._weight > 1e-3 else None

    def _decay(self, now: float) -> None:
        factor = math.exp2(-max(now - self._at, 0.0) / self._half_life)
        self._sum *= factor
        self._weight *= factor
        self._at = now


class AdaptiveLimit:
    """The limit, adjusted at most once an interval. Streams that run when it falls go on."""

    def __init__(self, config: LimitConfig, now: float) -> None:
        self.config = config
        self.ttft = DecayedMean(config.interval)
        self.queued = DecayedMean(config.interval)
        self.lasting = DecayedMean(12 * config.interval)
        low, high = config.min_streams, config.max_streams
        self.limit = min(max(config.initial, low), high) if config.enabled else high
        self._ceiling, self._calm = high, 0
        self._next = now + config.interval

    def adjust(self, running: int, now: float) -> int:
        """Look at how many run and how fast they began; returns the limit."""
        if self.config.enabled and now >= self._next:
            self._next = now + self.config.interval
            self._adjust(running, now)
        return self.limit

    def retry_after(self, waiting: int, now: float) -> int:
        """Seconds after which a place in the queue is likely, 1 to 60."""
        lasting = self.lasting.value(now) or 1.0
        return min(max(math.ceil(lasting * (waiting + 1) / self.limit), 1), 60)

    def _adjust(self, running: int, now: float) -> None:
        config, used = self.config, running / self.limit
        ttft, queued = self.ttft.value(now) or 0.0, self.queued.value(now) or 0.0
        if ttft > config.target_ttft:
            self._move(-_DOWN)
            self._ceiling, self._calm = self.limit, 0
            return
        self._forgive()
        if used < config.scale_down:
            self._move(-_DOWN)
        elif (used > config.scale_up or queued > config.target_queue) and ttft < _CALM * config.target_ttft:
            self._move(_UP)

    def _forgive(self) -> None:
        """What was too many once is tried again, one by one: no swinging between too many and too few."""
        self._calm += 1
        if self._calm % _FORGIVING == 0:
            self._ceiling = min(self._ceiling + 1, self.config.max_streams)

    def _move(self, by: int) -> None:
        highest = max(self._ceiling, self.limit) if by < 0 else max(self._ceiling, self.config.min_streams)
        self.limit = min(max(self.limit + by, self.config.min_streams), highest)
