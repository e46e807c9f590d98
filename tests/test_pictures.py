"""Every kind of picture opens as RGB; what is none is one line."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, features

from models.errors import InputError
from sample.pictures import open_picture

RAMP = np.stack(np.broadcast_arrays(*np.ogrid[:40, :60], np.array(90)), axis=-1).astype(np.uint8) * (1, 2, 1)
RGB = Image.fromarray(RAMP.astype(np.uint8))


AVIF = ["AVIF"] if features.check("avif") else []


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source, **options) -> np.ndarray:
    image = open_picture(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_files_keep_their_values(tmp_path, kind):
    path = tmp_path / "a picture"
    path.write_bytes(encoded(RGB, kind))
    np.testing.assert_array_equal(pixels(path), np.asarray(RGB))
    np.testing.assert_array_equal(pixels(str(path)), np.asarray(RGB))
    np.testing.assert_array_equal(pixels(path.read_bytes()), np.asarray(RGB))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000"])
def test_lossy_files_open(kind):
    data = encoded(RGB, kind)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


def test_pil_images_and_arrays_are_taken_as_they_are():
    np.testing.assert_array_equal(pixels(RGB), np.asarray(RGB))
    np.testing.assert_array_equal(pixels(np.asarray(RGB)), np.asarray(RGB))
    np.testing.assert_array_equal(pixels(np.asarray(RGB)[::-1, ::2]), np.asarray(RGB)[::-1, ::2])
    grey = np.asarray(RGB)[..., 0]
    np.testing.assert_array_equal(pixels(grey), np.stack([grey] * 3, -1))


def test_the_callers_image_stays_open_and_unchanged():
    image = Image.open(io.BytesIO(encoded(RGB.quantize(8), "PNG")))
    open_picture(image)
    assert image.mode == "P"
    assert image.getpixel((0, 0)) is not None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_what_is_made_of_the_callers_image_is_another(mode):
    image = RGB.convert(mode)
    made = open_picture(image)
    image.paste("red", (0, 0, *image.size))
    np.testing.assert_array_equal(np.asarray(made), np.asarray(RGB))


def test_one_pixel():
    np.testing.assert_array_equal(pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), [[[1, 2, 3]]])


def test_palette():
    palette = RGB.quantize(16)
    np.testing.assert_array_equal(pixels(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_palette_with_transparency_lies_over_white():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    data = encoded(image, "PNG", transparency=bytes([255, 0, 128]))
    solid, clear, half = pixels(data)[0].tolist()
    assert solid == [10, 20, 30]
    assert clear == [255, 255, 255]
    np.testing.assert_allclose(half, [70 / 2 + 127, 80 / 2 + 127, 90 / 2 + 127], atol=1.5)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 100, 200, 51), (204, 224, 244)),
        ("LA", (50, 0), (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
    ],
)
def test_alpha_lies_over_white(mode, colour, expected):
    image = Image.new(mode, (2, 2), colour)
    assert tuple(pixels(encoded(image, "PNG"))[0, 0]) == expected
    assert tuple(pixels(image)[0, 0]) == expected


def test_alpha_of_arrays_lies_over_white():
    np.testing.assert_array_equal(pixels(np.zeros((2, 2, 4), np.uint8)), np.full((2, 2, 3), 255))


def test_a_transparent_colour_of_an_rgb_file_lies_over_white():
    data = encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert pixels(data).tolist() == [[[255, 255, 255]]]


def test_sixteen_bits_are_scaled():
    levels = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    expected = np.rint(levels / 65535 * 255)
    for data in (encoded(Image.fromarray(levels), "PNG"), encoded(Image.fromarray(levels), "TIFF")):
        np.testing.assert_array_equal(pixels(data)[..., 0], expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(levels.astype(np.int32)))[..., 2], expected)
    ppm = b"P5 7 1 65535\n" + levels.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(ppm)[..., 1], expected)


def test_floats_are_scaled():
    unit = np.array([[0.0, 0.5, 1.0, np.nan, -3.0]], np.float32)
    assert pixels(encoded(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    wide = np.array([[0.0, 100.0, 255.0, 900.0]], np.float32)
    assert pixels(Image.fromarray(wide))[0, :, 0].tolist() == [0, 100, 255, 255]


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert pixels(encoded(image, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert abs(pixels(encoded(image, "JPEG"))[0, 0].astype(int) - [255, 0, 0]).max() <= 3


def test_one_bit():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = np.asarray(RGB)
    if orientation in (3, 4):
        turned = turned[::-1]
    if orientation in (2, 3):
        turned = turned[:, ::-1]
    if orientation >= 5:
        turned = turned.transpose(1, 0, 2)
        turned = turned[::-1] if orientation in (7, 8) else turned
        turned = turned[:, ::-1] if orientation in (6, 7) else turned
    np.testing.assert_array_equal(pixels(encoded(RGB, "PNG", exif=exif)), turned)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\x00\x00no TIFF header", b"Exif\x00\x00MM\x00*"], ids=repr)
def test_broken_exif_is_no_reason_to_refuse(kind, exif):
    assert pixels(encoded(RGB, kind, exif=exif)).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert pixels(data)[4, 4].tolist() == [255, 0, 0]


def test_rgb_and_alpha_are_what_transformers_makes_of_them():
    from transformers.image_transforms import convert_to_rgb

    half_clear = Image.fromarray(np.dstack([np.asarray(RGB), np.asarray(RGB)[..., 1]]))
    for image in (RGB, half_clear, RGB.quantize(9), RGB.convert("L"), RGB.convert("CMYK"), RGB.convert("1")):
        np.testing.assert_array_equal(pixels(image), convert_to_rgb(image, return_numpy=True))


def one_line(source, **options) -> str:
    with pytest.raises(InputError) as caught:
        open_picture(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_no_file(tmp_path):
    assert one_line(tmp_path / "none.png") == f"'{tmp_path}/none.png': no such file"
    assert one_line(str(tmp_path)) == f"'{tmp_path}': a folder, not a picture"
    assert "cannot be decoded" in one_line("a\0b.png")
    assert "cannot be decoded" in one_line("x" * 5000)
    assert one_line("two\nlines.png") == r"'two\nlines.png': no such file"
    os.mkfifo(tmp_path / "pipe.png")
    assert one_line(tmp_path / "pipe.png").endswith("pipe.png': not a regular file")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"This is a text about a picture.", "not a picture in a known format"),
        (b"\x89PNG\r\n\x1a\n", "not a picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS files are programs"),
    ],
    ids=["empty", "text", "only a signature", "a program"],
)
def test_what_is_no_picture(tmp_path, content, reason):
    path = tmp_path / "thing.png"
    path.write_bytes(content)
    assert one_line(path).startswith(f"'{path}': {reason}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    assert one_line(whole[: len(whole) // 2]).startswith(f"picture of {len(whole) // 2} bytes: ")


def test_nothing_but_an_input_error_for_broken_files():
    rng = np.random.default_rng(1)
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX", "JPEG2000", *AVIF):
        whole = encoded(RGB, kind)
        for _ in range(60):
            broken = np.frombuffer(whole, np.uint8).copy()
            spots = rng.integers(0, min(len(broken), 200), 6)
            broken[spots] = rng.integers(0, 256, 6)
            try:
                open_picture(broken.tobytes()[: rng.integers(8, len(broken) + 1)], max_pixels=100_000)
            except InputError:
                refused += 1
    assert refused > 100


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, without the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header():
    # 144 million pixels: Pillow would warn; 400 million: Pillow would raise an exception of its own.
    message = one_line(bomb(12000, 12000))
    assert message.endswith("12000x12000 are 144000000 pixels, at most 100000000 are allowed")
    assert one_line(bomb(20000, 20000)).endswith("too many pixels, at most 100000000 are allowed")


def test_the_limit_is_the_callers():
    assert pixels(encoded(RGB, "PNG"), max_pixels=2400).shape == (40, 60, 3)
    for source in (encoded(RGB, "PNG"), RGB, np.asarray(RGB)):
        message = one_line(source, max_pixels=2399)
        assert message.endswith(": 60x40 are 2400 pixels, at most 2399 are allowed")


def test_a_limit_above_pillows_own_lets_large_pictures_through(monkeypatch):
    data = encoded(RGB, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns of our 2400 pixels from here on
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    assert pixels(data).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 array [4, 4, 3]: not a picture; allowed: uint8"),
        (np.zeros((4, 4, 2), np.uint8), "uint8 array [4, 4, 2]: not a picture"),
        (np.zeros((2, 4, 4, 3), np.uint8), "uint8 array [2, 4, 4, 3]: not a picture"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 array [0, 4, 3]: not a picture"),
        (Image.new("RGB", (0, 3)), "PIL image RGB 0x3: has no pixels"),
        (b"", "picture of 0 bytes: empty"),
        (7, "int: not a picture; allowed: a path"),
        (None, "NoneType: not a picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_a_picture(source, reason):
    assert one_line(source).startswith(reason)


def test_threads_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    data = encoded(RGB, "PNG")
    with ThreadPoolExecutor(8) as pool:
        shapes = {image.size for image in pool.map(open_picture, [data] * 64)}
    assert shapes == {(60, 40)}
    assert list(warnings.filters) == before
