"""What JAX's profiler saw of a stretch of code, in all threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax


@contextmanager
def profiled(folder: Path) -> Iterator[list[str]]:
    """The names of all events in it; the list is filled when it ends."""
    seen: list[str] = []
    with jax.profiler.trace(str(folder)):
        yield seen
    (file,) = folder.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        seen += [event.name for line in plane.lines for event in line.events]


def called(events: list[str]) -> set[str]:
    """The jitted functions that were called."""
    start = "PjitFunction("
    return {name.removeprefix(start).removesuffix(")") for name in events if name.startswith(start)}


def dispatches(events: list[str]) -> int:
    """How many calls of jitted functions there were, on any backend."""
    return events.count("ParseArguments")
