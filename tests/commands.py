"""Running the real commands, as a user does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """The user's environment, with compiled programs kept in `cache` and no network to find models in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "HF_"))}
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    return (
        kept | {"XDG_CACHE_HOME": str(cache), "HF_ENDPOINT": nowhere, "HF_HOME": str(cache / "hub")} | changes
    )


def start(script: str, *arguments: str, cwd: Path, env: dict[str, str], **options: Any) -> subprocess.Popen:
    """Start `script` in `cwd`; the script may also be Python code that runs it, given as `-c CODE`."""
    program = [str(ROOT / script)] if script.endswith(".py") else ["-c", script]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, *program, *arguments], cwd=cwd, env=env, **options)


def run(
    script: str, *arguments: str, cwd: Path, env: dict[str, str], timeout: float = 120
) -> tuple[int, str, str]:
    """Run it to its end; (status, standard output, standard error)."""
    process = start(script, *arguments, cwd=cwd, env=env)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out.decode(), err.decode()
