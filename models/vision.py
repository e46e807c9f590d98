"""`encode_vision`: pictures of any sizes through the tower, one program per bucket of patches."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from models.decoder import VisionEmbeddings
from models.errors import InputError
from models.levels import Levels, normalised
from models.model import Model


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
    return encode_packed(model, params, *packed(model, pixel_values, grid.astype(np.int64)))


def packed(
    model: Model, pixel_values: Array | np.ndarray | Levels, grid_thw: Int[np.ndarray, "pictures 3"]
) -> tuple[Any, Any, Any]:
    """What `encode_packed` takes, on the host. Raises InputError as `encode_vision` does."""
    patches, table = pixel_values if isinstance(pixel_values, Levels) else (np.asarray(pixel_values), None)
    return *model.pack_pictures(patches, grid_thw), table


@partial(jax.jit, static_argnames="model")
def encode_packed(
    model: Model, params: Any, pixel_values: Array, layout: Any, table: Array | None = None
) -> VisionEmbeddings:
    """`encode_vision` of what `packed` made."""
    if table is not None:
        pixel_values = normalised(pixel_values, table, model.config.vision.patch_dim)
    return model.call("encode_vision", params, pixel_values, layout)
