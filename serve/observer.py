"""Who is told when a stream begins and ends."""

from collections.abc import Sequence

import grpc.aio
from starlette.middleware import Middleware

from serve.live import Live


class Observer:
    """Nobody. All methods are called on the event loop, and return at once."""

    middleware: Sequence[Middleware] = ()  # before every route
    interceptors: Sequence[grpc.aio.ServerInterceptor] = ()  # before every call of gRPC

    def begun(self, live: Live) -> None:
        """A stream is queued, in the context of its request."""

    def ended(self, live: Live) -> None:
        """It has ended, not long ago."""

    def close(self) -> None:
        """No more is told. May block for seconds."""
