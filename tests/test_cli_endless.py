"""Endless streams from the command line: their settings, their events, their plot, and how they end."""

import importlib.util
import itertools
import json
import math
import signal
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.events import StreamEvents
from cli.generation import sampling_config
from cli.interrupts import Interrupts
from cli.output import JsonWriter, TextWriter
from cli.plot import PerplexityCurve, check_plot
from cli.report import PlainReport, closing_line, stream_summary
from cli.settings import parse_settings
from cli.streams import check_stream, check_whole_answers, is_endless, named_settings, stream_config
from cli.typed import UsageError
from models.errors import SettingsError
from run_streaming import stream
from sample import Token
from sample.perplexity import PerplexityTracker
from sample.stats import Reseed, StreamStats
from sample.summary import SummaryEvent
from tests.commands import ROOT, environment, run, start
from tests.tiny import tiny_checkpoint

PANDA = [
    "inference.image=examples/imgs/panda_climbing.png",
    "inference.prompt=Write a story about this image",
]
STATISTICS = {
    "event",
    "finish_reason",
    "prompt_tokens",
    "image_tokens",
    "new_tokens",
    "time_to_first_token",
    "tokens_per_second",
    "median_latency",
    "p99_latency",
    "perplexity",
    "window_perplexity",
    "surprisal_errors",
    "reseeds",
    "median_pause",
    "longest_pause",
}
FIELDS = {
    "start": {
        "event",
        "model",
        "images",
        "prompt",
        "prompt_tokens",
        "image_tokens",
        "max_new_tokens",
        "seed",
        "policy",
        "context",
        "sinks",
        "tail",
        "summary",
    },
    "token": {"event", "index", "token_id", "text", "logprob", "surprisal"},
    "reseed": {"event", "index", "policy", "sinks", "summary", "tail", "evicted", "pause", "perplexity"},
    "summary": {
        "event",
        "index",
        "status",
        "text",
        "tokens",
        "evicted",
        "seconds",
        "shortened",
        "error",
        "dropped",
    },
    "end": STATISTICS | {"summaries"},
}


def check_events(out: str, *, context: int, tail: int, tokens: int) -> dict[str, list[dict]]:
    """All that must hold for the lines of any stream that is summarised; the lines by kind."""
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        assert set(line) - {"rest"} == FIELDS[line["event"]]
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "end"]
    kinds = {kind: [line for line in lines if line["event"] == kind] for kind in FIELDS}
    assert [len(kinds["start"]), len(kinds["end"])] == [1, 1]
    (begun,), (end,) = kinds["start"], kinds["end"]
    assert (begun["policy"], begun["context"], begun["tail"], begun["summary"]) == (
        "reseed",
        context,
        tail,
        True,
    )
    assert begun["sinks"] == begun["prompt_tokens"] == end["prompt_tokens"]
    assert [line["index"] for line in kinds["token"]] == list(range(tokens))
    assert (end["new_tokens"], end["finish_reason"]) == (tokens, "length")
    check_reseeds(kinds, lines, context)
    check_summaries(kinds, lines, context)
    surprisals = [line["surprisal"] for line in kinds["token"]]
    assert end["surprisal_errors"] == 0
    assert end["perplexity"] == pytest.approx(math.exp(math.fsum(surprisals) / tokens))
    window = surprisals[-256:]
    assert end["window_perplexity"] == pytest.approx(math.exp(math.fsum(window) / len(window)))
    return kinds


def check_reseeds(kinds: dict[str, list[dict]], lines: list[dict], context: int) -> None:
    (begun,), (end,) = kinds["start"], kinds["end"]
    assert len(kinds["reseed"]) == end["reseeds"]
    index, filled = 0, begun["prompt_tokens"]
    for line in kinds["reseed"]:
        # The cache was full: the tokens since the last reseed but for the pending one, on what that had kept.
        assert line["index"] - index == context - filled + 1
        assert line["sinks"] == begun["sinks"]
        assert line["tail"] == begun["tail"]
        own = [t["surprisal"] for t in kinds["token"][index : line["index"]]]
        assert line["perplexity"] == pytest.approx(math.exp(math.fsum(own) / len(own)))
        assert line["pause"] > 0
        following = lines[lines.index(line) + 1]
        assert (following["event"], following["index"]) == ("token", line["index"])
        index, filled = line["index"], line["sinks"] + line["summary"] + line["tail"]
    assert end["longest_pause"] == max((line["pause"] for line in kinds["reseed"]), default=None)


