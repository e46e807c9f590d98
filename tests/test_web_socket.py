"""The same streams over a WebSocket, with a real client: its words in mid-stream, acks, lost connections."""

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

import jax
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from sample import SamplingConfig, StreamConfig, prepare_inputs, sample_streaming
from tests.servers import SMALL, Server, running
from tests.test_server import LONG, SETTINGS, asked, crowded, expected, picture, stream, told, until

ASKED = {"messages": asked("What's this?"), "max_tokens": 20, **SETTINGS}
WINDOW = 24  # unacknowledged deltas, as the server of these tests has it


class Client:
    """A connection that acknowledges what it receives, unless it is told not to."""

    def __init__(self, server: Server, opening: dict[str, Any], acks: bool = True) -> None:
        url = server.url.replace("http", "ws") + "/v1/stream/ws"
        # Without a limit of messages that wait: behind those, it would not see the connection's end.
        self.socket: ClientConnection = connect(url, open_timeout=60, proxy=None, max_queue=None)
        self.acks = acks
        self.events: list[dict[str, Any]] = []
        self.say(opening)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, word: dict[str, Any] | str) -> None:
        self.socket.send(word if isinstance(word, str) else json.dumps(word))

    def next(self) -> dict[str, Any]:
        event = json.loads(self.socket.recv(timeout=60))
        self.events.append(event)
        if self.acks and event.get("event") == "delta":
            with contextlib.suppress(
                ConnectionClosed
            ):  # by the server, behind the end that is yet to be read
                self.say({"type": "ack", "id": event["id"]})
        return event

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not holds(event := self.next()):
            pass
        return event

    def rest(self) -> list[dict[str, Any]]:
        """All events up to the end; then the connection is closed."""
        with contextlib.suppress(ConnectionClosed):
            self.until(lambda _: False)
        self.code = self.socket.protocol.close_code
        return self.events

    @property
    def deltas(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("event") == "delta"]

    @property
    def text(self) -> str:
        return "".join(event["text"] for event in self.deltas)


def opened(server: Server, acks: bool = True, **body: Any) -> Client:
    return Client(server, {"type": "open", "request": ASKED | body}, acks)


def attached(server: Server, name: str, after: int, acks: bool = True) -> Client:
    return Client(server, {"type": "attach", "stream": name, "after": after}, acks)


def refusal(client: Client) -> tuple[int | None, str]:
    with client:
        (answer,) = client.rest()
    return client.code, answer["error"]["code"]


@pytest.mark.parametrize("pictures", [(), (picture(),)], ids=["text", "picture"])
def test_it_tells_what_sample_gives_and_what_the_other_transport_tells(tiny, server, pictures):
    messages = asked("What's this?", *pictures)
    prompt_tokens, result = expected(tiny(), "What's this?", *pictures, max_new_tokens=40, **SETTINGS)
    with opened(server, messages=messages, max_tokens=40, logprobs=True) as client:
        events = client.rest()
    assert client.code == 1000
    assert [event["event"] for event in events] == ["start", *["delta"] * (len(events) - 2), "end"]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert client.text == result.texts[0]
    assert [i for event in client.deltas for i in event["token_ids"]] == result.tokens[0].tolist()
    end = events[-1]
    assert end["finish_reason"] == result.finish_reasons[0]
    assert (end["usage"]["prompt_tokens"], end["usage"]["completion_tokens"]) == (
        prompt_tokens,
        result.lengths[0],
    )
    other = told(stream(server, messages=messages, max_tokens=40, logprobs=True))
    assert [{**e, "id": None} for e in other[1:-1]] == [{**e, "id": None} for e in events[1:-1]]


