"""SmolVLM2: a SigLIP tower over tiles, pixel shuffle, one linear map, and a Llama decoder.

Source: transformers 5.23, `modeling_smolvlm.py`; SmolVLM (arXiv:2504.05299); SigLIP (arXiv:2303.15343);
pixel shuffle as in Idefics3 (arXiv:2408.12637). Parameter names follow the checkpoint's.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from models.attention import full_attention
from models.blocks import Embedding, LayerNorm, Linear
from models.buckets import bucket
from models.decoder import Decoder, VisionEmbeddings
from models.errors import InputError
from models.levels import cut
from models.model import Model, check_patches
from models.pixels import STORED
from models.rope import rope_angles
from models.smolvlm_config import SmolVLMConfig, VisionConfig


class VisionMLP(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N P D"]:
        x = nn.gelu(Linear(self.config.intermediate_size, name="fc1")(x), approximate=True)
        return Linear(self.config.hidden_size, name="fc2")(x)


class VisionAttention(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N P D"]:
        c = self.config

        def heads(name: str) -> Float[Array, "N P H head"]:
            return Linear(c.hidden_size, name=name)(x).reshape(
                *x.shape[:2], c.num_attention_heads, c.head_dim
            )

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        mixed = full_attention(q, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))
        return Linear(c.hidden_size, name="out_proj")(mixed.reshape(x.shape))


class VisionLayer(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N P D"]:
        c = self.config
        x = x + VisionAttention(c, name="self_attn")(LayerNorm(c.layer_norm_eps, name="layer_norm1")(x))
        return x + VisionMLP(c, name="mlp")(LayerNorm(c.layer_norm_eps, name="layer_norm2")(x))


class VisionEncoder(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N P D"]:
        for i in range(self.config.num_hidden_layers):
            x = VisionLayer(self.config, name=f"layers_{i}")(x)
        return x


class PatchEmbeddings(nn.Module):
    """The checkpoint's convolution, whose stride is its kernel, plus learned positions."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N P patch_dim"], places: Int[Array, "P"]) -> Float[Array, "N P D"]:
        c = self.config
        table = Embedding(c.grid_side**2, c.hidden_size, name="position_embedding")
        return Linear(c.hidden_size, name="patch_embedding")(x) + table(places).astype(x.dtype)


class VisionTower(nn.Module):
    config: VisionConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "N P patch_dim"], places: Int[Array, "P"]
    ) -> Float[Array, "N P D"]:
        x = PatchEmbeddings(self.config, name="embeddings")(pixel_values.astype(self.dtype), places)
        x = VisionEncoder(self.config, name="encoder")(x)
        return LayerNorm(self.config.layer_norm_eps, name="post_layernorm")(x)


