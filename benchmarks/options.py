"""A benchmark's `key=value` arguments: the fields of a dataclass, without Hydra."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

from models.errors import SaccadeError, SettingsError

T = TypeVar("T")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number")
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(_whole, text.split(","))) if text else ()
    except ValueError:
        raise ValueError("whole numbers with commas between them") from None


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


_READERS: dict[Any, Callable[[str], Any]] = {int: _whole, tuple[int, ...]: _wholes, bool: _flag, str: str}


def parse(kind: type[T], arguments: Sequence[str]) -> T:
    """An instance of the dataclass with what the arguments say; raises SettingsError for what it has not."""
    readers = {name: _READERS[hint] for name, hint in get_type_hints(kind).items()}
    values = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in readers:
            raise SettingsError(f"{argument!r}; allowed: KEY=VALUE with one of {', '.join(readers)}")
        try:
            values[key] = readers[key](text)
        except ValueError as error:
            raise SettingsError(f"{key}: {text!r}; allowed: {error}") from None
    return kind(**values)


def run(main: Callable[[T], Any], kind: type[T], description: str) -> None:
    """`main` with the command line's options; what is wrong is one line, and the exit status 2."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        defaults = " ".join(f"{field.name}={field.default}" for field in dataclasses.fields(kind))  # pyright: ignore[reportArgumentType]
        print(f"{description}\nDefaults: {defaults}")
        return
    try:
        main(parse(kind, sys.argv[1:]))
    except SaccadeError as error:
        sys.exit(f"error: {error}")
