"""The real commands without the seconds in which Python imports JAX: forks of a process that has done so.

What is left out is the import alone: a fork has its own process id, signals, streams, threads and device. How
a command starts from nothing, `tests.commands` shows.
"""

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from unittest import mock

from tests.commands import ROOT

_READ = ("JAX_", "XLA_", "HF_", "XDG_", "TRANSFORMERS_")  # variables that libraries look at when imported
_context = multiprocessing.get_context("forkserver")


class Fork:
    """A running command: what tests use of `subprocess.Popen`."""

    def __init__(self, process: Any, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        self._process, self.stdout, self.stderr = process, stdout, stderr
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[bytes, bytes]:
        watch = threading.Timer(timeout, self.kill)
        watch.start()
        try:
            with ThreadPoolExecutor(2) as pool:
                out, err = pool.map(_rest, (self.stdout, self.stderr))
            self.wait()
        finally:
            watch.cancel()
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()


def start(
    script: str,
    *arguments: str,
    cwd: Path,
    env: dict[str, str],
    stdout: Any = subprocess.PIPE,
    stderr: Any = subprocess.PIPE,
) -> Fork:
    """As `tests.commands.start`; all forks have the environment of the first one."""
    _import_all(tuple(env.items()))
    (out, to_out), (err, to_err) = map(_ends, (stdout, stderr))
    process = _context.Process(target=_command, args=(script, arguments, cwd, env, to_out, to_err))
    process.start()
    to_out.close()
    to_err.close()
    return Fork(process, out, err)


def run(
    script: str, *arguments: str, cwd: Path, env: dict[str, str], timeout: float = 120
) -> tuple[int, str, str]:
    """As `tests.commands.run`."""
    process = start(script, *arguments, cwd=cwd, env=env)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@functools.cache
def _import_all(env: tuple[tuple[str, str], ...]) -> None:
    _context.set_forkserver_preload(["tests.imports"])
    with mock.patch.dict(os.environ, {**dict(env), "PYTHONPATH": str(ROOT)}, clear=True):
        forkserver.ensure_running()


def _ends(target: Any) -> tuple[IO[bytes] | None, Connection]:
    """What the test reads, and what the command writes to."""
    if target != subprocess.PIPE:
        descriptor = target if isinstance(target, int) else target.fileno()
        return None, Connection(os.dup(descriptor), readable=False)
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb"), Connection(writer, readable=False)


def _rest(stream: IO[bytes] | None) -> bytes:
    if stream is None:
        return b""
    with stream:
        return stream.read()


def _command(
    script: str,
    arguments: tuple[str, ...],
    cwd: Path,
    env: dict[str, str],
    stdout: Connection,
    stderr: Connection,
) -> None:
    """In the fork."""
    from tests.imports import ENVIRONMENT

    for number, (name, connection) in enumerate({"stdout": stdout, "stderr": stderr}.items(), 1):
        os.dup2(connection.fileno(), number)
        connection.close()
        setattr(sys, name, open(number, "w", buffering=number - 1 or -1, closefd=False))  # noqa: SIM115
    for variable in env.keys() | ENVIRONMENT.keys():
        if variable.startswith(_READ):
            assert env.get(variable) == ENVIRONMENT.get(variable), f"{variable} was another one at the import"
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if script.endswith(".py"):
        sys.argv = [str(ROOT / script), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = ["-c", *arguments]
        exec(script, {"__name__": "__main__"})
