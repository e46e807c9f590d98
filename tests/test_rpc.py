"""The same streams over gRPC, with real clients: generate, resume, cancel, words, health and reflection."""

import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from benchmarks.load import rpc_call
from serve.rpc import messages
from tests.servers import Server
from tests.test_server import (
    SETTINGS,
    asked,
    crowded,
    data_url,
    expected,
    picture,
    stream,
    told,
    until,
)

WINDOW = 24  # unacknowledged deltas, as the server of these tests has it
NO_END = {507: -100.0, 505: -100.0}


class Client:
    """What generated code would give."""

    def __init__(self, address: str, *options: tuple[str, int]) -> None:
        self.channel = grpc.insecure_channel(address, options)
        self.generate = rpc_call(self.channel, "Generate")
        self.resume = rpc_call(self.channel, "Resume")
        self.converse = rpc_call(self.channel, "Converse")
        self.cancel = rpc_call(self.channel, "Cancel")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    client = Client(server.rpc)
    yield client
    client.channel.close()


def request(text: str = "What's this?", *images: bytes, tokens: int = 20, **fields: Any) -> Any:
    parts = [*({"image": image} for image in images), {"text": text}]
    return messages.GenerateRequest(
        messages=[{"role": "user", "content": parts}], max_completion_tokens=tokens, **SETTINGS | fields
    )


def long(**fields: Any) -> Any:
    return request("Hm", tokens=450, logit_bias=NO_END, **fields)


def text_of(events: list[Any]) -> str:
    return "".join(event.delta.text for event in events)


def kinds(events: list[Any]) -> list[str]:
    return [event.WhichOneof("event") for event in events]


def file_of(image: Any) -> bytes:
    import base64

    return base64.b64decode(data_url(image).partition(",")[2])


@pytest.mark.parametrize("pictures", [(), (picture(),)], ids=["text", "picture"])
def test_it_tells_what_sample_gives_and_what_http_tells(tiny, server, client, pictures):
    prompt_tokens, result = expected(tiny(), "What's this?", *pictures, max_new_tokens=40, **SETTINGS)
    files = map(file_of, pictures)
    asking = request("What's this?", *files, tokens=40, logprobs=True, top_logprobs=2)
    events = list(client.generate(asking, timeout=60))
    assert kinds(events) == ["start", *["delta"] * (len(events) - 2), "end"]
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert text_of(events) == result.texts[0]
    assert [i for event in events for i in event.delta.token_ids] == result.tokens[0].tolist()
    end = events[-1].end
    assert (end.finish_reason, end.HasField("cause")) == (result.finish_reasons[0], False)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (prompt_tokens, result.lengths[0])
    other = told(
        stream(
            server, messages=asked("What's this?", *pictures), max_tokens=40, logprobs=True, top_logprobs=2
        )
    )
    for event, same in zip(events[1:-1], other[1:-1], strict=True):
        assert event.delta.index == same["index"]
        (ours,), (theirs,) = event.delta.logprobs, same["logprobs"]
        assert (ours.token_id, ours.logprob) == (theirs["token_id"], theirs["logprob"])
        assert [[t.token_id, t.logprob] for t in ours.top] == theirs["top"]


def test_a_stream_resumes_at_every_event(client):
    events = list(client.generate(request(), timeout=60))
    name = events[0].start.stream
    for after in range(len(events)):
        again = client.resume(messages.ResumeRequest(stream=name, after=after), timeout=60)
        assert list(again) == events[after:]


def test_a_stream_is_cancelled_by_its_name(server, client):
    call = client.generate(long(), timeout=60)
    name = next(call).start.stream
    client.cancel(messages.CancelRequest(stream=name), timeout=60)
    end = list(call)[-1].end
    assert (end.finish_reason, end.cause) == ("cancelled", "client")
    server.until_idle()


def test_a_client_that_goes_is_waited_for_and_then_its_row_is_free(server, client):
    call = client.generate(long(), timeout=60)
    name = next(call).start.stream
    call.cancel()
    resumed = client.resume(messages.ResumeRequest(stream=name, after=1), timeout=60)
    assert next(resumed).id == 2
    resumed.cancel()
    server.until_idle()