def check_summaries(kinds: dict[str, list[dict]], lines: list[dict], context: int) -> None:
    """Each one that is ready is what the reseeds behind it feed, until the next."""
    (begun,), (end,) = kinds["start"], kinds["end"]
    told = Counter(line["status"] for line in kinds["summary"])
    assert end["summaries"] == {status: told[status] for status in ("ready", "failed", "timeout")}
    budget, current = int(context * 0.4) - begun["sinks"], 0
    for line in lines:
        if line["event"] == "summary" and line["status"] == "ready":
            assert line["text"]
            current = line["tokens"]
            assert 1 <= current <= budget
        elif line["event"] == "summary":
            assert (line["text"], line["tokens"]) == ("", 0)
        elif line["event"] == "reseed":
            assert line["summary"] == current


# Settings


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["stream=endless", "stream.context=256"],
            "stream.tail: sinks of 0 tokens + a tail of 256 = 256; "
            "allowed: up to 255, one less than the context of 256",
        ),
        (
            ["stream=endless", "stream.sinks=1792"],
            "stream.tail: sinks of 1792 tokens + a tail of 256 = 2048; "
            "allowed: up to 2047, one less than the context of 2048",
        ),
        (
            ["stream.policy=shift", "stream.sinks=0", "stream.tail=0"],
            "stream.tail: 0 with stream.sinks=0; allowed: 1 or more of one of them",
        ),
    ],
)
def test_what_cannot_fit_is_said_before_anything_is_loaded(argv, line):
    with pytest.raises(UsageError) as caught:
        check_stream(parse_settings(argv).stream)
    assert str(caught.value) == line


@pytest.mark.parametrize("argv", [[], ["stream=endless"], ["stream.policy=window", "stream.context=64"]])
def test_what_may_fit_is_not_refused(argv):
    check_stream(parse_settings(argv).stream)


def test_whole_answers_have_no_stream_settings_and_no_plot():
    check_whole_answers(parse_settings(["stream=stop", "output=jsonl"]))
    for argv in (["stream=endless"], ["stream.context=512"], ["stream.summary.enabled=false"]):
        with pytest.raises(UsageError, match=r"^stream: run\.py waits for whole answers; allowed: "):
            check_whole_answers(parse_settings(argv))
    with pytest.raises(UsageError, match=r"^output\.plot: "):
        check_whole_answers(parse_settings(["output.plot=a.png"]))


def configured(tiny, *argv):
    return stream_config(parse_settings(argv).stream, tiny(), PlainReport())


def test_the_settings_become_a_stream_config(tiny):
    assert configured(tiny) is None
    stop = configured(tiny, "stream.context=100")
    assert (stop.policy, stop.context, stop.summary) == ("stop", 100, None)
    endless = configured(
        tiny,
        "stream=endless",
        "stream.tail=32",
        "stream.sinks=4",
        "stream.summary.timeout=3",
        "stream.summary.max_tokens=50",
        "stream.summary.sink_ratio=0.3",
    )
    assert (endless.policy, endless.sinks, endless.tail) == ("reseed", 4, 32)
    assert endless.context == tiny().model.context_length == 1024  # less than 2048
    assert (endless.summary.timeout, endless.summary.max_tokens, endless.summary.sink_ratio) == (3, 50, 0.3)


def test_summaries_are_on_where_the_cache_is_reseeded_unless_switched_off(tiny):
    assert configured(tiny, "stream=endless").summary is not None
    assert configured(tiny, "stream=endless", "stream.summary.enabled=false").summary is None
    assert configured(tiny, "stream=endless", "stream.policy=shift").summary is None
    assert configured(tiny, "stream.policy=window").summary is None
    with pytest.raises(SettingsError, match=r"^stream\.summary: the policy is shift; allowed: "):
        configured(tiny, "stream.policy=shift", "stream.summary.enabled=true")


