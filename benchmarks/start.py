"""Seconds from process start to the first token, with a warm compile cache, and what they are spent on.

    uv run python -m benchmarks.start [repeats=5] [-- KEY=VALUE ...]

What stands behind `--` goes to `run_streaming.py`. The parts of a run end where it says on standard error
that it has found its device (imports are done) and loaded the checkpoint, and where the first text comes.
Two more runs, which are not timed, tell what the imports take by package (`-X importtime`) and what JAX needs
for tracing, lowering, and fetching programs from its cache, in all of the run.

Prints it; writes start.json in `out`.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import options, records
from benchmarks.measure import Spread

ROOT = Path(__file__).parents[1]
_COMMAND = "run_streaming.py"
_DEFAULTS = ["inference.image=examples/imgs/panda_climbing.png", "inference.prompt=Describe this image"]
_OURS = ("models", "sample", "cli", "conf", _COMMAND)
_MARKS = {"imports and device": "device:", "checkpoint": "loaded "}
_REST, TOTAL = "inputs, programs, first token", "total"
_SHOWN = 10  # packages


@dataclass(frozen=True)
class Options:
    repeats: int = 5
    out: str = "outputs/benchmarks"


def first_token(overrides: list[str]) -> dict[str, float]:
    """Seconds of one run's parts and in all; the rest of the answer is read but not timed."""
    command = [sys.executable, str(ROOT / _COMMAND), *overrides]
    begun = time.perf_counter()
    said: list[tuple[float, str]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = process.stderr

        def listen() -> None:
            said.extend((time.perf_counter() - begun, line.decode()) for line in lines)

        listener = threading.Thread(target=listen)
        listener.start()
        got = process.stdout.read(1)
        elapsed = time.perf_counter() - begun
        process.stdout.read()
        listener.join()
    if not got:
        raise SystemExit(f"no output from {' '.join(command)}")
    return parts(said, elapsed)


def parts(said: list[tuple[float, str]], elapsed: float) -> dict[str, float]:
    """From when each line of standard error came."""
    ends = {
        name: next(at for at, line in said if line.startswith(beginning))
        for name, beginning in _MARKS.items()
    } | {_REST: elapsed}
    begins = [0.0, *ends.values()]
    lasting = {name: end - begin for (name, end), begin in zip(ends.items(), begins, strict=False)}
    return lasting | {TOTAL: elapsed}


def import_seconds(overrides: list[str]) -> dict[str, float]:
    """Of each package's own modules, the slowest first."""
    command = [sys.executable, "-X", "importtime", str(ROOT / _COMMAND), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return by_package(done.stderr)


def by_package(importtime: str) -> dict[str, float]:
    """Seconds per top-level package of what `-X importtime` printed."""
    spent: Counter[str] = Counter()
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\w+)", importtime, re.MULTILINE):
        spent[name] += int(own)
    return {name: microseconds / 1e6 for name, microseconds in spent.most_common()}


def jax_seconds(overrides: list[str]) -> dict[str, Any]:
    """What `start_probe` tells."""
    command = [sys.executable, "-m", "benchmarks.start_probe", str(ROOT / _COMMAND), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stderr.splitlines()[-1])


def benchmark(chosen: Options, overrides: list[str]) -> dict[str, Any]:
    """Measure, print, write; returns what it wrote."""
    first_token(overrides)  # fills the compile cache
    runs = [first_token(overrides) for _ in range(chosen.repeats)]
    imports = import_seconds(overrides)
    ours = sum(seconds for name, seconds in imports.items() if name in _OURS)
    content = {
        "benchmark": "start",
        **records.environment(),
        "options": asdict(chosen) | {"command": overrides},
        "seconds": {name: records.spread([run[name] for run in runs]) for name in runs[0]},
        "import_seconds": {"ours": ours, "others": sum(imports.values()) - ours} | imports,
        "jax": jax_seconds(overrides),
    }
    print(f"process start to first token, warm compile cache, {chosen.repeats} repeats, s")
    for name in runs[0]:
        print(f"  {name}: {Spread.of(np.array([run[name] for run in runs]))}")
    slowest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in list(imports.items())[:_SHOWN])
    print(
        f"imports, under -X importtime: ours {ours:.2f}, others {sum(imports.values()) - ours:.2f}: {slowest}"
    )
    print("JAX, in all of a run:", ", ".join(f"{name} {value}" for name, value in content["jax"].items()))
    print("written:", records.write(chosen.out, "start", content))
    return content


def main() -> None:
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    overrides = sys.argv[cut + 1 :] or _DEFAULTS
    sys.argv = sys.argv[:cut]
    options.run(lambda chosen: benchmark(chosen, overrides), Options, __doc__ or "")


if __name__ == "__main__":
    main()
