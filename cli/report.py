"""What goes to standard error: progress, the device, the closing line."""

import statistics
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sample import TokenStream

_PLAIN_INTERVAL = 5.0  # seconds between two lines about one piece of work


class Report(Protocol):
    def line(self, text: str) -> None:
        """A line that stays."""
        ...

    def begin(self, text: str) -> None:
        """A piece of work begins; the one before has ended."""
        ...

    def progress(self, done: int, total: int) -> None:
        """So many bytes of the present piece of work are done."""
        ...

    def end(self) -> None:
        """All work is done: from here on the terminal belongs to the tokens."""
        ...


class PlainReport:
    """A line for each piece of work, and one every few seconds while bytes arrive."""

    def __init__(self) -> None:
        self._text = ""
        self._last = 0.0

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, text: str) -> None:
        self._text, self._last = text, time.monotonic()
        self.line(f"{text} ...")

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _PLAIN_INTERVAL:
            self._last = now
            self.line(f"{self._text}: {size(done)} of {size(total)}")

    def end(self) -> None:
        pass


class TerminalReport:
    """A bar or a spinner that vanishes before the first token."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  (only a terminal needs it)
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
        )
        self._console = Console(stderr=True)
        self._spinner = Progress(*columns[:2], console=self._console, transient=True)
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._shown: Any = None

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, text: str) -> None:
        self._show(self._spinner, text, total=None)

    def progress(self, done: int, total: int) -> None:
        if self._shown is not self._bar:
            self._show(self._bar, self._text, total=total)
        self._bar.update(self._task, completed=done)

    def end(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def _show(self, display: Any, text: str, total: int | None) -> None:
        self.end()
        for task in display.task_ids:
            display.remove_task(task)
        self._text, self._shown = text, display
        self._task = display.add_task(text, total=total)
        display.start()


def report_for_stderr() -> Report:
    return TerminalReport() if sys.stderr.isatty() else PlainReport()


def size(number: int) -> str:
    """A number of bytes, in MB or GB."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def stream_summary(tokens: "TokenStream") -> dict[str, Any]:
    """The statistics of a stream, for the closing line and for output=jsonl."""
    stats = tokens.stats
    pauses = [reseed.pause for reseed in stats.recent_reseeds]
    summary = {
        "finish_reason": tokens.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "image_tokens": stats.image_tokens,
        "new_tokens": stats.new_tokens,
        "time_to_first_token": stats.time_to_first_token,
        "tokens_per_second": stats.tokens_per_second,
        "median_latency": stats.median_latency,
        "p99_latency": stats.p99_latency,
        "perplexity": tokens.perplexity.perplexity,
        "window_perplexity": tokens.perplexity.window_perplexity,
        "surprisal_errors": stats.surprisal_errors,
        "reseeds": stats.reseeds,
        "median_pause": statistics.median(pauses) if pauses else None,
        "longest_pause": max(pauses, default=None),
    }
    if tokens.summary is not None:
        summary["summaries"] = dict(tokens.summary.counts)
    return summary


def closing_line(summary: dict[str, Any]) -> str:
    """What `stream_summary` holds, for people; what does not exist (times before a token, reseeds where there
    were none) is left out."""
    parts = [
        f"finish: {summary['finish_reason']}",
        f"prompt: {summary['prompt_tokens']} tokens ({summary['image_tokens']} of pictures)",
        f"new: {summary['new_tokens']} tokens",
    ]
    if summary["time_to_first_token"] is not None:
        parts.append(f"first token: {summary['time_to_first_token']:.2f} s")
    if summary["tokens_per_second"] is not None:
        parts.append(f"{summary['tokens_per_second']:.1f} tokens/s")
    if summary["median_latency"] is not None:
        median, p99 = summary["median_latency"] * 1e3, summary["p99_latency"] * 1e3
        parts.append(f"between tokens: median {median:.2f} ms, p99 {p99:.2f} ms")
    if summary["reseeds"]:
        parts.append(_reseeds(summary))
    if "summaries" in summary:
        counts = summary["summaries"].items()
        parts.append(f"summaries: {', '.join(f'{count} {status}' for status, count in counts)}")
    return " | ".join(parts)


def _reseeds(summary: dict[str, Any]) -> str:
    text = f"reseeds: {summary['reseeds']}"
    if summary["median_pause"] is not None:
        text += f", pause median {summary['median_pause'] * 1e3:.0f} ms"
    return f"{text} | perplexity: {summary['perplexity']:.2f}" if summary["perplexity"] else text


def batch_closing_line(summary: dict[str, Any]) -> str:
    """The same for a batch, whose tokens come all at once."""
    reasons = Counter(summary["finish_reasons"])
    return " | ".join(
        [
            f"finish: {', '.join(f'{count} {reason}' for reason, count in reasons.items())}",
            f"prompts: {summary['prompt_tokens']} tokens ({summary['image_tokens']} of pictures)",
            f"new: {summary['new_tokens']} tokens",
            f"{summary['seconds']:.2f} s, with compiling",
            f"{summary['tokens_per_second']:.1f} tokens/s",
        ]
    )
