"""A span for each stream with its phases, by the names that others use; sent by OTLP where asked for."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sample.config import SamplingConfig
from serve.events import Start
from serve.job import Piece
from serve.stream import Stream
from serve.traces import Traces
from tests.servers import SMALL, running
from tests.test_rpc import Client as RpcClient
from tests.test_rpc import request as rpc_request
from tests.test_server import asked, told


class Story:
    """A stream whose time passes as it is told; `spans` are those of its end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.exporter = InMemorySpanExporter()
        self.traces = Traces(SimpleSpanProcessor(self.exporter))
        start = Start("s-1", "tiny", 0, 9, 4)
        self.stream = Stream(start, clock=lambda: self.now)
        asked = SamplingConfig(max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=3, seed=11)
        self.live: Any = SimpleNamespace(id="s-1", stream=self.stream, job=SimpleNamespace(config=asked))
        self.traces.begun(self.live)

    def pass_time(self, seconds: float) -> "Story":
        self.now += seconds
        return self

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        self.traces.ended(self.live)
        return {span.name: span for span in self.exporter.get_finished_spans()}


def lasted(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


def test_a_stream_is_a_span_with_its_phases():
    story = Story()
    story.pass_time(1).stream.prefilling()
    story.pass_time(2).stream.push(Piece(5, "a", -1.0, []))
    story.pass_time(4).stream.push(Piece(6, "b", -1.0, []))
    story.stream.finish("stop", "")
    spans = story.spans
    root = spans.pop("chat tiny")
    assert {name: round(lasted(span), 3) for name, span in spans.items()} == {
        "queue": 1,
        "prefill": 2,
        "decode": 4,
    }
    assert lasted(root) == pytest.approx(7)
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
    assert root.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "saccade",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 3.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.seed": 11,
        "gen_ai.response.id": "s-1",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 2,
        "saccade.usage.image_tokens": 4,
    }


def test_each_reseed_is_a_phase_also_one_in_which_it_ends():
    story = Story()
    story.stream.prefilling()
    story.pass_time(1).stream.push(Piece(5, "a", -1.0, []))
    story.pass_time(1).stream.reseeding()
    story.pass_time(2).stream.push(Piece(6, "b", -1.0, []))
    story.pass_time(3).stream.reseeding()
    story.pass_time(5).stream.cancel()
    root = story.spans["chat tiny"]
    reseeds = [span for span in story.exporter.get_finished_spans() if span.name == "reseed"]
    assert [round(lasted(span), 3) for span in reseeds] == [2, 5]
    assert [round(((span.start_time or 0) - (root.start_time or 0)) / 1e9, 3) for span in reseeds] == [2, 7]
    assert (root.attributes or {})["saccade.reseeds"] == 2


def test_what_never_left_the_queue_has_no_other_phase():
    story = Story()
    story.pass_time(3).stream.cancel()
    spans = story.spans
    assert sorted(spans) == ["chat tiny", "queue"]
    attributes = spans["chat tiny"].attributes or {}
    assert attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert attributes["saccade.cancelled_by"] == "client"


def test_a_failure_is_told_by_its_code():
    story = Story()
    story.stream.prefilling()
    story.pass_time(2).stream.fail("step_failed")
    spans = story.spans
    assert round(lasted(spans["prefill"])) == 2
    assert spans["chat tiny"].status.status_code == StatusCode.ERROR
    assert (spans["chat tiny"].attributes or {})["error.type"] == "step_failed"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Where it listens, and the spans that have come."""
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_server_sends_them_as_children_of_what_its_caller_traces(tiny_directory, env, collector):
    endpoint, spans = collector
    settings = (*SMALL, f"telemetry.otlp_endpoint={endpoint}")
    caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with running(tiny_directory(), env, *settings) as server:
        headers = {"traceparent": f"00-{caller[0]}-{caller[1]}-01"}
        body = {"messages": asked("Hm"), "max_tokens": 3}
        events = told(httpx.post(f"{server.url}/v1/stream", json=body, headers=headers, timeout=60))
        client = RpcClient(server.rpc)
        list(client.generate(rpc_request(tokens=3), metadata=tuple(headers.items()), timeout=60))
        list(client.generate(rpc_request(tokens=3), timeout=60))
        client.channel.close()
        server.process.terminate()
        assert server.process.wait(30) == 0
    root, called, alone = (span for span in spans if span.name.startswith("chat "))
    for traced in (root, called):
        assert (traced.trace_id.hex(), traced.parent_span_id.hex()) == caller
    assert alone.parent_span_id == b""
    assert {s.name for s in spans if s.parent_span_id == root.span_id} == {"queue", "prefill", "decode"}
    told_of = {a.key: a.value for a in root.attributes}
    assert told_of["gen_ai.response.id"].string_value == events[0]["stream"]
    assert told_of["gen_ai.usage.output_tokens"].int_value == events[-1]["usage"]["completion_tokens"]
    assert "Hm" not in str(root)
