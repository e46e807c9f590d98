"""What fails inside the real server: one error, everything released, and the next request works."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.servers import SMALL, Server, running
from tests.test_rpc import Client as RpcClient
from tests.test_rpc import request as rpc_request
from tests.test_server import SETTINGS, asked, expected, picture, stream, told, until
from tests.test_web_socket import opened

LONG = {"max_tokens": 300, "logit_bias": {"507": -100, "505": -100}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("failures")


@pytest.fixture(scope="module")
def server(tiny_directory, env, folder) -> Iterator[Server]:
    script = ("tests/faulty_server.py", str(folder))
    with running(tiny_directory(), env, *SMALL, script=script) as server:
        yield server


def works_again(tiny, server: Server) -> None:
    """Nothing is left of what failed, the figures add up, and an answer is what it was."""
    server.until_idle()
    _, result = expected(tiny(), "What's this?", max_new_tokens=20, **SETTINGS)
    events = told(stream(server))
    assert "".join(e["text"] for e in events if e["event"] == "delta") == result.texts[0]
    until(lambda: server.metrics()["saccade_streams_active"] == 0)
    metrics = server.metrics()
    assert metrics["saccade_unacked_chunks"] == metrics["saccade_rows_running"] == 0


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("tower", "prefill_failed"),
        ("prefill", "prefill_failed"),
        ("step", "step_failed"),
        ("text", "text_failed"),
    ],
)
def test_a_stream_that_fails_tells_one_error_without_internals(tiny, server, folder, place, code):
    (folder / place).touch()
    messages = asked("What's this?", picture(64, 96)) if place == "tower" else asked("What's this?")
    events = told(stream(server, messages=messages))
    assert [e["event"] for e in events if e["event"] not in ("start", "delta")] == ["error"]
    assert (events[-1]["code"], "secret" in json.dumps(events)) == (code, False)
    works_again(tiny, server)


def test_a_step_that_fails_ends_all_that_run_on_all_transports(tiny, server, folder):
    client = RpcClient(server.rpc)
    with opened(server, **LONG) as socket:
        socket.until(lambda event: event["event"] == "delta")
        call = client.generate(rpc_request(tokens=300, logit_bias={507: -100.0, 505: -100.0}), timeout=60)
        while next(call).WhichOneof("event") != "delta":
            pass
        (folder / "step").touch()
        assert socket.rest()[-1]["code"] == list(call)[-1].error.code == "step_failed"
    client.channel.close()
    works_again(tiny, server)


def test_a_picture_decoder_that_fails_is_an_error_before_any_stream(tiny, server, folder):
    messages = asked("a", picture())
    (folder / "decoder").touch()
    refused = stream(server, messages=messages)
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "prepare_failed")
    (folder / "decoder").touch()
    with opened(server, messages=messages) as socket:
        assert socket.rest()[-1]["error"]["code"] == "prepare_failed"
    assert socket.code == 4500
    works_again(tiny, server)


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/chat/completions"])
def test_an_http_response_that_fails_is_cut_off(tiny, server, folder, path):
    body: dict[str, Any] = {"messages": asked("What's this?"), "stream": True, **SETTINGS, **LONG}
    seen = []
    with httpx.stream("POST", f"{server.url}{path}", json=body) as response:
        lines = response.iter_lines()
        seen.append(next(lines))
        name = response.headers.get("x-stream-id", "")
        (folder / ("sse" if name else "chat")).touch()
        with pytest.raises(httpx.RemoteProtocolError):
            seen.extend(lines)
    assert seen[0]
    assert "secret" not in "".join(seen)
    if name:
        assert told(stream(server, f"{name}.1"))[-1]["event"] == "end"
    works_again(tiny, server)


def test_a_web_socket_that_fails_is_closed_and_its_stream_can_be_taken_up(tiny, server, folder):
    with opened(server, acks=False, **LONG) as socket:
        name = socket.next()["stream"]
        (folder / "web_socket").touch()
        events = socket.rest()
    assert (socket.code, events[-1]["event"]) == (1006, "start")
    assert "secret" not in str(events)
    assert told(stream(server, f"{name}.1"))[-1]["event"] == "end"
    works_again(tiny, server)


def test_a_call_that_fails_shows_no_internals_and_its_stream_can_be_taken_up(tiny, server, folder):
    client = RpcClient(server.rpc)
    call = client.generate(rpc_request(tokens=300, logit_bias={507: -100.0, 505: -100.0}), timeout=60)
    name = next(call).start.stream
    (folder / "rpc").touch()
    with pytest.raises(grpc.RpcError) as failed:
        list(call)
    assert "secret" not in failed.value.details()
    assert told(stream(server, f"{name}.1"))[-1]["event"] == "end"
    client.channel.close()
    works_again(tiny, server)


@pytest.mark.slow
def test_a_dead_engine_tells_every_stream_and_the_server_is_not_ready(tiny_directory, env, tmp_path):
    script = ("tests/faulty_server.py", str(tmp_path))
    with running(tiny_directory(), env, *SMALL, script=script) as own:
        for code in ("step_failed", "step_failed"):
            (tmp_path / "step").touch()
            assert told(stream(own))[-1]["code"] == code
        until(lambda: httpx.get(f"{own.url}/ready").status_code == 503)
        refused = stream(own)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert (own.health()["status"], own.health()["loadedModels"]) == ("ok", 0)
        client = RpcClient(own.rpc)
        check = health_pb2_grpc.HealthStub(client.channel).Check
        dead = health_pb2.HealthCheckResponse.NOT_SERVING
        until(lambda: check(health_pb2.HealthCheckRequest(), timeout=60).status == dead)
        with pytest.raises(grpc.RpcError) as failed:
            list(client.generate(rpc_request(), timeout=60))
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        client.channel.close()
        own.wait_for("the engine has failed")
        own.process.terminate()
        assert own.process.wait(30) == 0


def children(server: Server) -> list[int]:
    """The processes that it has started."""
    threads = Path(f"/proc/{server.process.pid}/task").iterdir()
    return [int(number) for thread in threads for number in (thread / "children").read_text().split()]


def decodes(process: int) -> bool:
    try:
        return (
            b"decode_worker" in Path(f"/proc/{process}/cmdline").read_bytes()
        )  # of one that has ended: empty
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_server_breaks_every_connection_and_leaves_its_ports_and_no_process(
    tiny, tiny_directory, env
):
    endless: dict[str, Any] = {"context": 128, "sinks": 4, "tail": 40}
    patient = "stream_registry.backpressure.ack_timeout_ms=60000"
    with running(tiny_directory(), env, *SMALL, patient) as own, opened(own, endless=endless) as socket:
        decoders = children(own)
        assert len(decoders) > 1
        assert all(map(decodes, decoders))
        client = RpcClient(own.rpc)
        call = client.generate(rpc_request(endless=endless), timeout=60)
        body = {"messages": asked("Hm"), "endless": endless}
        with httpx.stream("POST", f"{own.url}/v1/stream", json=body, timeout=60) as response:
            lines = response.iter_lines()
            while "delta" not in next(lines):
                pass
            while next(call).WhichOneof("event") != "delta":
                pass
            socket.until(lambda event: event["event"] == "delta")
            own.process.kill()
            with pytest.raises(httpx.TransportError):
                list(lines)
        with pytest.raises(grpc.RpcError) as broken:
            list(call)
        assert broken.value.code() == grpc.StatusCode.UNAVAILABLE
        assert socket.rest()[-1]["event"] == "delta"
        assert socket.code in (None, 1006)
        client.channel.close()
        until(lambda: not any(map(decodes, decoders)))
        own.process.wait(30)
        ports = (
            f"serve.port={own.address[1]}",
            f"serve.grpc_port={own.rpc.rpartition(':')[2]}",
            f"telemetry.prometheus_port={httpx.URL(own.metrics_url).port}",
        )
    rest = [setting for setting in SMALL if not setting.endswith("port=0")]
    with running(tiny_directory(), env, *rest, *ports) as again:
        assert (again.url, again.rpc, again.metrics_url) == (own.url, own.rpc, own.metrics_url)
        assert stream(again, f"{socket.events[0]['stream']}.1").status_code == 404
        works_again(tiny, again)
