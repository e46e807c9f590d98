"""The engine's thread wakes readers on the event loop, once a step."""

import asyncio
import threading

from serve.handoff import Handoff


def in_a_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_readers_are_woken_together_behind_a_step(monkeypatch):
    async def main() -> None:
        handoff, news = Handoff(), [asyncio.Event() for _ in range(3)]
        calls = []
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *arguments: (calls.append(1), original(*arguments))
        )

        def step() -> None:
            for event in (*news, news[0]):
                handoff.mark(event)
            assert not calls
            handoff.flush()
            handoff.flush()

        in_a_thread(step)
        assert len(calls) == 1
        await asyncio.gather(*(event.wait() for event in news))

    asyncio.run(main())


def test_on_the_loop_itself_a_reader_is_woken_at_once():
    async def main() -> None:
        news = asyncio.Event()
        Handoff().mark(news)
        assert news.is_set()

    asyncio.run(main())


def test_a_loop_that_is_closed_does_not_hurt_the_engine():
    async def main() -> tuple[Handoff, asyncio.Event]:
        return Handoff(), asyncio.Event()

    handoff, news = asyncio.run(main())
    in_a_thread(lambda: (handoff.mark(news), handoff.flush()))
