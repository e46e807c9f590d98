"""What time does to a server's streams, with stand-ins for all that a server is besides."""

import asyncio
from types import SimpleNamespace
from typing import Any

from serve.events import Start
from serve.job import Piece
from serve.keeper import Keeper
from serve.live import Live
from serve.stream import Stream


class Counted:
    """Metrics and an observer that remember what they hear."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.heard.append(name if name != "gaps" else f"{len(given[0])} gaps")


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
