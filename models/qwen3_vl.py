"""Qwen3-VL, dense: a vision tower with DeepStack and a decoder with interleaved M-RoPE.

Source: transformers 5.23, `modeling_qwen3_vl.py`; Qwen3-VL technical report (arXiv:2511.21631);
DeepStack (arXiv:2406.04334). Parameter names follow the checkpoint's.
"""

from functools import lru_cache
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from models.attention import segment_attention
from models.blocks import Embedding, LayerNorm, Linear
from models.buckets import bucket
from models.config import Qwen3VLConfig, VisionConfig
from models.decoder import Decoder, VisionEmbeddings
from models.errors import InputError
from models.model import Model, check_patches
from models.pixels import STORED
from models.qwen3_vl_layout import VisionLayout, prompt_positions, vision_layout
from models.rope import axial_angles, mrope_angles, rotate

_FEWEST_PATCHES = 64


class VisionMLP(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "P D"]:
        x = nn.gelu(Linear(self.config.intermediate_size, name="linear_fc1")(x), approximate=True)
        return Linear(self.config.hidden_size, name="linear_fc2")(x)


class VisionAttention(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "P D"], angles: Float[Array, "P half"], ends: Int[Array, "F"]
    ) -> Float[Array, "P D"]:
        c = self.config
        qkv = Linear(3 * c.hidden_size, name="qkv")(x).reshape(-1, 3, c.num_heads, c.head_dim)
        q, k = rotate(qkv[:, 0], angles), rotate(qkv[:, 1], angles)
        mixed = segment_attention(q[None], k.transpose(1, 2, 0)[None], qkv[:, 2].swapaxes(0, 1)[None], ends)
        return Linear(c.hidden_size, name="proj")(mixed[0].reshape(-1, c.hidden_size))


class VisionBlock(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "P D"], angles: Float[Array, "P half"], ends: Int[Array, "F"]
    ) -> Float[Array, "P D"]:
        x = x + VisionAttention(self.config, name="attn")(LayerNorm(name="norm1")(x), angles, ends)
        return x + VisionMLP(self.config, name="mlp")(LayerNorm(name="norm2")(x))


class PatchMerger(nn.Module):
    """2 x 2 patches into one token. The main merger norms patches, DeepStack's norm the joined four."""

    config: VisionConfig
    norm_joined: bool

    @nn.compact
    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "M O"]:
        wide = self.config.hidden_size * self.config.merge_unit
        norm = LayerNorm(name="norm")
        x = norm(x.reshape(-1, wide)) if self.norm_joined else norm(x).reshape(-1, wide)
        x = nn.gelu(Linear(wide, name="linear_fc1")(x), approximate=False)
        return Linear(self.config.out_hidden_size, name="linear_fc2")(x)


