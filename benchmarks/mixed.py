"""Minutes of mixed load on the real server: joins, leaves, cancels, slow readers, pictures, bad requests.

    uv run python -m benchmarks.mixed [--minutes 10] [--clients 24] [--model embedded]

Over HTTP, the WebSocket and gRPC. Whoever reads to the end compares tokens, indices and text with those of
the same request alone, so a token that is lost, doubled or changed is seen. At the end no stream is left,
each that was started has ended in one way, and memory is told as it was after a fifth of the time and at the
end.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import io
import json
import queue
import random
import time
from collections import Counter
from typing import Any, NamedTuple

import grpc.aio
import httpx
import numpy as np
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.load import Server, rpc_call, serving, stream_request
from serve.rpc import messages

KINDS = 12  # different requests
SIZES = ((64, 64), (96, 64), (64, 96))  # of the pictures that a third of them have
PROMPTS = ("Describe this image", "Hello there! " * 20, "What colour is it?", "Count to ten. " * 60)
ENDS = (
    "saccade_streams_completed_total",
    "saccade_stream_cancellations_total",
    "saccade_stream_errors_total",
)


@functools.cache
def pictures(kind: int) -> tuple[bytes, ...]:
    """The files of a request's pictures: none, or one of its own."""
    if kind % 3 != 1:
        return ()
    width, height = SIZES[kind % len(SIZES)]
    pixels = np.random.default_rng(kind).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return (file.getvalue(),)


def request(kind: int) -> dict[str, Any]:
    """One of a few requests; the same one has the same answer."""
    urls = ["data:image/png;base64," + base64.b64encode(file).decode() for file in pictures(kind)]
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    said = {"type": "text", "text": PROMPTS[kind % len(PROMPTS)]}
    return {"messages": [{"role": "user", "content": [*shown, said]}], "max_tokens": 5 + 17 * kind} | _drawn(
        kind
    )


def rpc_request(kind: int) -> Any:
    """The same one, for gRPC."""
    parts = [*({"image": file} for file in pictures(kind)), {"text": PROMPTS[kind % len(PROMPTS)]}]
    said = {"role": "user", "content": parts}
    return messages.GenerateRequest(messages=[said], max_completion_tokens=5 + 17 * kind, **_drawn(kind))


def _drawn(kind: int) -> dict[str, Any]:
    return {"temperature": kind % 3 / 2, "seed": kind}


Deltas = list[tuple[int, str, list[int]]]


def deltas_of(events: list[dict[str, Any]]) -> Deltas:
    return [(e["index"], e["text"], e["token_ids"]) for e in events if e.get("event") == "delta"]


def rpc_deltas_of(events: list[Any]) -> Deltas:
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    return [(delta.index, delta.text, list(delta.token_ids)) for delta in deltas]


def events_in(text: str) -> list[dict[str, Any]]:
    """Of whole frames of server-sent events."""
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def acknowledged(channel: grpc.Channel, kind: int) -> list[Any]:
    """A conversation's events."""
    words: queue.SimpleQueue[Any] = queue.SimpleQueue()
    words.put(messages.Word(open=rpc_request(kind)))
    events = []
    try:
        for event in rpc_call(channel, "Converse")(iter(words.get, None)):
            events.append(event)
            if event.WhichOneof("event") == "delta":
                words.put(messages.Word(ack={"id": event.id}))
    finally:
        words.put(None)
    return events


class Channels(NamedTuple):
    """Connections for gRPC."""

    aio: grpc.aio.Channel
    plain: grpc.Channel


