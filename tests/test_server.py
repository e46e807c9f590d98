"""The real server: OpenAI's client and curl get what `sample` gives; streams resume, end, and are let go."""

import base64
import io
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import jax
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from sample import SamplingConfig, prepare_inputs, sample
from serve.openapi import describe
from tests.servers import SMALL, Server, running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture(width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def asked(text: str, *pictures: Image.Image) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in pictures
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def expected(loaded, text: str, *pictures: Image.Image, **settings):
    model, params, processor = loaded
    inputs = prepare_inputs(model, params, processor, images=pictures, prompt=text)
    config = SamplingConfig.from_generation(
        processor.generation, eos_id=processor.eos_ids, pad_id=processor.pad_id, **settings
    )
    result = sample(model, params, inputs, config, jax.random.key(0), tokenizer=processor.tokenizer)
    return inputs.prompt_tokens.shape[1], result


SETTINGS = {"seed": 5, "temperature": 1.2}


@pytest.mark.parametrize("pictures", [(), (picture(),)], ids=["text", "picture"])
def test_openai_gets_what_sample_gives_whole_and_streamed(tiny, client, pictures):
    prompt_tokens, result = expected(tiny(), "What's this?", *pictures, max_new_tokens=40, **SETTINGS)
    options = {
        "model": "tiny",
        "messages": asked("What's this?", *pictures),
        "max_completion_tokens": 40,
        **SETTINGS,
    }
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert whole.choices[0].message.content == result.texts[0]
    assert whole.choices[0].finish_reason == result.finish_reasons[0]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt_tokens, result.lengths[0])
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == result.texts[0]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == result.finish_reasons[0]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_openai_gets_logprobs_a_stop_string_and_penalties_as_sample_does(tiny, client):
    settings = {"presence_penalty": 0.5, "frequency_penalty": 0.2, "top_p": 0.9, "logit_bias": {5: 2.0}}
    _, free = expected(tiny(), "Hm", max_new_tokens=40, **SETTINGS, **settings)
    stop = next(c for c in free.texts[0][5:] if c.isalnum())
    _, result = expected(tiny(), "Hm", max_new_tokens=40, stop=stop, top_logprobs=2, **SETTINGS, **settings)
    choice = client.chat.completions.create(
        model="tiny",
        messages=asked("Hm"),
        max_tokens=40,
        stop=stop,
        logprobs=True,
        top_logprobs=2,
        **SETTINGS,
        **settings | {"logit_bias": {"5": 2.0}},
    ).choices[0]
    assert (choice.message.content, choice.finish_reason) == (result.texts[0], "stop")
    told = choice.logprobs.content
    assert [t.logprob for t in told] == pytest.approx(result.logprobs[0].tolist(), abs=1e-3)
    assert [len(t.top_logprobs) for t in told] == [2] * len(told)
    tokenizer = tiny().processor.tokenizer
    assert [t.token for t in told] == [tokenizer.decode([i]) for i in result.tokens[0]]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_streams_the_same(tiny, server):
    _, result = expected(tiny(), "What's this?", max_new_tokens=40, **SETTINGS)
    body = {"messages": asked("What's this?"), "max_tokens": 40, "stream": True, **SETTINGS}
    done = subprocess.run(
        ["curl", "-sN", f"{server.url}/v1/chat/completions", "-d", json.dumps(body)],
        capture_output=True,
        timeout=60,
        check=True,
    )
    frames = done.stdout.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == result.texts[0]


def told(response: httpx.Response) -> list[dict[str, Any]]:
    """Its events, with their ids."""
    assert response.status_code == 200, response.read()
    frames = [frame for frame in response.read().decode().split("\n\n") if not frame.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in frames if frame]
    return [json.loads(f["data"]) | {"id": f.get("id")} for f in fields]


def stream(server: Server, last: str | None = None, **body) -> httpx.Response:
    headers = {} if last is None else {"Last-Event-ID": last}
    content = {"messages": asked("What's this?"), "max_tokens": 20, **SETTINGS, **body}
    return httpx.post(f"{server.url}/v1/stream", json=content, headers=headers, timeout=60)


