"""What time does to a server's streams, with stand-ins for all that a server is besides."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from serve import keeper as keeper_module
from serve.adaptive_limit import AdaptiveLimit, LimitConfig
from serve.events import Start
from serve.job import Piece
from serve.keeper import Keeper
from serve.live import Live
from serve.metrics import Metrics
from serve.observer import Observer
from serve.stream import Stream
from serve.stream_rules import StreamRules


class Counted:
    """Metrics and an observer that remember what they hear."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.heard.append(name if name != "gaps" else f"{len(given[0])} gaps")

    def held_up(self, stalls: int, reseeds: int) -> None:
        self.heard += ["stall"] * stalls + ["reseed"] * reseeds


def kept(*streams: Stream) -> tuple[Keeper, dict[str, Live], Counted]:
    job: Any = None
    live = {s.start.stream: Live(s, job, asyncio.Event(), "", True) for s in streams}
    counted: Any = Counted()
    engine: Any = SimpleNamespace(figures=SimpleNamespace(running=0), limit=1)
    limit: Any = SimpleNamespace(
        adjust=lambda *_: 1,
        **{name: SimpleNamespace(add=lambda *_: None) for name in ("queued", "ttft", "lasting")},
    )
    return Keeper(live, engine, limit, counted, counted), live, counted


def stream(name: str) -> Stream:
    return Stream(Start(name, "model", 0, 3, 0))


def answer(of: Stream) -> None:
    of.prefilling()
    for token in range(3):
        of.push(Piece(token, "a", -1.0, []))
    of.finish("length", "")


def test_what_comes_between_two_looks_is_counted_at_the_end():
    whole = stream("s-1")
    keeper, _, counted = kept(whole)
    answer(whole)
    keeper.settle()
    assert [h for h in counted.heard if h != "0 gaps"] == ["2 gaps", "begun", "ended", "ended"]
    keeper.settle()
    assert counted.heard.count("ended") == 2  # the metrics and the observer, once each


def test_an_ended_stream_is_kept_for_a_while_and_then_forgotten():
    over, running = stream("s-1"), stream("s-2")
    keeper, live, _ = kept(over, running)
    answer(over)

    async def look(retained: float) -> None:
        looking = asyncio.create_task(keeper.run(60.0, retained, None))
        await asyncio.sleep(0.2)
        looking.cancel()

    asyncio.run(look(60.0))
    assert set(live) == {"s-1", "s-2"}
    asyncio.run(look(0.01))
    assert set(live) == {"s-2"}


class Kept:
    """A keeper with real metrics and a real limit, over an engine that only has figures, on one clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: int = 10) -> None:
        self.now = 0.0
        monkeypatch.setattr(keeper_module, "_TICK", 0)
        monkeypatch.setattr(keeper_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.woken: list[int] = []
        self.engine: Any = SimpleNamespace(
            figures=SimpleNamespace(running=running), limit=10, wake=lambda: self.woken.append(1)
        )
        unread: Any = None
        self.metrics = Metrics(unread)
        self.limit = AdaptiveLimit(LimitConfig(initial=10, interval=2.0), self.now)
        self.live: dict[str, Live] = {}
        self.keeper = Keeper(self.live, self.engine, self.limit, self.metrics, Observer())

    def stream(self, rules: StreamRules | None = None) -> Stream:
        made = Stream(Start(f"s-{len(self.live)}", "model", 0, 3, 0), rules, clock=lambda: self.now)
        job: Any = None
        self.live[made.start.stream] = Live(made, job, asyncio.Event(), "", True)
        return made

    def look(self, seconds: int) -> None:
        """Once a second."""

        async def run() -> None:
            looking = asyncio.create_task(self.keeper.run(600.0, 600.0, None))
            await asyncio.sleep(0)
            for _ in range(seconds):
                self.now += 1
                await asyncio.sleep(0)
            looking.cancel()

        asyncio.run(run())

    def figure(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


def token(of: Stream) -> None:
    of.push(Piece(7, "a", -1.0, []))


def begin(kept: Kept, first_token: float) -> Stream:
    """A stream whose prompt takes so many seconds."""
    made = kept.stream()
    made.prefilling()
    kept.now += first_token
    token(made)
    return made


@pytest.mark.parametrize(("first_token", "limit"), [(0.5, 15), (3.0, 8)], ids=["fast", "slow"])
def test_the_engines_limit_follows_how_fast_streams_begin(monkeypatch, first_token, limit):
    kept = Kept(monkeypatch)
    begin(kept, first_token)
    kept.keeper.settle()  # it has been seen before the interval is over
    kept.now = 3.0
    kept.look(1)
    assert (kept.engine.limit, kept.woken) == (limit, [1])


def test_the_engines_limit_follows_how_long_streams_wait(monkeypatch):
    kept = Kept(monkeypatch, running=5)  # too few to raise it, and enough not to lower it
    waiting = kept.stream()
    kept.look(1)
    assert kept.engine.limit == 10
    waiting.prefilling()
    token(waiting)
    kept.look(4)
    assert kept.engine.limit == 15


def test_what_holds_a_stream_up_is_counted_while_it_runs(monkeypatch):
    kept = Kept(monkeypatch)
    running = kept.stream(StreamRules(max_unacked_chunks=1, ack_timeout=600.0, deadline=600.0))
    running.attach()
    running.prefilling()
    token(running)
    running.reseeding()
    kept.look(1)
    assert (
        kept.figure("saccade_stream_credit_stalls_total") == kept.figure("saccade_stream_reseeds_total") == 1
    )
    running.ack(2)
    token(running)
    kept.look(1)
    running.cancel()
    kept.look(2)
    assert kept.figure("saccade_stream_credit_stalls_total") == 2
    assert kept.figure("saccade_stream_reseeds_total") == 1


def test_a_slow_reader_is_logged_and_counted_once(monkeypatch, caplog):
    kept = Kept(monkeypatch)
    rules = StreamRules(slow_consumer=2.0, deadline=600.0)
    for slow in (True, False):
        running = kept.stream(rules)
        running.attach()
        running.prefilling()
        token(running)
        if not slow:
            running.ack(2)
    with caplog.at_level(logging.WARNING):
        kept.look(2)
        assert (kept.figure("saccade_slow_consumers_total"), caplog.messages) == (0, [])
        kept.look(9)
    assert kept.figure("saccade_slow_consumers_total") == 1
    assert caplog.messages == ["slow consumer: stream s-0, 1 unacked"]


def test_tokens_of_all_streams_are_counted_by_the_second(monkeypatch):
    kept = Kept(monkeypatch)
    for _ in range(2):
        running = kept.stream()
        running.prefilling()
        for _ in range(3):
            token(running)
    kept.look(1)
    assert kept.figure("saccade_stream_throughput") == 6
    kept.look(1)
    assert kept.figure("saccade_stream_throughput") == 0


@pytest.mark.parametrize("reason", ["repetition", "length"])
def test_an_end_in_a_loop_is_counted_apart(monkeypatch, reason):
    kept = Kept(monkeypatch)
    begin(kept, 1.0).finish(reason, "")
    kept.look(1)
    assert kept.figure("saccade_stream_loop_blocks_total") == (reason == "repetition")
