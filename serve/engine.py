"""Many streams over the one step: rows join and leave between two programs, one program ahead of the host.

One thread owns the device and calls the consumers; any thread may submit, wake and close.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from models.load import LoadedModel
from sample.config import SamplingConfig
from sample.endless import make_plan
from sample.pace import Pace
from sample.step import NOT_TAKEN
from sample.stream_config import StreamConfig
from sample.transfer import to_host
from serve.batch import Batch, Output
from serve.endless import EndlessRow
from serve.engine_config import EngineConfig
from serve.job import Consumer, Job, check_job
from serve.prefill import Device, Known, Prefill
from serve.prompt import PreparedPrompt
from serve.rows import Rows
from serve.warm_up import warm_up

_log = logging.getLogger(__name__)
_FAILURES = 2  # of the step, with none that works in between, that end the engine


class EngineBusyError(RuntimeError):
    """As many streams wait as may wait."""


class EngineDeadError(RuntimeError):
    """The engine runs no more, or not yet."""


class Figures(NamedTuple):
    """The engine now; counts of streams, rows, steps, bytes and pictures."""

    running: int
    waiting: int
    rows: int
    steps: int  # that were taken
    stepped: int  # rows in all of them, so many tokens
    picture_bytes: int
    picture_hits: int
    picture_misses: int
    prefix_bytes: int
    prefix_tokens_reused: int


class Engine:
    """Continuous batching over `sample.pace.decode`.

    Args:
        loaded: model, parameters and processor.
        config: sizes; all programs are compiled by `start`, and none behind it but for pictures of new sizes.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._loaded = loaded
        self.limit = self.config.rows[-1]  # streams that may run at once; whoever lowers it ends none
        self._delivered: Callable[[], None] = lambda: None
        self._known = Known.nothing_of(loaded, self.config)
        self._prefill: Prefill | None = None
        self._renewals: deque[Prefill] = deque()
        self._ahead: list[Output] = []
        self._pace = Pace(self.config.burst)
        self._failures = self._steps = self._stepped = 0
        self._inbox: deque[Job] = deque()
        self._condition = threading.Condition()
        self._woken = self._closing = False
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it takes streams: it has warmed up, and neither failed nor been closed."""
        return self._ready.is_set() and self._thread.is_alive() and not self._closing and self._error is None

    @property
    def starting(self) -> bool:
        """Whether it is still compiling."""
        return not self._ready.is_set()

    @property
    def figures(self) -> Figures:
        """From any thread."""
        if not self._ready.is_set():
            return Figures(*(0 for _ in Figures._fields))
        pictures, prefixes = self._known
        return Figures(
            running=len(self._batch.jobs),
            waiting=len(self._inbox) + (self._prefill is not None),
            rows=self._batch.rows,
            steps=self._steps,
            stepped=self._stepped,
            picture_bytes=pictures.bytes,
            picture_hits=pictures.hits,
            picture_misses=pictures.misses,
            prefix_bytes=prefixes.bytes,
            prefix_tokens_reused=prefixes.reused,
        )

    @property
    def cache_use(self) -> float:
        """The share of all rows' slots that is filled; from any thread."""
        return self._batch.cache_use if self._ready.is_set() else 0.0

    def start(self, delivered: Callable[[], None] = lambda: None) -> None:
        """Start the thread, and wait until all programs are compiled.

        Args:
            delivered: called in the engine's thread behind the tokens of a step, all together.

        Raises:
            EngineDeadError: they could not be.
        """
        self._delivered = delivered
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise EngineDeadError("the engine could not start") from self._error

    def submit(
        self,
        prompt: PreparedPrompt,
        config: SamplingConfig,
        consumer: Consumer,
        stream: StreamConfig | None = None,
    ) -> Job:
        """Queue a stream; its consumer hears of all that follows.

        Args:
            stream: how it goes on when its row is full; its loops are looked for in as many tokens as a row
                holds. Without it, prompt and answer fit a row together.

        Returns:
            The stream, for whom may change it while it runs.

        Raises:
            SettingsError: it asks for more than the engine's programs have room for, or has no seed.
            EngineBusyError: as many streams wait as may wait.
            EngineDeadError: the engine does not run.
        """
        model = self._loaded.model
        check_job(model, self.config, prompt, config, stream)
        endless = (
            None
            if stream is None
            else EndlessRow(make_plan(model, prompt.padded(model), prompt.grid_thw, stream))
        )
        job = Job(prompt, config, consumer, self._loaded.processor.tokenizer, endless)
        with self._condition:
            if not self.alive:
                raise EngineDeadError("the engine does not run")
            if len(self._inbox) >= self.config.waiting:
                raise EngineBusyError(f"{len(self._inbox)} streams wait; allowed: {self.config.waiting}")
            self._inbox.append(job)
            self._wake()
        return job

    def wake(self) -> None:
        """A consumer has been closed, or may step again."""
        with self._condition:
            self._wake()

    def close(self) -> None:
        """End all streams with an error, and the thread."""
        with self._condition:
            self._closing = True
            self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        self._woken = True
        self._condition.notify()

    def _run(self) -> None:
        code = "engine_closed"
        try:
            self._device = Device.of(self._loaded.model, self._loaded.params, self.config)
            self._batch = Batch(self._device)
            warm_up(self._device, self._loaded)
            self._ready.set()
            while not self._closing:
                if not self._turn():
                    self._wait()
        except Exception as error:  # whatever it is, the last that this thread does is to tell every stream
            _log.exception("the engine has failed")
            self._error, code = error, "engine_dead"
        finally:
            self._let_go(code)
            self._ready.set()

    def _wait(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._woken)
            self._woken = False

    def _turn(self) -> bool:
        """A program of all rows and a chunk of prompts; the tokens of the turn before are handed over.

        Returns:
            Whether there is anything to do.
        """
        ahead, self._ahead = self._ahead, []
        failure = None
        try:
            self._batch.drop_ended()
            self._send(self._batch.step(1 if self._is_feeding else self._pace.steps))
            self._begin_renewals()
            self._feed_some()
        except RuntimeError as error:  # JAX's kind, for the device; the tokens before it are whole
            failure = error
        failure = self._hand_over(ahead) or failure
        if failure is not None:
            self._fail_running(failure)
        self._delivered()
        return bool(ahead or self._ahead or self._is_feeding)

    @property
    def _is_feeding(self) -> bool:
        return bool(self._prefill or self._renewals or (self._inbox and self._has_room))

    @property
    def _has_room(self) -> bool:
        return not self._batch.full and len(self._batch.jobs) < self.limit

    def _send(self, output: Output | None) -> None:
        if output is not None:
            packed = to_host(output.packed, behind_prompt=not output.steps)
            self._ahead.append(output._replace(packed=packed))

    def _hand_over(self, outputs: list[Output]) -> RuntimeError | None:
        try:
            for output in outputs:
                arrived = output.wait()
                if output.steps:
                    self._failures = 0
                    self._steps += len(arrived.token)
                    self._stepped += sum(s != NOT_TAKEN for step in arrived.status.tolist() for s in step)
                    self._pace.arrived(time.perf_counter(), output.begun, len(arrived.token))
                output.deliver(arrived)
        except RuntimeError as error:
            return error
        return None

    def _begin_renewals(self) -> None:
        for job in self._batch.jobs:
            if job.wants_room:
                row = self._batch.row_of(job)
                self._renewals.append(Prefill.renewing(self._device, job, row, self._known))
                job.consumer.reseeding()

    def _feed_some(self) -> None:
        """As much of the prompts as the largest chunk computes: of one long one, or of several short ones."""
        left = self.config.chunks[-1]
        while (prefill := self._prefill or self._next_prefill()) is not None:
            self._prefill = prefill
            left -= prefill.cost
            if left < 0:
                return
            self._feed(prefill)

    def _feed(self, prefill: Prefill) -> None:
        """One piece of a prompt; at its end the stream gets its row."""
        self._prefill = None
        if prefill.job.over:
            return
        try:
            filled = prefill.advance()
        except Exception:  # a picture's, a program's: nobody else's row has been touched
            _log.exception("a prompt could not be fed")
            prefill.job.fail("prefill_failed")
            self.wake()  # it may have a row
            return
        if filled is None:
            self._prefill = prefill
        else:
            self._join(prefill.job, *filled)

    def _join(self, job: Job, row: Rows, packed: Array) -> None:
        job.dispatched(1)
        if job.endless is not None:
            job.endless.end_renewal()
        try:
            self._batch.add(job, row)
        except RuntimeError:
            job.fail("step_failed")  # it is in no list
            raise
        self._send(Output(packed, [(0, job)]))

    def _next_prefill(self) -> Prefill | None:
        if self._renewals:
            return self._renewals.popleft()
        with self._condition:
            waiting = [job for job in self._inbox if not job.over]
            self._inbox = deque(waiting)
            if not waiting or not self._has_room:
                return None
            job = self._inbox.popleft()
        job.consumer.prefilling()
        return Prefill(self._device, job, self._known)

    def _fail_running(self, error: RuntimeError) -> None:
        """All rows are lost with the buffers that the failed program took; waiting streams are not."""
        _log.error("the step has failed", exc_info=error)
        self._failures += 1
        for job in self._batch.jobs:
            job.fail("step_failed")
        self._ahead = []
        self._renewals.clear()
        self._batch.clear()
        if self._failures >= _FAILURES:
            raise EngineDeadError("the step fails again and again") from error

    def _let_go(self, code: str) -> None:
        """End every stream, and let go of the device's memory."""
        with self._condition:
            self._closing = True
            jobs = [*self._inbox]
            self._inbox.clear()
        if self._prefill is not None:
            jobs.append(self._prefill.job)
        if self._ready.is_set():
            jobs += self._batch.jobs
            self._batch.release()
        for job in jobs:
            job.fail(code)
        self._prefill, self._ahead = None, []
        self._renewals.clear()
        self._delivered()
