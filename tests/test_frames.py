"""Whatever the model says, a delta arrives as it was told, in one frame of its own, on every transport."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from serve.chat_frames import ChatWords, chat_frames
from serve.events import Delta, End, Event, Start, Timings, Usage
from serve.rpc import messages
from serve.rpc.convert import message_of
from serve.sse import event_frames
from serve.web_socket import SocketWire

START = Start("s-1", "tiny", 0, 7, 4)
END = End("length", Usage(7, 4, 2), Timings(0.0, 0.1, 0.2, None), None)
TRICKS = (
    "\0\b\t\n\v\f\r\x1b\x7f\x85",  # signs that end a line somewhere
    "\u2028\u2029\ufeff",
    '"\\"}\n\ndata: [DONE]\n\nevent: end\r\rid: 9',  # a frame within a frame
    "\N{PANDA FACE}e\u0301\u202e\ufffd\uffff",
)


class Reading:
    """A hub with one stream, read to its end."""

    loaded = SimpleNamespace(processor=SimpleNamespace(tokenizer=None))

    def __init__(self, texts: list[str]) -> None:
        deltas = [Delta(index, text, [index]) for index, text in enumerate(texts)]
        self.events = [Event(number, data) for number, data in enumerate([START, *deltas, END], 1)]

    async def read(self, *_: Any) -> AsyncGenerator[list[Event], None]:
        yield self.events[:1]
        yield self.events[1:]  # several at once


class Socket:
    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send_text(self, text: str) -> None:
        self.sent.append(text)


def live() -> Any:
    return SimpleNamespace(
        id="s-1", stream=SimpleNamespace(drained=lambda _: None, cancel=lambda _: None, start=START)
    )


def received(frames: AsyncGenerator[bytes, None]) -> list[dict[str, str]]:
    """The fields of each frame. A line ends wherever a client may think so, a frame with an empty one."""

    async def all_of_them() -> bytes:
        return b"".join([frame async for frame in frames])

    lines = asyncio.run(all_of_them()).decode().splitlines()
    whole = "\n".join(lines).removesuffix("\n").split("\n\n")
    split = [[line.split(": ", 1) for line in frame.split("\n")] for frame in whole]
    assert all(len(dict(fields)) == len(fields) for fields in split)  # no field twice
    return [dict(fields) for fields in split]


def all_texts(test: Any) -> Any:
    for text in TRICKS:
        test = example(texts=[text, "", text])(test)
    return given(texts=st.lists(st.text(), max_size=4))(test)


@all_texts
def test_server_sent_events_are_one_frame_each(texts):
    hub: Any = Reading(texts)
    frames = received(event_frames(hub, live(), 1, 0))
    assert [frame["id"] for frame in frames] == [f"s-1.{event.id}" for event in hub.events]
    assert [frame["event"] for frame in frames] == ["start", *["delta"] * len(texts), "end"]
    assert [json.loads(frame["data"])["text"] for frame in frames[1:-1]] == texts


@all_texts
def test_a_chat_completion_has_a_frame_for_each_delta_with_text(texts):
    hub: Any = Reading(texts)
    frames = received(chat_frames(hub, live(), 1, ChatWords(hub, START)))
    assert [list(frame) for frame in frames] == [["data"]] * len(frames)
    *told, done = [frame["data"] for frame in frames]
    choices = [json.loads(chunk)["choices"][0] for chunk in told]
    assert [choice["delta"]["content"] for choice in choices[1:-1]] == [text for text in texts if text]
    assert (choices[-1]["finish_reason"], done) == ("length", "[DONE]")


@all_texts
def test_a_web_socket_has_a_message_for_each_event(texts):
    socket: Any = Socket()
    wire, events = SocketWire(socket), Reading(texts).events

    async def tell() -> None:
        for event in events:
            await wire.tell(event)

    asyncio.run(tell())
    assert [len(message.splitlines()) for message in socket.sent] == [1] * len(events)
    told = [json.loads(message) for message in socket.sent]
    assert [message["id"] for message in told] == [event.id for event in events]
    assert [message["text"] for message in told[1:-1]] == texts


@all_texts
def test_a_call_has_a_message_for_each_event(texts):
    told = [messages.Event.FromString(message_of(e).SerializeToString()) for e in Reading(texts).events]
    assert [message.delta.text for message in told[1:-1]] == texts
