"""What a server tells Prometheus. Counted on the event loop, read by the thread that answers scrapes."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serve.events import End, Error
from serve.stream import Stream

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


SWITCHES = {"track_ttft": "_first", "track_throughput": "_throughput", "track_cancellations": "_cancelled"}
"""Settings that leave a figure out, and which."""


class Reading(NamedTuple):
    """What is true at the moment of a scrape."""

    active: int
    waiting: int
    running: int
    rows: int
    limit: int
    unacked: int
    picture_bytes: int
    picture_hits: int
    picture_misses: int
    prefix_bytes: int
    prefix_tokens_reused: int
    cache_use: float


class Metrics:
    """Every stream that is started is told of once more, by `ended`: started = all ends + active.

    Args:
        read: asked at each scrape.
        untracked: of `SWITCHES`, those that are not told.
    """

    def __init__(self, read: Callable[[], Reading], untracked: Collection[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        self.started = Counter("saccade_streams_started", "Streams that were queued.", registry=registry)
        self.resumes = Counter("saccade_stream_resumes", "Readers that came back.", registry=registry)
        self.heartbeats = Counter("saccade_stream_heartbeats", "Signs of life.", registry=registry)
        self.rejected = Counter(
            "saccade_requests_rejected", "Requests that were no stream.", ["code"], registry=registry
        )
        self._completed = Counter(
            "saccade_streams_completed", "Streams that came to an end.", ["finish_reason"], registry=registry
        )
        self._cancelled = Counter(
            "saccade_stream_cancellations", "Streams that were cancelled.", ["cause"], registry=registry
        )
        self._failed = Counter("saccade_stream_errors", "Streams that failed.", ["code"], registry=registry)
        self._tokens = Counter("saccade_tokens", "Tokens that were made.", registry=registry)
        self.slow_consumers = Counter(
            "saccade_slow_consumers", "Streams whose reader was slow.", registry=registry
        )
        self._loops = Counter(
            "saccade_stream_loop_blocks", "Streams that ended by repeating themselves.", registry=registry
        )
        self._stalls = Counter(
            "saccade_stream_credit_stalls", "How often a stream stood still for an ack.", registry=registry
        )
        self._reseeds = Counter(
            "saccade_stream_reseeds", "How often an endless stream's row was renewed.", registry=registry
        )
        self._first = Histogram(
            "saccade_stream_ttft_seconds",
            "From the request to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queued = Histogram(
            "saccade_stream_queue_seconds",
            "From the request to the beginning of its prompt.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._gaps = _Gaps("saccade_stream_inter_token_seconds", "Between two tokens of a stream.")
        registry.register(self._gaps)
        self._throughput = Gauge(
            "saccade_stream_throughput", "Tokens per second of all streams.", registry=registry
        )
        registry.register(_Now(read))
        for name in untracked:
            registry.unregister(getattr(self, SWITCHES[name]))

    def begun(self, queued: float, first_token: float) -> None:
        """A stream's first token has come, so many seconds from its request."""
        self._tokens.inc()
        self._queued.observe(queued)
        self._first.observe(first_token)

    def gaps(self, seconds: Sequence[float]) -> None:
        """More tokens have come, so many seconds behind the ones before them."""
        self._tokens.inc(len(seconds))
        self._gaps.observe(seconds)

    def held_up(self, stalls: int, reseeds: int) -> None:
        """A stream has stood still so many times more for want of credit, or while its row was renewed."""
        for counter, more in ((self._stalls, stalls), (self._reseeds, reseeds)):
            if more:
                counter.inc(more)

    def throughput(self, tokens_per_second: float) -> None:
        """Of all streams together, now."""
        self._throughput.set(tokens_per_second)

    def ended(self, stream: Stream) -> None:
        """A stream has ended."""
        if isinstance(stream.end, Error):
            self._failed.labels(stream.end.code).inc()
        elif isinstance(stream.end, End) and stream.end.finish_reason == "cancelled":
            self._cancelled.labels(stream.end.cause or "client").inc()
        elif isinstance(stream.end, End):
            self._completed.labels(stream.end.finish_reason).inc()
            self._loops.inc(stream.end.finish_reason == "repetition")


class _Gaps(Collector):
    """A histogram that counts many at once: prometheus' own takes two locks and a label's check for each."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._counts = [0] * (len(_GAPS) + 1)
        self._sum = 0.0

    def observe(self, seconds: Sequence[float]) -> None:
        for gap in seconds:
            self._counts[bisect_left(_GAPS, gap)] += 1
        self._sum += sum(seconds)

    def collect(self) -> Iterator[Metric]:
        bounds = (*map(str, _GAPS), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum)


class _Now(Collector):
    """What is asked for at each scrape."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        for name, text, value in (
            ("saccade_streams_active", "Streams that have not ended.", reading.active),
            ("saccade_queue_depth", "Streams that wait for a row.", reading.waiting),
            ("saccade_rows_running", "Streams that have a row, in the step or beside it.", reading.running),
            ("saccade_rows", "Rows that a step computes.", reading.rows),
            ("saccade_stream_limit", "Streams that may run at once.", reading.limit),
            ("saccade_unacked_chunks", "Chunks on their way to readers.", reading.unacked),
            ("saccade_cache_use_ratio", "Slots of rows' keys and values that are filled.", reading.cache_use),
            ("saccade_picture_cache_bytes", "Memory of pictures that were seen.", reading.picture_bytes),
            ("saccade_prefix_cache_bytes", "Memory of what prompts begin with.", reading.prefix_bytes),
        ):
            yield GaugeMetricFamily(name, text, value)
        for name, text, value in (
            ("saccade_picture_cache_hits", "Pictures that were known.", reading.picture_hits),
            ("saccade_picture_cache_misses", "Pictures that were not.", reading.picture_misses),
            (
                "saccade_prefix_cache_tokens",
                "Tokens of prompts that were not computed again.",
                reading.prefix_tokens_reused,
            ),
        ):
            yield CounterMetricFamily(name, text, value)

    def describe(self) -> list[Metric]:
        return []
