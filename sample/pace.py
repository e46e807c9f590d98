"""How many steps a program takes: as many as the eye does not see apart, so that starting it costs little.

A step's start costs the host the same whatever the step does; with a small model on a CPU, a third of it.
"""

import jax
import numpy as np
from jaxtyping import Array, Int

from sample.step import STEPS

FRAME = 1 / 30  # seconds: what comes within it is seen as one
_GROWTH = 4  # from one program to the next, at most


class Pace:
    """Steps per program, for one at least every `seconds`: one at first, then up to four times as many."""

    def __init__(self, seconds: float = FRAME) -> None:
        self._seconds = seconds
        self.steps = 1

    def took(self, seconds: float, steps: int) -> None:
        """A program of so many steps has taken so long."""
        fitting = self._seconds * steps / seconds if seconds > 0 else STEPS
        self.steps = max(1, min(int(fitting), _GROWTH * self.steps, STEPS))


def quota_of(steps: int) -> Int[Array, "1"]:
    """That of `decode_steps` for one row."""
    return jax.device_put(np.array([steps], np.int32))
