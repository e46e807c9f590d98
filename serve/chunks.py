"""Tokens to deltas: each one, several together, or a sentence."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, no_type_check

from sample.config import integer, number, refusal
from serve.job import Piece

Granularity = Literal["token", "chunk", "sentence"]
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’»)\]]*$")
_LONGEST = 256  # tokens that are held for the end of a sentence


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class ChunkConfig:
    """How tokens are joined to deltas.

    Attributes:
        granularity: "token", each its own; "chunk", several; "sentence", until one ends.
        tokens: of a chunk, at most.
        seconds: that a token waits for its chunk to fill, at most.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """

    granularity: Granularity = "token"
    tokens: int = 8
    seconds: float = 0.1

    def __post_init__(self):
        if self.granularity not in get_args(Granularity):
            raise refusal("granularity", self.granularity, ", ".join(get_args(Granularity)))
        integer("chunk_tokens", self.tokens, 1, _LONGEST)
        number("chunk_seconds", self.seconds, 0.0, 60.0)


class Chunker:
    """Holds the tokens of the next delta."""

    def __init__(self, config: ChunkConfig) -> None:
        self._config = config
        self._held: list[Piece] = []
        self._since = 0.0  # when the first of them came

    def push(self, piece: Piece, now: float) -> list[Sequence[Piece]]:
        """Takes a token; returns the deltas that are now whole."""
        whole = []
        if self._config.granularity == "sentence" and self._sentence_ends_before(piece.text):
            whole.append(self.flush())
        if not self._held:
            self._since = now
        self._held.append(piece)
        if self._full(now):
            whole.append(self.flush())
        return whole

    def due(self, now: float) -> bool:
        """Whether what is held has waited long enough."""
        waiting = bool(self._held) and self._config.granularity == "chunk"
        return waiting and now - self._since >= self._config.seconds

    def flush(self) -> Sequence[Piece]:
        """What is held, which may be nothing."""
        held, self._held = self._held, []
        return held

    def _full(self, now: float) -> bool:
        if self._config.granularity == "chunk":
            return len(self._held) >= self._config.tokens or self.due(now)
        if self._config.granularity == "sentence":
            return self._held[-1].text.endswith("\n") or len(self._held) >= _LONGEST
        return True

    def _sentence_ends_before(self, text: str) -> bool:
        """A full stop ends a sentence where a blank follows: not in 3.14."""
        line_end = text.isspace() and text.endswith("\n")  # which belongs to the sentence before it
        if not self._held or not text[:1].isspace() or line_end:
            return False
        return _SENTENCE_END.search("".join(piece.text for piece in self._held)) is not None
