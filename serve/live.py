"""A stream that a server holds, with what only the server knows of it."""

import asyncio
import time

from serve.job import Job
from serve.stream import Stream


class Live:
    """A stream, its reader's bell, and whose it is."""

    def __init__(self, stream: Stream, job: Job, news: asyncio.Event, owner: str, resumable: bool) -> None:
        self.stream, self.job, self.news = stream, job, news
        self.owner, self.resumable = owner, resumable
        self.told = time.monotonic()  # when its reader last got something
        self.over: float | None = None  # since when it has ended
        self.begun = False  # its first token was seen
        self.slow = False  # its reader was
        self._held_up = (0, 0)

    @property
    def id(self) -> str:
        """Its public name."""
        return self.stream.start.stream

    def held_up(self) -> tuple[int, int]:
        """Credit stalls and reseeds since this was last asked."""
        (stalls, reseeds), now = self._held_up, (self.stream.stalls, self.stream.reseeds)
        self._held_up = now
        return now[0] - stalls, now[1] - reseeds

    def silent(self, seconds: float) -> bool:
        """Whether its reader has got nothing for so long."""
        return time.monotonic() - self.told >= seconds
