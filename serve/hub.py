"""All streams of a server, on the event loop: they are opened, found, read, and forgotten."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from models.errors import SaccadeError, SettingsError
from models.load import LoadedModel
from sample.config import SamplingConfig
from serve.adaptive_limit import AdaptiveLimit, LimitConfig
from serve.chat_request import ChatRequest
from serve.engine import Engine, EngineBusyError, EngineDeadError
from serve.engine_config import EngineConfig
from serve.events import Event, Start
from serve.fetch import Fetcher
from serve.filters import FilterMaker, no_filter
from serve.handoff import Handoff
from serve.hosts import Hosts
from serve.keeper import Keeper
from serve.keys import Keys
from serve.live import Live
from serve.metrics import Metrics, Reading
from serve.observer import Observer
from serve.picture_urls import PictureOpener
from serve.prepare import RequestLimits, check_request, prepare
from serve.problems import Problem
from serve.prompt import PreparedPrompt
from serve.rates import Rates
from serve.stream import ContentFilter, MovedOnError, Stream, SupersededError
from serve.stream_rules import StreamRules

_log = logging.getLogger(__name__)
_LOOK = 0.05  # seconds
_PREPARERS = 2  # threads that make tokens and patches
_WITH_PICTURES = 4  # requests whose decoded pictures are in memory


@dataclass(frozen=True)
class HubConfig:
    """What the server lets its clients do. Times are seconds."""

    name: str = "embedded"  # of the model
    engine: EngineConfig = field(default_factory=EngineConfig)
    rules: StreamRules = field(default_factory=StreamRules)
    limits: RequestLimits = field(default_factory=RequestLimits)
    streams: LimitConfig = field(default_factory=LimitConfig)
    heartbeat: float = 10.0
    patience: float = 30.0  # for the head of a request, and for its body
    retained: float = 60.0  # that an ended stream can be read again
    keys: Keys = field(default_factory=Keys)
    hosts: Hosts = field(default_factory=Hosts)
    rates: Rates = field(default_factory=Rates)
    fetcher: Fetcher = field(default_factory=Fetcher)
    content_filter: FilterMaker = no_filter
    observer: Observer = field(default_factory=Observer)
    untracked: Collection[str] = ()  # of `serve.metrics.SWITCHES`
    collecting: float | None = 30.0  # seconds between two collections of garbage; None: as Python has it

    def __post_init__(self):
        most, rows = self.streams.max_streams, self.engine.rows[-1]
        if most > rows:
            raise SettingsError(f"max_streams: {most}; allowed: up to {rows}, the most rows")


class Hub:
    """Owns the engine. All methods are of the loop on which it was started."""

    def __init__(self, loaded: LoadedModel, config: HubConfig | None = None) -> None:
        self.config = config or HubConfig()
        self.loaded = loaded
        self.created = int(time.time())
        self.draining = False
        self.turned = asyncio.Event()  # `ready` may be another; for the one who waits for that
        self.engine = Engine(loaded, self.config.engine)
        self.limit = AdaptiveLimit(self.config.streams, time.monotonic())
        self.engine.limit = self.limit.limit
        self._live: dict[str, Live] = {}
        self.metrics = Metrics(self._reading, self.config.untracked)
        self._keeper = Keeper(self._live, self.engine, self.limit, self.metrics, self.config.observer)
        self._ticking: asyncio.Task | None = None
        self._pictures = PictureOpener(self.config.limits, self.config.fetcher)
        self._decoding = asyncio.Semaphore(_WITH_PICTURES)
        self._preparing = 0
        self._pool = ThreadPoolExecutor(_PREPARERS, thread_name_prefix="prepare")

    @property
    def ready(self) -> bool:
        """Whether streams may come."""
        return not self.draining and self.engine.alive

    @property
    def uptime(self) -> int:
        """Seconds."""
        return int(time.time()) - self.created

    @property
    def active(self) -> int:
        """Streams that have not ended."""
        return sum(not live.stream.closed for live in self._live.values())

    @property
    def figures(self) -> dict[str, int | float]:
        """What its routes tell: seconds, counts, and the rows of an average step."""
        engine = self.engine.figures
        return {
            "activeStreams": self.active,
            "maxStreams": self.limit.limit,
            "loadedModels": int(self.engine.alive),
            "uptime": self.uptime,
            "queueSize": engine.waiting,
            "averageBatchSize": engine.stepped / max(engine.steps, 1),
            **engine._asdict(),
        }

    async def start(self) -> None:
        """Compile all programs and begin to take streams. Raises EngineDeadError where that fails."""
        self._handoff = Handoff()
        self._pictures.start()
        await asyncio.to_thread(self.engine.start, self._delivered)
        self.turned.set()
        self._ticking = asyncio.create_task(
            self._keeper.run(self.config.heartbeat, self.config.retained, self.config.collecting)
        )

    async def drain(self, deadline: float) -> None:
        """Take no new streams, and wait for those that run, as many seconds as that."""
        self._stop_taking()
        until = time.monotonic() + deadline
        while self.active and time.monotonic() < until:
            await asyncio.sleep(_LOOK)

    async def close(self) -> None:
        """End all streams with an error, and the engine."""
        self._stop_taking()
        await asyncio.to_thread(self.engine.close)
        if self._ticking is not None:
            self._ticking.cancel()
        self._keeper.settle()
        await asyncio.to_thread(self.config.observer.close)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pictures.close()

    def _stop_taking(self) -> None:
        self.draining = True
        self.turned.set()

    def _delivered(self) -> None:
        """In the engine's thread, behind a step, and when it ends."""
        if not self.engine.alive:
            self._handoff.mark(self.turned)
        self._handoff.flush()

    async def open(self, request: ChatRequest, owner: str) -> Live:
        """Queue a stream.

        Raises:
            Problem: the request cannot be answered, or not now.
        """
        self.check_ready()
        self.config.rates.take(owner)
        prepared = await self._prepared(request, owner)
        try:
            live = self._queue(request, *prepared, owner)
        except SaccadeError as error:
            raise Problem(400, "invalid_value", str(error)) from None
        except EngineBusyError:
            raise self._busy() from None
        except EngineDeadError:
            raise _out_of_order() from None
        self._live[live.id] = live
        self.metrics.started.inc()
        self.config.observer.begun(live)
        return live

    async def _prepared(
        self, request: ChatRequest, owner: str
    ) -> tuple[PreparedPrompt, SamplingConfig, ContentFilter | None]:
        if self._preparing >= self.config.engine.rows[-1] + self.config.engine.waiting:
            raise self._busy()
        limits = self.config.limits
        urls = check_request(request, limits)
        self._preparing += 1
        try:
            async with self._decoding if urls else contextlib.nullcontext():
                pictures = await self._pictures.open(urls)
                prompt, sampling = await asyncio.get_running_loop().run_in_executor(
                    self._pool, prepare, self.loaded, request, pictures, limits, self.context, owner
                )
                return prompt, sampling, self.config.content_filter()
        except Problem:
            raise
        except Exception:  # a decoder's, a filter's: whatever it is, no transport shows it
            _log.exception("a request could not be prepared")
            raise Problem(500, "prepare_failed", "the request could not be prepared") from None
        finally:
            self._preparing -= 1

    def _busy(self) -> Problem:
        wait = self.limit.retry_after(self.engine.figures.waiting, time.monotonic())
        return Problem(429, "busy", f"too many streams wait; try again in {wait} s", retry_after=wait)

    def _queue(
        self,
        request: ChatRequest,
        prompt: PreparedPrompt,
        sampling: SamplingConfig,
        content_filter: ContentFilter | None,
        owner: str,
    ) -> Live:
        chunks = request.chunks
        start = Start(
            stream=f"{'chatcmpl' if chunks is None else 's'}-{secrets.token_hex(12)}",
            model=self.config.name,
            created=int(time.time()),
            prompt_tokens=len(prompt.tokens),
            image_tokens=int((prompt.tokens == self.loaded.model.image_pad_id).sum()),
        )
        news = asyncio.Event()
        stream = Stream(
            start,
            self.config.rules,
            chunks,
            logprobs=bool(request.logprobs),
            content_filter=content_filter,
            wake=self.engine.wake,
            notify=lambda: self._handoff.mark(news),
        )
        job = self.engine.submit(prompt, sampling, stream, request.goes_on(self.context))
        return Live(stream, job, news, owner, resumable=chunks is not None)

    def find(self, stream_id: str, owner: str) -> Live:
        """An open stream, or one that ended not long ago. Raises Problem, also for another owner's."""
        live = self._live.get(stream_id)
        if live is None or live.owner != owner:
            raise Problem(404, "stream_not_found", "no such stream")
        return live

    def resume(self, stream_id: str, after: int, owner: str) -> tuple[Live, int]:
        """A stream whose connection was lost, and the ticket of its new reader, behind event `after`.

        Raises:
            Problem: there is no such stream, or what follows is not kept any more.
        """
        live = self.find(stream_id, owner)
        if not live.resumable:
            raise Problem(404, "stream_not_found", "no such stream")
        try:
            ticket = live.stream.attach(after)
        except MovedOnError as error:
            raise _moved_on(error) from None
        self.metrics.resumes.inc()
        return live, ticket

    async def read(self, live: Live, ticket: int, after: int = 0) -> AsyncGenerator[list[Event], None]:
        """All events behind `after` up to the end, as they come; a heartbeat where none comes for long.

        Args:
            ticket: from `live.stream.attach(after)`. The reader is detached when this ends.

        Raises:
            Problem: another reader has come, or this one was too slow for the ring. The stream goes on.
        """
        stream = live.stream
        live.news.set()  # of what there is already
        try:
            while True:
                await live.news.wait()
                live.news.clear()
                over = stream.closed  # before what is read: its last event is among that
                events = _read(stream, ticket, after)
                if events:
                    after = events[-1].id or after
                elif over:  # the reader has come back behind the end
                    return
                elif live.silent(self.config.heartbeat) and (beat := stream.heartbeat()) is not None:
                    events = [beat]
                    self.metrics.heartbeats.inc()
                else:
                    continue
                live.told = time.monotonic()
                yield events
                if events[-1].terminal:
                    return
        finally:
            stream.detach(ticket)
            live.news.set()  # another reader may be there, who has not heard of it

    @property
    def context(self) -> int:
        """Prompt and answer of one stream together, in tokens."""
        return self.config.engine.context_of(self.loaded.model)

    def check_ready(self) -> None:
        """Raises Problem where no streams may come now."""
        if self.draining:
            raise Problem(503, "draining", "the server is shutting down", retry_after=5)
        if self.engine.starting:
            raise Problem(503, "loading", "the model is being loaded", retry_after=1)
        if not self.engine.alive:
            raise _out_of_order()

    def _reading(self) -> Reading:
        """By another thread."""
        figures, streams = self.engine.figures, [live.stream for live in list(self._live.values())]
        return Reading(
            active=sum(not stream.closed for stream in streams),
            waiting=figures.waiting,
            running=figures.running,
            rows=figures.rows,
            limit=self.limit.limit,
            unacked=sum(stream.unacked for stream in streams if not stream.closed),
            picture_bytes=figures.picture_bytes,
            picture_hits=figures.picture_hits,
            picture_misses=figures.picture_misses,
            prefix_bytes=figures.prefix_bytes,
            prefix_tokens_reused=figures.prefix_tokens_reused,
            cache_use=self.engine.cache_use,
        )


def _read(stream: Stream, ticket: int, after: int) -> list[Event]:
    try:
        return stream.read(ticket, after)
    except SupersededError as error:
        raise Problem(409, "superseded", str(error)) from None
    except MovedOnError as error:
        raise _moved_on(error) from None


def _moved_on(error: MovedOnError) -> Problem:
    return Problem(410, "moved_on", str(error))


def _out_of_order() -> Problem:
    return Problem(503, "unavailable", "the model is out of order", retry_after=30)
