"""SIGTERM: no new streams; those that run end, or get an error by the deadline; no process is left."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests import commands
from tests.servers import SMALL, Server, running
from tests.test_rpc import Client as RpcClient
from tests.test_rpc import Talk, long
from tests.test_rpc import request as rpc_request
from tests.test_server import LONG, asked, until
from tests.test_web_socket import ENDLESS, opened

PATIENT = "stream_registry.backpressure.ack_timeout_ms=60000"


def _fields(process: int) -> list[str]:
    """State, parent, and what follows; none where there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return []


def children(process: int) -> set[int]:
    """Those that a process has started and that run."""
    others = {int(place.name) for place in Path("/proc").glob("[0-9]*")}
    return {
        other for other in others if (told := _fields(other)) and told[0] != "Z" and int(told[1]) == process
    }


def ends_with_all_its_processes(server: Server, workers: set[int]) -> None:
    assert server.process.wait(60) == 0
    until(lambda: not {worker for worker in workers if _fields(worker)[:1] not in ([], ["Z"])})


@contextlib.contextmanager
def talking(server: Server, **first) -> Iterator[Talk]:
    client = RpcClient(server.rpc)
    yield Talk(client, **first)
    client.channel.close()


@pytest.mark.slow
def test_streams_may_end_and_no_new_ones_come(tiny_directory, env):
    with running(tiny_directory(), env, *SMALL, PATIENT, wait=False, start=commands.start) as own:
        loading = httpx.post(f"{own.url}/v1/stream", json={"messages": asked("a")})
        assert loading.status_code == 503 or own.health()["rows"]
        own.wait_for("^ready")
        workers = children(own.process.pid)
        assert workers
        with (
            opened(own, acks=False, **LONG) as socket,
            talking(own, open=long()) as talk,
            httpx.stream("POST", f"{own.url}/v1/stream", json=LONG, timeout=60) as response,
        ):
            while len(socket.deltas) < 100 or len(talk.deltas) < 100:  # they wait for acks
                socket.next()
                talk.next()
            own.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{own.url}/ready").status_code == 503)
            refused = httpx.post(f"{own.url}/v1/stream", json={"messages": asked("a")})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            with pytest.raises(InvalidStatus) as no_handshake:
                opened(own)
            assert no_handshake.value.response.status_code == 503
            with talking(own, open=rpc_request()) as late, pytest.raises(grpc.RpcError) as no_call:
                late.next()
            assert no_call.value.code() == grpc.StatusCode.UNAVAILABLE
            socket.acks = True
            for told in socket.deltas:
                socket.say({"type": "ack", "id": told["id"]})
            for told in talk.deltas:
                talk.say(ack={"id": told.id})
            assert socket.rest()[-1]["finish_reason"] == talk.rest()[-1].end.finish_reason == "length"
            end = [line for line in response.iter_lines() if line.startswith("data: ")][-1]
            assert json.loads(end.removeprefix("data: "))["finish_reason"] == "length"
        ends_with_all_its_processes(own, workers)


@pytest.mark.slow
def test_what_does_not_end_in_time_gets_an_error(tiny_directory, env):
    with running(tiny_directory(), env, *SMALL, PATIENT, "serve.drain_timeout_ms=0") as own:
        workers = children(own.process.pid)
        assert workers
        body = LONG | ENDLESS
        with (
            opened(own, acks=False, **body) as socket,
            talking(own, open=long()) as talk,
            httpx.stream("POST", f"{own.url}/v1/stream", json=body, timeout=60) as response,
        ):
            socket.until(lambda event: event["event"] == "delta")
            while not talk.deltas:
                talk.next()
            lines = response.iter_lines()
            while "delta" not in next(lines):
                pass
            own.process.send_signal(signal.SIGTERM)
            end = json.loads([line for line in lines if line.startswith("data: ")][-1][6:])
            assert (end["event"], end["code"]) == ("error", "engine_closed")
            assert socket.rest()[-1]["code"] == talk.rest(ack=False)[-1].error.code == "engine_closed"
        ends_with_all_its_processes(own, workers)


@pytest.mark.slow
def test_it_ends_while_it_is_loading(tiny_directory, env):
    with running(tiny_directory(), env, *SMALL, wait=False, start=commands.start) as own:
        until(lambda: children(own.process.pid))
        workers = children(own.process.pid)
        own.process.send_signal(signal.SIGTERM)
        ends_with_all_its_processes(own, workers)
        assert not [line for line in own.lines if line.startswith("ready") or "Traceback" in line]
