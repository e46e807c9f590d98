"""Patches of pictures, as the device cuts and normalises them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.levels import CHANNELS, Levels, values
from models.model import Model


def device_patches(model: Model, levels: Levels, grid_thw: np.ndarray) -> np.ndarray:
    """`[patches, patch_dim]`, cut by the model itself, without its padding."""
    packed = jax.tree.map(jnp.asarray, model.pack_pictures(levels.pixels, grid_thw))
    count, features = levels.pixels.shape
    cut = np.asarray(model.cut_pictures(*packed)).reshape(-1, features)[:count]
    vision: Any = model.config.vision
    return values(cut, levels.table, vision.patch_dim // (CHANNELS * vision.patch_size**2))
