"""A connection that can be lost."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on, both ways; every time that a count of `cuts` has come down, all connections break."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts: list[int] = []
        self.broken = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and break those that there are."""
        self._listener.shutdown(socket.SHUT_RDWR)  # which ends a waiting accept
        self._listener.close()
        with self._lock:
            self._break()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                with self._lock:
                    self._open |= {near, far}
                threading.Thread(target=self._pass_on, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(far, near, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):  # broken
            while part := source.recv(512):
                with self._lock:
                    if down and self.cuts and len(part) >= self.cuts[0]:
                        sink.sendall(part[: self.cuts.pop(0)])
                        self.broken += 1
                        self._break()
                        return
                    if down and self.cuts:
                        self.cuts[0] -= len(part)
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy before a server."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
