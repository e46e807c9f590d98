"""An endless stream's row, as the host knows it: how full it is, and what a new beginning is made of.

Other than a single stream (`sample/endless.py`), which must not wait for a token, a server has other rows to
step meanwhile: the tail is taken from the tokens that have been delivered, and fed in chunks as a prompt is.
"""

from collections import deque

import numpy as np

from models.decoder import VisionEmbeddings
from sample.endless import StreamPlan
from sample.step import Prompt


class EndlessRow:
    """Of one stream. `seen` are the pictures of its prompt, kept for the sinks."""

    def __init__(self, plan: StreamPlan) -> None:
        self.seen: list[VisionEmbeddings] = []
        self._plan = plan
        self.filled = self._total = len(plan.prompt)  # slots, and tokens that have been delivered
        self._recent = deque(plan.prompt.tolist(), plan.tail)
        self._renewing = False

    @property
    def is_full(self) -> bool:
        """Whether the next token would not fit, and nothing is being done about it."""
        return self.filled >= self._plan.context and not self._renewing

    @property
    def room(self) -> int:
        """How many steps its row can take."""
        return 0 if self._renewing else self._plan.context - self.filled

    def stepped(self, steps: int) -> None:
        """So many more slots are filled."""
        self.filled += steps

    def delivered(self, token: int) -> None:
        """One more token."""
        self._total += 1
        self._recent.append(token)

    def begin_renewal(self) -> Prompt:
        """What the row is to hold from now on, with the pending token at its end."""
        self._renewing = True
        tail = min(self._plan.tail, self._total - self._plan.floor)
        whole = self._plan.renewed(np.array(list(self._recent)[len(self._recent) - tail :], np.int32))
        self.filled = int(whole.lengths[0])
        return whole

    def end_renewal(self) -> None:
        """It holds it."""
        self._renewing = False
