"""Pictures as the levels that their pixels have: a sixth of the bytes of what they become.

A pixel has 256 levels, so that a table of what each becomes is exact.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from models.pixels import STORED

_HostOrDevice = TypeVar("_HostOrDevice", np.ndarray, Array)
CHANNELS = 3
_LEVELS = 256


class Levels(NamedTuple):
    """Pictures as they lie in memory, one behind the other, and what each level becomes.

    `pixels` are line by line, four bytes each, in as many rows as there are patches: the device, which looks
    up every level anyway, cuts the patches and puts the channels apart.
    """

    pixels: UInt8[np.ndarray, "patches features"]
    table: Float32[np.ndarray, "3 256"]


def cut(
    pixels: UInt8[_HostOrDevice, "height width 4"], patch: int, merge: int = 1
) -> UInt8[_HostOrDevice, "patches features"]:
    """A picture's patches by merge block: block row, block column, row inside, column inside."""
    rows, columns = (side // patch for side in pixels.shape[:2])
    blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch * STORED)
    return blocks.transpose(0, 3, 1, 4, 2, 5).reshape(rows * columns, -1)


def values(
    patches: UInt8[np.ndarray, "patches features"], table: Float32[np.ndarray, "3 256"], frames: int
) -> Float32[np.ndarray, "patches patch_dim"]:
    """The normalised patches, each (channel, frame, row, column), a still picture's frame repeated."""
    count, area = len(patches), patches.shape[1] // STORED
    pixels = patches.reshape(count, area, STORED)
    made = np.empty((count, CHANNELS, frames, area), np.float32)
    for channel in range(CHANNELS):
        made[:, channel] = np.take(table[channel], pixels[..., channel])[:, None]
    return made.reshape(count, CHANNELS * frames * area)


def normalised(
    patches: UInt8[Array, "*P features"], table: Float[Array, "3 256"], patch_dim: int
) -> Float[Array, "*P patch_dim"]:
    """`values` on the device."""
    pixels = patches.reshape(*patches.shape[:-1], -1, STORED)[..., :CHANNELS].astype(jnp.int32)
    found = jnp.asarray(table).reshape(-1)[pixels + jnp.arange(CHANNELS) * _LEVELS]
    by_channel = found.swapaxes(-1, -2)[..., None, :]
    frames = patch_dim // (CHANNELS * pixels.shape[-2])
    repeated = jnp.broadcast_to(by_channel, (*by_channel.shape[:-2], frames, by_channel.shape[-1]))
    return repeated.reshape(*patches.shape[:-1], patch_dim)


def level_table(
    mean: Sequence[float], std: Sequence[float], rescale_factor: float
) -> Float32[np.ndarray, "3 256"]:
    """What each level of a channel becomes.

    The types follow transformers: scaled in float64, rounded to float32, then normalised in float32.
    """
    scaled = (np.arange(_LEVELS, dtype=np.float64) * rescale_factor).astype(np.float32)
    means, stds = (np.array(values, np.float32)[:, None] for values in (mean, std))
    return (scaled - means) / stds
