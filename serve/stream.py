"""One stream, whatever carries it: from the engine's tokens to numbered events, with credit and resume.

The engine's thread pushes tokens, any other reads, acknowledges and cancels. Nothing here waits, and time
comes from the clock that it is given.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from sample.outcome import FinishReason
from serve.chunks import ChunkConfig, Chunker
from serve.credits import Credits, NoCredits
from serve.events import (
    Delta,
    End,
    EndReason,
    Error,
    Event,
    Heartbeat,
    Phase,
    Start,
    Timings,
    TokenLogprob,
    Usage,
)
from serve.job import Piece
from serve.stream_rules import StreamRules

_log = logging.getLogger(__name__)

ContentFilter = Callable[[str], bool]
"""Is given a stream's text, piece by piece, before it is shown; False ends it. The engine waits for it."""

_RENEWALS = 64  # of a stream that are kept for its trace
_MESSAGES = {
    "prefill_failed": "the prompt could not be processed",
    "step_failed": "the model failed while it was answering",
    "text_failed": "the answer could not be turned into text",
    "filter_failed": "the content filter failed",
    "engine_dead": "the model is out of order",
    "engine_closed": "the server is shutting down",
}


class MovedOnError(ValueError):
    """The events that a reader wants to go on with are not kept any more, or were never made."""


class SupersededError(RuntimeError):
    """Another reader has taken the stream over."""


