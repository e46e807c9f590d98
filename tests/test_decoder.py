"""Pictures are decoded in a process that can be killed; hostile ones cost one clear error each."""

import io
import os
import signal
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from models.errors import InputError
from sample.pictures import open_picture
from serve import decoder as decoder_module
from serve.decoder import Decoder
from serve.prompt import content_key

PIXELS, FRAMES = 200_000, 8


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(2, seconds=20, max_pixels=PIXELS, max_frames=FRAMES)
    decoder.start()
    yield decoder
    decoder.close()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def animation(frames: int, kind: str = "GIF") -> bytes:
    images = [noise(16, 16, seed) for seed in range(frames)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:], loop=0)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose few bytes unfold to black pixels without end."""
    rows = zlib.compress(bytes(min(width * height, 2**24)), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_what_it_is_without_the_process(decoder, kind):
    content = encoded(noise(40, 30), kind)
    found, wanted = decoder.open(content), open_picture(content)
    assert (found.mode, found.size) == ("RGB", wanted.size)
    assert found.tobytes() == wanted.tobytes()


HOSTILE = {
    "bomb": bomb(60_000, 60_000),
    "truncated": encoded(noise(64, 64))[:-400],
    "no picture": b"GIF89a" + bytes(100),
    "empty": b"",
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "one pixel too many": encoded(noise(401, 500)),
    "frames": animation(FRAMES + 1),
    "frames of PNG": animation(FRAMES + 1, "PNG"),
    "frames of WebP": animation(FRAMES + 1, "WEBP"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_one_line_and_the_next_one_works(decoder, name):
    with pytest.raises(InputError) as caught:
        decoder.open(HOSTILE[name])
    assert "\n" not in str(caught.value)
    assert "/" not in str(caught.value)
    assert decoder.open(encoded(noise(8, 8))).size == (8, 8)


def test_what_is_just_allowed_is_decoded(decoder):
    assert decoder.open(encoded(noise(400, 500))).size == (400, 500)
    assert decoder.open(encoded(noise(1, 1))).size == (1, 1)
    for kind in ("GIF", "PNG", "WEBP"):
        assert decoder.open(animation(FRAMES, kind)).size == (16, 16)


def test_equal_bytes_of_another_shape_are_another_picture(decoder):
    values = np.random.default_rng(0).integers(0, 256, 30 * 150 * 3).astype(np.uint8)
    wide, high = (Image.fromarray(values.reshape(shape)) for shape in ((30, 150, 3), (150, 30, 3)))
    found = [decoder.open(encoded(image)) for image in (wide, high)]
    assert found[0].tobytes() == found[1].tobytes()
    assert content_key(found[0]) != content_key(found[1])


SLEEPER = """
import sys, time
sys.stdout.buffer.write(b"\\n"); sys.stdout.buffer.flush()
while header := sys.stdin.buffer.read(8):
    content = sys.stdin.buffer.read(int.from_bytes(header, "little"))
    if content.startswith(b"hang"):
        while True: pass
    if content.startswith(b"raves"):
        sys.stdout.buffer.write(b"\\xff" * 8)
    elif content.startswith(b"ends"):
        sys.exit(1)
    else:
        sys.stdout.buffer.write(b"\\1\\0\\0\\0\\1\\0\\0\\0abc")
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def moody(tmp_path, monkeypatch):
    """A decoder whose process hangs, raves or ends when it is told to."""
    script = tmp_path / "worker.py"
    script.write_text(SLEEPER)
    monkeypatch.setattr(decoder_module, "_WORKER", script)
    decoder = Decoder(1, seconds=0.5, max_pixels=100, max_frames=1)
    yield decoder
    decoder.close()


def test_a_process_that_hangs_raves_or_dies_is_replaced(moody):
    for content in (b"hangs", b"raves", b"ends", b"hang" + bytes(2**20)):
        with pytest.raises(InputError, match=r"takes longer than 0.5 s to decode, or breaks the decoder"):
            moody.open(content)
        assert moody.open(b"fine").tobytes() == b"abc"


def test_a_process_that_was_killed_while_idle_is_not_noticed(moody):
    moody.open(b"fine")
    process = moody._workers[0]._process  # pyright: ignore[reportOptionalMemberAccess]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert moody.open(b"fine").tobytes() == b"abc"


def test_pictures_of_several_threads_do_not_mix(decoder):
    def check(seed: int) -> None:
        image = noise(30 + seed, 20, seed)
        found = [decoder.open(encoded(image)) for _ in range(5)]
        right.append(all(one.tobytes() == image.tobytes() for one in found))

    right: list[bool] = []
    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 6


def test_the_process_imports_no_jax_and_gets_no_secrets(decoder, monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    other = Decoder(1, seconds=20, max_pixels=PIXELS, max_frames=1)
    other.open(encoded(noise(8, 8)))
    pid = other._workers[0]._process.pid  # pyright: ignore[reportOptionalMemberAccess]
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/environ") as environment:
            assert "jaxlib" not in maps.read()
            assert "hunter2" not in environment.read()
    except FileNotFoundError:
        pytest.skip("needs /proc")
    finally:
        other.close()
