"""The HTTP application: routes, and what each answers."""

from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from serve.bodies import Bodies
from serve.chat_frames import ChatWords, chat_frames, failure
from serve.chat_request import ChatRequest, StreamRequest, parse
from serve.events import Delta, End
from serve.guard import Guard
from serve.hub import Hub
from serve.live import Live
from serve.openapi import describe
from serve.page import page_routes
from serve.problems import Problem
from serve.sse import EventStreamResponse, disconnected, event_frames
from serve.tasks import first_of
from serve.web_socket import carry

R = TypeVar("R", bound=ChatRequest)


def make_app(hub: Hub) -> Starlette:
    """The server over a hub that is started or being started."""
    api = Api(hub)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/stream", api.stream, methods=["POST"]),
        Route("/v1/stream/{id}", api.cancel, methods=["DELETE"]),
        WebSocketRoute("/v1/stream/ws", api.web_socket),
        Route("/v1/models", api.models),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/openapi.json", api.description),
        *page_routes(),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, keys=hub.config.keys, hosts=hub.config.hosts, refuse=api.refuse),
            *hub.config.observer.middleware,
        ],
        exception_handlers={Problem: api.problem, HTTPException: api.no_route},
    )


class Api:
    """The routes' handlers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._bodies = Bodies(hub.config.limits.body_bytes, hub.config.patience)

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        live, asked = await self._opened(request, ChatRequest)
        options = asked.stream_options
        words = ChatWords(self._hub, live.stream.start, options is not None and options.include_usage)
        ticket = live.stream.attach()
        if asked.stream:
            return EventStreamResponse(chat_frames(self._hub, live, ticket, words))
        return await self._whole(request, live, ticket, words)

    async def stream(self, request: Request) -> Response:
        """Saccade's own events: a new stream, or the rest of one, as `Last-Event-ID` says."""
        last = request.headers.get("last-event-id")
        if last is not None:
            stream_id, after = _last_event(last)
            live, ticket = self._hub.resume(stream_id, after, request.state.owner)
        else:
            live, _ = await self._opened(request, StreamRequest)
            ticket, after = live.stream.attach(), 0
        frames = event_frames(self._hub, live, ticket, after)
        return EventStreamResponse(frames, {"X-Stream-Id": live.id})

    async def web_socket(self, socket: WebSocket) -> None:
        """The same events, and what the client says in mid-stream."""
        await carry(self._hub, socket, socket.state.owner)

    async def cancel(self, request: Request) -> Response:
        """End a stream; its readers are told so."""
        self._hub.find(request.path_params["id"], request.state.owner).stream.cancel()
        return Response(status_code=204)

    async def models(self, request: Request) -> Response:
        """The one model."""
        config = self._hub.config
        model = {
            "id": config.name,
            "object": "model",
            "created": self._hub.created,
            "owned_by": "saccade",
            "max_model_len": self._hub.context,
        }
        return _json({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """That the process lives, and its figures."""
        return _json({"status": "ok"} | self._hub.figures)

    async def ready(self, request: Request) -> Response:
        """Whether streams may come, and the same figures."""
        ready = self._hub.ready
        return _json({"ready": ready} | self._hub.figures, 200 if ready else 503)

    async def description(self, request: Request) -> Response:
        """Of these routes."""
        return _json(describe(self._hub.config.keys.needed))

    async def problem(self, _: Request, problem: Exception) -> Response:
        """Every refusal of a route."""
        assert isinstance(problem, Problem)
        return self.refuse(problem)

    async def no_route(self, _: Request, error: Exception) -> Response:
        """A path or a method that there is not."""
        assert isinstance(error, HTTPException)
        code = error.detail.lower().replace(" ", "_")
        return self.refuse(Problem(error.status_code, code, error.detail, headers=error.headers))

    def refuse(self, problem: Problem) -> Response:
        """The response to a problem, which is counted."""
        self._hub.metrics.rejected.labels(problem.code).inc()
        return _json(problem.body, problem.status, problem.headers)

    async def _opened(self, request: Request, kind: type[R]) -> tuple[Live, R]:
        async with self._bodies.read(request) as body:
            asked = parse(body, kind)
            live = await self._hub.open(asked, request.state.owner)
        asked.messages.clear()  # with their pictures: nobody needs them while the stream runs
        return live, asked

    async def _whole(self, request: Request, live: Live, ticket: int, words: ChatWords) -> Response:
        deltas: list[Delta] = []
        try:
            await first_of(disconnected(request.receive), self._collect(live, ticket, deltas))
        finally:
            live.stream.cancel("disconnect")
        end = live.stream.end
        if isinstance(end, End) and end.finish_reason != "cancelled":
            return _json(words.whole(deltas, end))
        if isinstance(end, End) and end.cause == "disconnect":
            return Response(status_code=499)  # nobody reads it
        assert end is not None  # it has been cancelled, at the latest
        return _json(failure(end), 500)

    async def _collect(self, live: Live, ticket: int, deltas: list[Delta]) -> None:
        async for events in self._hub.read(live, ticket):
            deltas += [event.data for event in events if isinstance(event.data, Delta)]
            live.stream.drained(events[-1].id or 0)


def _last_event(given: str) -> tuple[str, int]:
    stream_id, _, number = given.rpartition(".")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise Problem(400, "invalid_value", "Last-Event-ID: allowed: STREAM.NUMBER")
    return stream_id, int(number)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")
