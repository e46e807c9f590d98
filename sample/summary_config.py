"""What a caller may choose for the summaries of a stream, and the errors for what is wrong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, no_type_check

from sample.config import integer, number, refusal

Summarizer = Callable[[str, int], str | Iterable[str]]
"""From a text and a budget in tokens to a shorter text, whole or in pieces.

It runs in a thread of its own. One that yields its text in pieces can be ended between two of them, which a
whole text cannot; the end of the process waits for neither. A method `brief`, if it has one, called alike,
shortens what is over budget.
"""


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class SummaryConfig:
    """How what leaves the cache is summarised. Immutable and hashable.

    Attributes:
        summarizer: None is the model itself.
        sink_ratio: the share of the context that anchor and summary may fill together, above 0, below 1.
        max_tokens: the longest answer of the model itself, in tokens, before it is cut to its budget.
        timeout: seconds that a summary may take.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """

    summarizer: Summarizer | None = None
    sink_ratio: float = 0.4
    max_tokens: int = 200
    timeout: float = 60.0

    def __post_init__(self):
        if self.summarizer is not None and not callable(self.summarizer):
            raise refusal("summary.summarizer", self.summarizer, "a callable (text, budget) -> text, or None")
        self._set("sink_ratio", number("summary.sink_ratio", self.sink_ratio, 0.01, 0.99))
        self._set("max_tokens", integer("summary.max_tokens", self.max_tokens, 1, 2**31 - 1))
        self._set("timeout", number("summary.timeout", self.timeout, 0.001, 1e6))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the class is frozen: values are normalised once, here
