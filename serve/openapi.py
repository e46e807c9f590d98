"""What the HTTP routes take and answer, as OpenAPI 3.2; schemas are made from the types that are parsed."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import msgspec

from serve.chat_request import ChatRequest, StreamRequest
from serve.engine import Figures
from serve.events import Delta, End, Error, Heartbeat, Start

Json: TypeAlias = dict[str, Any]
_KINDS = (ChatRequest, StreamRequest, Start, Delta, Heartbeat, Error, End)


def describe(secured: bool) -> Json:
    """The document.

    Args:
        secured: whether a key is needed.
    """
    references, schemas = msgspec.json.schema_components(_KINDS, ref_template="#/components/schemas/{name}")
    chat, stream, *events = references
    document = {
        "openapi": "3.2.0",
        "info": {"title": "Saccade", "version": _version()},
        "paths": {
            "/v1/chat/completions": {"post": _chat(chat)},
            "/v1/stream": {"post": _stream(stream)},
            "/v1/stream/{id}": {"delete": _cancel()},
            "/v1/models": {"get": _get("models", "The model", _list_of(_MODEL))},
            "/health": {"get": _get("health", "That the process lives, and its figures", _HEALTH, open=True)},
            "/ready": {
                "get": _get("ready", "Whether streams may come, and the same figures", _READY, open=True)
            },
            "/examples": {
                "get": _get("examples", "The page's example pictures", _list_of({"type": "string"}))
            },
        },
        "components": {
            "schemas": schemas | {"Event": {"oneOf": events}, "Problem": _PROBLEM, "Completion": _COMPLETION},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "the key is the password"},
            },
        },
    }
    return document | ({"security": [{"bearer": []}, {"basic": []}]} if secured else {})


def _chat(request: Json) -> Json:
    answer = {
        "description": "A completion; with `stream`, its chunks as server-sent events, and `[DONE]`.",
        "content": _json(_reference("Completion")) | _events(data={"type": "string"}),
    }
    return {
        "operationId": "chat",
        "summary": "OpenAI's chat completions",
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {"200": answer, "default": _REFUSED},
    }


def _stream(request: Json) -> Json:
    answer = {
        "description": "Server-sent events; the data of each is an `Event`, as its `event` says.",
        "headers": {"X-Stream-Id": {"description": "names the stream", "schema": {"type": "string"}}},
        "content": _events(
            event={"enum": ["start", "delta", "heartbeat", "error", "end"]},
            data={
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": _reference("Event"),
            },
        ),
    }
    last = {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "STREAM.NUMBER: the rest of that stream; the body then says nothing",
        "schema": {"type": "string"},
    }
    return {
        "operationId": "stream",
        "summary": "A stream of Saccade's own events, or the rest of one",
        "parameters": [last],
        "requestBody": {"required": False, "content": _json(request)},
        "responses": {"200": answer, "default": _REFUSED},
    }


def _cancel() -> Json:
    name = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "operationId": "cancel",
        "summary": "End a stream",
        "parameters": [name],
        "responses": {"204": {"description": "It has ended."}, "default": _REFUSED},
    }


def _get(name: str, summary: str, schema: Json, *, open: bool = False) -> Json:
    answer = {"description": summary, "content": _json(schema)}
    told = {"operationId": name, "summary": summary, "responses": {"200": answer, "default": _REFUSED}}
    if name == "ready":
        told["responses"] = {"200": answer, "503": answer, "default": _REFUSED}
    return told | ({"security": []} if open else {})


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _events(**fields: Json) -> Json:
    return {"text/event-stream": {"itemSchema": _object(**fields)}}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of(item: Json) -> Json:
    return _object(data={"type": "array", "items": item})


def _version() -> str:
    try:
        return version("saccade")
    except PackageNotFoundError:  # run from a checkout
        return "0"


_STRING, _INTEGER, _BOOLEAN = ({"type": kind} for kind in ("string", "integer", "boolean"))
_NULLABLE = {"type": ["string", "null"]}
_PROBLEM = _object(error=_object(message=_STRING, type=_STRING, param=_NULLABLE, code=_STRING))
_REFUSED = {"description": "Why not, in one line", "content": _json(_reference("Problem"))}
_MODEL = _object(id=_STRING, object=_STRING, created=_INTEGER, owned_by=_STRING, max_model_len=_INTEGER)
_COUNTED = ("activeStreams", "maxStreams", "loadedModels", "uptime", "queueSize", *Figures._fields)
_FIGURES = dict.fromkeys(_COUNTED, _INTEGER) | {"averageBatchSize": {"type": "number"}}
_HEALTH = _object(status=_STRING, **_FIGURES)
_READY = _object(ready=_BOOLEAN, **_FIGURES)
_COMPLETION = _object(
    id=_STRING,
    object={"const": "chat.completion"},
    created=_INTEGER,
    model=_STRING,
    choices={
        "type": "array",
        "items": _object(
            index=_INTEGER,
            message=_object(role={"const": "assistant"}, content=_STRING),
            finish_reason={"enum": ["stop", "length", "content_filter", "repetition"]},
        ),
    },
    usage=_object(prompt_tokens=_INTEGER, completion_tokens=_INTEGER, total_tokens=_INTEGER),
)
