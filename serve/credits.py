"""Which deltas a reader has not acknowledged. An ack counts once, in order, and for what was sent."""

from collections import deque


class AckError(ValueError):
    """An ack that is none: lost, double, negative or unknown. It gives no credit."""


class Credits:
    """Deltas on their way to a reader, by event id, each with the time at which it was made."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._open: deque[tuple[int, float]] = deque()
        self._sent = self._acked = 0  # the latest ids

    @property
    def unacked(self) -> int:
        """Deltas that were sent and not acknowledged."""
        return len(self._open)

    @property
    def oldest(self) -> float | None:
        """When the oldest of them was made; None where there is none."""
        return self._open[0][1] if self._open else None

    def room(self, in_flight: int) -> int:
        """How many more may be made, beside as many as are being made."""
        return max(self.window - len(self._open) - in_flight, 0)

    def sent(self, event_id: int, now: float) -> None:
        """A delta has been made."""
        self._open.append((event_id, now))
        self._sent = event_id

    def ack(self, event_id: int) -> None:
        """Take the ack of one delta.

        Raises:
            AckError: it is not the oldest one that is unacknowledged.
        """
        expected = self._open[0][0] if self._open else None
        if event_id != expected:
            raise AckError(f"ack: {event_id!r}, {self._why(event_id)}; allowed: {expected or 'none now'}")
        self._open.popleft()
        self._acked = event_id

    def drained(self, event_id: int) -> bool:
        """All deltas up to this one have left for the reader; whether that was news."""
        before = len(self._open)
        while self._open and self._open[0][0] <= event_id:
            self._acked = self._open.popleft()[0]
        return len(self._open) < before

    def _why(self, event_id: int) -> str:
        if event_id <= 0:
            return "no event has such an id"
        if event_id <= self._acked:
            return "acknowledged already, or no delta"
        return "one before it is missing" if event_id <= self._sent else "not sent yet"


class NoCredits(Credits):
    """For readers that need not acknowledge: there is always room, and an ack means nothing."""

    def __init__(self) -> None:
        super().__init__(2**30)

    def sent(self, event_id: int, now: float) -> None:
        """Nobody waits for its ack."""

    def ack(self, event_id: int) -> None:
        """Whatever it is."""
