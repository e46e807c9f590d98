"""A process that turns pictures' files into RGB, and may be killed at any time. `serve/decoder.py` starts it.

Standard output begins with a byte, when it is ready. Then comes on standard input: 8 bytes of length and a
file; and goes out: width and height, 4 bytes each, and the pixels; or two zeros, 8 bytes of length, and a
line that says what is wrong. Arguments: the most pixels, the most frames, and the seconds for one picture
after which it ends itself, should nobody be left to kill it.
"""

import resource
import signal
import struct
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
_BYTES_PER_PIXEL = 40  # with all that is held at once on the way from a file to RGB
_BESIDE = 256 * 2**20  # bytes of memory for everything else


def main() -> None:
    max_pixels, max_frames, seconds = map(int, sys.argv[1:])
    _without_jax()
    from models.errors import InputError  # noqa: PLC0415
    from sample.pictures import open_picture  # noqa: PLC0415

    _limit_memory(max_pixels)
    files, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"\n")
    answers.flush()
    while header := files.read(8):
        content = files.read(*struct.unpack("<Q", header))
        signal.alarm(seconds)
        try:
            image = open_picture(content, max_pixels=max_pixels, max_frames=max_frames)
        except InputError as error:
            line = str(error).encode()[:1000]
            answers.write(struct.pack("<IIQ", 0, 0, len(line)) + line)
        else:
            answers.write(struct.pack("<II", *image.size))
            answers.write(image.tobytes())
        answers.flush()
        signal.alarm(0)


def _without_jax() -> None:
    """The packages' own `__init__` import JAX, which takes a second and opens the device: go round them."""
    for name in ("models", "sample"):
        package = ModuleType(name)
        package.__path__ = [str(ROOT / name)]
        sys.modules[name] = package


def _limit_memory(max_pixels: int) -> None:
    pages = Path("/proc/self/statm")  # Linux; elsewhere the limits of pixels and time have to do
    if not pages.exists():
        return
    used = int(pages.read_text().split()[0]) * resource.getpagesize()
    allowed = used + _BESIDE + _BYTES_PER_PIXEL * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


if __name__ == "__main__":
    main()