def test_a_stop_string_in_mid_stream_ends_it_there(tiny, server):
    _, free = expected(tiny(), "Hm", max_new_tokens=300, **SETTINGS | {"logit_bias": {507: -100, 505: -100}})
    with opened(server, acks=False, **LONG | SETTINGS) as client:
        for _ in range(WINDOW + 1):  # it waits for acks
            client.next()
        shown = client.text
        behind = free.texts[0].removeprefix(shown)
        stop = next(behind[n : n + 2] for n in range(3, len(behind)) if behind[n : n + 2].strip())
        client.say({"type": "stop", "stop": [stop]})
        client.acks = True
        for delta in client.deltas:
            client.say({"type": "ack", "id": delta["id"]})
        end = client.rest()[-1]
    assert end["finish_reason"] == "stop"
    assert client.text == shown + behind[: behind.index(stop)]


def test_a_client_cancels_in_mid_stream(server):
    with opened(server, **LONG) as client:
        client.until(lambda event: event["event"] == "delta")
        client.say({"type": "cancel"})
        end = client.rest()[-1]
    assert (end["finish_reason"], end["cause"]) == ("cancelled", "client")
    server.until_idle()


def test_a_paused_stream_makes_nothing_and_goes_on_as_if_it_had_not_been(tiny, server):
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)
    with opened(server) as client:
        client.say({"type": "pause"})
        client.say("{")
        client.until(lambda event: "error" in event)  # it has paused
        until(lambda: server.health()["running"] == 1)
        told(stream(server))  # behind it, nothing of before the pause is on its way
        before = server.health()["stepped"]
        neighbour = told(stream(server))[-1]["usage"]["completion_tokens"]
        after = server.health()
        assert (after["running"], after["stepped"] - before) == (1, neighbour - 1)  # one by its prompt
        client.say({"type": "resume"})
        client.rest()
    assert client.text == result.texts[0]


@pytest.mark.slow
def test_an_endless_stream_goes_on_until_it_is_cancelled(tiny, server):
    renewed = "saccade_stream_reseeds_total"
    before = server.metrics()[renewed]
    endless = {"context": 128, "sinks": 4, "tail": 40}
    with opened(server, max_tokens=None, endless=endless) as client:
        client.until(lambda event: event["event"] == "delta" and event["index"] == 300)
        client.say({"type": "cancel"})
        end = client.rest()[-1]
    assert (end["finish_reason"], end["usage"]["completion_tokens"] >= 300) == ("cancelled", True)
    until(lambda: server.metrics()[renewed] - before >= 3)
    model, params, processor = tiny()
    inputs = prepare_inputs(model, params, processor, prompt="What's this?")
    config = SamplingConfig.from_generation(
        processor.generation, eos_id=processor.eos_ids, max_new_tokens=300, ignore_eos=True, **SETTINGS
    )
    tokens = sample_streaming(
        model, params, inputs, config, jax.random.key(0), stream=StreamConfig(context=128, sinks=4, tail=40)
    )
    told = [token for event in client.deltas for token in event["token_ids"]]
    assert told[:300] == [token.token_id for token in tokens]
    server.until_idle()


ENDLESS = {"max_tokens": None, "endless": {"context": 128, "sinks": 4, "tail": 40}}


def test_figures_of_a_stream_are_told_while_it_runs(server):
    until(lambda: server.metrics()["saccade_cache_use_ratio"] == 0)
    with opened(server, **ENDLESS) as client:
        client.until(lambda event: event["event"] == "delta")
        reading = threading.Thread(target=client.rest)
        reading.start()
        try:
            until(lambda: server.metrics()["saccade_stream_throughput"] > 0)
            figures = server.metrics()
        finally:
            client.say({"type": "cancel"})
            reading.join()
    assert figures["saccade_stream_limit"] == figures["saccade_rows"] == 4
    assert 0 < figures["saccade_cache_use_ratio"] <= 128 / 512 / 4
    until(lambda: server.metrics()["saccade_cache_use_ratio"] == 0)
    until(lambda: server.metrics()["saccade_stream_throughput"] == 0)


