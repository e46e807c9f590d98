"""What goes to standard output: the text as it is made, or a JSON object per line."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from conf.schema import Format


class Writer(Protocol):
    def event(self, kind: str, fields: dict[str, Any]) -> None:
        """What happened in a stream, beside its tokens."""
        ...

    def token(
        self, index: int, token: Any, surprisal: float, alternatives: Sequence[tuple[int, float]]
    ) -> None:
        """A token of a stream: `token` is (token_id, text, logprob)."""
        ...

    def row(self, header: str | None, row: dict[str, Any]) -> None:
        """A whole answer; `header` tells several apart."""
        ...

    def close(self, rest: str, summary: dict[str, Any]) -> None:
        """The end of the output; `rest` is text that no token has brought."""
        ...


class TextWriter:
    """The text alone, flushed with every token; a stream ends with one line break."""

    def __init__(self) -> None:
        self._streaming = False

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        pass

    def token(
        self, index: int, token: Any, surprisal: float, alternatives: Sequence[tuple[int, float]]
    ) -> None:
        self._streaming = True
        sys.stdout.write(token.text)
        sys.stdout.flush()

    def row(self, header: str | None, row: dict[str, Any]) -> None:
        sys.stdout.write(f"{row['text']}\n" if header is None else f"== {header}\n{row['text']}\n\n")
        sys.stdout.flush()

    def close(self, rest: str, summary: dict[str, Any]) -> None:
        if self._streaming:
            sys.stdout.write(f"{rest}\n")
            sys.stdout.flush()


class JsonWriter:
    """One ASCII JSON object per line, so that no text can break a line. Its `event` says what it is; the last
    one is "end"."""

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        self._write({"event": kind} | fields)

    def token(
        self, index: int, token: Any, surprisal: float, alternatives: Sequence[tuple[int, float]]
    ) -> None:
        line = {"index": index, **token._asdict(), "surprisal": surprisal}
        if alternatives:
            line["top_logprobs"] = [list(pair) for pair in alternatives]
        self.event("token", line)

    def row(self, header: str | None, row: dict[str, Any]) -> None:
        self.event("answer", row)

    def close(self, rest: str, summary: dict[str, Any]) -> None:
        self.event("end", {"rest": rest} | summary if rest else summary)

    def _write(self, line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(_plain(line), allow_nan=False) + "\n")
        sys.stdout.flush()


def writer_for(format: Format) -> Writer:
    return JsonWriter() if format is Format.jsonl else TextWriter()


def _plain(value: Any) -> Any:
    """JSON knows neither infinities nor numpy's numbers: null and Python's stand for them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
