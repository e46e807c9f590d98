"""Clients that go, on the real server: what nobody waits for is not computed, and nothing of it stays."""

import json
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from serve.rpc import messages
from tests.servers import Server
from tests.test_rpc import Client as RpcClient
from tests.test_rpc import long as rpc_long
from tests.test_server import LONG, SETTINGS, asked, expected, raw, stream, told, until
from tests.test_web_socket import opened

CHAT = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()


def test_who_goes_while_queued_is_never_prefilled(server: Server):
    until(lambda: server.metrics()["saccade_streams_active"] == 0)
    begun = server.metrics()["saccade_stream_ttft_seconds_count"]
    holders = []
    for count in range(1, 5):
        holders.append(opened(server, acks=False, **LONG))
        holders[-1].say({"type": "pause"})  # and so it does not wait for acks
        until(lambda count=count: server.health()["running"] == count)  # few may wait
    with raw(server, "/v1/chat/completions", CHAT):
        until(lambda: server.health()["waiting"] == 1)
    until(lambda: server.health()["activeStreams"] == 4)
    for holder in holders:
        holder.say({"type": "cancel"})
        holder.rest()
        holder.socket.close()
    server.until_idle()
    assert told(stream(server))[-1]["event"] == "end"
    until(lambda: server.metrics()["saccade_streams_active"] == 0)
    assert server.metrics()["saccade_stream_ttft_seconds_count"] == begun + 4 + 1


def by_http(path: str):
    return lambda server, _, stack: stack.enter_context(raw(server, path, CHAT))


def by_web_socket(server: Server, _: RpcClient, stack: ExitStack) -> None:
    body = json.loads(CHAT) | {"stream": False}
    stack.callback(opened(server, acks=False, **body).socket.socket.close)


def by_call(_: Server, client: RpcClient, stack: ExitStack) -> None:
    stack.callback(client.generate(rpc_long(logprobs=True, top_logprobs=20), timeout=60).cancel)


def by_conversation(_: Server, client: RpcClient, stack: ExitStack) -> None:
    words: queue.SimpleQueue = queue.SimpleQueue()
    words.put(messages.Word(open=rpc_long(logprobs=True, top_logprobs=20)))
    stack.callback(words.put, None)
    stack.callback(client.converse(iter(words.get, None), timeout=60).cancel)


TRANSPORTS = {
    "chat": by_http("/v1/chat/completions"),
    "stream": by_http("/v1/stream"),
    "web_socket": by_web_socket,
    "call": by_call,
    "conversation": by_conversation,
}


@pytest.mark.parametrize(
    "transport",
    [pytest.param(name, marks=pytest.mark.slow) if name == "chat" else name for name in TRANSPORTS],
)
def test_readers_that_stop_reading_are_cancelled_at_the_window_and_change_nothing(tiny, server, transport):
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)
    until(lambda: server.metrics()["saccade_streams_active"] == 0)
    client = RpcClient(server.rpc, ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    before, tokens = server.resident(), server.metrics()["saccade_tokens_total"]
    with ExitStack() as stack:
        for _ in range(3):
            begun = server.metrics()["saccade_streams_started_total"]
            TRANSPORTS[transport](server, client, stack)
            until(lambda begun=begun: server.metrics()["saccade_streams_started_total"] > begun)
            until(lambda: server.health()["waiting"] == 0)  # few may wait, and the next one comes at once
        events = told(stream(server))
        until(lambda: server.metrics()["saccade_streams_active"] == 0)
        metrics = server.metrics()
    client.channel.close()
    assert "".join(e["text"] for e in events if e["event"] == "delta") == result.texts[0]
    assert metrics['saccade_stream_cancellations_total{cause="ack_timeout"}'] >= 3
    made = metrics["saccade_tokens_total"] - tokens - events[-1]["usage"]["completion_tokens"]
    assert made < 3 * 300  # of 450 each: the window, and what sockets hide
    assert server.resident() - before < 30


@pytest.mark.slow
@pytest.mark.soak
def test_a_thousand_clients_that_go_leave_nothing(tiny, server):
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)

    def come_and_go(number: int) -> None:
        path = "/v1/stream" if number % 20 == 0 else "/v1/chat/completions"
        body = json.dumps(LONG | {"stream": number % 3 > 0}).encode()
        with raw(server, path, body) as connection, suppress(TimeoutError, BlockingIOError):
            connection.settimeout(0.02 * (number % 4))
            if b" 429 " in connection.recv(1000):  # it came too early
                time.sleep(0.1)
                come_and_go(number)

    def cycles(count: int) -> tuple[float, int, int]:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, range(count)))
        until(lambda: server.metrics()["saccade_streams_active"] == 0)
        server.until_idle()
        process = Path(f"/proc/{server.process.pid}")
        return (
            server.resident(),
            len(list((process / "fd").iterdir())),
            len(list((process / "task").iterdir())),
        )

    memory, files, threads = cycles(200)
    started = server.metrics()["saccade_streams_started_total"]
    after_memory, after_files, after_threads = cycles(1000)
    assert server.metrics()["saccade_streams_started_total"] - started >= 900
    assert after_memory - memory < 20, (memory, after_memory)
    assert (after_files <= files + 2, after_threads <= threads + 1) == (True, True)
    until(lambda: httpx.get(f"{server.url}/ready").status_code == 200)
    events = told(stream(server, messages=asked("What's this?")))
    assert "".join(e["text"] for e in events if e["event"] == "delta") == result.texts[0]