def test_a_reader_that_does_not_acknowledge_is_a_stall_and_a_slow_one_in_log_and_figures(server):
    names = ("saccade_stream_credit_stalls_total", "saccade_slow_consumers_total")
    before = server.metrics()
    with opened(server, acks=False, **ENDLESS) as client:
        events = client.rest()
    assert events[-1]["cause"] == "ack_timeout"
    told = server.wait_for(rf"slow consumer: stream {events[0]['stream']}, (\d+) unacked")
    assert 0 < int(told[1]) <= WINDOW  # by then: a slow machine makes them slowly
    until(lambda: all(server.metrics()[name] == before[name] + 1 for name in names))


def test_without_acks_it_stops_at_the_window_and_is_cancelled_with_an_event(server):
    with opened(server, acks=False, **LONG) as client:
        end = client.rest()[-1]
    assert len(client.deltas) == WINDOW
    assert (end["finish_reason"], end["cause"]) == ("cancelled", "ack_timeout")
    server.until_idle()


WRONG_ACKS = {
    "negative": (-1, "no event has such an id"),
    "one is missing": (3, "one before it is missing"),
    "not sent": (900, "not sent yet"),
}


def test_a_wrong_ack_is_an_error_and_gives_no_credit(server):
    with opened(server, acks=False, **LONG) as client:
        while len(client.deltas) < WINDOW:
            client.next()
        for number, why in WRONG_ACKS.values():
            client.say({"type": "ack", "id": number})
            error = client.next()["error"]
            assert (error["code"], why in error["message"]) == ("invalid_ack", True), error
        assert len(client.deltas) == WINDOW
        client.say({"type": "ack", "id": 2})
        assert client.next()["event"] == "delta"
        client.say({"type": "ack", "id": 2})
        error = client.until(lambda event: "error" in event)["error"]
        assert (error["code"], "acknowledged already" in error["message"]) == ("invalid_ack", True)
        client.say({"type": "cancel"})
        client.rest()
    assert len(client.deltas) == WINDOW + 1


def test_a_lost_connection_is_taken_up_at_every_event(server):
    with opened(server) as client:
        events = client.rest()
    name = events[0]["stream"]
    for after in range(len(events)):
        with attached(server, name, after, acks=False) as client:
            assert client.rest() == events[after:]
    assert [e | {"id": None} for e in told(stream(server, f"{name}.3"))] == [
        e | {"id": None} for e in events[3:]
    ]


def test_a_lost_connection_is_taken_up_in_the_middle_of_a_character(tiny, server):
    first, second = tiny().processor.tokenizer.convert_tokens_to_ids(["Ã", "©"])  # the bytes of é
    bias = {str(first): 100.0, str(second): 100.0}
    turns = {"temperature": 2.0, "frequency_penalty": 2.0}  # so that each follows the other
    with opened(server, logit_bias=bias, **turns, max_tokens=26) as client:
        events, text = client.rest(), client.text
    halves = [e["id"] for e in client.deltas if not e["text"] and e["token_ids"] == [first]]
    assert (len(halves) > 0, "é" in text) == (True, True)
    for after in halves:
        shown = "".join(event["text"] for event in client.deltas if event["id"] <= after)
        with attached(server, events[0]["stream"], after, acks=False) as again:
            again.rest()
        assert shown + again.text == text


def test_a_lost_connection_in_mid_stream_goes_on_with_credit_for_what_was_received(tiny, server):
    bias = {507: -100, 505: -100}
    _, result = expected(tiny(), "What's this?", max_new_tokens=90, **SETTINGS, logit_bias=bias)
    with opened(server, acks=False, max_tokens=90, logit_bias={str(i): -100 for i in bias}) as first:
        while len(first.deltas) < 10:
            first.next()
        first.socket.socket.close()  # no farewell
    with attached(server, first.events[0]["stream"], first.events[-1]["id"]) as second:
        second.rest()
    assert first.text + second.text == result.texts[0]
    assert second.events[0]["id"] == first.events[-1]["id"] + 1


