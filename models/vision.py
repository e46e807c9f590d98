"""`encode_vision`: pictures of any sizes through the tower, one program per bucket of patches."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from models.decoder import VisionEmbeddings
from models.errors import InputError
from models.model import Model


def encode_vision(
    model: Model,
    params: Any,
    pixel_values: Float[Array | np.ndarray, "patches patch_dim"],
    grid_thw: Int[Array | np.ndarray, "pictures 3"],
) -> VisionEmbeddings:
    """The decoder's view of one or more pictures.

    Args:
        pixel_values: flat normalised patches of all pictures, in the order of the model's family.
        grid_thw: frames, rows and columns of each picture, in patches.

    Returns:
        `VisionEmbeddings` padded to a bucket; the first tokens count, as many as the pictures have.

    Raises:
        InputError: no grids, grids that the model cannot take, or patches that do not match them.
    """
    grid, pixels = np.asarray(grid_thw), np.asarray(pixel_values)
    if grid.ndim != 2 or grid.shape[1] != 3 or not np.issubdtype(grid.dtype, np.integer) or grid.size == 0:
        raise InputError(f"grid_thw: {grid.dtype}{list(grid.shape)}; allowed: integers [pictures, 3], not 0")
    if grid.min() < 1:
        raise InputError(f"grid_thw: {grid.tolist()}; allowed: sizes from 1 up")
    return encode_packed(model, params, *model.pack_pictures(pixels, grid.astype(np.int64)))


@partial(jax.jit, static_argnames="model")
def encode_packed(model: Model, params: Any, pixel_values: Array, layout: Any) -> VisionEmbeddings:
    """`encode_vision` of what `pack_pictures` made."""
    return model.call("encode_vision", params, pixel_values, layout)
