"""Rotary positions: plain, two-dimensional (pictures) and interleaved multimodal (M-RoPE)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """`theta ** (-2 i / dim)` for i < dim / 2, float32 (RoFormer, arXiv:2104.09864)."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)


def rope_angles(positions: Int[Array, "*L"], head_dim: int, theta: float) -> Float[Array, "*L half"]:
    """Angles in radians, float32: each frequency times the position."""
    return positions.astype(jnp.float32)[..., None] * inverse_frequencies(head_dim, theta)


def mrope_axes(section: tuple[int, int, int]) -> np.ndarray:
    """Which axis (0: T, 1: H, 2: W) turns each of the `sum(section)` frequencies.

    Interleaved: T everywhere, but H at 1, 4, 7, ... and W at 2, 5, 8, ..., `section` many of each
    (Qwen3-VL; transformers 5.23, `Qwen3VLTextRotaryEmbedding.recomposition_frequencies`).
    """
    axes = np.zeros(sum(section), np.int32)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def mrope_angles(
    positions: Int[Array, "3 B T"], head_dim: int, theta: float, section: tuple[int, int, int]
) -> Float[Array, "B T half"]:
    """Angles in radians, float32: each frequency times the position on its own axis."""
    chosen = positions.astype(jnp.float32)[mrope_axes(section)]  # [half, B, T]
    return jnp.moveaxis(chosen, 0, -1) * inverse_frequencies(head_dim, theta)


def axial_angles(coordinates: Int[Array, "P 2"], head_dim: int, theta: float) -> Float[Array, "P half"]:
    """Angles for a grid: the first half of the frequencies turns with the row, the second with the column."""
    frequencies = inverse_frequencies(head_dim // 2, theta)
    angles = coordinates.astype(jnp.float32)[..., None] * frequencies
    return angles.reshape(coordinates.shape[0], -1)


def rotate(x: Float[Array, "*L H D"], angles: Float[Array, "*L half"]) -> Float[Array, "*L H D"]:
    """Rotate the pairs (i, i + D/2) of each head by `angles`, in float32."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