def test_what_has_moved_on_is_unknown_or_taken_over_is_told(server):
    with opened(server, max_tokens=60, logit_bias={"507": -100, "505": -100}) as client:
        name = client.rest()[0]["stream"]
    assert refusal(attached(server, name, 1)) == (4410, "moved_on")
    assert refusal(attached(server, name, 10**9)) == (4410, "moved_on")
    assert refusal(attached(server, "s-none", 0)) == (4404, "stream_not_found")
    with opened(server, acks=False, **LONG) as first:
        name = first.next()["stream"]
        with attached(server, name, 0) as second:
            assert first.until(lambda event: "error" in event)["error"]["code"] == "superseded"
            second.until(lambda event: event["event"] == "delta")
            second.say({"type": "cancel"})
            second.rest()


WRONG: dict[str, tuple[Any, int, str]] = {
    "no json": ("{", 4400, "invalid_json"),
    "no words": ("[]", 4400, "invalid_value"),
    "unknown": ({"type": "hello"}, 4400, "invalid_value"),
    "too early": ({"type": "cancel"}, 4400, "invalid_value"),
    "no messages": ({"type": "open", "request": {}}, 4400, "invalid_value"),
    "endless": ({"type": "open", "request": ASKED | {"endless": {"tail": 999}}}, 4400, "invalid_value"),
    "temperature": ({"type": "open", "request": ASKED | {"temperature": -1}}, 4400, "invalid_value"),
    "chunks": ({"type": "open", "request": ASKED | {"chunk_tokens": 0}}, 4400, "invalid_value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_opens_no_stream_is_told_before_the_connection_is_closed(server, name):
    opening, code, kind = WRONG[name]
    assert refusal(Client(server, opening)) == (code, kind)


def test_when_too_many_wait_the_answer_says_when_to_come_back(server):
    with crowded(server), opened(server) as client:
        (answer,) = client.rest()
    assert (client.code, answer["error"]["code"]) == (4429, "busy")
    assert 1 <= answer["retry_after"] <= 60


@pytest.mark.parametrize(
    ("within", "beyond"),
    [(["no such text"] * 4, ["a"]), (["a" * 256], ["a" * 257])],
    ids=["how many", "how long"],
)
def test_stop_strings_that_are_added_stay_within_the_limits(server, within, beyond):
    with opened(server, acks=False, **LONG) as client:
        client.until(lambda event: event["event"] == "start")
        client.say({"type": "stop", "stop": within})
        client.say({"type": "stop", "stop": beyond})
        client.until(lambda event: "error" in event)
        client.say({"type": "cancel"})
        codes = [event["error"]["code"] for event in client.rest() if "error" in event]
    assert codes == ["limit_exceeded"]


def test_a_message_that_is_too_large_ends_the_connection(server):
    with Client(server, {"type": "open", "request": ASKED | {"user": "x" * 100_001}}) as client:
        assert client.rest() == []
    assert client.code == 1009


def test_words_that_are_none_change_nothing(tiny, server):
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)
    words = ["{", {"type": "ack"}, {"type": "stop", "stop": ["a"] * 5}, {"type": "open", "request": ASKED}]
    with opened(server) as client:
        for word in words:
            client.say(word)
        client.rest()
    codes = [event["error"]["code"] for event in client.events if "error" in event]
    assert codes == ["invalid_json", "invalid_value", "limit_exceeded", "invalid_value"]
    assert client.text == result.texts[0]


@pytest.mark.slow
def test_with_the_settings_for_tests_no_stream_is_held_up_for_an_ack(tiny_directory, env):
    settings = (*SMALL, "env=test", "stream_registry.backpressure.ack_timeout_ms=1")
    with running(tiny_directory(), env, *settings) as own:
        with opened(own, acks=False, **ENDLESS) as client:
            client.until(lambda event: event["event"] == "delta" and event["index"] == 2 * 512)
            client.say({"type": "cancel"})
            end = client.rest()[-1]
        assert (end["finish_reason"], end["cause"]) == ("cancelled", "client")
        assert own.metrics()["saccade_stream_credit_stalls_total"] == 0


def test_the_handshake_is_refused_with_a_time_to_come_back_where_no_streams_may_come(tiny_directory, env):
    with running(tiny_directory(), env, *SMALL, wait=False) as own:
        with pytest.raises(InvalidStatus) as refused:
            opened(own)
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
