"""Paces that depend on no clock, and those of another device."""

import pytest

from sample.pace import Pace


class Steady(Pace):
    """Always so many steps to a program."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def took(self, seconds: float, steps: int, most: int) -> None:
        pass


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of as many steps as a GPU's, whose host reads the conditions of loops."""
    for module in ("pace", "step"):
        monkeypatch.setattr(f"sample.{module}.on_cpu", lambda: False)