def test_another_checkpoint_may_summarise(tiny, tiny_directory, capsys):
    config = configured(tiny, "stream=endless", f"stream.summary.model={tiny_directory('untied')}")
    assert "loading " in capsys.readouterr().err
    assert config.summary.summarizer._model is not tiny().model
    with pytest.raises(SettingsError, match=r"^stream\.summary: the policy is window"):
        configured(tiny, "stream.policy=window", f"stream.summary.model={tiny_directory('untied')}")


def test_errors_name_the_settings_of_a_stream_as_the_command_line_does():
    for told, named in (
        ("tail: 9", "stream.tail: 9"),
        ("summary.timeout: 0", "stream.summary.timeout: 0"),
        ("stop: stop strings", "stop: stop strings"),
    ):
        with pytest.raises(SettingsError) as caught, named_settings():
            raise SettingsError(told)
        assert str(caught.value) == named


def test_an_endless_stream_has_its_own_defaults_and_the_user_the_last_word(tiny):
    def config(*argv):
        settings = parse_settings(argv)
        return sampling_config(settings.sampling, tiny(), 10, endless=is_endless(settings.stream))

    usual, endless = config(), config("stream=endless")
    assert (usual.ignore_eos, usual.no_repeat_ngram_size, usual.max_new_tokens) == (False, 0, 512)
    assert (endless.ignore_eos, endless.no_repeat_ngram_size) == (True, 6)
    assert endless.max_new_tokens == 2**31 - 1
    assert (endless.eos_id, endless.temperature) == (usual.eos_id, usual.temperature)
    chosen = config(
        "stream=endless",
        "sampling.ignore_eos=false",
        "sampling.no_repeat_ngram_size=0",
        "sampling.max_new_tokens=5000",
    )
    assert (chosen.ignore_eos, chosen.no_repeat_ngram_size, chosen.max_new_tokens) == (False, 0, 5000)


# Events, of a stream that only looks like one


class Told(list):
    """A stream of three tokens with a reseed before the last and a summary before that."""

    def __init__(self):
        self.stats, self.perplexity = StreamStats(5, 2), PerplexityTracker()
        self.summary = SimpleNamespace(events=deque(), counts={"ready": 1, "failed": 1, "timeout": 0})
        self.finish_reason, self.rest, self.reseed = "length", "held", None
        self.top_logprobs, self.surprisal = [], float("nan")

    def __iter__(self):
        for index, surprisal in enumerate((1.0, 3.0, float("nan"))):
            self.reseed = None
            if index == 2:
                self.reseed = Reseed(2, "reseed", 5, 1, 4, 7, 0.25)
                self.stats.reseeds += 1
                self.stats.recent_reseeds.append(self.reseed)
                self.perplexity.mark_reseed()
                self.summary.events.append(SummaryEvent("failed", "", 0, 7, 0.5, error="hung"))
                self.summary.events.append(SummaryEvent("ready", "A panda.", 3, 7, 0.5))
            self.surprisal = surprisal
            if math.isfinite(surprisal):
                self.perplexity.add(surprisal)
            else:
                self.stats.surprisal_errors += 1
            self.stats.record_token()
            yield Token(10 + index, "x", -surprisal)


def told(writer, plot=None):
    stream = Told()
    events = StreamEvents(stream, writer, {"model": "m"}, plot)
    events.start()
    for token in stream:
        events.token(token)
    events.draw()
    return events.end()


