"""`encode_vision`: pictures of any sizes through the tower, one program per bucket of patches."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from models.buckets import bucket
from models.errors import InputError
from models.qwen3_vl import Qwen3VL, VisionEmbeddings, VisionLayout

_SMALLEST = 64  # patches


def encode_vision(
    model: Qwen3VL,
    params: Any,
    pixel_values: Float[Array | np.ndarray, "patches patch_dim"],
    grid_thw: Int[Array | np.ndarray, "pictures 3"],
) -> VisionEmbeddings:
    """The decoder's view of one or more pictures.

    Args:
        pixel_values: flat normalised patches of all pictures, each in merge-block order.
        grid_thw: frames, rows and columns of each picture, in patches.

    Returns:
        `VisionEmbeddings` padded to a bucket; the first `grid_thw.prod(1).sum() // merge_unit` tokens count.

    Raises:
        InputError: no grids, or patches that do not match them.
    """
    vision, grid, pixels = model.config.vision, np.asarray(grid_thw), np.asarray(pixel_values)
    if grid.ndim != 2 or grid.shape[1] != 3 or not np.issubdtype(grid.dtype, np.integer) or grid.size == 0:
        raise InputError(f"grid_thw: {grid.dtype}{list(grid.shape)}; allowed: integers [pictures, 3], not 0")
    if grid.min() < 1:
        raise InputError(f"grid_thw: {grid.tolist()}; allowed: sizes from 1 up")
    grid = grid.astype(np.int64)
    patches, merge = int(grid.prod(1).sum()), vision.spatial_merge_size
    if pixels.shape != (patches, vision.patch_dim):
        needed = [patches, vision.patch_dim]
        raise InputError(f"pixel_values: {list(pixels.shape)}; grid_thw {grid.tolist()} needs {needed}")
    if (grid[:, 1:] % merge).any():
        raise InputError(f"grid_thw: {grid.tolist()}; rows and columns must divide by {merge}")
    size = bucket(patches, _SMALLEST)
    padded = np.zeros((size, pixels.shape[1]), np.float32)
    padded[:patches] = pixels
    return _encode(model, params, padded, model.vision_layout(grid, size))


@partial(jax.jit, static_argnames="model")
def _encode(model: Qwen3VL, params: Any, pixel_values: Array, layout: VisionLayout) -> VisionEmbeddings:
    return model.call("encode_vision", params, pixel_values, layout)
