"""Pictures' patches as the levels that their pixels have: an eighth of the bytes of what they become.

A pixel has 256 levels, so that a table of what each becomes is exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

CHANNELS = 3
_LEVELS = 256


class Levels(NamedTuple):
    """Patches before they are normalised, and what each level becomes.

    Each patch is (row, column, channel), as a picture is: its rows are copied as they are, and the device,
    which looks up every level anyway, puts the channels apart.
    """

    patches: UInt8[np.ndarray, "patches features"]
    table: Float32[np.ndarray, "3 256"]

    def values(self, frames: int) -> Float32[np.ndarray, "patches patch_dim"]:
        """The normalised patches, each (channel, frame, row, column), a still picture's frame repeated."""
        count, area = len(self.patches), self.patches.shape[1] // CHANNELS
        pixels = self.patches.reshape(count, area, CHANNELS)
        values = np.empty((count, CHANNELS, frames, area), np.float32)
        for channel in range(CHANNELS):
            values[:, channel] = np.take(self.table[channel], pixels[..., channel])[:, None]
        return values.reshape(count, CHANNELS * frames * area)


def cut(
    pixels: UInt8[np.ndarray, "height width 3"], patch: int, merge: int = 1
) -> UInt8[np.ndarray, "patches features"]:
    """A picture's patches by merge block: block row, block column, row inside, column inside."""
    rows, columns = (side // patch for side in pixels.shape[:2])
    lines = pixels.reshape(len(pixels), -1).view(f"V{patch * CHANNELS}")  # that of a patch is copied as one
    blocks = lines.reshape(rows // merge, merge, patch, columns // merge, merge)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 2)).view(np.uint8).reshape(rows * columns, -1)


def normalised(
    patches: UInt8[Array, "*P features"], table: Float[Array, "3 256"], patch_dim: int
) -> Float[Array, "*P patch_dim"]:
    """`Levels.values` on the device."""
    pixels = patches.reshape(*patches.shape[:-1], -1, CHANNELS).astype(jnp.int32)
    values = jnp.asarray(table).reshape(-1)[pixels + jnp.arange(CHANNELS) * _LEVELS]
    by_channel = values.swapaxes(-1, -2)[..., None, :]
    frames = patch_dim // patches.shape[-1]
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
