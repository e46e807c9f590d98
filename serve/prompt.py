"""A stream's prompt on the host, before anything of it is on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from jaxtyping import Int32
from PIL import Image

from models.levels import Levels
from models.model import Model
from models.processor import Processor
from sample.inputs import with_picture_tokens
from sample.request import padded_prompt
from sample.step import Prompt


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture's patches, and what it is known by.

    Attributes:
        key: equal for pictures of the same content and owner, and for no others.
        levels: its patches.
        grid_thw: int [grids, 3], frames, rows and columns in patches; a family may cut a picture into tiles.
    """

    key: bytes
    levels: Levels
    grid_thw: Int32[np.ndarray, "grids 3"]


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """Token ids [T] with all picture tokens, the pictures in their order, and whose they are."""

    tokens: Int32[np.ndarray, " T"]
    pictures: tuple[PreparedPicture, ...] = ()
    owner: str = ""

    @property
    def grid_thw(self) -> Int32[np.ndarray, "grids 3"]:
        """The grids of all pictures."""
        return np.concatenate([np.zeros((0, 3), np.int32), *(p.grid_thw for p in self.pictures)])

    def padded(self, model: Model) -> Prompt:
        """One row, without padding, with its positions."""
        return padded_prompt(model, self.grid_thw, [self.tokens], 0, len(self.tokens))


def prepare_prompt(
    model: Model,
    processor: Processor,
    ids: list[int],
    pictures: Sequence[Image.Image] = (),
    owner: str = "",
) -> PreparedPrompt:
    """From a chat's ids, with one `image_pad_id` for each picture, and RGB pictures. Host only, any thread.

    Args:
        owner: with whom alone the caches share what they keep of it: what is faster would tell others that
            it was asked before.

    Raises:
        InputError: a picture that the family cannot take, or more tokens than fit the model's context.
    """
    tokens = with_picture_tokens(model, processor, ids, pictures)
    prepared = tuple(prepare_picture(processor, picture, owner) for picture in pictures)
    return PreparedPrompt(tokens, prepared, owner)


def prepare_picture(processor: Processor, picture: Image.Image, owner: str = "") -> PreparedPicture:
    """An RGB picture's patches and key. Raises InputError for one that the family cannot take."""
    return PreparedPicture(content_key(picture, owner), *processor.images.levels([picture]))


def content_key(picture: Image.Image, owner: str = "") -> bytes:
    """A hash of a picture's owner, mode, size and bytes: 30x150 is not 150x30, whatever the bytes."""
    head = f"{owner} {picture.mode} {picture.size}\n"
    return blake3(head.encode()).update(picture.tobytes()).digest()
