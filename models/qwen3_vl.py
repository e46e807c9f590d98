"""Qwen3-VL, dense: a vision tower with DeepStack and a decoder with interleaved M-RoPE.

Source: transformers 5.23, `modeling_qwen3_vl.py`; Qwen3-VL technical report (arXiv:2511.21631);
DeepStack (arXiv:2406.04334). Parameter names follow the checkpoint's.
"""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.attention import causal_attention, segment_attention
from models.blocks import Embedding, GatedMLP, LayerNorm, Linear, RMSNorm
from models.cache import KVCache, write_keys, write_values
from models.config import Qwen3VLConfig, TextConfig, VisionConfig
from models.qwen3_vl_layout import VisionLayout, prompt_positions, vision_layout
from models.rope import axial_angles, mrope_angles, rotate


class VisionEmbeddings(NamedTuple):
    """What the decoder sees of the pictures: M tokens in picture order, then padding that nothing reads.

    `deepstack[i]` is added to the hidden states behind decoder layer i.
    """

    embeddings: Float[Array, "M D"]
    deepstack: Float[Array, "L M D"]


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
        self, x: Float[Array, "P D"], angles: Float[Array, "P half"], segments: Int[Array, "P"]
    ) -> Float[Array, "P D"]:
        c = self.config
        qkv = Linear(3 * c.hidden_size, name="qkv")(x).reshape(-1, 3, c.num_heads, c.head_dim)
        q, k = rotate(qkv[:, 0], angles), rotate(qkv[:, 1], angles)
        mixed = segment_attention(
            q[None], k.transpose(1, 2, 0)[None], qkv[:, 2].swapaxes(0, 1)[None], segments
        )
        return Linear(c.hidden_size, name="proj")(mixed[0].reshape(-1, c.hidden_size))


class VisionBlock(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "P D"], angles: Float[Array, "P half"], segments: Int[Array, "P"]
    ) -> Float[Array, "P D"]:
        x = x + VisionAttention(self.config, name="attn")(LayerNorm(name="norm1")(x), angles, segments)
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
        taps, tap_weights, coordinates, segments = map(jnp.asarray, layout)
        table = Embedding(c.num_position_embeddings, c.hidden_size, name="pos_embed")
        places = (table(taps).astype(jnp.float32) * tap_weights[..., None]).sum(1)
        x = PatchEmbed(c, name="patch_embed")(pixel_values.astype(self.dtype)) + places.astype(self.dtype)
        angles = axial_angles(coordinates, c.head_dim, c.rope_theta)
        deepstack = []
        for i in range(c.depth):
            x = VisionBlock(c, name=f"blocks_{i}")(x, angles, segments)
            if i in c.deepstack_visual_indexes:
                name = f"deepstack_merger_list_{c.deepstack_visual_indexes.index(i)}"
                deepstack.append(PatchMerger(c, norm_joined=True, name=name)(x))
        merged = PatchMerger(c, norm_joined=False, name="merger")(x)
        return VisionEmbeddings(
            merged, jnp.stack(deepstack) if deepstack else jnp.zeros((0, *merged.shape), merged.dtype)
        )


