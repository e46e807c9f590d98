"""A pace that depends on no clock."""

from sample.pace import Pace


class Steady(Pace):
    """Always so many steps to a program."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def took(self, seconds: float, steps: int) -> None:
        pass
