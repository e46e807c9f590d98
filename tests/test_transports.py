"""One contract on every transport of the real server: why a stream ends, its deltas, and signs of life."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import SMALL, Server, running
from tests.test_server import SETTINGS, asked, expected
from tests.transports import ALL, OWN, Event, deltas, text_of

SAYS_THE, SAYS_IMAGE = {280: 100.0}, {269: 100.0}  # and nothing else
SENTENCES = dict.fromkeys((13, 30, 64, 198, 256, 280, 290, 342), 100.0)  # . ? a \n a the is in
FILTERED = " image image"  # what tests.filters lets pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("places")


@pytest.fixture(scope="module")
def server(tiny_directory, env, folder) -> Iterator[Server]:
    settings = (*SMALL, "serve.heartbeat_ms=50", "serve.content_filter=tests.filters:NoThirdImage")
    script = ("tests/faulty_server.py", str(folder))
    with running(tiny_directory(), env, *settings, script=script) as server:
        yield server


@contextmanager
def held(folder: Path, place: str) -> Iterator[None]:
    """The server stands still there."""
    file = folder / f"{place}.held"
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def body(tokens: int = 9, bias: dict[int, float] = SAYS_THE, **more: Any) -> dict[str, Any]:
    told = {"logit_bias": {str(token): value for token, value in bias.items()}, **SETTINGS, **more}
    return {"messages": asked("What's this?"), "max_completion_tokens": tokens, **told}


def first(events: Iterator[Event], kind: str, phase: str | None = None) -> list[Event]:
    """All up to the first of a kind."""
    seen = []
    for event in events:
        seen.append(event)
        if event["event"] == kind and event.get("phase", phase) == phase:
            return seen
    raise AssertionError(f"no {kind} {phase} in {seen}")


REASONS: dict[str, dict[str, Any]] = {
    "length": {},
    "stop": {"stop": ["the the"]},
    "repetition": {"max_pattern_repeats": 2},
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("transport", ALL)
def test_an_answer_ends_as_that_of_sample(tiny, server, transport, reason):
    more = REASONS[reason]
    _, result = expected(
        tiny(), "What's this?", max_new_tokens=9, logit_bias=SAYS_THE, **SETTINGS, **{"stop": (), **more}
    )
    events = list(ALL[transport](server, body(**more)))
    assert events[-1]["finish_reason"] == result.finish_reasons[0] == reason
    assert text_of(events) == result.texts[0]


@pytest.mark.parametrize("transport", ALL)
def test_the_filter_of_the_settings_ends_a_stream_in_the_middle(server, transport):
    events = list(ALL[transport](server, body(tokens=50, bias=SAYS_IMAGE)))
    assert (text_of(events), events[-1]["finish_reason"]) == (FILTERED, "content_filter")
    server.until_idle()


def test_the_filter_also_ends_an_answer_that_is_not_streamed(server):
    asking = body(tokens=50, bias=SAYS_IMAGE)
    (choice,) = httpx.post(f"{server.url}/v1/chat/completions", json=asking, timeout=60).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (FILTERED, "content_filter")


def test_a_filter_that_fails_shows_nothing_and_no_internals(server, folder):
    (folder / "judge").touch()
    events = list(ALL["sse"](server, body()))
    assert ([event["event"] for event in events], events[-1]["code"]) == (["start", "error"], "filter_failed")
    (folder / "filter").touch()
    refused = httpx.post(f"{server.url}/v1/stream", json=body(), timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "prepare_failed")
    assert "secret" not in refused.text + str(events)
    server.wait_for("secret: judge")
    server.wait_for("secret: filter")


@pytest.mark.parametrize("transport", ALL)
def test_who_is_cancelled_by_name_is_told_so(server, folder, transport):
    events = ALL[transport](server, body(tokens=450))
    with held(folder, "step"):
        (start,) = first(events, "start")
        assert httpx.delete(f"{server.url}/v1/stream/{start['stream']}").status_code == 204
    end = list(events)[-1]
    assert (end["finish_reason"], end["cause"]) == ("cancelled", "client")
    server.until_idle()


@pytest.mark.parametrize("transport", ALL)
def test_a_step_that_fails_is_an_error_with_its_code(server, folder, transport):
    (folder / "step").touch()
    events = list(ALL[transport](server, body()))
    assert (events[-1]["event"], events[-1]["code"]) == ("error", "step_failed")
    assert list(ALL[transport](server, body()))[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("transport", OWN)
def test_chunks_and_sentences_are_the_same_text_in_larger_deltas(tiny, server, transport):
    varied = {"bias": SENTENCES, "tokens": 60, "temperature": 5.0}
    _, result = expected(
        tiny(), "What's this?", max_new_tokens=60, logit_bias=SENTENCES, **SETTINGS | {"temperature": 5.0}
    )
    text = result.texts[0]

    def told(granularity: str, **more: Any) -> list[Event]:
        events = list(OWN[transport](server, body(**varied, granularity=granularity, **more)))
        assert [token for event in deltas(events) for token in event["token_ids"]] == result.tokens[
            0
        ].tolist()
        assert (text_of(events), events[-1]["finish_reason"]) == (text, "length")
        return deltas(events)

    assert [len(delta["token_ids"]) for delta in told("token")] == [1] * 60
    chunks = told("chunk", chunk_tokens=7, chunk_seconds=60.0)
    assert [len(delta["token_ids"]) for delta in chunks] == [7] * 8 + [4]
    assert [delta["index"] for delta in chunks] == list(range(0, 60, 7))
    sentences = re.findall(r".*?(?:\n|[.?](?= )|$)", text)[:-1]  # at a line's end, or before a blank
    assert len(sentences) > 8
    assert [delta["text"] for delta in told("sentence")] == sentences


@pytest.mark.parametrize("transport", ALL)
def test_a_stream_says_that_it_lives_while_it_waits_and_while_its_prompt_is_fed(server, folder, transport):
    before = beats_of(server)
    fed, waiting = (ALL[transport](server, body()) for _ in range(2))
    named = transport != "chat"
    with held(folder, "prefill"):
        seen = first(fed, "heartbeat", "prefill" if named else None)
        seen += first(waiting, "heartbeat", "queued" if named else None)
    seen += [*fed, *waiting]
    assert [event["finish_reason"] for event in seen if event["event"] == "end"] == ["length"] * 2
    assert beats_of(server) - before == sum(event["event"] == "heartbeat" for event in seen)


def beats_of(server: Server) -> float:
    return server.metrics()["saccade_stream_heartbeats_total"]


@pytest.mark.parametrize("transport", OWN)
def test_an_endless_stream_says_that_it_lives_while_its_row_is_renewed(server, folder, transport):
    asking = body(bias={}, endless={"context": 128, "sinks": 4, "tail": 40})
    del asking["max_completion_tokens"]
    events = OWN[transport](server, asking)
    start = first(events, "delta")[0]
    with held(folder, "prefill"):
        first(events, "heartbeat", "reseed")
    first(events, "delta")
    assert httpx.delete(f"{server.url}/v1/stream/{start['stream']}").status_code == 204
    assert list(events)[-1]["finish_reason"] == "cancelled"
    server.until_idle()
