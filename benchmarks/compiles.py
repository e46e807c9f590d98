"""What a run compiles, and what it costs; where programs are kept, the next one fetches them."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FETCHED = "/jax/compilation_cache/cache_hits"


class Compiled(NamedTuple):
    """Of one run: programs that it needed, how many were fetched, seconds with them and in all."""

    programs: int
    fetched: int
    compile_seconds: float
    run_seconds: float

    @property
    def compiled(self) -> int:
        return self.programs - self.fetched

    def __str__(self) -> str:
        return f"{self.run_seconds:.1f} s, compiled {self.compiled} of {self.programs} programs"


_CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@contextmanager
def kept_programs() -> Iterator[None]:
    """JAX keeps all that it compiles in a folder: the user's, or one for as long as this lasts."""
    given = {name: getattr(jax.config, name) for name in _CACHE}
    with tempfile.TemporaryDirectory() as folder:
        wanted = _CACHE | {"jax_compilation_cache_dir": given["jax_compilation_cache_dir"] or folder}
        _configure(wanted)
        try:
            yield
        finally:
            _configure(given)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # what is open still writes to the folder before


def compilations(run: Callable[[], Any]) -> Compiled:
    """Run it once and tell."""
    seconds: list[float] = []
    fetched: list[str] = []

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            seconds.append(duration_secs)

    def on_event(event: str, **_: Any) -> None:
        if event == _FETCHED:
            fetched.append(event)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    begun = time.perf_counter()
    try:
        run()
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)
    return Compiled(len(seconds), len(fetched), sum(seconds), time.perf_counter() - begun)
