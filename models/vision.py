"""`encode_vision`: pictures of any sizes through the tower, a program per bucket; many in turns."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.buckets import bucket
from models.decoder import VisionEmbeddings
from models.errors import InputError
from models.levels import Levels, normalised
from models.model import Model

_TOGETHER = 4096  # patches in one turn, of several pictures: each is compared with each


def encode_vision(
    model: Model,
    params: Any,
    pixel_values: Float[Array | np.ndarray, "patches patch_dim"] | Levels,
    grid_thw: Int[Array | np.ndarray, "pictures 3"],
) -> VisionEmbeddings:
    """The decoder's view of one or more pictures.

    Args:
        pixel_values: flat normalised patches of all pictures, in the order of the model's family; or what
            a processor's `levels` gives, which the device normalises: so less is to be copied and sent.
        grid_thw: frames, rows and columns of each picture, in patches.

    Returns:
        `VisionEmbeddings` padded to a bucket; the first tokens count, as many as the pictures have.

    Raises:
        InputError: no grids, grids that the model cannot take, or patches that do not match them.
    """
    grid = np.asarray(grid_thw)
    if grid.ndim != 2 or grid.shape[1] != 3 or not np.issubdtype(grid.dtype, np.integer) or grid.size == 0:
        raise InputError(f"grid_thw: {grid.dtype}{list(grid.shape)}; allowed: integers [pictures, 3], not 0")
    if grid.min() < 1:
        raise InputError(f"grid_thw: {grid.tolist()}; allowed: sizes from 1 up")
    patches, table = (
        pixel_values if isinstance(pixel_values, Levels) else (np.asarray(pixel_values, np.float32), None)
    )
    turns = _turns(patches, grid.astype(np.int64))
    params = model.vision_params(params)
    parts = []
    for turn in turns:
        pixels, layout = model.pack_pictures(*turn)
        # On its way while the other arguments are looked at.
        parts.append(encode_packed(model, params, jax.device_put(pixels), layout, table))
    if len(parts) == 1:
        return parts[0]
    tokens = [int(model.picture_tokens(turn_grid).sum()) for _, turn_grid in turns]
    starts = np.cumsum([0, *(len(part.embeddings) for part in parts[:-1])])
    rows = np.concatenate([start + np.arange(n) for start, n in zip(starts, tokens, strict=True)])
    return _rows_of(parts, np.pad(rows, (0, bucket(len(rows), 1) - len(rows))))


def _turns(
    patches: np.ndarray, grid: Int[np.ndarray, "pictures 3"]
) -> list[tuple[np.ndarray, Int[np.ndarray, "_ 3"]]]:
    """The patches and grids of pictures that go through the tower together; the last turn has the rest."""
    counts = grid.prod(1)
    ends = np.array(_ends_of_turns(counts)[:-1], np.int64)
    cuts = np.cumsum(counts)[ends - 1]
    return list(zip(np.split(patches, cuts), np.split(grid, ends), strict=True))


def _ends_of_turns(patches: Int[np.ndarray, "pictures"]) -> list[int]:
    """The number behind the last picture of each turn."""
    ends, together = [], 0
    for picture, count in enumerate(patches.tolist()):
        if together and together + count > _TOGETHER:
            ends.append(picture)
            together = 0
        together += count
    return [*ends, len(patches)]


@jax.jit
def _rows_of(parts: list[VisionEmbeddings], rows: Int[Array, "M"]) -> VisionEmbeddings:
    """The parts' tokens without the padding between them."""
    return VisionEmbeddings(
        jnp.concatenate([part.embeddings for part in parts])[rows],
        jnp.concatenate([part.deepstack for part in parts], axis=1)[:, rows],
    )


@partial(jax.jit, static_argnames="model")
def encode_packed(
    model: Model, params: Any, pixel_values: Array, layout: Any, table: Array | None = None
) -> VisionEmbeddings:
    """`encode_vision` of what `pack_pictures` made; with the `table` of `Levels`, of their pixels."""
    if table is not None:
        patches = model.cut_pictures(pixel_values, layout)
        pixel_values = normalised(patches, table, model.config.vision.patch_dim)
    return model.call("encode_vision", params, pixel_values, layout)
