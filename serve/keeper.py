"""What time does to a server's streams: they are given up, counted, and forgotten; the limit follows."""

import asyncio
import logging
import math
import time
from collections import deque

from serve.adaptive_limit import AdaptiveLimit
from serve.engine import Engine
from serve.garbage import QuietCollector
from serve.live import Live
from serve.metrics import Metrics
from serve.observer import Observer

_log = logging.getLogger(__name__)
_TICK = 0.05  # seconds


class Keeper:
    """Looks after all streams, on the event loop."""

    def __init__(
        self,
        live: dict[str, Live],
        engine: Engine,
        limit: AdaptiveLimit,
        metrics: Metrics,
        observer: Observer,
    ) -> None:
        self._live, self._engine, self._limit, self._metrics = live, engine, limit, metrics
        self._observer = observer
        self._tokens, self._counted = 0, time.monotonic()  # made since then
        self._retired: deque[tuple[float, str]] = deque()  # when, and which, in that order
        self._collector = QuietCollector()

    async def run(self, heartbeat: float, retained: float, collecting: float | None) -> None:
        """Until it is cancelled.

        Args:
            heartbeat: seconds of silence before a sign of life.
            retained: seconds that an ended stream is kept.
            collecting: seconds between two collections of garbage; None: as Python has it.
        """
        if collecting is None:
            await self._look(heartbeat, retained, math.inf)
            return
        self._collector.begin()
        try:
            await self._look(heartbeat, retained, collecting)
        finally:
            self._collector.end()

    async def _look(self, heartbeat: float, retained: float, collecting: float) -> None:
        collected = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            self._adjust()
            if time.monotonic() - collected > collecting:
                self._collector.collect()
                collected = time.monotonic()
            for live in self._not_retired():
                self._watch(live)
                live.stream.tick()
                self._count(live)
                if live.silent(heartbeat):
                    live.news.set()
            self._forget(retained)
            self._count_tokens()

    def settle(self) -> None:
        """Tell of all streams that have ended; `run` does no more."""
        for live in self._not_retired():
            self._count(live)

    def _not_retired(self) -> list[Live]:
        """Those that have not been told of: all others wait to be forgotten, and may be many."""
        return [live for live in self._live.values() if live.over is None]

    def _adjust(self) -> None:
        limit = self._limit.adjust(self._engine.figures.running, time.monotonic())
        if limit != self._engine.limit:
            self._engine.limit = limit
            self._engine.wake()

    def _watch(self, live: Live) -> None:
        """Tell of a slow reader, once."""
        if live.slow or live.stream.closed or not live.stream.slow:
            return
        live.slow = True
        self._metrics.slow_consumers.inc()
        _log.warning("slow consumer: stream %s, %d unacked", live.id, live.stream.unacked)

    def _observe(self, live: Live) -> None:
        """What held it up, and how long it was between tokens; once, how long until the first one."""
        self._metrics.held_up(*live.held_up())
        gaps = live.stream.take_gaps()
        self._metrics.gaps(gaps)
        self._tokens += len(gaps)
        if live.begun:
            return
        timings = live.stream.timings
        if timings.first_token is None or timings.queued is None:
            return
        live.begun = True
        self._tokens += 1
        self._metrics.begun(timings.queued, timings.first_token)
        now = time.monotonic()
        self._limit.queued.add(timings.queued, now)
        self._limit.ttft.add(timings.first_token - timings.queued, now)

    def _count(self, live: Live) -> None:
        over = live.stream.closed  # before what is counted: it will not be asked again
        self._observe(live)
        if over:
            self._retire(live)

    def _retire(self, live: Live) -> None:
        live.over = time.monotonic()
        self._retired.append((live.over, live.id))
        self._metrics.ended(live.stream)
        self._observer.ended(live)
        self._limit.lasting.add(live.stream.timings.total, live.over)

    def _forget(self, retained: float) -> None:
        while self._retired and time.monotonic() - self._retired[0][0] > retained:
            del self._live[self._retired.popleft()[1]]

    def _count_tokens(self) -> None:
        elapsed = time.monotonic() - self._counted
        if elapsed >= 1.0:
            self._metrics.throughput(self._tokens / elapsed)
            self._tokens, self._counted = 0, time.monotonic()
