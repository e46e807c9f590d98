"""OpenTelemetry traces: a span for each stream with its phases, told when it has ended.

Names are those of the semantic conventions for generative AI; of what was said, nothing is told.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc.aio
from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.events import End, Error, Timings
from serve.live import Live
from serve.observer import Observer

_NANOSECONDS = 1e9
_SHUTDOWN = 2000  # milliseconds for what has not been sent


class Propagated:
    """ASGI middleware: a stream's span is a child of its caller's, as `traceparent` says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        token = context.attach(propagate.extract(Headers(scope=scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


class PropagatedCall(grpc.aio.ServerInterceptor):
    """The same of a gRPC call, which is a task, and so a context, of its own."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The call's handler."""
        context.attach(propagate.extract(dict(handler_call_details.invocation_metadata or ())))
        return await continuation(handler_call_details)


class Traces(Observer):
    """Makes spans. Of the event loop; what leaves the process does so in a thread of the processor's."""

    middleware = (Middleware(Propagated),)
    interceptors = (PropagatedCall(),)

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "saccade"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("saccade")
        self._begun: dict[str, tuple[int, Context]] = {}

    def begun(self, live: Live) -> None:
        """A stream is queued."""
        self._begun[live.id] = time.time_ns(), context.get_current()

    def ended(self, live: Live) -> None:
        """It has ended."""
        begin, parent = self._begun.pop(live.id)
        end = live.stream.end
        assert end is not None
        model = live.stream.start.model
        span = self._tracer.start_span(
            f"chat {model}", parent, SpanKind.SERVER, _attributes(live, end), start_time=begin
        )
        if isinstance(end, Error):
            span.set_status(Status(StatusCode.ERROR, end.message))
        within = trace.set_span_in_context(span, parent)
        for name, first, last in (
            *_phases(end.timings),
            *(("reseed", *when) for when in live.stream.renewals),
        ):
            phase = self._tracer.start_span(name, within, start_time=begin + _nanoseconds(first))
            phase.end(begin + _nanoseconds(last))
        span.end(begin + _nanoseconds(end.timings.total))

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.force_flush(_SHUTDOWN)
        self._provider.shutdown()


def otlp(endpoint: str) -> SpanProcessor:
    """To a collector, by OTLP over HTTP, such as `http://localhost:4318/v1/traces`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint, timeout=_SHUTDOWN / 1000)
    return BatchSpanProcessor(exporter)


def _attributes(live: Live, end: End | Error) -> dict[str, Any]:
    start, asked = live.stream.start, live.job.config
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "saccade",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": start.model,
        "gen_ai.request.max_tokens": asked.max_new_tokens,
        "gen_ai.request.temperature": asked.temperature,
        "gen_ai.request.top_p": asked.top_p,
        "gen_ai.request.top_k": float(asked.top_k),
        "gen_ai.request.presence_penalty": asked.presence_penalty,
        "gen_ai.request.frequency_penalty": asked.frequency_penalty,
        "gen_ai.request.seed": asked.seed,
        "gen_ai.response.id": start.stream,
        "gen_ai.response.model": start.model,
        "gen_ai.usage.input_tokens": end.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": end.usage.completion_tokens,
        "saccade.usage.image_tokens": end.usage.image_tokens,
    }
    if live.stream.reseeds:
        told["saccade.reseeds"] = live.stream.reseeds
    if isinstance(end, Error):
        return told | {"error.type": end.code}
    if end.cause is not None:
        told["saccade.cancelled_by"] = end.cause
    return told | {"gen_ai.response.finish_reasons": [end.finish_reason]}


def _phases(timings: Timings) -> Iterator[tuple[str, float, float]]:
    """From when to when each lasted, in seconds; the last one until the end."""
    begins = {"queue": 0.0, "prefill": timings.queued, "decode": timings.first_token}
    happened = [(name, begin) for name, begin in begins.items() if begin is not None]
    ends = [begin for _, begin in happened[1:]] + [timings.total]
    return ((name, begin, end) for (name, begin), end in zip(happened, ends, strict=True))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)