def test_a_stream_of_events_resumes_at_every_one_of_them(tiny, server):
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)
    events = told(stream(server))
    assert [e["event"] for e in events] == ["start", *["delta"] * (len(events) - 2), "end"]
    assert [e["id"] for e in events] == [f"{events[0]['stream']}.{n + 1}" for n in range(len(events))]
    deltas = [e for e in events if e["event"] == "delta"]
    assert [i for e in deltas for i in e["token_ids"]] == result.tokens[0].tolist()
    assert "".join(e["text"] for e in deltas) == result.texts[0]
    assert events[-1]["finish_reason"] == result.finish_reasons[0]
    assert events[-1]["usage"]["completion_tokens"] == result.lengths[0]
    for n, event in enumerate(events):
        assert told(stream(server, event["id"])) == events[n + 1 :]
    assert told(stream(server, f"{events[0]['stream']}.0")) == events


def test_resume_tells_what_is_gone_unknown_or_not_to_be_resumed(server, client):
    events = told(stream(server, max_tokens=60, logit_bias={str(i): -100 for i in (507, 505)}))
    name = events[0]["stream"]
    assert len(events) > 40
    gone = stream(server, f"{name}.1")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "moved_on")
    assert told(stream(server, events[-5]["id"])) == events[-4:]
    chat = client.chat.completions.create(model="x", messages=asked("Hm"), max_tokens=2)
    for last, status in {"s-none.1": 404, f"{chat.id}.1": 404, name: 400, f"{name}.x": 400}.items():
        assert stream(server, last).status_code == status
    assert stream(server, f"{name}.{10**9}").status_code == 410


def test_a_stream_is_cancelled_by_its_name(server):
    body = {"messages": asked("Hm"), "max_tokens": 450, "logit_bias": {"507": -100, "505": -100}}
    with httpx.stream("POST", f"{server.url}/v1/stream", json=body, timeout=60) as response:
        name = response.headers["x-stream-id"]
        lines = response.iter_lines()
        while "delta" not in next(lines):
            pass
        assert httpx.delete(f"{server.url}/v1/stream/{name}").status_code == 204
        end = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")][-1]
    assert (end["event"], end["finish_reason"], end["cause"]) == ("end", "cancelled", "client")
    server.until_idle()


LONG = {"messages": asked("Hm"), "max_tokens": 450, "logit_bias": {"507": -100, "505": -100}}


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_frees_its_row(server, streamed):
    gone = 'saccade_stream_cancellations_total{cause="disconnect"}'
    before = server.metrics().get(gone, 0.0)
    body = json.dumps(LONG | {"stream": streamed}).encode()
    for _ in range(5):
        with raw(server, "/v1/chat/completions", body) as connection:
            if streamed:
                connection.recv(200)
            else:
                until(lambda: server.health()["running"] == 1)
        server.until_idle()
    until(lambda: server.metrics().get(gone) == before + 5)  # and none of them came to its end


def until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


