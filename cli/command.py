"""The frame of both commands: settings in, exit status out, one line for whatever goes wrong."""

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from cli.interrupts import Interrupts
from cli.report import Report, report_for_stderr
from cli.typed import UsageError

if TYPE_CHECKING:
    from conf.schema import Schema

DONE, FAILED, WRONG, CLOSED_PIPE = 0, 1, 2, 141  # 141: 128 + SIGPIPE, the shell's convention
_COMPUTING = {"summary", "engine"}  # the names of threads that may be in compiled code
# Objects between collections: imports and tracing make a million that stay, and looking for garbage among
# them, 700 times by Python's own thresholds, takes a tenth of the time to the first token.
_COLLECTIONS = (100_000, 20, 100)
_LONGEST_LINE = 1000  # characters; the device's own reports of a full memory run to pages

Body = Callable[[Any, Report, Interrupts], int]


def run_command(body: Body, purpose: str, argv: Sequence[str], schema: "Schema | None" = None) -> int:
    """Run `body(settings, report, interrupts)` and return the process's exit status.

    Args:
        schema: of the settings; without one, those of `run.py`.
    """
    _open_streams()
    gc.set_threshold(*_COLLECTIONS)
    interrupts = Interrupts()
    interrupts.install()
    report = report_for_stderr()
    try:
        return _run(body, purpose, argv, report, interrupts, schema)
    except BrokenPipeError:
        status = CLOSED_PIPE
    except UsageError as error:
        status = _complain(report, error, WRONG)
    except ValueError as error:
        from models.errors import SaccadeError  # noqa: PLC0415  (imports JAX)

        if not isinstance(error, SaccadeError):
            raise
        status = _complain(report, error, WRONG)
    except (RuntimeError, OSError, MemoryError) as error:  # the device, the disk, the memory
        status = _complain(report, error, FAILED)
    _discard_output()
    return status


def leave(status: int) -> NoReturn:
    """End the process, without waiting for a summary that is still being made, or an engine that starts: its
    thread, in compiled code, would abort an orderly shutdown."""
    if any(thread.name in _COMPUTING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run(
    body: Body,
    purpose: str,
    argv: Sequence[str],
    report: Report,
    interrupts: Interrupts,
    schema: "Schema | None",
) -> int:
    from conf.schema import GENERATION  # noqa: PLC0415

    schema = schema or GENERATION
    if "--help" in argv or "-h" in argv:
        from cli.help import help_text  # noqa: PLC0415

        print(help_text(os.path.basename(sys.argv[0]), purpose, schema), flush=True)
        return DONE
    from cli.settings import parse_settings  # noqa: PLC0415  (imports Hydra)

    return body(parse_settings(argv, schema), report, interrupts)


def _open_streams() -> None:
    """Standard output and error in UTF-8 in any locale, and present even where the caller closed them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open as long as the process lives)
        getattr(sys, name).reconfigure(encoding="utf-8", errors="backslashreplace")


def _complain(report: Report, error: Exception, status: int) -> int:
    report.end()
    text = " ".join(str(error).splitlines())[:_LONGEST_LINE] or type(error).__name__
    with contextlib.suppress(OSError):
        report.line(f"error: {text}")
    return status


def _discard_output() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
