"""The gRPC service: the hub's streams, one RPC a reader."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc.aio import EOF, ServicerContext  # pyright: ignore[reportAttributeAccessIssue]

from serve.commands import Command
from serve.conversation import Attach, Open, Opening, begin, converse, tell
from serve.events import Event
from serve.hub import Hub
from serve.problems import Problem
from serve.rpc import messages
from serve.rpc.convert import command_of, message_of, opening_of, problem_of, request_of
from serve.rpc.guard import OWNER

_log = logging.getLogger(__name__)
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    410: grpc.StatusCode.OUT_OF_RANGE,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Service:
    """What a client may call, behind `Guard`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @property
    def handlers(self) -> grpc.GenericRpcHandler:
        """For a server."""
        kinds = {
            "Generate": (grpc.unary_stream_rpc_method_handler, self.generate, messages.GenerateRequest),
            "Resume": (grpc.unary_stream_rpc_method_handler, self.resume, messages.ResumeRequest),
            "Converse": (grpc.stream_stream_rpc_method_handler, self.converse, messages.Word),
            "Cancel": (grpc.unary_unary_rpc_method_handler, self.cancel, messages.CancelRequest),
        }
        return grpc.method_handlers_generic_handler(
            messages.SERVICE,
            {
                name: handler(
                    method,
                    request_deserializer=kind.FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for name, (handler, method, kind) in kinds.items()
            },
        )

    async def generate(self, request: Any, context: ServicerContext) -> None:
        """A new stream. What the connection has taken counts as acknowledged."""
        async with self._answering(context):
            await self._tell(Open(request_of(request)), context)

    async def resume(self, request: Any, context: ServicerContext) -> None:
        """Back to a stream."""
        async with self._answering(context):
            await self._tell(Attach(request.stream, request.after), context)

    async def converse(self, _: Any, context: ServicerContext) -> None:
        """A stream, and the client's words."""
        async with self._answering(context):
            await converse(self._hub, CallWire(context), OWNER.get())

    async def cancel(self, request: Any, context: ServicerContext) -> Any:
        """End a stream; its readers are told so."""
        async with self._answering(context):
            self._hub.find(request.stream, OWNER.get()).stream.cancel()
        return messages.CancelResponse()

    async def _tell(self, opening: Opening, context: ServicerContext) -> None:
        live, ticket, after = await begin(self._hub, opening, OWNER.get())
        wire = CallWire(context)

        async def send(event: Event) -> None:
            await wire.tell(event)
            live.stream.drained(event.id or 0)

        await tell(self._hub, live, ticket, after, send)

    @contextlib.asynccontextmanager
    async def _answering(self, context: ServicerContext) -> AsyncIterator[None]:
        """What is raised becomes a status that shows no internals."""
        try:
            yield
        except Problem as problem:
            await self.refuse(problem, context)
        except grpc.aio.BaseError:  # the client is gone
            raise
        except Exception:
            _log.exception("a call has failed")
            await self.refuse(Problem(500, "internal_error", "the call has failed"), context)

    async def refuse(self, problem: Problem, context: ServicerContext) -> NoReturn:
        """End a call with a problem, which is counted."""
        self._hub.metrics.rejected.labels(problem.code).inc()
        told = {"saccade-code": problem.code} | {k.lower(): v for k, v in problem.headers.items()}
        status = _STATUS.get(problem.status, grpc.StatusCode.INTERNAL)
        await context.abort(status, problem.message, tuple(told.items()))


class CallWire:
    """A running RPC.

    When the client is gone, its task is cancelled; but a write that waits raises gRPC's ExecuteBatchError.
    """

    def __init__(self, context: ServicerContext) -> None:
        self._context = context

    async def opening(self) -> Opening:
        """Raises Problem for another word."""
        word = await self._context.read()
        if word is EOF:
            raise Problem(400, "invalid_value", "word: none; allowed as the first one: open, attach")
        return opening_of(word)

    async def command(self) -> Command:
        """Raises Problem for another word. Waits for ever where the client says no more."""
        word = await self._context.read()
        if word is EOF:
            await asyncio.Event().wait()
        return command_of(word)

    async def tell(self, event: Event) -> None:
        """An event, once the connection has taken it."""
        await self._context.write(message_of(event))

    async def answer(self, problem: Problem) -> None:
        """As an event."""
        await self._context.write(problem_of(problem))
