"""Interleaved repeats, so that a drifting machine shifts all contestants alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np


class Spread(NamedTuple):
    """Median, smallest and largest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        return cls(float(np.median(values)), float(values.min()), float(values.max()))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


Name = TypeVar("Name", bound=Hashable)


def interleaved(contestants: Mapping[Name, Callable[[], Any]], repeats: int) -> dict[Name, np.ndarray]:
    """Seconds of each repeat of each contestant, after one warm-up; they take turns."""
    for run in contestants.values():
        run()
    seconds: dict[Name, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            begun = time.perf_counter()
            made = run()
            seconds[name].append(time.perf_counter() - begun)
            del made  # which may take its time
    return {name: np.array(values) for name, values in seconds.items()}
