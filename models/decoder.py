"""The text decoder that the families share: grouped queries, rotary positions, gated MLPs.

Source: transformers 5.23, `modeling_llama.py` and `modeling_qwen3_vl.py`; DeepStack (arXiv:2406.04334).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.attention import begins_at_first_slot, causal_attention
from models.blocks import Embedding, GatedMLP, Linear, RMSNorm, projections
from models.cache import KVCache, write_keys, write_values
from models.config_parts import DecoderConfig
from models.kernels.choice import at_once, decodes_in_kernels
from models.rope import rotate


class VisionEmbeddings(NamedTuple):
    """What the decoder sees of the pictures: M tokens in picture order, then padding that nothing reads.

    `deepstack[i]` is added to the hidden states behind decoder layer i; most families have none of it.
    """

    embeddings: Float[Array, "M D"]
    deepstack: Float[Array, "L M D"]


class SelfAttention(nn.Module):
    config: DecoderConfig
    fused: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        start: Int[Array, "B"],
        buffers: tuple[Array, Array] | None,
        filled: int | Int[Array, ""],
        row: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """Of so many rows of the buffers, from `row` on."""
        c = self.config

        counts = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
        features = tuple(count * c.head_dim for count in counts)
        q, k, v = (
            projected.reshape(*x.shape[:2], -1, c.head_dim)
            for projected in projections(x, "qkv_proj", features, c.attention_bias, self.fused)
        )
        if c.qk_norm:
            q, k = RMSNorm(c.rms_norm_eps, name="q_norm")(q), RMSNorm(c.rms_norm_eps, name="k_norm")(k)
        q, k = rotate(q, angles), rotate(k, angles)
        if buffers is None:
            keys, values = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
        else:
            first = 0 if begins_at_first_slot(x.shape[1], filled) else start
            keys, values = write_keys(buffers[0], k, first, row), write_values(buffers[1], v, first, row)
        slots = start[:, None] + jnp.arange(x.shape[1])
        k, v = (jax.lax.dynamic_slice_in_dim(buffer, row, len(x)) for buffer in (keys, values))
        mixed = causal_attention(q, k, v, slots, filled).reshape(*x.shape[:2], -1)
        product = Linear(c.hidden_size, c.attention_bias, rows=self.fused, name="o_proj")
        return product(mixed), (keys, values)


class DecoderLayer(nn.Module):
    config: DecoderConfig
    fused: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        start: Int[Array, "B"],
        buffers: tuple[Array, Array] | None,
        filled: int | Int[Array, ""],
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        c = self.config
        norm = RMSNorm(c.rms_norm_eps, name="input_layernorm")
        attention = SelfAttention(c, self.fused, name="self_attn")

        def attend(x: Array, row: Any, buffers: Any) -> tuple[Array, Any]:
            turns, first = (jax.lax.dynamic_slice_in_dim(rows, row, len(x)) for rows in (angles, start))
            mixed, buffers = attention(norm(x), turns, first, buffers, filled, row)
            return x + mixed, buffers

        def think(x: Array, _: Any, nothing: None) -> tuple[Array, None]:
            normed = RMSNorm(c.rms_norm_eps, name="post_attention_layernorm")(x)
            return x + GatedMLP(c.intermediate_size, self.fused, name="mlp")(normed), nothing

        in_parts = buffers is not None and begins_at_first_slot(x.shape[1], filled)
        x, made = _in_parts(self, attend, x, at_once(*x.shape[:2]) if in_parts else len(x), buffers)
        count = x.shape[0] * x.shape[1]
        few = at_once(count)
        tokens = x if few == count else x.reshape(count, -1)
        return _in_parts(self, think, tokens, few, None)[0].reshape(x.shape), made


def _in_parts(
    layer: DecoderLayer,
    through: Callable[[Array, Any, Any], tuple[Array, Any]],
    x: Array,
    size: int,
    carried: Any,
) -> tuple[Array, Any]:
    """`through(part, first, carried)`, `size` of the first axis at a time, in place of what they are made of.

    In a loop: written out, many parts of many layers take minutes to compile.
    """
    if size >= len(x):
        return through(x, 0, carried)

    def part(_: nn.Module, carry: tuple[Array, Any], first: Array) -> tuple[tuple[Array, Any], None]:
        x, carried = carry
        made, carried = through(jax.lax.dynamic_slice_in_dim(x, first, size), first, carried)
        return (jax.lax.dynamic_update_slice_in_dim(x, made, first, 0), carried), None

    loop = nn.scan(part, variable_broadcast="params", split_rngs={"params": False})
    return loop(layer, (x, carried), jnp.arange(0, len(x), size))[0]


class Decoder(nn.Module):
    config: DecoderConfig
    dtype: Any
    fused: bool = False

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = [DecoderLayer(c, self.fused) for _ in range(c.num_hidden_layers)]
        self.norm = RMSNorm(c.rms_norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        angles: Float[Array, "B T half"],
        start: Int[Array, "B"],
        cache: KVCache | None,
        vision: tuple[Array, VisionEmbeddings] | None,
        filled: int | Int[Array, ""],
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        x = self.embed_tokens(tokens).astype(self.dtype)
        deepstack: tuple[Array, ...] = ()
        if vision is not None:
            rows, features = vision
            seen, at = (rows >= 0)[..., None], jnp.maximum(rows, 0)
            x = jnp.where(seen, features.embeddings[at].astype(x.dtype), x)
            deepstack = tuple(jnp.where(seen, d[at].astype(x.dtype), 0) for d in features.deepstack)
        if cache is not None and self.fused and not deepstack and decodes_in_kernels(self.config, x, cache):
            from models.kernels.layer import decode_layers  # noqa: PLC0415  (imports Pallas, which is slow)

            return decode_layers(self.config, self.variables["params"], x, angles, start, cache)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            buffers = None if cache is None else (cache.keys[i], cache.values[i])
            x, (k, v) = layer(x, angles, start, buffers, filled)
            keys.append(k)
            values.append(v)
            if i < len(deepstack):
                x = x + deepstack[i]
        return self.norm(x), KVCache(tuple(keys), tuple(values))