class Stream:
    """A `Consumer` of the engine, and what transports read.

    Args:
        start: its first event; tells how long the prompt is.
        wake: called when the engine should look again: there is credit, or nobody wants more.
        notify: called when there is something to read.
    """

    def __init__(
        self,
        start: Start,
        rules: StreamRules | None = None,
        chunks: ChunkConfig | None = None,
        *,
        logprobs: bool = False,
        content_filter: ContentFilter | None = None,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], None] = lambda: None,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.start, self.rules = start, rules or StreamRules()
        self.end: End | Error | None = None
        self._chunker = Chunker(chunks or ChunkConfig())
        self._logprobs, self._filter = logprobs, content_filter
        self._clock, self._wake, self._notify = clock, wake, notify
        self._lock = threading.RLock()
        self._ring: deque[Event] = deque(maxlen=self.rules.ring)
        window = self.rules.max_unacked_chunks
        self._credits = NoCredits() if window is None else Credits(window)
        self._made = 0  # events
        self._tokens = self._shown = 0  # that came, and that are in deltas
        self._phase: Phase = "queued"
        self._paused = False
        self.stalls = 0  # how often there was no credit
        self.reseeds = 0
        self.renewals: deque[tuple[float, float]] = deque(maxlen=_RENEWALS)  # the latest: from when to when
        self._gaps: list[float] = []  # seconds between tokens, that nobody has taken yet
        self._reader = 0  # the newest one's ticket
        self._begun = self._last = clock()
        self._prefilled: float | None = None
        self._first: float | None = None
        self._renewing: float | None = None  # since when its row is being renewed
        self._stalled: float | None = None  # since when there is no credit
        self._alone: float | None = self._begun  # since when nobody reads
        self._emit(start)

    # What the engine asks and tells.

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.end is not None

    def room(self, in_flight: int) -> int:
        """How many more deltas may be made at once; none while the reader wants none.

        Of all credit a third: as many are being read while one lot is being made, and one is to be.
        """
        most = max(self._credits.window // 3, 1)
        return 0 if self._paused else min(self._credits.room(in_flight), most)

    def prefilling(self) -> None:
        """It has left the queue."""
        self._prefilled = self._clock()
        self._phase = "prefill"

    def reseeding(self) -> None:
        """Its row is being renewed."""
        self.reseeds += 1
        self._renewing = self._clock()
        self._phase = "reseed"

    def push(self, piece: Piece) -> None:
        """The next token."""
        with self._lock:
            if self.closed:
                return
            now = self._clock()
            if self._first is None:
                self._first = now
            else:
                self._gaps.append(now - self._last)
            self._last, self._phase = now, "decode"
            self._renewed(now)
            self._tokens += 1
            for pieces in self._chunker.push(piece, now):
                self._show(pieces)
            self._watch_credit(now)

    def finish(self, reason: FinishReason, rest: str) -> None:
        """No token follows."""
        if reason == "error":
            self.fail("step_failed")
            return
        with self._lock:
            self._show(self._chunker.flush(), rest)
            self._terminate(reason)

    def fail(self, code: str) -> None:
        """It has failed."""
        with self._lock:
            if not self.closed:
                self._show(self._chunker.flush())
            if not self.closed:
                message = _MESSAGES.get(code, "the stream failed")
                self._close(Error(code, message, self.usage, self.timings))

    # What a reader does.

    def attach(self, after: int = 0) -> int:
        """Begin to read behind event `after`, which acknowledges all up to it.

        A reader before this one is told that it is superseded.

        Returns:
            The reader's ticket.

        Raises:
            MovedOnError: what follows `after` is not kept, or `after` was never made.
        """
        with self._lock:
            self._check_kept(after)
            self._reader += 1
            self._alone = None
            if self._credits.drained(after):
                self._credit_came()
        self._notify()
        return self._reader

    def detach(self, ticket: int) -> None:
        """The reader is gone; another may come before the grace is over."""
        with self._lock:
            if ticket == self._reader:
                self._alone = self._clock()

    def read(self, ticket: int, after: int) -> list[Event]:
        """All that there is behind event `after`, which may be nothing.

        Raises:
            SupersededError: another reader has come.
            MovedOnError: what follows `after` is not kept, or `after` was never made.
        """
        with self._lock:
            if ticket != self._reader:
                raise SupersededError("another reader has taken this stream over")
            self._check_kept(after)
            return [self._ring[place] for place in range(after - self._made, 0)]

    def heartbeat(self) -> Event | None:
        """A sign of life, with no number; None behind the end."""
        if self.closed:
            return None
        return Event(None, Heartbeat("paused" if self._paused or self._stalled else self._phase))

    def ack(self, event_id: int) -> None:
        """Acknowledge one delta.

        Raises:
            AckError: it is not the oldest unacknowledged one; there is no credit for it.
        """
        with self._lock:
            self._credits.ack(event_id)
            self._credit_came()

    def drained(self, event_id: int) -> None:
        """For transports without acks: the events up to this one have left for the reader."""
        with self._lock:
            if self._credits.drained(event_id):
                self._credit_came()

    def pause(self) -> None:
        """Take no steps until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Go on behind `pause`."""
        self._paused = False
        self._wake()

    def cancel(self, cause: str = "client") -> None:
        """End it, unless it has ended."""
        with self._lock:
            if self.closed:
                return
            self._show(self._chunker.flush())
            self._terminate("cancelled", cause)

    # What time does.

    def tick(self) -> None:
        """Send what has waited long enough; cancel what nobody reads, acknowledges, or waits for any more."""
        now, rules = self._clock(), self.rules
        with self._lock:
            if self.closed:
                return
            if self._chunker.due(now):
                self._show(self._chunker.flush())
                self._watch_credit(now)
            late = {
                "deadline": now - self._begun > rules.deadline,
                "ack_timeout": self._stalled is not None and now - self._stalled > rules.ack_timeout,
                "disconnect": self._alone is not None and now - self._alone > rules.grace,
            }
        for cause, holds in late.items():
            if holds:
                self.cancel(cause)

    # What others may know.

    @property
    def usage(self) -> Usage:
        """So far."""
        return Usage(self.start.prompt_tokens, self.start.image_tokens, self._tokens)

    @property
    def timings(self) -> Timings:
        """So far."""
        first, behind = self._first, self._tokens - 1
        elapsed = 0.0 if first is None else self._last - first
        return Timings(
            queued=None if self._prefilled is None else self._prefilled - self._begun,
            first_token=None if first is None else first - self._begun,
            total=self._clock() - self._begun,
            tokens_per_second=behind / elapsed if elapsed > 0 else None,
        )

    def take_gaps(self) -> list[float]:
        """The times between tokens, in seconds, since this was last asked."""
        with self._lock:
            gaps, self._gaps = self._gaps, []
        return gaps

    @property
    def unacked(self) -> int:
        """Deltas that were sent and not acknowledged."""
        return self._credits.unacked

    @property
    def slow(self) -> bool:
        """Whether its reader leaves deltas unacknowledged for longer than a fast one would."""
        oldest = self._credits.oldest
        return oldest is not None and self._clock() - oldest > self.rules.slow_consumer

    # Within the lock.

    def _show(self, pieces: Sequence[Piece], rest: str = "") -> None:
        if self.closed or not (pieces or rest):
            return
        text = "".join([piece.text for piece in pieces]) + rest
        if not self._allowed(text):
            return
        logprobs = None
        if self._logprobs:
            logprobs = [TokenLogprob(p.token_id, p.logprob, p.top_logprobs) for p in pieces]
        self._emit(Delta(self._shown, text, [piece.token_id for piece in pieces], logprobs))
        self._shown += len(pieces)
        self._credits.sent(self._made, self._clock())

    def _allowed(self, text: str) -> bool:
        """Whether the filter lets it pass; otherwise the stream has ended."""
        if self._filter is None or not text:
            return True
        try:
            allowed = self._filter(text)
        except Exception:  # somebody else's code: what it cannot judge is not shown
            _log.exception("the content filter has failed")
            self._close(Error("filter_failed", _MESSAGES["filter_failed"], self.usage, self.timings))
            return False
        if not allowed:
            self._terminate("content_filter")
        return bool(allowed)

    def _terminate(self, reason: EndReason, cause: str | None = None) -> None:
        if not self.closed:
            self._close(End(reason, self.usage, self.timings, cause))

    def _renewed(self, now: float) -> None:
        if self._renewing is not None:
            self.renewals.append((self._renewing - self._begun, now - self._begun))
            self._renewing = None

    def _close(self, end: End | Error) -> None:
        self._renewed(self._clock())
        self.end = end
        self._emit(end)
        self._wake()

    def _emit(self, payload: Start | Delta | End | Error) -> None:
        self._made += 1
        self._ring.append(Event(self._made, payload))
        self._notify()

    def _check_kept(self, after: int) -> None:
        oldest = self._ring[0].id or 0
        if not oldest - 1 <= after <= self._made:
            raise MovedOnError(f"event {after}: allowed to go on behind {oldest - 1} to {self._made}")

    def _watch_credit(self, now: float) -> None:
        if self._stalled is None and not self._credits.room(0):
            self._stalled = now
            self.stalls += 1

    def _credit_came(self) -> None:
        if self._stalled is not None and self._credits.room(0):
            self._stalled = None
            self._wake()