class Projection(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N M I"]) -> Float[Array, "N M O"]:
        return Linear(self.features, use_bias=False, name="proj")(x)


class Connector(nn.Module):
    """Pixel shuffle, which makes one token of `scale_factor` squared patches, and one linear map."""

    config: SmolVLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N M O"]:
        shuffled = pixel_shuffle(x, self.config.scale_factor)
        return Projection(self.config.text.hidden_size, name="modality_projection")(shuffled)


def pixel_shuffle(x: Float[Array, "N P D"], scale: int) -> Float[Array, "N M wide"]:
    """The patches of a square tile, `scale` by `scale` joined: rows, then columns, then channels."""
    N, P, D = x.shape
    side = round(P**0.5) // scale
    blocks = x.reshape(N, side, scale, side, scale, D)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(N, side * side, scale * scale * D)


class SmolVLM(Model):
    """The family's parts of a `Model`."""

    config: SmolVLMConfig
    dtype: Any = jnp.float32
    vision_parts: ClassVar[tuple[str, ...]] = ("vision_model", "connector")
    decoder_part: ClassVar[str] = "text_model"

    def setup(self) -> None:
        self.vision_model = VisionTower(self.config.vision, self.dtype)
        self.connector = Connector(self.config)
        self.text_model = Decoder(self.config.text, self.dtype, self.fused)
        self.lm_head = self.lm_head_unless_tied()

    def picture_tokens(self, grid_thw: np.ndarray) -> np.ndarray:
        return np.prod(grid_thw, 1) // self.config.scale_factor**2

    def picture_spans(self, tokens: np.ndarray, grid_thw: np.ndarray) -> list[tuple[int, int]]:
        """Tiles are no pictures: one ends with the tile of its whole, and so does the prompt's last one.

        Two tokens right before a tile begin and name it, and one behind the last tile ends the picture.
        """
        tiles = super().picture_spans(tokens, grid_thw)
        names = [tokens[max(first - 2, 0) : first].tolist() for first, _ in tiles]
        lasts = [end for (_, end), name in zip(tiles, names, strict=True) if name == names[-1]]
        firsts = [min(first for first, _ in tiles if first >= end) for end in [0, *lasts[:-1]]]
        length = len(tokens)
        return [(max(first - 2, 0), min(end + 1, length)) for first, end in zip(firsts, lasts, strict=True)]

    def prompt_positions(
        self, tokens: np.ndarray, grid_thw: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A token stands at its index; a row of `grid_thw` is a tile."""
        B, T = tokens.shape
        real = np.arange(T) < np.asarray(lengths)[:, None]
        found, needed = int((real & (tokens == self.image_pad_id)).sum()), self.picture_tokens(grid_thw).sum()
        if found != needed:
            raise InputError(
                f"prompt_tokens: {found} picture tokens; the {len(grid_thw)} tiles of grid_thw have {needed}"
            )
        positions = np.where(real, np.arange(T, dtype=np.int32), 0)[None]
        return positions, np.zeros(B, np.int32)

    def angles(self, positions: Int[Array, "1 B T"]) -> Float[Array, "B T half"]:
        return rope_angles(positions[0], self.config.text.head_dim, self.config.text.rope_theta)

    def pack_pictures(
        self, pixel_values: np.ndarray, grid_thw: np.ndarray
    ) -> tuple[np.ndarray, Int[np.ndarray, "P"]]:
        """Tiles, square and of one size; the tower's program depends on how many and how large they are."""
        vision, scale = self.config.vision, self.config.scale_factor
        check_patches(pixel_values, grid_thw, vision)
        side = int(grid_thw[0, 1])
        if (grid_thw != [1, side, side]).any() or side % scale:
            raise InputError(
                f"grid_thw: {grid_thw.tolist()}; allowed: tiles [1, side, side], all alike,"
                f" side a multiple of {scale}"
            )
        tiles = pixel_values.reshape(len(grid_thw), side * side, -1)
        padding = bucket(len(tiles), 1) - len(tiles)
        return np.pad(tiles, ((0, padding), (0, 0), (0, 0))), tile_places(side, vision.grid_side)

    def cut_pictures(
        self, pixels: UInt8[Array, "N P features"], layout: Int[Array, "P"]
    ) -> UInt8[Array, "N P features"]:
        size = self.config.vision.patch_size
        whole = size * round(pixels.shape[1] ** 0.5)
        return jax.vmap(partial(cut, patch=size))(pixels.reshape(-1, whole, whole, STORED))

    def encode_vision(
        self, pixel_values: Float[Array, "N P patch_dim"], layout: Int[Array, "P"]
    ) -> VisionEmbeddings:
        """N tiles of P patches to M = N P / scale_factor ** 2 tokens; no DeepStack."""
        tokens = self.connector(self.vision_model(pixel_values, layout))
        joined = tokens.reshape(-1, tokens.shape[-1])
        return VisionEmbeddings(joined, jnp.zeros((0, *joined.shape), joined.dtype))

    def smallest_picture(self) -> tuple[Float[Array, "N P patch_dim"], Int[Array, "P"]]:
        side = self.config.scale_factor
        pixels = jnp.zeros((1, side * side, self.config.vision.patch_dim))
        return pixels, jnp.asarray(tile_places(side, self.config.vision.grid_side))


def tile_places(side: int, table_side: int) -> Int[np.ndarray, "P"]:
    """Which learned position each patch of a tile has: fractional coordinates, in buckets of the table.

    The coordinates are those of NaViT (arXiv:2307.06304), in float32 as in transformers, whose roundings
    decide between two buckets where a coordinate is a boundary.
    """
    boundaries = 1 / table_side + (1 / table_side) * np.arange(table_side - 1)
    steps = np.arange(side, dtype=np.float32) * (np.float32(1) / np.float32(side))
    buckets = np.searchsorted(boundaries.astype(np.float32), np.minimum(steps, np.float32(1 - 1e-6)), "right")
    return (buckets[:, None] * table_side + buckets).reshape(-1).astype(np.int32)
