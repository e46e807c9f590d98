"""How many steps a program takes: as many as the eye does not see apart, so that starting it costs little.

A step's start costs the host the same whatever the step does: with a small model on a CPU a third of it. A
GPU's host starts a step while the one before it runs, but needs as long for that as a small model's step.
"""

from functools import cache, lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from models.kernels.choice import on_cpu
from models.model import Model
from sample.logits import SamplingParams
from sample.step import ROUND, STEPS, DecodeState, decode_step, decode_steps

FRAME = 1 / 30  # seconds: what comes within it is seen as one
PROMPT = 4  # steps that take no longer than a prompt
_GROWTH = 4  # of steps, by a time that may be too short


class Pace:
    """Steps per program, which then takes about `seconds`: one at first, then the nearest number.

    What ran behind another program seems shorter than it was where that one was there before it was waited
    for: by such a time there are up to four times as many steps as before. A prompt counts as `PROMPT` steps,
    though a short one takes hardly longer than one: what follows it may then be late, once.
    """

    def __init__(self, seconds: float = FRAME) -> None:
        self._seconds = seconds
        self._arrived = 0.0
        self.steps = 1

    def arrived(self, now: float, begun: float, steps: int) -> None:
        """A program that was dispatched at `begun` is there; it ran behind the one that came before it."""
        if steps:
            behind = begun < self._arrived
            self.took(now - max(begun, self._arrived), steps, _GROWTH * self.steps if behind else STEPS)
        self._arrived = now

    def took(self, seconds: float, steps: int, most: int) -> None:
        """A program of so many steps has taken so long; the next one takes no more than `most`."""
        nearest = round(self._seconds * steps / seconds) if seconds > 0 else STEPS
        self.steps = fitting(max(1, min(nearest, most)))


def programs() -> tuple[int, ...]:
    """The steps of each program of `decode`; on a CPU there is one, which takes any number."""
    return (1,) if on_cpu() else (1, ROUND)


def fitting(most: int) -> int:
    """The most steps that a program can take of so many."""
    return min(most, STEPS) if on_cpu() else max(steps for steps in programs() if steps <= most)


def decode(
    model: Model,
    params: Any,
    state: DecodeState,
    sampling: SamplingParams,
    quota: tuple[int, ...],
    *,
    top: int,
) -> tuple[DecodeState, Int[Array, "..."]]:
    """The program that a `Pace` counts steps for: `decode_steps`; on a GPU of a `ROUND`, or a `decode_step`.

    Args:
        quota: of each row, as in `decode_steps`; the largest is `fitting`.

    Returns:
        The state, and what `unpack_taken` takes.
    """
    steps = max(quota)
    assert steps == fitting(steps), "more steps were counted than a program takes"
    if on_cpu() or steps > 1:
        most = STEPS if on_cpu() else ROUND
        return decode_steps(model, params, state, sampling, on_device(quota), top=top, most=most)
    live = np.array(quota) > 0 if len(quota) > 1 else None
    return decode_step(model, params, state, sampling, live, top=top)


def on_device(quota: tuple[int, ...]) -> Int[Array, "B"]:
    """The same few come again and again; the way to the device costs half of what a program's start does."""
    return _of_one_row()[quota[0]] if len(quota) == 1 else _of_rows(quota)


@cache
def _of_one_row() -> list[Int[Array, "1"]]:
    """All at once, so that nothing grows behind a stream that does not end."""
    return jax.device_put([np.array([steps], np.int32) for steps in range(STEPS + 1)])


@lru_cache(64)
def _of_rows(quota: tuple[int, ...]) -> Int[Array, "B"]:
    return jax.device_put(np.array(quota, np.int32))
