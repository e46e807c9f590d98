"""Back to a stream that still runs: at every event, and from reader to reader over all transports."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import httpx
import pytest

from serve.rpc import messages
from tests.servers import Server
from tests.test_rpc import Client as RpcClient
from tests.test_rpc import Talk
from tests.test_server import SETTINGS, expected
from tests.test_web_socket import WINDOW, attached, opened

TOKENS = 60
NO_END = {507: -100, 505: -100}
ASKED = {"max_tokens": TOKENS, "logit_bias": {str(token): bias for token, bias in NO_END.items()}}
TAKEN_OVER = "another reader has taken this stream over"


class Told(NamedTuple):
    """An event, whatever carried it."""

    id: int
    text: str


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[RpcClient]:
    client = RpcClient(server.rpc)
    yield client
    client.channel.close()


def by_web_socket(server: Server, _: RpcClient, name: str, after: int) -> Told:
    with attached(server, name, after, acks=False) as reader:
        event = reader.next()
    return Told(event["id"], event.get("text", ""))


def by_conversation(_: Server, client: RpcClient, name: str, after: int) -> Told:
    talk = Talk(client, attach={"stream": name, "after": after})
    event = talk.next()
    talk.call.cancel()
    talk.done()
    return Told(event.id, event.delta.text)


@pytest.mark.parametrize("next_event", [by_web_socket, by_conversation])
def test_a_stream_that_runs_is_taken_up_at_every_event(tiny, server, client, next_event: Callable[..., Told]):
    """Each reader takes one event, which acknowledges the one before: so the stream is never far ahead."""
    _, result = expected(tiny(), "What's this?", max_new_tokens=TOKENS, logit_bias=NO_END, **SETTINGS)
    server.until_idle()
    with opened(server, acks=False, **ASKED) as first:
        name = first.next()["stream"]
    told = [next_event(server, client, name, 0)]
    while len(told) < TOKENS - WINDOW:
        told.append(next_event(server, client, name, told[-1].id))
        assert server.health()["running"] == 1
    with attached(server, name, told[-1].id) as last:
        end = last.rest()[-1]
    assert [event.id for event in told] == list(range(1, len(told) + 1))
    assert "".join(event.text for event in told) + last.text == result.texts[0]
    assert (end["event"], end["finish_reason"]) == ("end", "length")


@contextmanager
def reading_http(server: Server, name: str) -> Iterator[Iterator[str]]:
    """The lines behind the first one."""
    headers = {"Last-Event-ID": f"{name}.0"}
    with httpx.stream("POST", f"{server.url}/v1/stream", headers=headers, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines) == f"id: {name}.1"
        yield lines


def taken_over(call: Any) -> bool:
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    code = dict(ended.value.trailing_metadata())["saccade-code"]
    return (ended.value.code(), code) == (grpc.StatusCode.ABORTED, "superseded")


def test_of_two_readers_the_newer_one_goes_on_whatever_carries_them(tiny, server, client):
    _, result = expected(tiny(), "What's this?", max_new_tokens=TOKENS, logit_bias=NO_END, **SETTINGS)
    with opened(server, acks=False, **ASKED) as owner:
        name = owner.next()["stream"]
        owner.say({"type": "pause"})
        owner.say("{")
        assert owner.until(lambda event: "error" in event)["error"]["code"] == "invalid_json"  # it has paused
        with reading_http(server, name) as first, reading_http(server, name) as second:
            assert owner.until(lambda event: "error" in event)["error"]["code"] == "superseded"
            assert f": {TAKEN_OVER}" in list(first)
            call = client.resume(messages.ResumeRequest(stream=name), timeout=60)
            assert next(call).start.stream == name
            assert f": {TAKEN_OVER}" in list(second)
    other = client.resume(messages.ResumeRequest(stream=name), timeout=60)
    assert next(other).start.stream == name
    assert taken_over(call)
    talk = Talk(client, attach={"stream": name, "after": 0})
    assert talk.next().start.stream == name
    assert taken_over(other)
    with attached(server, name, 0) as last:
        last.say({"type": "resume"})
        last.rest()
    assert taken_over(talk.call)
    talk.done()
    assert last.text == result.texts[0]
