"""Summaries of what leaves the cache, made in a thread beside the stream.

The pattern is that of "summary sinks": [anchor][summary][tail] is what a reseed feeds.
"""

import ast
import atexit
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerFast

from sample.chat import plain_ids, special_token_ids
from sample.summarizers import BRIEF_TOKENS, ModelSummarizer
from sample.summary_config import Summarizer, SummaryConfig
from sample.text import decode

_MOST_WAITING = 8192  # tokens that wait for a summariser; of more, the oldest are forgotten
_REMEMBERED = 256  # events
_SHUTDOWN = 60.0  # seconds that the end of the process waits for one to come out of compiled code
_LONGEST_ANSWER = 100_000  # characters; what follows is not read
_Status = Literal["ready", "failed", "timeout"]
_Shortened = Literal["", "brief", "cut"]
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class SummaryEvent(NamedTuple):
    """What became of one summary.

    status: "ready" when a reseed takes it up, or why there is none: "failed" or "timeout".
    text: the summary; empty where there is none.
    tokens: of it.
    evicted: tokens of the stream that it was made of, beside the summary before it.
    seconds: that it took, or until it was given up.
    shortened: "" within the budget at once; "brief" when asked again; "cut" at the budget.
    error: a line where it failed.
    dropped: tokens that left before those and that no summary stands for: too many waited.
    """

    status: _Status
    text: str
    tokens: int
    evicted: int
    seconds: float
    shortened: _Shortened = ""
    error: str = ""
    dropped: int = 0


