"""Seconds from process start to the first token on standard output, with a warm compile cache.

uv run python -m benchmarks.start [--repeats 5] [KEY=VALUE ...]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import Spread

ROOT = Path(__file__).parents[1]


def first_token(overrides: list[str]) -> float:
    """One run of the command; the rest of the answer is read but not timed."""
    command = [sys.executable, str(ROOT / "run_streaming.py"), *overrides]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit(f"no output from {' '.join(command)}")
        elapsed = time.perf_counter() - begun
        process.stdout.read()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    args, overrides = parser.parse_known_args()
    overrides = overrides or [
        "inference.image=examples/imgs/panda_climbing.png",
        "inference.prompt=Describe this image",
    ]
    first_token(overrides)  # fills the compile cache
    seconds = np.array([first_token(overrides) for _ in range(args.repeats)])
    print(f"process start to first token, warm compile cache: {Spread.of(seconds)} s, {args.repeats} repeats")


if __name__ == "__main__":
    main()