def raw(server: Server, path: str, body: bytes) -> socket.socket:
    """A connection with a small buffer, and the request sent."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/stream"])
def test_a_reader_that_stops_reading_is_waited_for_and_then_cancelled(tiny, server, path):
    body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)
    with raw(server, path, body) as connection:
        connection.recv(100)
        events = told(stream(server))  # a neighbour
        assert "".join(e["text"] for e in events if e["event"] == "delta") == result.texts[0]
        server.until_idle()
        received = b""
        while part := connection.recv(65536):
            received += part
            if b"0\r\n\r\n" in received[-7:]:
                break
    assert b"ack_timeout" in received
    assert received.count(b"logprob") / 21 < 440  # it did not come to its end


@contextmanager
def crowded(server: Server) -> Iterator[None]:
    """As many streams as may run, and as many as may wait, all of them paused."""
    url = server.url.replace("http", "ws") + "/v1/stream/ws"
    with ExitStack() as taken:
        for figure, count in (("running", 4), ("waiting", 2)):  # the rows, and the places to wait
            for number in range(count):
                reader = taken.enter_context(connect(url, open_timeout=60, proxy=None))
                for word in ({"type": "open", "request": LONG}, {"type": "pause"}):
                    reader.send(json.dumps(word))
                taken.callback(reader.send, json.dumps({"type": "cancel"}))
                until(lambda figure=figure, number=number: server.health()[figure] > number)
        yield
    until(lambda: server.health()["running"] + server.health()["waiting"] == 0)


def test_when_too_many_wait_the_next_is_refused_with_a_time_to_come_back(server):
    with crowded(server):
        refused = stream(server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert told(stream(server))[-1]["event"] == "end"


def text_of_tokens(loaded, tokens: int) -> str:
    """A text whose prompt has so many tokens."""
    model, params, processor = loaded

    def count(length: int) -> int:
        inputs = prepare_inputs(model, params, processor, prompt="7" * length)
        return inputs.prompt_tokens.shape[1]

    length = tokens - count(0)
    assert count(length) == tokens
    return "7" * length


def test_the_longest_prompt_leaves_room_for_one_token(tiny, server):
    """Of 512 tokens together; one token more, of prompt or answer, is refused before any stream."""
    longest = asked(text_of_tokens(tiny(), 511))
    events = told(stream(server, messages=longest, max_tokens=1))
    assert (events[0]["prompt_tokens"], events[-1]["usage"]["completion_tokens"]) == (511, 1)
    too_long = asked(text_of_tokens(tiny(), 512))
    for messages, length, code in (
        (longest, 2, "invalid_value"),
        (too_long, 1, "context_length_exceeded"),
        (too_long, None, "context_length_exceeded"),
    ):
        refused = stream(server, messages=messages, max_tokens=length)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


WRONG: dict[str, tuple[Any, int, str]] = {
    "no json": (b"{", 400, "invalid_json"),
    "not utf-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, "invalid_json"),
    "half a character": (
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        400,
        "invalid_json",
    ),
    "no messages": ({}, 400, "invalid_value"),
    "empty messages": ({"messages": []}, 400, "invalid_value"),
    "unknown field": ({"messages": asked("a"), "temprature": 1}, 400, "invalid_value"),
    "unknown role": ({"messages": [{"role": "<|im_end|>", "content": "a"}]}, 400, "invalid_value"),
    "wrong type": ({"messages": asked("a"), "seed": "x"}, 400, "invalid_value"),
    "out of range": ({"messages": asked("a"), "temperature": -1}, 400, "invalid_value"),
    "two choices": ({"messages": asked("a"), "n": 2}, 400, "invalid_value"),
    "top without logprobs": ({"messages": asked("a"), "top_logprobs": 2}, 400, "invalid_value"),
    "a bias for a word": ({"messages": asked("a"), "logit_bias": {"the": 1}}, 400, "invalid_value"),
    "beyond the vocabulary": ({"messages": asked("a"), "logit_bias": {"9999": 1}}, 400, "invalid_value"),
    "too long": ({"messages": asked("a"), "max_tokens": 600}, 400, "invalid_value"),
    "too many stops": ({"messages": asked("a"), "stop": list("abcde")}, 400, "limit_exceeded"),
    "a long prompt": ({"messages": asked("word " * 900)}, 400, "context_length_exceeded"),
    "a large body": (b" " * 100_001, 413, "limit_exceeded"),
    "three pictures": ({"messages": asked("a", *[picture()] * 3)}, 400, "limit_exceeded"),
    "many pixels": ({"messages": asked("a", picture(128, 65))}, 400, "invalid_image"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_any_stream(server, name):
    body, status, code = WRONG[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,%%%",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,",
    ],
)
def test_no_picture_comes_from_anywhere_but_the_request(server, url):
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    response = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [message]})
    assert response.status_code == 400
    assert "root:" not in response.text


def test_what_is_just_within_the_limits_is_answered(server, client):
    for messages in (asked("a", picture(128, 64)), asked("a", picture(), picture())):
        client.chat.completions.create(model="x", messages=messages, max_tokens=2)
    padded = json.dumps({"messages": asked("a"), "max_tokens": 2}).encode().ljust(100_000)
    assert httpx.post(f"{server.url}/v1/chat/completions", content=padded).status_code == 200


def test_models_and_what_there_is_not(server, client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("small-hub", "saccade")
    assert httpx.get(f"{server.url}/nowhere").status_code == 404


def test_health_and_readiness_tell_the_same_figures_and_are_as_described(server):
    told(stream(server))
    server.until_idle()
    paths = describe(secured=False)["paths"]
    answers = {}
    for path, first in (("/health", {"status": "ok"}), ("/ready", {"ready": True})):
        answers[path] = httpx.get(server.url + path).json() | {"uptime": 0}
        schema = paths[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) == set(answers[path])
        assert first.items() <= answers[path].items()
    health = answers["/health"]
    assert health | {"ready": True} == answers["/ready"] | {"status": "ok"}
    assert (health["activeStreams"], health["maxStreams"], health["loadedModels"]) == (0, 4, 1)
    assert health["queueSize"] == health["waiting"] == 0
    assert health["averageBatchSize"] == health["stepped"] / health["steps"] >= 1


def ends(metrics: dict[str, float]) -> float:
    names = ("saccade_streams_completed", "saccade_stream_cancellations", "saccade_stream_errors")
    return sum(value for key, value in metrics.items() if key.startswith(tuple(f"{n}_total" for n in names)))


def test_metrics_add_up(server, client):
    until(lambda: ends(server.metrics()) == server.metrics()["saccade_streams_started_total"])
    before = server.metrics()
    events = told(stream(server))
    told(stream(server, events[3]["id"]))
    assert stream(server, temperature=-1).status_code == 400
    chunks = client.chat.completions.create(stream=True, model="x", **LONG)
    while not next(iter(chunks)).choices[0].delta.content:
        pass
    chunks.close()
    server.until_idle()  # its row is free a step behind its end
    until(lambda: ends(server.metrics()) == server.metrics()["saccade_streams_started_total"])
    after = server.metrics()

    def more(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert more("saccade_streams_started_total") == 2
    assert more('saccade_stream_cancellations_total{cause="disconnect"}') == 1
    assert more("saccade_stream_resumes_total") == 1
    assert more('saccade_requests_rejected_total{code="invalid_value"}') == 1
    assert more("saccade_stream_ttft_seconds_count") == 2
    assert more("saccade_tokens_total") > events[-1]["usage"]["completion_tokens"]
    assert more("saccade_tokens_total") == more("saccade_stream_inter_token_seconds_count") + 2
    assert after["saccade_rows_running"] == after["saccade_unacked_chunks"] == 0


FIGURES = {
    "saccade_cache_use_ratio",
    "saccade_picture_cache_bytes",
    "saccade_picture_cache_hits",
    "saccade_picture_cache_misses",
    "saccade_prefix_cache_bytes",
    "saccade_prefix_cache_tokens",
    "saccade_queue_depth",
    "saccade_requests_rejected",
    "saccade_rows",
    "saccade_rows_running",
    "saccade_slow_consumers",
    "saccade_stream_cancellations",
    "saccade_stream_credit_stalls",
    "saccade_stream_errors",
    "saccade_stream_heartbeats",
    "saccade_stream_inter_token_seconds",
    "saccade_stream_limit",
    "saccade_stream_queue_seconds",
    "saccade_stream_reseeds",
    "saccade_stream_resumes",
    "saccade_stream_throughput",
    "saccade_stream_ttft_seconds",
    "saccade_streams_active",
    "saccade_streams_completed",
    "saccade_stream_loop_blocks",
    "saccade_streams_started",
    "saccade_tokens",
    "saccade_unacked_chunks",
}


def test_the_figures_are_these(server):
    scraped = text_string_to_metric_families(httpx.get(server.metrics_url).text)
    assert {f.name for f in scraped if not f.name.endswith("_created")} == FIGURES


def test_an_end_in_a_loop_and_the_time_in_the_queue_are_counted(server):
    before = server.metrics()
    events = told(stream(server, max_tokens=100, logit_bias={"70": 100}, max_pattern_repeats=3))
    assert events[-1]["finish_reason"] == "repetition"
    until(lambda: server.metrics()["saccade_streams_active"] == 0)
    until(lambda: ends(server.metrics()) == server.metrics()["saccade_streams_started_total"])
    after = server.metrics()
    more = {key: after[key] - before[key] for key in before}
    assert more["saccade_stream_loop_blocks_total"] == more["saccade_stream_queue_seconds_count"] == 1
    assert 0 < more["saccade_stream_queue_seconds_sum"] <= more["saccade_stream_ttft_seconds_sum"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("serve.port=70000", "serve.port: got '70000'; allowed"),
        ("serve.host=nowhere.invalid", "serve.host: 'nowhere.invalid'"),
        ("serve.rows=[4,2]", r"serve.rows: got \(4, 2\); allowed: ascending"),
        ("serve.resume_events=50", "serve.resume_events: 50; allowed: 104 or more"),
        ("serve.prot=1", "nearest key: serve.port"),
        ("env=prod", "env: got .prod.; allowed: base, production, development, test"),
        ("stream_registry.adaptive_limits.max_streams=9", "adaptive_limits.max_streams: 9; allowed: up to 4"),
    ],
)
def test_wrong_settings_are_one_line(tiny_directory, env, setting, message):
    with pytest.raises(RuntimeError, match=message), running(tiny_directory(), env, *SMALL, setting):
        pass