class SelfAttention(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        start: Int[Array, "B"],
        buffers: tuple[Array, Array] | None,
        filled: int | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        c = self.config

        def heads(name: str, count: int) -> Float[Array, "B T H head"]:
            return Linear(count * c.head_dim, c.attention_bias, name=name)(x).reshape(
                *x.shape[:2], count, c.head_dim
            )

        q, k = heads("q_proj", c.num_attention_heads), heads("k_proj", c.num_key_value_heads)
        v = heads("v_proj", c.num_key_value_heads)
        q = rotate(RMSNorm(c.rms_norm_eps, name="q_norm")(q), angles)
        k = rotate(RMSNorm(c.rms_norm_eps, name="k_norm")(k), angles)
        if buffers is None:
            keys, values = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
        else:
            keys, values = write_keys(buffers[0], k, start), write_values(buffers[1], v, start)
        slots = start[:, None] + jnp.arange(x.shape[1])
        mixed = causal_attention(q, keys, values, slots, filled).reshape(*x.shape[:2], -1)
        return Linear(c.hidden_size, c.attention_bias, name="o_proj")(mixed), (keys, values)


class DecoderLayer(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        start: Int[Array, "B"],
        buffers: tuple[Array, Array] | None,
        filled: int | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        c = self.config
        normed = RMSNorm(c.rms_norm_eps, name="input_layernorm")(x)
        mixed, buffers = SelfAttention(c, name="self_attn")(normed, angles, start, buffers, filled)
        x = x + mixed
        normed = RMSNorm(c.rms_norm_eps, name="post_attention_layernorm")(x)
        return x + GatedMLP(c.intermediate_size, name="mlp")(normed), buffers


class Decoder(nn.Module):
    config: TextConfig
    dtype: Any

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = [DecoderLayer(c) for _ in range(c.num_hidden_layers)]
        self.norm = RMSNorm(c.rms_norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "3 B T"],
        start: Int[Array, "B"],
        cache: KVCache | None,
        vision: tuple[Array, VisionEmbeddings] | None,
        filled: int | None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        c = self.config
        x = self.embed_tokens(tokens).astype(self.dtype)
        deepstack: tuple[Array, ...] = ()
        if vision is not None:
            seen, features = vision
            at = jnp.clip(jnp.cumsum(seen.reshape(-1)) - 1, 0, features.embeddings.shape[0] - 1).reshape(
                seen.shape
            )
            x = jnp.where(seen[..., None], features.embeddings[at].astype(x.dtype), x)
            deepstack = tuple(
                jnp.where(seen[..., None], d[at].astype(x.dtype), 0) for d in features.deepstack
            )
        angles = mrope_angles(positions, c.head_dim, c.rope_theta, c.mrope_section)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            buffers = None if cache is None else (cache.keys[i], cache.values[i])
            x, (k, v) = layer(x, angles, start, buffers, filled)
            keys.append(k)
            values.append(v)
            if i < len(deepstack):
                x = x + deepstack[i]
        return self.norm(x), KVCache(tuple(keys), tuple(values))


class Qwen3VL(nn.Module):
    """The model: static and hashable; its parameters are a pytree beside it.

    The sampler uses `context_length`, `vocab_size`, `hidden_size`, `image_pad_id`, `position_axes`,
    `decoder_params`, `empty_cache`, `prompt_positions` and, through `call`, `forward` and `head`;
    every family offers these.
    """

    config: Qwen3VLConfig
    dtype: Any = jnp.float32
    position_axes: ClassVar[int] = 3  # T, H, W

    def setup(self) -> None:
        self.visual = VisionTower(self.config.vision, self.dtype)
        self.language_model = Decoder(self.config.text, self.dtype)
        if not self.config.tie_word_embeddings:
            self.lm_head = Linear(self.config.text.vocab_size, use_bias=False, out_dtype=jnp.float32)

    @property
    def context_length(self) -> int:
        return self.config.text.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.config.text.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.config.text.hidden_size

    @property
    def image_pad_id(self) -> int:
        return self.config.image_token_id

    def call(self, method: str, params: Any, *args: Any) -> Any:
        """`apply` with plain parameters: one of the methods below, as a pure function."""
        return self.apply({"params": params}, *args, method=method)

    def decoder_params(self, params: Any) -> Any:
        """What `forward` and `head` read of `params`: a step hands over no more arrays than it needs."""
        return {name: part for name, part in params.items() if name != "visual"}

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        c = self.config.text
        return KVCache.empty(c.num_hidden_layers, batch, c.num_key_value_heads, slots, c.head_dim, self.dtype)

    def prompt_positions(
        self, tokens: np.ndarray, grid_thw: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `prompt_positions`."""
        return prompt_positions(self.config, tokens, grid_thw, lengths)

    def vision_layout(self, grid_thw: np.ndarray, padded_to: int | None = None) -> VisionLayout:
        """See `vision_layout`."""
        return vision_layout(self.config.vision, grid_thw, padded_to)

    def encode_vision(
        self, pixel_values: Float[Array, "P patch_dim"], layout: VisionLayout
    ) -> VisionEmbeddings:
        """Patches of one or more pictures, P a multiple of the merge unit, to M = P / merge unit tokens."""
        return self.visual(pixel_values, layout)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "3 B T"],
        start: Int[Array, "B"],
        cache: KVCache | None = None,
        vision: VisionEmbeddings | None = None,
        filled: int | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Hidden states behind the last norm, and the cache with these tokens in their slots.

        Args:
            tokens: ids; at `image_pad_id` the next row of `vision` takes the embedding's place.
            positions: rotary positions on the T, H and W axes.
            start: the slot of each row's first token; a token sees the slots up to its own.
            cache: without one, the tokens see one another alone.
            filled: a bound on `start + T`, where it is known while tracing.
        """
        seen = None if vision is None else (tokens == self.config.image_token_id, vision)
        return self.language_model(tokens, positions, start, cache, seen, filled)

    def head(self, hidden: Float[Array, "*L D"]) -> Float[Array, "*L V"]:
        """Logits, float32: sums of products are not rounded to the model's dtype."""
        if self.config.tie_word_embeddings:
            return self.language_model.embed_tokens.attend(hidden)
        return self.lm_head(hidden)

    def logits(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "3 B T"],
        vision: VisionEmbeddings | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of all positions at once, without a cache: for training and evaluation."""
        B, T = tokens.shape
        start = jnp.zeros(B, jnp.int32)
        return self.head(self.forward(tokens, positions, start, vision=vision, filled=T)[0])

    def __call__(self, pixel_values: Array, layout: VisionLayout, tokens: Array, positions: Array) -> Array:
        """All parts once, so that `init` meets every parameter."""
        return self.logits(tokens, positions, self.encode_vision(pixel_values, layout))

    def init_params(self, key: Array) -> Any:
        """Random float32 parameters: normal(0.02) kernels and tables, norms at one, biases at zero."""
        vision = self.config.vision
        side = vision.spatial_merge_size
        layout = vision_layout(vision, np.array([[1, side, side]]))
        pixels = jnp.zeros((side * side, vision.patch_dim))
        return self.init(key, pixels, layout, jnp.zeros((1, 1), jnp.int32), jnp.zeros((3, 1, 1), jnp.int32))[
            "params"
        ]
