"""From the engine's thread to the event loop: which streams have news, in one call per step."""

import asyncio
import contextlib
import threading


class Handoff:
    """Wakes readers on the loop in which it is made. What they read waits in the streams, not here.

    Of two threads: the loop's and the engine's.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._marked: dict[int, asyncio.Event] = {}  # as many as there are streams

    def mark(self, news: asyncio.Event) -> None:
        """Whoever waits for `news` will be woken: at once on the loop, by the next `flush` elsewhere."""
        if threading.get_ident() == self._thread:
            news.set()
        else:
            self._marked[id(news)] = news

    def flush(self) -> None:
        """Wake all that were marked. By the engine's thread, behind a step."""
        if not self._marked:
            return
        marked, self._marked = self._marked, {}
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so nobody waits
            self._loop.call_soon_threadsafe(_set_all, marked)


def _set_all(marked: dict[int, asyncio.Event]) -> None:
    for news in marked.values():
        news.set()
