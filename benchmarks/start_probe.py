"""Runs `SCRIPT ARGUMENTS`, and tells in its last line of standard error what JAX did."""

import json
import runpy
import sys
from collections import Counter, defaultdict
from typing import Any

from cli.environment import prepare_environment
from cli.report import report_for_stderr

_SECONDS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling or fetching",
    "/jax/compilation_cache/cache_retrieval_time_sec": "fetching",
}


def main() -> None:
    prepare_environment(report_for_stderr())  # as the script will, before JAX is imported
    import jax  # noqa: PLC0415

    seconds: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event in _SECONDS:
            seconds[_SECONDS[event]] += duration_secs
            counts[_SECONDS[event]] += 1

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        told = {name: round(value, 3) for name, value in seconds.items()}
        told |= {f"times {name}": count for name, count in counts.items()}
        print(json.dumps(told), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
