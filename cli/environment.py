"""What must be set before JAX and transformers are imported, and what JAX then found."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import platformdirs

from cli.report import Report


def prepare_environment(report: Report) -> None:
    """Keep compiled programs between runs, and keep the libraries' own remarks off standard error.

    A variable that the user has set is left as it is.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(platformdirs.user_cache_dir("saccade")) / "jax"
        if _writable(folder):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        else:
            report.line(f"compiled programs are not kept: {folder} is not writable")
    # JAX's defaults leave out programs that compile in under a second: together they are most of the waiting.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # the device line says what was found
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def device_line() -> str:
    import jax  # noqa: PLC0415  (prepare_environment comes first)

    device = jax.devices()[0]
    if device.platform == "cpu":
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"device: cpu ({threads} threads)"
    return f"device: {device.platform} {device.device_kind}"


class Compilations:
    """Counts the programs that JAX needed, and how many of them came out of the cache."""

    def __init__(self) -> None:
        import jax  # noqa: PLC0415

        self.programs = self.cached = 0
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_event(self, event: str, **_: Any) -> None:
        self.cached += event == "/jax/compilation_cache/cache_hits"

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        self.programs += event == "/jax/core/compile/backend_compile_duration"

    def __str__(self) -> str:
        return f"compiled {self.programs - self.cached} of {self.programs} programs"
