"""Pictures' files to RGB, each decoded in a process that is killed when it takes too long."""

import contextlib
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from models.errors import InputError

_WORKER = Path(__file__).with_name("decode_worker.py")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LANG")  # no secrets


_LONGEST_LINE = 1000  # bytes


class Decoder:
    """As many processes as `workers`; one that was killed is replaced when the next picture comes.

    Args:
        seconds: that one picture may take.
        max_pixels: of one.
        max_frames: of an animation, of which the first frame is taken.
    """

    def __init__(self, workers: int, *, seconds: float, max_pixels: int, max_frames: int) -> None:
        self._seconds, self._max_pixels = seconds, max_pixels
        limits = max_pixels, max_frames, int(2 * seconds) + 1
        self._command = [sys.executable, "-P", str(_WORKER), *map(str, limits)]
        self._workers: list[_Worker | None] = [None] * workers
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(workers):
            self._free.put(place)

    def start(self) -> None:
        """Start the processes before they are needed."""
        self._workers = [worker or _Worker(self._command) for worker in self._workers]

    def open(self, content: bytes) -> Image.Image:
        """The picture in a file, as RGB. Blocks while all processes are busy, and until it is decoded.

        Raises:
            InputError: it is no picture, larger than allowed, or took too long.
            RuntimeError: the process does not start.
        """
        place = self._free.get()
        try:
            return self._decode(place, content)
        finally:
            self._free.put(place)

    def close(self) -> None:
        """End the processes; nobody may be using them."""
        for worker in self._workers:
            if worker is not None:
                worker.kill()

    def _decode(self, place: int, content: bytes) -> Image.Image:
        worker = self._alive(place)
        try:
            worker.wait_ready()
            with worker.killed_after(self._seconds):
                return worker.decode(content, self._max_pixels)
        except (OSError, EOFError):
            worker.kill()
            self._workers[place] = None
            why = f"takes longer than {self._seconds:g} s to decode, or breaks the decoder"
            raise InputError(f"picture of {len(content)} bytes: {why}") from None

    def _alive(self, place: int) -> "_Worker":
        worker = self._workers[place]
        if worker is not None and worker.alive:
            return worker
        if worker is not None:
            worker.kill()
        self._workers[place] = started = _Worker(self._command)
        return started


class _Worker:
    """One process."""

    def __init__(self, command: list[str]) -> None:
        self._ready = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            start_new_session=True,  # an interrupt at the terminal is the server's
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._back = self._process.stdin, self._process.stdout

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Raises RuntimeError where the process has ended instead."""
        if not self._ready and not self._back.read(1):
            raise RuntimeError("the process that decodes pictures does not start")
        self._ready = True

    @contextlib.contextmanager
    def killed_after(self, seconds: float) -> Iterator[None]:
        """Unless the block ends before."""
        watch = threading.Timer(seconds, self._process.kill)
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def decode(self, content: bytes, max_pixels: int) -> Image.Image:
        """Raises InputError for what is no picture; OSError or EOFError where the process is gone or mad."""
        self._to.write(struct.pack("<Q", len(content)))
        self._to.write(content)
        self._to.flush()
        width, height = struct.unpack("<II", self._read(8))
        if width * height == 0:
            (length,) = struct.unpack("<Q", self._read(8))
            raise InputError(self._read(min(length, _LONGEST_LINE)).decode(errors="replace"))
        if width * height > max_pixels:
            raise EOFError
        return Image.frombytes("RGB", (width, height), self._read(width * height * 3))

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._back.close()
        with contextlib.suppress(BrokenPipeError):  # of what was not sent any more
            self._to.close()

    def _read(self, count: int) -> bytes:
        found = self._back.read(count)
        if len(found) < count:
            raise EOFError
        return found
