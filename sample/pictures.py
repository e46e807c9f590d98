"""Pictures of any common kind, opened safely, as 8-bit RGB."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from typing import TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from models.errors import InputError

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

MAX_IMAGE_PIXELS = 100_000_000
"""Default limit on the decoded size of one picture, in pixels: 300 MB as RGB."""

# What Pillow's decoders raise for a broken file.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# Pillow hands these to an interpreter, which a stranger's file must not reach.
_REFUSED_FORMATS = {"EPS"}
# glibc gives large blocks back to the system as they are freed, and the system clears them page by page when
# they are needed again: for a picture of 1024x1024 that takes longer than decoding it. The largest block that
# was freed tells glibc what to keep (mallopt(3), M_MMAP_THRESHOLD), 32 MiB at most. Here is one, untouched.
bytes(32 * 2**20 - 2**16)
# warnings.catch_warnings is not thread-safe.
_warnings_lock = threading.Lock()


def open_picture(
    source: Picture, *, max_pixels: int = MAX_IMAGE_PIXELS, max_frames: int | None = None
) -> Image.Image:
    """Open a picture and bring it to RGB.

    `source` is a path, the bytes of a file, a PIL image, or a uint8 array [height, width, 3],
    [height, width, 4] or [height, width]. An RGB picture keeps its values. Of an animation the first frame
    is taken. EXIF rotation is applied, transparency laid over white (as transformers does). 16-bit greys are
    scaled to 8 bits, 32-bit ones too, as if they were of 16; floats count as 0..1 where none is larger, else
    as 0..255.

    Raises InputError, in one line that names the source, where it is missing, a folder, empty, truncated,
    not a picture, or of more than `max_pixels` pixels (its header tells, before anything is decoded) or
    `max_frames` frames.
    """
    name = picture_name(source)
    with _warnings_lock, warnings.catch_warnings():
        # Pillow warns of large pictures by a limit of its own, and of metadata that nothing here reads.
        warnings.simplefilter("ignore")
        try:
            if isinstance(source, Image.Image):
                opened = _rgb(source, name, max_pixels)
                return source.copy() if opened is source else opened  # the caller's own stays the caller's
            if isinstance(source, np.ndarray):
                return _rgb(_from_array(source, name), name, max_pixels)
            with Image.open(_file(source, name)) as image:
                _check_frames(image, name, max_frames)
                return _rgb(image, name, max_pixels)
        except InputError:
            raise
        except Image.DecompressionBombError:  # far beyond Pillow's own limit: it opens no such file
            allowed = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
            raise InputError(f"{name}: too many pixels, at most {allowed} are allowed") from None
        except UnidentifiedImageError:
            raise InputError(f"{name}: not a picture in a known format") from None
        except _DECODER_ERRORS as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{name}: cannot be decoded ({reason})") from None


def picture_name(source: Picture) -> str:
    """What messages call a picture: its path, or its kind. Raises InputError for what is no picture."""
    if isinstance(source, str | os.PathLike):
        return repr(os.fspath(source))
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image {source.mode} {source.width}x{source.height}"
    if isinstance(source, np.ndarray):
        return f"{source.dtype} array {list(source.shape)}"
    raise InputError(
        f"{type(source).__name__}: not a picture; allowed: a path, the bytes of a file, a PIL image, an array"
    )


def _file(source: str | os.PathLike[str] | bytes, name: str) -> str | io.BytesIO:
    """What Pillow may open without waiting: a regular file that holds something, or bytes."""
    if isinstance(source, bytes):
        if not source:
            raise InputError(f"{name}: empty")
        return io.BytesIO(source)
    try:
        status = os.stat(source)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name}: a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name}: not a regular file")
    if status.st_size == 0:
        raise InputError(f"{name}: an empty file")
    return os.fspath(source)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    channels = array.shape[2:] if array.ndim in (2, 3) else None
    if array.dtype != np.uint8 or channels not in ((), (3,), (4,)) or 0 in array.shape:
        raise InputError(
            f"{name}: not a picture; allowed: uint8 [height, width, 3], [height, width, 4] or [height, width]"
        )
    return Image.fromarray(array)


def _rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height} are {width * height} pixels, at most {max_pixels} are allowed"
        )
    if width * height == 0:
        raise InputError(f"{name}: has no pixels")
    if image.format in _REFUSED_FORMATS:
        raise InputError(f"{name}: {image.format} files are programs, not pictures")
    image.load()
    return _to_rgb(_upright(image))


def _check_frames(image: Image.Image, name: str, allowed: int | None) -> None:
    if allowed is not None and (frames := getattr(image, "n_frames", 1)) > allowed:
        raise InputError(f"{name}: {frames} frames, at most {allowed} are allowed")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its metadata says; itself where nothing is to be turned, which Pillow would copy."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except _DECODER_ERRORS:  # broken metadata around sound pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    if levels.dtype.kind == "f":
        finite = np.nan_to_num(levels, nan=0.0)
        brightest = 1.0 if finite.max() <= 1.0 else 255.0
        return np.rint(finite.clip(0.0, brightest) * (255.0 / brightest)).astype(np.uint8)
    # 65535 = 255 * 257: the nearest of 256 levels.
    return ((levels.clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