class PatchEmbed(nn.Module):
    """The checkpoint's convolution, whose stride is its kernel: a linear map of flat patches."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P patch_dim"]) -> Float[Array, "P D"]:
        return Linear(self.config.hidden_size, name="proj")(x)


class VisionTower(nn.Module):
    config: VisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "P patch_dim"], layout: VisionLayout) -> VisionEmbeddings:
        c = self.config
        taps, tap_weights, coordinates, ends, _ = map(jnp.asarray, layout)
        table = Embedding(c.num_position_embeddings, c.hidden_size, name="pos_embed")
        places = (table(taps).astype(jnp.float32) * tap_weights[..., None]).sum(1)
        x = PatchEmbed(c, name="patch_embed")(pixel_values.astype(self.dtype)) + places.astype(self.dtype)
        angles = axial_angles(coordinates, c.head_dim, c.rope_theta)
        deepstack = []
        for i in range(c.depth):
            x = VisionBlock(c, name=f"blocks_{i}")(x, angles, ends)
            if i in c.deepstack_visual_indexes:
                name = f"deepstack_merger_list_{c.deepstack_visual_indexes.index(i)}"
                deepstack.append(PatchMerger(c, norm_joined=True, name=name)(x))
        merged = PatchMerger(c, norm_joined=False, name="merger")(x)
        return VisionEmbeddings(
            merged, jnp.stack(deepstack) if deepstack else jnp.zeros((0, *merged.shape), merged.dtype)
        )


class Qwen3VL(Model):
    """The family's parts of a `Model`."""

    config: Qwen3VLConfig
    dtype: Any = jnp.float32
    position_axes: ClassVar[int] = 3  # T, H, W
    vision_parts: ClassVar[tuple[str, ...]] = ("visual",)
    decoder_part: ClassVar[str] = "language_model"

    def setup(self) -> None:
        self.visual = VisionTower(self.config.vision, self.dtype)
        self.language_model = Decoder(self.config.text, self.dtype, self.fused)
        self.lm_head = self.lm_head_unless_tied()

    def picture_tokens(self, grid_thw: np.ndarray) -> np.ndarray:
        return np.prod(grid_thw, 1) // self.config.vision.merge_unit

    def picture_spans(self, tokens: np.ndarray, grid_thw: np.ndarray) -> list[tuple[int, int]]:
        """With vision_start and vision_end, where they are there."""
        opens = np.append(tokens == self.config.vision_start_token_id, False)
        closes = np.append(tokens == self.config.vision_end_token_id, False)
        spans = super().picture_spans(tokens, grid_thw)
        return [(first - int(opens[first - 1]), end + int(closes[end])) for first, end in spans]

    def prompt_positions(
        self, tokens: np.ndarray, grid_thw: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `prompt_positions`."""
        return prompt_positions(self.config, tokens, grid_thw, lengths)

    def angles(self, positions: Int[Array, "3 B T"]) -> Float[Array, "B T half"]:
        c = self.config.text
        return mrope_angles(positions, c.head_dim, c.rope_theta, c.mrope_section)

    def vision_layout(self, grid_thw: np.ndarray, padded_to: int | None = None) -> VisionLayout:
        """See `vision_layout`."""
        return vision_layout(self.config.vision, grid_thw, padded_to)

    def pack_pictures(
        self, pixel_values: np.ndarray, grid_thw: np.ndarray
    ) -> tuple[np.ndarray, VisionLayout]:
        """Pictures of any sizes behind one another, each in merge-block order."""
        vision, patches = self.config.vision, int(grid_thw.prod(1).sum())
        check_patches(pixel_values, grid_thw, vision)
        if (grid_thw[:, 1:] % vision.spatial_merge_size).any():
            raise InputError(
                f"grid_thw: {grid_thw.tolist()}; rows and columns must divide by {vision.spatial_merge_size}"
            )
        padding = bucket(patches, _FEWEST_PATCHES) - patches
        padded = np.pad(pixel_values, ((0, padding), (0, 0))) if padding else pixel_values
        return padded, _kept_layout(vision, tuple(map(tuple, grid_thw.tolist())), len(padded))

    def cut_pictures(
        self, pixels: UInt8[Array, "P features"], layout: VisionLayout
    ) -> UInt8[Array, "P features"]:
        """By the layout, so that the program depends on lengths alone."""
        _, _, (rows, columns), ends, widths = (jnp.asarray(part.T) for part in layout)
        frame = jnp.minimum((jnp.arange(len(pixels))[:, None] >= ends).sum(1), len(ends) - 1)
        before, width, size = jnp.append(0, ends)[frame], widths[frame], self.config.vision.patch_size
        first = (before + rows * width) * size + columns  # of the patch's lines, each of so many pixels
        lines = pixels.reshape(-1, size * STORED)
        return lines[first[:, None] + width[:, None] * jnp.arange(size)].reshape(pixels.shape)

    def encode_vision(
        self, pixel_values: Float[Array, "P patch_dim"], layout: VisionLayout
    ) -> VisionEmbeddings:
        """Patches of one or more pictures, P a multiple of the merge unit, to M = P / merge unit tokens."""
        return self.visual(pixel_values, layout)

    def smallest_picture(self) -> tuple[Float[Array, "P patch_dim"], VisionLayout]:
        side = self.config.vision.spatial_merge_size
        pixels = jnp.zeros((side * side, self.config.vision.patch_dim))
        return pixels, self.vision_layout(np.array([[1, side, side]]))


@lru_cache(maxsize=16)
def _kept_layout(config: VisionConfig, grids: tuple[tuple[int, ...], ...], patches: int) -> VisionLayout:
    """On the device, which takes as long to be handed it as a picture: few sizes come again and again."""
    return jax.device_put(vision_layout(config, np.array(grids), patches))