class Load:
    """What clients do, and what came of it."""

    def __init__(self, server: Server, http: httpx.AsyncClient, channels: Channels, seed: int) -> None:
        self.server, self.http, self.channels = server, http, channels
        self.random = random.Random(seed)
        self.known: dict[int, Deltas] = {}
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def learn(self) -> None:
        """Each request's answer, alone."""
        for kind in range(KINDS):
            response = await self.http.post("/v1/stream", json=request(kind))
            self.known[kind] = deltas_of(events_in(response.text))

    async def client(self, until: float) -> None:
        """One thing behind the other."""
        actions = (
            self.whole,
            self.leave,
            self.cancel,
            self.come_back,
            self.socket,
            self.call,
            self.conversation,
            self.leave_call,
            self.slow,
            self.bad,
        )
        while time.monotonic() < until:
            action = self.random.choice(actions)
            try:
                self.done[await action(self.random.randrange(KINDS))] += 1
            except grpc.RpcError as error:
                call: Any = error
                busy = call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                self.done[
                    await self.refused(429 if busy else 500, f"{action.__name__}: {call.details()}")
                ] += 1
            except (httpx.TransportError, ConnectionClosed, OSError) as error:
                self.wrong.append(f"{action.__name__}: {error!r}")

    async def whole(self, kind: int) -> str:
        response = await self.http.post("/v1/stream", json=request(kind))
        return await self.judged("whole", kind, response.status_code, events_in(response.text))

    async def leave(self, kind: int) -> str:
        """In the middle, without a word."""
        async with self.http.stream(
            "POST", "/v1/chat/completions", json=request(kind) | {"stream": True}
        ) as r:
            async for _ in r.aiter_bytes():
                if self.random.random() < 0.2:
                    return "left"
        return "read to the end"

    async def cancel(self, kind: int) -> str:
        async with self.http.stream("POST", "/v1/stream", json=request(kind)) as response:
            if response.status_code != 200:
                return await self.refused(response.status_code)
            await self.http.delete(f"/v1/stream/{response.headers['x-stream-id']}")
            return "cancelled"

    async def come_back(self, kind: int) -> str:
        """Behind the events that were read, each of which has to be there once."""
        text = ""
        async with self.http.stream("POST", "/v1/stream", json=request(kind)) as response:
            if response.status_code != 200:
                return await self.refused(response.status_code)
            async for part in response.aiter_text():
                text += part
                if text.count("\n\n") > 3:
                    break
        name, text = response.headers["x-stream-id"], text[: text.rindex("\n\n") + 2]
        after = text.count("\nid: ") + text.startswith("id: ")
        rest = await self.http.post("/v1/stream", headers={"Last-Event-ID": f"{name}.{after}"})
        return await self.judged("came back", kind, rest.status_code, events_in(text) + events_in(rest.text))

    async def socket(self, kind: int) -> str:
        """With acks, and a pause in between."""
        url = self.server.url.replace("http", "ws") + "/v1/stream/ws"
        events = []
        async with connect(url, proxy=None) as socket:
            await socket.send(json.dumps({"type": "open", "request": request(kind)}))
            async for message in socket:
                events.append(event := json.loads(message))
                if "error" in event:
                    return await self.refused(int(event["error"]["code"] == "busy") * 429)
                words = [{"type": "ack", "id": event["id"]}] if event["event"] == "delta" else []
                if self.random.random() < 0.1:
                    words += [{"type": "pause"}, {"type": "resume"}]
                with contextlib.suppress(ConnectionClosed):  # behind the end, which is yet to be read
                    for word in words:
                        await socket.send(json.dumps(word))
        return await self.judged("socket", kind, 200, events)

    async def call(self, kind: int) -> str:
        events = [event async for event in rpc_call(self.channels.aio, "Generate")(rpc_request(kind))]
        return self.compared("call", kind, rpc_deltas_of(events), events[-1].WhichOneof("event"))

    async def conversation(self, kind: int) -> str:
        """With acks. In a thread: in gRPC's calls for asyncio, an ack that crosses the end is a failure."""
        events = await asyncio.to_thread(acknowledged, self.channels.plain, kind)
        return self.compared("conversation", kind, rpc_deltas_of(events), events[-1].WhichOneof("event"))

    async def leave_call(self, kind: int) -> str:
        """In the middle; its row waits for it, and is given up."""
        call = rpc_call(self.channels.aio, "Generate")(rpc_request(kind))
        async for _ in call:
            if self.random.random() < 0.2:
                call.cancel()
                return "left a call"
        return "read to the end"

    async def slow(self, kind: int) -> str:
        """Reads a little and then nothing, as its buffer is small and nobody empties it."""
        reader, writer = await asyncio.open_connection(*self.server.address, limit=1024)
        body = request(kind) | {"max_tokens": 400, "logprobs": True, "top_logprobs": 20}
        writer.write(stream_request(body))
        await reader.read(100)
        await asyncio.sleep(self.random.uniform(0, 3))
        writer.transport.abort()
        return "slow"

    async def bad(self, kind: int) -> str:
        wrong = self.random.choice(
            [{"temperature": -1}, {"messages": []}, {"max_tokens": 10**6}, {"nonsense": 1}]
        )
        response = await self.http.post("/v1/stream", json=request(kind) | wrong)
        if response.status_code not in (400, 429):
            self.wrong.append(f"bad request: {response.status_code}")
        return "bad"

    async def judged(self, what: str, kind: int, status: int, events: list[dict[str, Any]]) -> str:
        if status != 200:
            return await self.refused(status)
        return self.compared(what, kind, deltas_of(events), events[-1]["event"])

    def compared(self, what: str, kind: int, deltas: Deltas, last: str | None) -> str:
        if deltas != self.known[kind] or last != "end":
            self.wrong.append(f"{what}, request {kind}: other tokens than alone, and {last} last")
        return what

    async def refused(self, status: int, why: str = "") -> str:
        if status != 429:
            self.wrong.append(f"refused with {status} {why}")
        await asyncio.sleep(0.2)
        return "refused"


async def run(server: Server, minutes: float, clients: int, seed: int) -> Load:
    unlimited = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=120, limits=unlimited) as http,
        grpc.aio.insecure_channel(server.rpc) as aio,
    ):
        with grpc.insecure_channel(server.rpc) as plain:
            load = Load(server, http, Channels(aio, plain), seed)
            await load.learn()
            begun, until = time.monotonic(), time.monotonic() + 60 * minutes
            working = [asyncio.create_task(load.client(until)) for _ in range(clients)]
            await asyncio.sleep(12 * minutes)
            early = server.resident()
            await asyncio.gather(*working)
            print(f"{time.monotonic() - begun:.0f} s: {dict(load.done)}")
            print(f"memory: {early:.0f} MB after a fifth of the time, {server.resident():.0f} MB at the end")
            return load


def left_over(server: Server) -> list[str]:
    """What does not add up once all streams should have ended."""
    deadline = time.monotonic() + 60
    while (figures := server.metrics())["saccade_streams_active"] and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    figures = server.metrics()
    ends = sum(value for name, value in figures.items() if name.startswith(ENDS))
    started = figures["saccade_streams_started_total"]
    print(f"started {started:.0f} = ended {ends:.0f}; active {figures['saccade_streams_active']:.0f}")
    zero = ("saccade_streams_active", "saccade_rows_running", "saccade_queue_depth", "saccade_unacked_chunks")
    wrong = [f"{name}: {figures[name]}" for name in zero if figures[name]]
    return wrong + ([] if started == ends else [f"started {started}, ended {ends}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with serving(f"model.name={args.model}", "serve.waiting=16", rpc=True) as server:
        load = asyncio.run(run(server, args.minutes, args.clients, args.seed))
        wrong = load.wrong + left_over(server)
    for line in wrong[:20]:
        print(f"wrong: {line}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
