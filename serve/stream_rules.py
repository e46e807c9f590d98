"""How much a stream may have on its way, and how long it waits for whom."""

from dataclasses import dataclass
from typing import no_type_check

from models.errors import SettingsError
from sample.config import integer, number

_LONGEST = 86400.0  # seconds


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class StreamRules:
    """Times are seconds.

    Attributes:
        max_unacked_chunks: deltas that may be unacknowledged; then the stream takes no step. None: it waits
            for no ack, and a reader that falls behind by more than the ring is told that it has moved on.
        ack_timeout: how long it stands still for want of an ack before it is cancelled.
        slow_consumer: an unacknowledged delta of this age makes its reader a slow one.
        ring: events that are kept for readers that come back; more than may be unacknowledged.
        grace: how long a stream that nobody reads goes on.
        deadline: the longest that a stream may take, also an endless one, from its request.

    Raises:
        SettingsError: a value has the wrong type, is out of range, or the ring is too small.
    """

    max_unacked_chunks: int | None = 100
    ack_timeout: float = 5.0
    slow_consumer: float = 1.0
    ring: int = 256
    grace: float = 5.0
    deadline: float = 300.0

    def __post_init__(self):
        given = self.max_unacked_chunks
        window = 0 if given is None else integer("max_unacked_chunks", given, 1, 2**20)
        integer("ring", self.ring, 1, 2**24)
        for name in ("ack_timeout", "slow_consumer", "grace", "deadline"):
            number(name, getattr(self, name), 0.0, _LONGEST)
        if self.ring < window + 4:  # start, a last delta, and the end, beside them
            raise SettingsError(
                f"ring: {self.ring}; allowed: {window + 4} or more, as there may be"
                f" {window} unacknowledged chunks"
            )
