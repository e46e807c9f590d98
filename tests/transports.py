"""A stream over each transport, told alike: as the events of `POST /v1/stream`, whoever carries them."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import httpx
from google.protobuf.json_format import MessageToDict, ParseDict
from websockets.exceptions import ConnectionClosed

from serve.rpc import messages
from tests.servers import Server
from tests.test_rpc import Client as RpcClient
from tests.test_web_socket import Client as WebSocketClient

Event: TypeAlias = dict[str, Any]


def by_sse(server: Server, body: Event) -> Iterator[Event]:
    for frame in _frames(f"{server.url}/v1/stream", body):
        yield json.loads(dict(line.split(": ", 1) for line in frame.split("\n"))["data"])


def by_chat(server: Server, body: Event) -> Iterator[Event]:
    """OpenAI's chunks say less: no phase of a heartbeat, and neither ids nor logprobs here."""
    for frame in _frames(f"{server.url}/v1/chat/completions", body | {"stream": True}):
        if frame == ": heartbeat":
            yield {"event": "heartbeat"}
        elif frame != "data: [DONE]":
            yield _of_chunk(json.loads(frame.removeprefix("data: ")))


def by_web_socket(server: Server, body: Event) -> Iterator[Event]:
    with (
        WebSocketClient(server, {"type": "open", "request": body}) as client,
        suppress(ConnectionClosed),
    ):
        while True:
            yield client.next()


def by_rpc(server: Server, body: Event) -> Iterator[Event]:
    fields = body | {"messages": [_without_types(message) for message in body["messages"]]}
    client = RpcClient(server.rpc)
    try:
        for event in client.generate(ParseDict(fields, messages.GenerateRequest()), timeout=60):
            kind = event.WhichOneof("event")
            told = MessageToDict(
                getattr(event, kind),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            yield told | {"event": kind}
    finally:
        client.channel.close()


OWN: dict[str, Callable[[Server, Event], Iterator[Event]]] = {
    "sse": by_sse,
    "web_socket": by_web_socket,
    "rpc": by_rpc,
}
"""Those that carry Saccade's own events."""
ALL = OWN | {"chat": by_chat}


def deltas(events: list[Event]) -> list[Event]:
    return [event for event in events if event["event"] == "delta"]


def text_of(events: list[Event]) -> str:
    return "".join(event["text"] for event in deltas(events))


def _frames(url: str, body: Event) -> Iterator[str]:
    rest = b""
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for part in response.iter_bytes():
            *frames, rest = (rest + part).split(b"\n\n")
            yield from (frame.decode() for frame in frames)


def _of_chunk(chunk: Event) -> Event:
    if "error" in chunk:
        code, message = chunk["error"]["code"], chunk["error"]["message"]
        if message.startswith("cancelled: "):
            return {"event": "end", "finish_reason": "cancelled", "cause": code}
        return {"event": "error", "code": code}
    (choice,) = chunk["choices"]
    if choice["finish_reason"] is not None:
        return {"event": "end", "finish_reason": choice["finish_reason"]}
    if "role" in choice["delta"]:
        return {"event": "start", "stream": chunk["id"]}
    return {"event": "delta", "text": choice["delta"]["content"]}


def _without_types(message: Event) -> Event:
    """gRPC's parts are told apart by their fields."""
    return message | {"content": [{"text": part["text"]} for part in message["content"]]}
