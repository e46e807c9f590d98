"""Pictures to tiles, equal to what transformers' PIL backend for SmolVLM makes of them, to the last bit.

A picture is resized until its longer side has `longest_edge` pixels, then to whole tiles, and cut; the last
tile is the whole picture once more, made small. A picture that then fits into one tile is that tile alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image
from transformers import PreTrainedTokenizerFast

from models.errors import CheckpointError
from models.images import number, per_channel, whole_number
from models.levels import Levels, cut, level_table, values
from models.pixels import STORED, stored_pixels

LONGEST_EDGE = 4096  # transformers' limit, in pixels
# What this module does to every picture; a checkpoint that asks for something else is refused.
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 1}


@dataclass(frozen=True)
class TileSettings:
    """How a checkpoint wants its pictures, from preprocessor_config.json.

    `longest_edge` and `tile` are sides in pixels. `mean` and `std` are per channel (R, G, B), for values
    that `rescale_factor` brought to 0..1. A tile has `side` by `side` patches of `patch_size` pixels square;
    pixels that fill no patch are cut off. `scale_factor` squared patches become one token. Without `split`,
    a picture is one tile.
    """

    longest_edge: int
    tile: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    scale_factor: int
    split: bool = True
    rescale_factor: float = 1 / 255

    @classmethod
    def from_dict(
        cls, settings: Mapping[str, Any], source: str, patch_size: int, scale_factor: int
    ) -> "TileSettings":
        """Read `size.longest_edge`, `max_image_size.longest_edge`, `do_image_splitting` and the rest.

        Raises CheckpointError, naming `source` and the key, where a value is missing or impossible.
        """
        for key, value in _FIXED.items():
            if settings.get(key, value) not in (value, None):
                raise CheckpointError(f"{source}: {key} is {settings[key]!r}, only {value!r} is supported")
        longest, tile = (_longest_edge(settings, key, source) for key in ("size", "max_image_size"))
        if longest > LONGEST_EDGE:
            raise CheckpointError(
                f"{source}: size's longest_edge is {longest}, at most {LONGEST_EDGE} is allowed"
            )
        if tile // patch_size < 1 or tile // patch_size % scale_factor:
            raise CheckpointError(
                f"{source}: max_image_size's longest_edge is {tile}, {tile // patch_size} patches a side,"
                f" expected a multiple of config.json's scale_factor, {scale_factor}"
            )
        rescale = settings.get("rescale_factor")
        split = settings.get("do_image_splitting", True)
        if not isinstance(split, bool):
            raise CheckpointError(f"{source}: do_image_splitting is {split!r}, expected true or false")
        return cls(
            longest_edge=longest,
            tile=tile,
            mean=per_channel(settings, "image_mean", source),
            std=per_channel(settings, "image_std", source, above=0.0),
            patch_size=patch_size,
            scale_factor=scale_factor,
            split=split,
            rescale_factor=number(
                1 / 255 if rescale is None else rescale, "rescale_factor", source, above=0.0
            ),
        )

    @property
    def side(self) -> int:
        return self.tile // self.patch_size

    @property
    def tile_tokens(self) -> int:
        return (self.side // self.scale_factor) ** 2

    def slot_tokens(
        self, picture: Image.Image, tokenizer: PreTrainedTokenizerFast, image_pad_id: int
    ) -> Int32[np.ndarray, " T"]:
        """What stands in a prompt where the chat template has one token for the picture.

        Each tile says where it stands, row and column from 1; then comes the whole picture.
        """
        around = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        whole = getattr(tokenizer, "global_image_token", "<global-img>")
        image = tokenizer.convert_ids_to_tokens(image_pad_id)
        rows, columns = self.tiling(picture)
        lines = [
            "".join(f"{around}<row_{r + 1}_col_{c + 1}>{image}" for c in range(columns)) + "\n"
            for r in range(rows)
        ]
        text = "".join([*lines, "\n" if rows else "", f"{around}{whole}{image}{around}"])
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
        return np.repeat(ids, np.where(ids == image_pad_id, self.tile_tokens, 1))

    def tiling(self, picture: Image.Image) -> tuple[int, int]:
        """Rows and columns of the tiles that a picture is cut into; (0, 0) where it is one tile."""
        height, width = self._whole_tiles(*self._resized(picture.height, picture.width))
        rows, columns = height // self.tile, width // self.tile
        return (rows, columns) if self.split and rows * columns > 1 else (0, 0)

    def preprocess(
        self, pictures: Sequence[Image.Image]
    ) -> tuple[Float32[np.ndarray, "patches patch_dim"], Int32[np.ndarray, "tiles 3"]]:
        """Resize, cut, rescale and normalise RGB pictures.

        Returns the patches of all tiles one after another, each (channel, row, column), and each tile's grid
        (1, side, side) in patches: all the same.
        """
        found, grids = self.levels(pictures)
        whole = self.side * self.patch_size
        tiles = found.pixels.reshape(len(grids), whole, whole, STORED)
        patches = [found.pixels[:0], *(cut(tile, self.patch_size) for tile in tiles)]
        return values(np.concatenate(patches), found.table, 1), grids

    def levels(self, pictures: Sequence[Image.Image]) -> tuple[Levels, Int32[np.ndarray, "tiles 3"]]:
        """`preprocess`, to where only the device's part is left: the tiles, still to be cut into patches."""
        tiles = [self._pixels(tile) for picture in pictures for tile in self._tiles(picture)]
        grids = np.tile(np.array([1, self.side, self.side], np.int32), (len(tiles), 1))
        none = np.zeros((0, STORED * self.patch_size**2), np.uint8)
        table = level_table(self.mean, self.std, self.rescale_factor)
        return Levels(np.concatenate([none, *tiles]), table), grids

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The longer side becomes `longest_edge`; the other is made even, upwards."""
        aspect = width / height  # transformers rounds down what it computes from this ratio
        if width >= height:
            shorter = int(self.longest_edge / aspect)
            return max(shorter + shorter % 2, 1), self.longest_edge
        shorter = int(self.longest_edge * aspect)
        return self.longest_edge, max(shorter + shorter % 2, 1)

    def _whole_tiles(self, height: int, width: int) -> tuple[int, int]:
        """Both sides upwards to multiples of a tile, the longer one first."""
        aspect = width / height
        if width >= height:
            width = self._up(width)
            return self._up(int(width / aspect)), width
        height = self._up(height)
        return height, self._up(int(height * aspect))

    def _up(self, pixels: int) -> int:
        return math.ceil(pixels / self.tile) * self.tile

    def _tiles(self, picture: Image.Image) -> list[Image.Image]:
        height, width = self._resized(picture.height, picture.width)
        picture = _resize(picture, height, width)
        if not self.split:
            return [_resize(picture, self.tile, self.tile)]
        picture = _resize(picture, *self._whole_tiles(height, width))
        if picture.size == (self.tile, self.tile):
            return [picture]
        corners = [
            (x, y) for y in range(0, picture.height, self.tile) for x in range(0, picture.width, self.tile)
        ]
        tiles = [picture.crop((x, y, x + self.tile, y + self.tile)) for x, y in corners]
        return [*tiles, _resize(picture, self.tile, self.tile)]

    def _pixels(self, tile: Image.Image) -> UInt8[np.ndarray, "patches features"]:
        whole = self.side * self.patch_size
        return stored_pixels(tile)[:whole, :whole].reshape(self.side**2, -1)


def _resize(picture: Image.Image, height: int, width: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _longest_edge(settings: Mapping[str, Any], key: str, source: str) -> int:
    size = settings.get(key)
    if not isinstance(size, Mapping):
        raise CheckpointError(f"{source}: {key} is {size!r}, expected a longest_edge")
    return whole_number(size, "longest_edge", f"{source}: {key}")