class SummarySidecar:
    """Keeps the summary of a stream. Its methods belong to the stream's thread, and none of them waits.

    One daemon thread at a time makes a summary out of the one before it and the tokens that left since.
    What fails, hangs or takes too long costs that summary: the one before it stays. A summariser that hangs
    keeps its thread, and is not asked again before it returns.

    Args:
        summarizer: see `Summarizer`.
        tokenizer: the stream's.
        budget: the most tokens that the summary may have.
        timeout: seconds that one may take.
        image_pad_id: the model's; no text becomes one.
        eos_ids: tokens of the stream without text, beside the special ones.
    """

    def __init__(
        self,
        summarizer: Summarizer,
        tokenizer: PreTrainedTokenizerFast,
        *,
        budget: int,
        timeout: float,
        image_pad_id: int,
        eos_ids: Sequence[int] = (),
    ) -> None:
        self.events: deque[SummaryEvent] = deque(maxlen=_REMEMBERED)
        self.counts = {"ready": 0, "failed": 0, "timeout": 0}
        self.text = ""
        self._summarizer, self._tokenizer, self._eos_ids = summarizer, tokenizer, tuple(eos_ids)
        self._to_ids = SummaryEncoder(tokenizer, image_pad_id, budget)
        self._budget, self._timeout = budget, timeout
        self._tokens: list[int] = []
        self._newest = ""  # may not be taken yet
        self._ready: list[_Job] = []  # not yet taken
        self._waiting: deque[int] = deque()
        self._dropped = 0  # of those that waited, since the last summary began
        self._job: _Job | None = None
        self._closed = False

    @classmethod
    def for_stream(
        cls,
        config: SummaryConfig,
        model: Any,
        params: Any,
        tokenizer: PreTrainedTokenizerFast,
        eos_ids: Sequence[int],
        budget: int,
    ) -> "SummarySidecar":
        """That of a stream of `model`, which summarises for itself where `config` names nobody else."""
        summarizer = config.summarizer
        if summarizer is None:
            summarizer = ModelSummarizer(
                model, params, tokenizer, eos_ids=eos_ids, max_tokens=config.max_tokens
            )
        return cls(
            summarizer,
            tokenizer,
            budget=budget,
            timeout=config.timeout,
            image_pad_id=model.image_pad_id,
            eos_ids=eos_ids,
        )

    def summarise(self, evicted: Sequence[int]) -> None:
        """These tokens leave the cache, or will at the next reseed. Begins their summary, unless one is being
        made: then they wait for it to end."""
        self._waiting.extend(evicted)
        self._look()
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1

    def take(self) -> list[int]:
        """The summary's token ids, at most `budget`: plain text, never a special token. The newest that is
        ready, which is told as an event now; empty before the first."""
        self._look()
        for job in self._ready:
            self.text, self._tokens = job.event.text, job.tokens
            self._tell(job.event)
        self._ready.clear()
        return self._tokens

    def close(self) -> None:
        """The stream has ended: no new summary, and the present one ends at its next piece. One that has
        failed by now is told."""
        self._closed = True
        self._waiting.clear()
        if self._job is not None:
            self._collect(self._job)
        if self._job is not None:
            self._job.given_up = True

    def _look(self) -> None:
        if self._job is not None:
            self._collect(self._job)
        if self._job is None and self._waiting and not self._closed:
            self._begin()

    def _begin(self) -> None:
        job = _Job(
            self._make, self._newest, list(self._waiting), self._dropped, time.monotonic() + self._timeout
        )
        self._waiting.clear()
        self._dropped = 0
        try:
            job.start()
        except RuntimeError as error:  # the system has no thread left
            self._tell(job.told("failed", error=_line(error)))
        else:
            self._job = job

    def _collect(self, job: "_Job") -> None:
        if not job.done.is_set():
            if not job.given_up and time.monotonic() > job.deadline:
                job.given_up = True
                self._tell(job.told("timeout"))
            return
        self._job = None
        if job.given_up:
            return
        if job.event.status == "ready":
            self._newest = job.event.text
            self._ready.append(job)
        else:
            self._tell(job.event)

    def _tell(self, event: SummaryEvent) -> None:
        self.counts[event.status] += 1
        self.events.append(event)

    def _make(self, job: "_Job") -> None:
        """In the job's thread: its tokens and its event."""
        left = decode(self._tokenizer, job.evicted, eos_ids=self._eos_ids)
        text = "\n".join(part for part in (job.before, left) if part.strip())
        if not text:
            raise ValueError("what left the cache has no text")
        shortened: _Shortened = ""
        summary = self._answer(job, self._summarizer, text, self._budget)
        if not self._to_ids.fits(summary):
            shortened = "brief"
            ask = getattr(self._summarizer, "brief", self._summarizer)
            summary = self._answer(job, ask, summary, min(self._budget, BRIEF_TOKENS)) or summary
        if not self._to_ids.fits(summary):
            shortened = "cut"
        job.tokens = self._to_ids(summary)
        text = decode(self._tokenizer, job.tokens).strip()
        if not text:
            raise ValueError("the summary has no text")
        job.event = job.told("ready", text, shortened)

    def _answer(self, job: "_Job", ask: Callable, text: str, budget: int) -> str:
        if isinstance(self._summarizer, ModelSummarizer):
            _in_compiled_code.add(job)
        answer = ask(text, budget)
        if not isinstance(answer, str):
            answer = "".join(job.pieces(answer))
        return points_or_text(self._to_ids.without_special_tokens(answer[:_LONGEST_ANSWER]))


