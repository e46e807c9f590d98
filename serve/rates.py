"""How often a key may begin a stream."""

import math
import time

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from models.errors import SettingsError
from serve.problems import Problem


class Rates:
    """Counts within a moving window.

    Args:
        rule: such as "10/second" or "10/second;600/hour"; None: as often as it likes.

    Raises:
        SettingsError: no such rule.
    """

    def __init__(self, rule: str | None = None) -> None:
        self._items = _items(rule)
        self._limiter = MovingWindowRateLimiter(MemoryStorage()) if self._items else None

    def take(self, owner: str) -> None:
        """Count one. Raises Problem where that is more than the rule allows; it is then not counted."""
        if self._limiter is None:
            return
        full = [item for item in self._items if not self._limiter.test(item, owner)]
        if full:
            until = max(self._limiter.get_window_stats(item, owner).reset_time for item in full)
            wait = max(1, math.ceil(until - time.time()))
            message = f"this key may begin {full[0]} streams; try again in {wait} s"
            raise Problem(429, "rate_limited", message, retry_after=wait)
        for item in self._items:
            self._limiter.hit(item, owner)


def _items(rule: str | None) -> list[RateLimitItem]:
    if rule is None:
        return []
    try:
        items = list(parse_many(rule))
    except ValueError:
        items = []
    if not items or any(item.amount < 1 or item.multiples < 1 for item in items):
        raise SettingsError(f"rate: got {rule!r}; allowed: such as 60/minute, or 10/second;600/hour")
    return items
