"""A client's connection, below HTTP: credit for what has left, and an end to what does not arrive."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LONGEST_HEAD = 2**16  # bytes


def protocol(patience: float) -> type[HttpToolsProtocol]:
    """For connections on which the head of a request may take so many seconds."""
    return type("Connection", (_Connection,), {"patience": patience})


class _Connection(HttpToolsProtocol):
    """A `send` waits until all that was sent before it has left the process, so that credit counts that.

    Who connects and says nothing, or never comes to the end of a head, is let go.
    """

    patience: float
    _late: asyncio.TimerHandle | None = None
    _head = 0  # bytes of the one that is coming in

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing is held back without the sender's knowing."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The parser itself would take a head of any length."""
        super().data_received(data)
        self._head = 0 if self._late is None else self._head + len(data)
        if self._head > _LONGEST_HEAD:
            self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The body may follow."""
        self._head_came()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_came()
        self._late = self.loop.call_later(self.patience, self.transport.close)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