class _Job:
    """One summary in the making, and the thread that makes it."""

    def __init__(
        self,
        make: Callable[["_Job"], None],
        before: str,
        evicted: list[int],
        dropped: int,
        deadline: float,
    ) -> None:
        self.before, self.evicted, self.dropped, self.deadline = before, evicted, dropped, deadline
        self.began = time.monotonic()
        self.tokens: list[int] = []
        self.event = self.told("failed", error="it ended without an answer")
        self.given_up = False  # nobody waits for it any more
        self.done = threading.Event()
        self._make = make

    def start(self) -> None:
        threading.Thread(target=self._run, name="summary", daemon=True).start()

    def told(
        self, status: _Status, text: str = "", shortened: _Shortened = "", error: str = ""
    ) -> SummaryEvent:
        tokens = len(self.tokens) if status == "ready" else 0
        seconds = time.monotonic() - self.began
        evicted = len(self.evicted)
        return SummaryEvent(status, text, tokens, evicted, seconds, shortened, error, self.dropped)

    def pieces(self, answer: Iterable[str]) -> Iterator[str]:
        """The pieces of an answer, as long as somebody waits for it."""
        length = 0
        for piece in answer:
            if not isinstance(piece, str):
                raise TypeError(f"it answered with {type(piece).__name__}")
            if self.given_up or time.monotonic() > self.deadline:
                raise _GivenUpError
            yield piece
            length += len(piece)
            if length > _LONGEST_ANSWER:
                return

    def _run(self) -> None:
        try:
            self._make(self)
        except _GivenUpError:
            self.event = self.told("timeout")
        except (Exception, SystemExit) as error:  # whatever it does costs the summary, never the stream
            self.event = self.told("failed", error=_line(error))
        finally:
            self.done.set()


class _GivenUpError(Exception):
    """Raised in a job that nobody waits for any more."""


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


_in_compiled_code: "weakref.WeakSet[_Job]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let a model's answers come to their next piece before the interpreter shuts down: a daemon thread that
    comes out of compiled code after that aborts the process. Nobody else is waited for."""
    jobs, deadline = list(_in_compiled_code), time.monotonic() + _SHUTDOWN
    for job in jobs:
        job.given_up = True
    for job in jobs:
        job.done.wait(max(0.0, deadline - time.monotonic()))


class SummaryEncoder:
    """A summary's text to token ids between anchor and tail: plain text, on one line, within the budget."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_pad_id: int, budget: int) -> None:
        special = special_token_ids(tokenizer, image_pad_id)
        self._tokenizer, self._special_ids = tokenizer, frozenset(special.values())
        spelled = sorted(map(re.escape, special), key=len, reverse=True)
        self._spelled = re.compile("|".join(spelled)) if spelled else None
        self._end = self._ids("\n")
        self._budget = budget

    def __call__(self, text: str) -> list[int]:
        """Cut where it is over the budget, but not within a character."""
        ids = self._ids(text)
        if len(ids) > self._room:
            ids = ids[: self._room]
            while ids and decode(self._tokenizer, ids).endswith(_REPLACEMENT):
                ids.pop()
        return (ids + self._end)[: self._budget]

    def fits(self, text: str) -> bool:
        return len(self._ids(text)) <= self._room

    def without_special_tokens(self, text: str) -> str:
        """`text` without what spells a special token, also where that was only left by taking one out."""
        while self._spelled is not None and self._spelled.search(text):
            text = self._spelled.sub("", text)
        return text

    @property
    def _room(self) -> int:
        return max(1, self._budget - len(self._end))

    def _ids(self, text: str) -> list[int]:
        ids = plain_ids(self._tokenizer, text)
        return [token for token in ids if token not in self._special_ids]


def points_or_text(answer: str) -> str:
    """One line: the points of an answer that is a Python list of texts, also one that was cut off; else the
    answer as it is."""
    points = _python_list(answer.strip())
    return " ".join("; ".join(points).split() if points else answer.split())


def _python_list(text: str) -> list[str]:
    if not text.startswith("["):
        return []
    whole = text[: text.rfind("]") + 1]
    for candidate in (whole, _up_to_the_last_whole_point(text)):
        try:
            points = ast.literal_eval(candidate)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # all that it may raise
            continue
        if isinstance(points, list) and points and all(isinstance(point, str) for point in points):
            return [point.strip() for point in points if point.strip()]
    return []


def _up_to_the_last_whole_point(text: str) -> str:
    ends = [found.start() for found in re.finditer(r"""(?<=['"])\s*,""", text)]
    return f"{text[: ends[-1]]}]" if ends else ""
