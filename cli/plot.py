"""`output.plot`: perplexity along a stream, with its reseeds."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from cli.typed import UsageError, shorten

_SUFFIXES = (".png", ".svg", ".pdf")
_MOST_POINTS = 8192


def check_plot(path: str | None) -> None:
    """Refuse at the start what would fail at the end.

    Raises:
        UsageError: another kind of file, a folder that is not there, or no matplotlib.
    """
    if path is None:
        return
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"output.plot: got {shorten(path)}; allowed: a path that ends in {', '.join(_SUFFIXES)}"
        )
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"output.plot: cannot write {shorten(path)}; allowed: a file in a writable folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("output.plot: needs matplotlib; uv sync --extra plot installs it")


class PerplexityCurve:
    """Points along a stream of any length. Whenever there are 8,192 of them, every second one is dropped, as
    is every second token from then on; the same holds for the reseeds."""

    def __init__(self) -> None:
        self._points = _Thinned()
        self._reseeds = _Thinned()

    def add(self, index: int, window: float | None, whole: float | None) -> None:
        """Perplexities behind token `index`: of the rolling window, and of the whole stream."""
        if window is not None and whole is not None:
            self._points.add((index, window, whole))

    def mark_reseed(self, index: int) -> None:
        self._reseeds.add((index,))

    def draw(self, path: str) -> None:
        """Write the plot, of the kind that the path's suffix says."""
        from matplotlib.figure import Figure  # noqa: PLC0415  (an extra)
        from matplotlib.ticker import LogFormatter  # noqa: PLC0415

        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots()
        for number, (index,) in enumerate(self._reseeds.kept):
            axes.axvline(index, color="0.8", linewidth=0.6, zorder=0, label=None if number else "reseed")
        if self._points.kept:
            indices, window, whole = zip(*self._points.kept, strict=True)
            axes.plot(indices, window, linewidth=0.9, label="latest tokens")
            axes.plot(indices, whole, linewidth=1.4, label="whole stream")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.set_xlabel("token")
        axes.set_ylabel("perplexity under the raw model")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        figure.savefig(path, dpi=120)


class _Thinned:
    """A list that stays short: every `_every`-th of what was added."""

    def __init__(self) -> None:
        self.kept: list[Sequence[float]] = []
        self._seen, self._every = 0, 1

    def add(self, point: Sequence[float]) -> None:
        if self._seen % self._every == 0:
            self.kept.append(point)
        self._seen += 1
        if len(self.kept) >= _MOST_POINTS:
            self.kept = self.kept[::2]
            self._every *= 2