def test_events_come_in_order_and_what_is_not_finite_is_null(capsys):
    summary = told(JsonWriter())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == (
        ["start", "token", "token", "summary", "summary", "reseed", "token", "end"]
    )
    assert lines[0] == {"event": "start", "model": "m"}
    assert [line["index"] for line in lines if "index" in line] == [0, 1, 2, 2, 2, 2]
    assert lines[2] == {
        "event": "token",
        "index": 1,
        "token_id": 11,
        "text": "x",
        "logprob": -3.0,
        "surprisal": 3.0,
    }
    assert (lines[3]["status"], lines[3]["error"]) == ("failed", "hung")
    assert (lines[4]["status"], lines[4]["text"], lines[4]["tokens"]) == ("ready", "A panda.", 3)
    assert lines[5]["perplexity"] == pytest.approx(math.exp(2))
    assert (lines[5]["sinks"], lines[5]["summary"], lines[5]["tail"], lines[5]["evicted"]) == (5, 1, 4, 7)
    assert lines[6]["surprisal"] is lines[6]["logprob"] is None
    end = lines[-1]
    assert set(end) == FIELDS["end"] | {"rest"}
    assert (end["rest"], end["reseeds"], end["median_pause"], end["surprisal_errors"]) == ("held", 1, 0.25, 1)
    assert end["perplexity"] == pytest.approx(math.exp(2))
    assert "reseeds: 1, pause median 250 ms | perplexity: 7.39 | summaries: 1 ready, 1 failed" in (
        closing_line(summary)
    )


def test_text_is_the_text_alone(capsys):
    told(TextWriter())
    assert capsys.readouterr().out == "xxxheld\n"


def test_a_stream_without_tokens_has_statistics_and_a_closing_line():
    stream = Told()
    assert stream_summary(stream)["perplexity"] is None
    assert "reseeds" not in closing_line(stream_summary(stream))


# The plot


def test_a_plot_is_drawn_with_its_reseeds(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("perplexity.png", "perplexity.svg"):
        told(JsonWriter(), str(tmp_path / name))
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "perplexity.svg").read_text()
    for part in ("<!-- reseed -->", "<!-- perplexity under the raw model -->", "<!-- latest tokens -->"):
        assert part in drawn


