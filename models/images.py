"""Pictures to patches, equal to what transformers' PIL backend for Qwen-VL makes of them, to the last bit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from models.errors import CheckpointError, InputError
from models.levels import CHANNELS, Levels, cut, level_table, values
from models.pixels import STORED, stored_pixels

MAX_ASPECT_RATIO = 200
# What this module does to every picture; a checkpoint that asks for something else is refused.
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3}


@dataclass(frozen=True)
class ImageSettings:
    """How a checkpoint wants its pictures, from preprocessor_config.json.

    `min_pixels` and `max_pixels` bound the **area** of the resized picture, in pixels. `mean` and `std` are
    per channel (R, G, B), for values that `rescale_factor` brought to 0..1. A patch is `patch_size` pixels
    square and `temporal_patch_size` frames deep; `merge_size` squared patches become one token.
    """

    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rescale_factor: float = 1 / 255

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str) -> "ImageSettings":
        """Read both dialects: `min_pixels`, `max_pixels`, or `size.shortest_edge`, `size.longest_edge`.

        Raises CheckpointError, naming `source` and the key, where a value is missing or impossible.
        """
        for key, value in _FIXED.items():
            if settings.get(key, value) not in (value, None):
                raise CheckpointError(f"{source}: {key} is {settings[key]!r}, only {value!r} is supported")
        size = settings.get("size") or {}
        if not isinstance(size, Mapping):
            raise CheckpointError(f"{source}: size is {size!r}, expected shortest_edge and longest_edge")
        merged = {
            "min_pixels": size.get("shortest_edge") or size.get("min_pixels"),
            "max_pixels": size.get("longest_edge") or size.get("max_pixels"),
            "rescale_factor": 1 / 255,
        } | {key: value for key, value in settings.items() if value is not None}
        whole = {key: whole_number(merged, key, source) for key in _WHOLE_KEYS}
        if whole["min_pixels"] > whole["max_pixels"]:
            raise CheckpointError(
                f"{source}: min_pixels {whole['min_pixels']} is above max_pixels {whole['max_pixels']}"
            )
        return cls(
            **whole,
            mean=per_channel(merged, "image_mean", source),
            std=per_channel(merged, "image_std", source, above=0.0),
            rescale_factor=number(merged["rescale_factor"], "rescale_factor", source, above=0.0),
        )

    def preprocess(
        self, pictures: Sequence[Image.Image]
    ) -> tuple[Float32[np.ndarray, "patches patch_dim"], Int32[np.ndarray, "pictures 3"]]:
        """See `preprocess`."""
        return preprocess(pictures, self)

    def levels(self, pictures: Sequence[Image.Image]) -> tuple[Levels, Int32[np.ndarray, "pictures 3"]]:
        """See `levels`."""
        return levels(pictures, self)

    def slot_tokens(
        self, picture: Image.Image, tokenizer: Any, image_pad_id: int
    ) -> Int32[np.ndarray, " tokens"]:
        """What stands in a prompt where the chat template has one token for the picture."""
        cells = math.prod(picture_grid(picture, self)) // self.merge_size**2
        return np.full(cells, image_pad_id, np.int32)


_WHOLE_KEYS = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")


def whole_number(settings: Mapping[str, Any], key: str, source: str) -> int:
    """The value of a key, from 1 up. Raises CheckpointError, naming `source` and the key."""
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        given = "missing" if value is None else f"{value!r}"
        raise CheckpointError(f"{source}: {key} is {given}, expected a whole number from 1 up")
    return value


def number(value: Any, key: str, source: str, above: float) -> float:
    """A finite value above a bound. Raises CheckpointError, naming `source` and the key."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or value <= above:
        bound = "a number" if above == -math.inf else f"a number above {above:g}"
        raise CheckpointError(f"{source}: {key} holds {value!r}, expected {bound}")
    return value


def per_channel(
    settings: Mapping[str, Any], key: str, source: str, above: float = -math.inf
) -> tuple[float, float, float]:
    """The three numbers of a key. Raises CheckpointError, naming `source` and the key."""
    values = settings.get(key)
    if not isinstance(values, list | tuple) or len(values) != CHANNELS:
        given = "missing" if values is None else f"{values!r}"
        raise CheckpointError(f"{source}: {key} is {given}, expected {CHANNELS} numbers")
    red, green, blue = (number(value, key, source, above) for value in values)
    return red, green, blue


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size, in pixels, that a picture is resized to: (height, width), both multiples of `factor`.

    The nearest multiples where their area lies within the bounds; otherwise both sides are scaled alike and
    rounded towards the bounds. Python's `round` (half to even), as in transformers' smart_resize.

    Raises InputError where one side is more than MAX_ASPECT_RATIO times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"a picture of {width}x{height} pixels has an aspect ratio of"
            f" {max(height, width) / min(height, width):g}, at most {MAX_ASPECT_RATIO} is allowed"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def picture_grid(picture: Image.Image, settings: ImageSettings) -> tuple[int, int, int]:
    """(t, h, w) of a picture, in patches; `h * w / merge_size**2` tokens. Raises as `smart_resize`."""
    height, width = smart_resize(
        picture.height,
        picture.width,
        factor=settings.patch_size * settings.merge_size,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
    )
    return 1, height // settings.patch_size, width // settings.patch_size


def preprocess(
    pictures: Sequence[Image.Image], settings: ImageSettings
) -> tuple[Float32[np.ndarray, "patches patch_dim"], Int32[np.ndarray, "pictures 3"]]:
    """Resize, rescale, normalise and cut RGB pictures into patches.

    Returns the patches of all pictures one after another, and each picture's grid (t, h, w) in patches.
    Patches run by merge block: block row, block column, row inside, column inside; `patch_dim` is (channel,
    frame, row, column), a still picture's frame repeated.

    Raises InputError for an aspect ratio above MAX_ASPECT_RATIO.
    """
    found, grids = levels(pictures, settings)
    size, parts, begun = settings.patch_size, [found.pixels[:0]], 0
    for _, rows, columns in grids.tolist():
        own = found.pixels[begun : begun + rows * columns].reshape(rows * size, columns * size, STORED)
        parts.append(cut(own, size, settings.merge_size))
        begun += rows * columns
    return values(np.concatenate(parts), found.table, settings.temporal_patch_size), grids


def levels(
    pictures: Sequence[Image.Image], settings: ImageSettings
) -> tuple[Levels, Int32[np.ndarray, "pictures 3"]]:
    """`preprocess`, to where only the device's part is left: resized pictures, to be cut as the grids say."""
    grids = np.array([picture_grid(picture, settings) for picture in pictures], np.int32).reshape(-1, 3)
    parts = [
        _pixels(picture, rows, columns, settings)
        for picture, (_, rows, columns) in zip(pictures, grids.tolist(), strict=True)
    ]
    none = np.zeros((0, STORED * settings.patch_size**2), np.uint8)
    pixels = parts[0] if len(parts) == 1 else np.concatenate([none, *parts])
    return Levels(pixels, level_table(settings.mean, settings.std, settings.rescale_factor)), grids


def _pixels(
    picture: Image.Image, rows: int, columns: int, settings: ImageSettings
) -> UInt8[np.ndarray, "patches features"]:
    size = (columns * settings.patch_size, rows * settings.patch_size)
    resized = picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
    return stored_pixels(resized).reshape(rows * columns, -1)