REFUSED = {
    "no messages": (messages.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_value"),
    "temperature": (request(temperature=-1.0), grpc.StatusCode.INVALID_ARGUMENT, "invalid_value"),
    "nan": (request(top_p=float("nan")), grpc.StatusCode.INVALID_ARGUMENT, "invalid_value"),
    "no picture": (request("a", b"no picture"), grpc.StatusCode.INVALID_ARGUMENT, "invalid_image"),
    "pictures": (
        request("a", *[file_of(picture())] * 3),
        grpc.StatusCode.INVALID_ARGUMENT,
        "limit_exceeded",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_has_a_status_and_a_code(client, name):
    asking, status, code = REFUSED[name]
    with pytest.raises(grpc.RpcError) as refused:
        list(client.generate(asking, timeout=60))
    assert refused.value.code() == status
    assert dict(refused.value.trailing_metadata())["saccade-code"] == code


def test_what_is_unknown_or_has_moved_on_is_told(client):
    events = list(client.generate(request(tokens=60, logit_bias=NO_END), timeout=60))
    name = events[0].start.stream
    for stream_name, after, status in (
        (name, 1, grpc.StatusCode.OUT_OF_RANGE),
        (name, 10**9, grpc.StatusCode.OUT_OF_RANGE),
        ("s-none", 0, grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            list(client.resume(messages.ResumeRequest(stream=stream_name, after=after), timeout=60))
        assert refused.value.code() == status
    with pytest.raises(grpc.RpcError) as refused:
        client.cancel(messages.CancelRequest(stream="s-none"), timeout=60)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_when_too_many_wait_the_status_says_when_to_come_back(server, client):
    with crowded(server), pytest.raises(grpc.RpcError) as refused:
        list(client.generate(request(), timeout=60))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    told = dict(refused.value.trailing_metadata())
    assert told["saccade-code"] == "busy"
    assert 1 <= int(told["retry-after"]) <= 60


def padded(message: bytes, size: int) -> bytes:
    """With a field behind it that nobody knows, so that it has so many bytes."""
    length = size - len(message) - 5  # two bytes say which field it is, three how long
    return (
        message
        + b"\xfa\x7f"
        + bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
        + bytes(length)
    )


def test_a_message_may_be_as_large_as_a_body_and_no_larger(client):
    path = f"/{messages.SERVICE}/Generate"
    generate = client.channel.unary_stream(path, response_deserializer=messages.Event.FromString)
    asking = request(tokens=2).SerializeToString()
    events = list(generate(padded(asking, 100_000), timeout=60))
    assert events[-1].end.usage.completion_tokens == 2
    with pytest.raises(grpc.RpcError) as refused:
        list(generate(padded(asking, 100_001), timeout=60))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


class Talk:
    """A conversation: words go in while events come out."""

    def __init__(self, client: Client, **first: Any) -> None:
        self._words: queue.SimpleQueue = queue.SimpleQueue()
        self.say(**first)
        self.call = client.converse(iter(self._words.get, None), timeout=60)
        self.events: list[Any] = []

    def say(self, **word: Any) -> None:
        self._words.put(messages.Word(**word))

    def done(self) -> None:
        self._words.put(None)

    def next(self, ack: bool = False) -> Any:
        event = next(self.call)
        self.events.append(event)
        if ack and event.WhichOneof("event") == "delta":
            self.say(ack={"id": event.id})
        return event

    def rest(self, ack: bool = True) -> list[Any]:
        try:
            while True:
                self.next(ack)
        except StopIteration:
            self.done()
            return self.events

    @property
    def deltas(self) -> list[Any]:
        return [event for event in self.events if event.WhichOneof("event") == "delta"]


def test_a_conversation_tells_what_sample_gives(tiny, client):
    _, result = expected(tiny(), "What's this?", max_new_tokens=40, **SETTINGS)
    events = Talk(client, open=request(tokens=40)).rest()
    assert text_of(events) == result.texts[0]
    assert events[-1].end.finish_reason == result.finish_reasons[0]


def test_a_conversation_stops_at_the_window_and_wrong_acks_give_no_credit(client):
    talk = Talk(client, open=long())
    while len(talk.deltas) < WINDOW:
        talk.next()
    for number in (-1, 3, 900):
        talk.say(ack={"id": number})
        assert talk.next().problem.code == "invalid_ack"
    talk.say(ack={"id": 2})
    assert talk.next().WhichOneof("event") == "delta"
    talk.say(ack={"id": 2})
    assert talk.next().problem.code == "invalid_ack"
    end = talk.rest(ack=False)[-1].end
    assert (end.finish_reason, end.cause) == ("cancelled", "ack_timeout")
    assert len(talk.deltas) == WINDOW + 1


def test_a_stop_string_in_mid_stream_ends_it_there_and_a_pause_changes_nothing(tiny, server, client):
    _, free = expected(tiny(), "Hm", max_new_tokens=300, logit_bias=NO_END, **SETTINGS)
    talk = Talk(client, open=long())
    for _ in range(WINDOW + 1):
        talk.next()
    talk.say(pause={})
    shown = text_of(talk.events)
    behind = free.texts[0].removeprefix(shown)
    stop = next(behind[n : n + 2] for n in range(3, len(behind)) if behind[n : n + 2].strip())
    talk.say(stop={"stop": [stop]})
    talk.say(resume={})
    for delta in talk.deltas:
        talk.say(ack={"id": delta.id})
    events = talk.rest()
    assert events[-1].end.finish_reason == "stop"
    assert text_of(events) == shown + behind[: behind.index(stop)]


def test_a_conversation_is_taken_up_again(tiny, client):
    _, result = expected(tiny(), "What's this?", max_new_tokens=90, logit_bias=NO_END, **SETTINGS)
    first = Talk(client, open=request(tokens=90, logit_bias=NO_END))
    while len(first.deltas) < 10:
        first.next()
    first.call.cancel()
    name, after = first.events[0].start.stream, first.events[-1].id
    second = Talk(client, attach={"stream": name, "after": after})
    assert text_of(first.events) + text_of(second.rest()) == result.texts[0]


@pytest.mark.parametrize("word", [{}, {"cancel": {}}, {"ack": {"id": 1}}])
def test_the_first_word_opens_a_stream(client, word):
    with pytest.raises(grpc.RpcError) as refused:
        Talk(client, **word).rest()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_health_and_reflection(client):
    health = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", messages.SERVICE):
        status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    known = ProtoReflectionDescriptorDatabase(client.channel)
    assert messages.SERVICE in known.get_services()
    described = known.FindFileContainingSymbol(messages.SERVICE).service[0]
    assert [method.name for method in described.method] == ["Generate", "Resume", "Converse", "Cancel"]


def test_a_reader_that_goes_while_a_write_waits_for_it_leaves_nothing(server, client):
    """gRPC then raises an error of its own in the write, and no CancelledError."""
    until(lambda: server.metrics()["saccade_streams_active"] == 0)
    narrow = Client(server.rpc, ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    calls = []
    for _ in range(3):
        calls.append(narrow.generate(long(logprobs=True, top_logprobs=20), timeout=60))
        next(calls[-1])
        until(lambda: server.health()["waiting"] == 0)  # few may wait
    until(lambda: server.metrics()["saccade_unacked_chunks"] == 3 * WINDOW)  # and so no write has ended
    for call in calls:
        call.cancel()
    server.until_idle()
    assert server.metrics()["saccade_streams_active"] == 0
    assert not [line for line in server.lines if "Traceback" in line or "Error" in line]
    narrow.channel.close()


def test_the_descriptor_is_that_of_the_contract(tmp_path):
    folder = Path(messages.__file__).parent
    made = tmp_path / "saccade.binpb"
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", "-I", str(folder)]
    subprocess.run([*command, f"--descriptor_set_out={made}", "saccade.proto"], check=True)
    assert made.read_bytes() == (folder / "saccade.binpb").read_bytes()
