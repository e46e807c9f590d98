"""What a benchmark writes: all its numbers, what they were measured with, and when."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measure import Spread

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "torch")


def environment() -> dict[str, Any]:
    """The date by the clock, the device, and versions."""
    device = jax.devices()[0]
    installed = {name for name in _PACKAGES if importlib.util.find_spec(name)}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "platform": device.platform,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def peak_memory() -> int | None:
    """Bytes of the device's memory that were in use at once so far; None where it does not say."""
    stats = jax.devices()[0].memory_stats()
    return stats and stats.get("peak_bytes_in_use")


def spread(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Median, lowest, highest, and all repeats."""
    array = np.asarray(values, np.float64)
    return {**Spread.of(array)._asdict(), "repeats": array.tolist()}


def shown(found: Mapping[str, Any], digits: int) -> str:
    """What `spread` made, for people."""
    return f"{found['median']:,.{digits}f} ({found['low']:,.{digits}f}..{found['high']:,.{digits}f})"


def heading(content: Mapping[str, Any]) -> str:
    """The device and the day of `environment`."""
    return f"{content['device']} ({content['processor']}, {content['cores']} cores), {content['date'][:10]}:"


def write(folder: str, name: str, content: dict[str, Any]) -> Path:
    """`folder/name.json`."""
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
