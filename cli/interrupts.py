"""Ctrl-C, answered at once: also while compiled code holds the main thread for seconds."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable

INTERRUPTED = 130  # 128 + SIGINT, the shell's convention


class Interrupts:
    """Ctrl-C ends the process with status 130; where `cancel` is set, the first one calls that instead (from
    another thread), so that a running stream or batch ends with its statistics.

    Python runs signal handlers between bytecodes of the main thread only; the descriptor given to
    `signal.set_wakeup_fd` is written at once, and a thread of its own reads it.
    """

    def __init__(self) -> None:
        self.seen = False
        self.cancel: Callable[[], None] | None = None

    def install(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._writer = writer  # alive as long as the descriptor is in use
        threading.Thread(target=self._watch, args=(reader,), name="interrupts", daemon=True).start()

    def _watch(self, reader: socket.socket) -> None:
        while numbers := reader.recv(64):
            if signal.SIGINT in numbers:
                self._interrupt()

    def _interrupt(self) -> None:
        if self.cancel is not None and not self.seen:
            self.seen = True
            self.cancel()
            return
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress display hides it
        with contextlib.suppress(OSError):
            os.write(2, show_cursor + b"\ninterrupted\n")
        os._exit(INTERRUPTED)
