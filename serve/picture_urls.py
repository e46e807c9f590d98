"""From the `image_url`s of a request to pictures: out of the request itself, or fetched; then decoded."""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from models.errors import InputError
from serve.decoder import Decoder
from serve.fetch import Fetcher
from serve.prepare import RequestLimits
from serve.problems import Problem

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE | re.ASCII)
_HTTP_URL = re.compile(r"https?:", re.IGNORECASE)
_DECODERS = 2  # processes


class PictureOpener:
    """Opens pictures off the event loop."""

    def __init__(self, limits: RequestLimits, fetcher: Fetcher) -> None:
        self._limits, self._fetcher = limits, fetcher
        self._pool = ThreadPoolExecutor(
            _DECODERS, thread_name_prefix="decode"
        )  # which wait for the processes
        self._decoder = Decoder(
            _DECODERS,
            seconds=limits.picture_ms / 1e3,
            max_pixels=limits.picture_pixels,
            max_frames=limits.picture_frames,
        )

    def start(self) -> None:
        """Start what decodes before it is needed."""
        self._decoder.start()

    def close(self) -> None:
        """End what decodes."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()

    async def open(self, urls: Sequence[str]) -> list[Image.Image]:
        """The pictures, as RGB.

        Raises:
            Problem: a URL of no kind that is allowed, no picture, or more than the limits allow.
        """
        pictures: list[Image.Image] = []
        for url in urls:
            content = await self._fetcher.fetch(url) if self._fetched(url) else url
            pictures.append(await self._run(content))
            pixels = sum(picture.width * picture.height for picture in pictures)
            if pixels > self._limits.picture_pixels:
                raise _too_much(f"pictures of {pixels} pixels; allowed: up to {self._limits.picture_pixels}")
        return pictures

    def _fetched(self, url: str) -> bool:
        return self._fetcher.enabled and _HTTP_URL.match(url) is not None

    async def _run(self, source: str | bytes) -> Image.Image:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._decoded, source)

    def _decoded(self, source: str | bytes) -> Image.Image:
        content = embedded(source, self._limits.picture_bytes) if isinstance(source, str) else source
        try:
            return self._decoder.open(content)
        except InputError as error:
            raise Problem(400, "invalid_image", f"image_url: {error}", param="messages") from None


def embedded(url: str, most: int) -> bytes:
    """The file in a `data:` URL, of `most` bytes at most.

    Raises:
        Problem: another URL, no base64, or a larger file.
    """
    found = _DATA_URL.match(url)
    if found is None:
        scheme = url[:40].partition(":")[0]
        raise _invalid(f"a URL of the scheme {scheme!r}; allowed: data:image/...;base64,...")
    if (len(url) - found.end()) * 3 // 4 > most + 2:
        raise _too_much(f"a picture of more than {most} bytes")
    try:
        content = base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("no valid base64") from None
    if len(content) > most:
        raise _too_much(f"a picture of {len(content)} bytes; allowed: up to {most}")
    return content


def _invalid(what: str) -> Problem:
    return Problem(400, "invalid_image_url", f"image_url: {what}", param="messages")


def _too_much(what: str) -> Problem:
    return Problem(400, "limit_exceeded", f"image_url: {what}", param="messages")