def test_a_stream_without_tokens_still_has_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    PerplexityCurve().draw(str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").exists()


def test_a_plot_of_any_length_has_few_points():
    curve = PerplexityCurve()
    for index in range(100_000):
        curve.add(index, 1.0, 2.0)
        curve.mark_reseed(index)
    for kept in (curve._points.kept, curve._reseeds.kept):
        assert 2048 <= len(kept) <= 8192
        indices = [int(point[0]) for point in kept]
        assert {after - before for before, after in itertools.pairwise(indices)} == {16}


@pytest.mark.parametrize(
    ("path", "part"), [("a.txt", ".png, .svg, .pdf"), ("none/a.png", "writable"), ("d.png", "writable")]
)
def test_a_plot_that_cannot_be_written_is_refused_at_the_start(tmp_path, monkeypatch, path, part):
    monkeypatch.chdir(tmp_path)
    Path("d.png").mkdir()
    with pytest.raises(UsageError, match=r"^output\.plot: ") as caught:
        check_plot(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plot_without_matplotlib_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^output\.plot: needs matplotlib; uv sync --extra plot"):
        check_plot(str(tmp_path / "a.png"))
    check_plot(None)


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endless")
    tiny_checkpoint(folder / "tiny")
    return folder


TINY = ["stream=endless", "stream.context=128", "stream.tail=32", "output=jsonl", "inference.prompt=What?"]


@pytest.mark.slow
def test_a_stream_outlives_its_context(place):
    """It also ends with status 0 while a summary is being made: its programs are still compiling then."""
    arguments = [f"model.name={place / 'tiny'}", *TINY, "sampling.max_new_tokens=400"]
    status, out, notes = run("run_streaming.py", *arguments, cwd=ROOT, env=environment(place / "cache"))
    assert status == 0, notes
    kinds = check_events(out, context=128, tail=32, tokens=400)
    assert len(kinds["reseed"]) >= 3
    closing = notes.splitlines()[-1]
    assert f"reseeds: {len(kinds['reseed'])}, pause median " in closing


def test_a_plot_that_fails_costs_neither_the_end_nor_the_closing_line(place, monkeypatch, capsys):
    def draw(curve, path):
        assert '"start"' in capsys.readouterr().out
        raise OSError("the disk is full")

    monkeypatch.setattr(PerplexityCurve, "draw", draw)
    monkeypatch.setattr("run_streaming.check_plot", lambda path: None)
    argv = [f"model.name={place / 'tiny'}", "output=jsonl", "output.plot=a.png", "sampling.max_new_tokens=2"]
    with pytest.raises(OSError, match="the disk is full"):
        stream(parse_settings(argv), PlainReport(), Interrupts())
    out, err = capsys.readouterr()
    assert json.loads(out)["event"] == "end"
    assert "finish: length" in err.splitlines()[-1]


@pytest.mark.slow
def test_5000_tokens_with_a_picture_on_the_checkpoint_that_ships(tmp_path):
    can_plot = importlib.util.find_spec("matplotlib") is not None
    plot = [f"output.plot={tmp_path / 'perplexity.png'}"] if can_plot else []
    status, out, notes = run(
        "run_streaming.py",
        "stream=endless",
        "sampling.max_new_tokens=5000",
        "stream.context=512",
        "output=jsonl",
        *PANDA,
        *plot,
        cwd=ROOT,
        env=environment(tmp_path),
        timeout=900,
    )
    assert status == 0, notes
    kinds = check_events(out, context=512, tail=256, tokens=5000)
    assert kinds["start"][0]["image_tokens"] == 144
    assert len(kinds["reseed"]) >= 20
    ready = [line for line in kinds["summary"] if line["status"] == "ready"]
    assert ready
    assert any(line["summary"] for line in kinds["reseed"])
    assert max(line["perplexity"] for line in kinds["reseed"]) < 2556  # of guessing among the vocabulary
    if can_plot:
        assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_another_checkpoint_summarises_what_leaves(place, tiny_directory):
    arguments = [f"model.name={place / 'tiny'}", *TINY, "sampling.max_new_tokens=20000"]
    arguments += [f"stream.summary.model={tiny_directory('untied')}", "stream.summary.max_tokens=8"]
    status, out, notes = run("run_streaming.py", *arguments, cwd=ROOT, env=environment(place / "cache"))
    assert status == 0, notes
    kinds = check_events(out, context=128, tail=32, tokens=20000)
    assert kinds["summary"]


@pytest.mark.slow
def test_ctrl_c_ends_an_endless_stream_at_once_also_while_a_summary_is_made(place):
    arguments = [f"model.name={place / 'tiny'}", *TINY]
    process = start("run_streaming.py", *arguments, cwd=ROOT, env=environment(place / "other cache"))
    assert process.stdout is not None
    lines = []
    while '"event": "reseed"' not in (lines[-1] if lines else ""):
        lines.append(process.stdout.readline().decode())
    process.send_signal(signal.SIGINT)
    out, notes = process.communicate(timeout=60)
    assert process.returncode == 130, notes
    end = json.loads(out.decode().splitlines()[-1])
    assert (end["event"], end["finish_reason"]) == ("end", "cancelled")
    assert b"FATAL" not in notes


@pytest.mark.slow
def test_a_python_program_ends_though_a_summariser_hangs(place):
    code = f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
from sample.summary import SummarySidecar
from tests.tokenizer_fixture import build_tokenizer
hang = threading.Event().wait
side = SummarySidecar(lambda *_: hang(), build_tokenizer(), budget=9, timeout=9, image_pad_id=1)
side.summarise([40])
side.close()
"""
    assert run(code, cwd=ROOT, env=environment(place / "cache"), timeout=50) == (0, "", "")


@pytest.mark.slow
def test_a_python_program_ends_while_a_summary_is_made(place):
    code = f"""
import sys, jax, numpy as np
sys.path.insert(0, {str(ROOT)!r})
from models import load_model
from sample import SamplingConfig, StreamConfig, SummaryConfig, sample_streaming
model, params, processor = load_model({str(place / "tiny")!r}, dtype="float32")
config = StreamConfig(context=128, tail=32, summary=SummaryConfig())
sampling = SamplingConfig(max_new_tokens=300)
stream = sample_streaming(model, params, np.arange(20)[None], sampling, jax.random.key(0),
                          tokenizer=processor.tokenizer, stream=config)
print(sum(1 for _ in stream), stream.stats.reseeds)
"""
    status, out, notes = run(code, cwd=ROOT, env=environment(place / "third cache"))
    assert (status, notes) == (0, "")
    assert out.split()[0] == "300"
