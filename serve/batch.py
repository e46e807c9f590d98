"""The running streams: which row each one has, and the step over all of them."""

import logging
import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from sample.config import SamplingConfig
from sample.logits import Wanted
from sample.outcome import alternatives
from sample.pace import decode, fitting
from sample.step import NOT_TAKEN, StepOutput, unpack_taken
from serve.job import Job
from serve.prefill import Device, first_row
from serve.prompt import PreparedPrompt
from serve.rows import Rows, insert, resized, vacate

_log = logging.getLogger(__name__)
_PATIENCE = 64  # steps with too many rows before they are made fewer


class Output(NamedTuple):
    """What the device works on, and whose it is: (row, job). `steps` is 0 for a prompt's last chunk."""

    packed: Array
    owners: list[tuple[int, Job]]
    steps: int = 0
    begun: float = 0.0

    def wait(self) -> StepOutput:
        """All of it. Raises RuntimeError where the device failed."""
        return unpack_taken(np.asarray(self.packed), self.steps or None)

    def deliver(self, output: StepOutput) -> None:
        """Hand the tokens over. A job whose text fails ends alone."""
        columns = (output.status, output.token, output.logprob)
        steps = list(zip(*(column.tolist() for column in columns), strict=True))
        for row, job in self.owners:
            try:
                for n, (status, token, logprob) in enumerate(steps):
                    if status[row] != NOT_TAKEN:
                        top = alternatives(output.top_ids[n, row], output.top_logprobs[n, row], job.config)
                        job.deliver(status[row], token[row], logprob[row], top)
            except Exception:  # a tokenizer's or a consumer's: whatever it is, it is this stream's alone
                _log.exception("a token could not be handed over")
                job.fail("text_failed")


class Batch:
    """Rows in one of a few sizes. Of one thread: the one that owns the device.

    Streams that may not go on stand beside the rows, each with its own, where the others then fit a smaller
    size.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sizes = device.config.rows
        self._empty = first_row(
            device, PreparedPrompt(np.zeros(1, np.int32)), SamplingConfig(seed=0, max_new_tokens=1)
        )[1]
        self.clear()

    def clear(self) -> None:
        """Forget all rows; what the device had of them is gone."""
        self._rows = self._resized(self._empty, [], self._sizes[0])
        self._jobs: list[Job | None] = [None] * self._sizes[0]
        self._beside: dict[Job, Rows] = {}
        self._too_large = 0

    def release(self) -> None:
        """Let go of the device's memory; nothing else may follow."""
        self._jobs = []
        self._beside = {}
        del self._rows, self._empty

    @property
    def jobs(self) -> list[Job]:
        """The streams that have a row, in the step or beside it."""
        return [*(job for job in self._jobs if job is not None), *self._beside]

    @property
    def full(self) -> bool:
        """Whether no further stream can join."""
        return len(self.jobs) == self._sizes[-1]

    @property
    def rows(self) -> int:
        """How many rows a step computes, taken or not."""
        return len(self._jobs)

    @property
    def cache_use(self) -> float:
        """The share of the slots that is filled, of all rows, those beside the step too."""
        rows = max(self.rows + len(self._beside), 1)
        return sum(job.filled for job in self.jobs) / (rows * self._device.slots)

    def add(self, job: Job, row: Rows) -> int:
        """Give a job a row, filled as `row` is, or fill the one that it has; returns which."""
        if job not in self._jobs and None not in self._jobs:
            idle = self._idle
            if idle:
                self._set_aside(idle[0])
            else:
                self._resize(self._sizes[self._sizes.index(self.rows) + 1])
        index = self._jobs.index(job if job in self._jobs else None)
        self._rows = insert(self._rows, row, np.int32(index))
        self._jobs[index] = job
        self._beside.pop(job, None)
        return index

    def row_of(self, job: Job) -> Rows:
        """A row with nothing but a job's; of one beside, what is kept there, which its renewal may take."""
        return self._beside.get(job) or self._resized(self._rows, [self._jobs.index(job)], 1)

    def drop_ended(self) -> None:
        """Free the rows of streams that are over, and give up rows that were not needed for a while."""
        for job in self.jobs:
            if job.over:
                self._drop(job)
        held = sum(job is not None for job in self._jobs)
        smaller = self._sizes[max(self._sizes.index(self.rows) - 1, 0)]
        idle = self._idle
        fits = held - len(idle) <= smaller < self.rows
        self._too_large = self._too_large + 1 if fits else 0
        if self._too_large > _PATIENCE:
            for job in idle[: max(held - smaller, 0)]:
                self._set_aside(job)
            self._resize(smaller)

    def step(self, most: int) -> Output | None:
        """Dispatch the next tokens of all rows that may have any, at most so many; None where none may."""
        for job in [job for job in self._beside if job.room]:
            self.add(job, self._beside[job])
        room = [0 if job is None else job.room for job in self._jobs]
        if not any(room):
            return None
        steps = fitting(min(most, max(room)))
        quota = tuple(min(steps, r) for r in room)
        begun = time.perf_counter()
        owners = [(row, job) for row, job in enumerate(self._jobs) if job is not None and quota[row]]
        model, params = self._device.model, self._device.params
        configs = [job.config for _, job in owners]
        top = self._device.top(any(config.top_logprobs for config in configs))
        sampling = self._rows.sampling._replace(wanted=Wanted.noise_or_all(configs))
        state, packed = decode(model, params, self._rows.state, sampling, quota, top=top)
        self._rows = self._rows._replace(state=state)
        for row, job in owners:
            job.stepped(quota[row])
        self._too_large += steps - 1 if self._too_large else 0
        return Output(packed, owners, steps, begun)

    @property
    def _idle(self) -> list[Job]:
        """Those with a row in the batch that may not go on."""
        return [job for job in self._jobs if job is not None and not job.room]

    def _set_aside(self, job: Job) -> None:
        row = self.row_of(job)
        self._drop(job)
        self._beside[job] = row

    def _drop(self, job: Job) -> None:
        """Free what it has."""
        if self._beside.pop(job, None) is None:
            index = self._jobs.index(job)
            self._rows = vacate(self._rows, np.int32(index))
            self._jobs[index] = None

    def _resize(self, size: int) -> None:
        taken = [row for row, job in enumerate(self._jobs) if job is not None]
        self._rows = self._resized(self._rows, taken, size)
        self._jobs = [self._jobs[row] for row in taken] + [None] * (size - len(taken))
        self._too_large = 0

    def _resized(self, rows: Rows, taken: list[int], size: int) -> Rows:
        return resized(rows, np.array(taken + [rows.count] * (size - len(taken)), np.int32))
