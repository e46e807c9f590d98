"""One token of a few rows through fused decoder layers, in few kernels: time goes into reading weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from models.cache import KVCache
from models.config_parts import DecoderConfig
from models.kernels.attention import decode_attention
from models.kernels.choice import decodes_whole_layers
from models.kernels.products import Hidden, gated, hidden, onto, product


def decode_layers(
    c: DecoderConfig,
    params: Any,
    x: Float[Array, "B 1 D"],
    angles: Float[Array, "B 1 half"],
    start: Int[Array, "B"],
    cache: KVCache,
) -> tuple[Float[Array, "B 1 D"], KVCache]:
    """What a `Decoder` does behind its embeddings with one token a row.

    Args:
        params: the decoder's, fused.
        start: how many slots of each row are filled; the token's key and value go into the next one, which
            there must be.
    """
    layers = [params[f"layers_{i}"] for i in range(c.num_hidden_layers)]
    first, *behind = [layer["input_layernorm"]["scale"] for layer in layers] + [params["norm"]["scale"]]
    state, written = hidden(x[:, 0], first, c.rms_norm_eps), []
    once = jax.jit(_kernels(c, len(x)))  # traced and lowered once, not for each layer
    for layer, scale, buffers in zip(layers, behind, zip(*cache, strict=True), strict=True):
        state, made = once(layer, scale, state, angles[:, 0], start, buffers)
        written.append(made)
    return state.normed[:, None], KVCache(*zip(*written, strict=True))


def _kernels(c: DecoderConfig, rows: int) -> Callable[..., tuple[Hidden, tuple[Array, Array]]]:
    """`decode_layer`, or what does the same in one kernel."""
    if not decodes_whole_layers(c, rows):
        return partial(decode_layer, c)
    from models.kernels import whole_layer  # noqa: PLC0415  (not all versions of JAX have what it needs)

    return partial(whole_layer.decode_layer, c, whole_layer.counters(c))


def decode_layer(
    c: DecoderConfig,
    params: Any,
    behind: Float[Array, "D"],
    x: Hidden,
    angles: Float[Array, "B half"],
    start: Int[Array, "B"],
    buffers: tuple[Float[Array, "B H d S"], Float[Array, "B H S d"]],
) -> tuple[Hidden, tuple[Array, Array]]:
    """One of them, in several kernels.

    Args:
        behind: the scale of the norm that follows the layer.
        x: with the layer's own first norm.
    """
    attention, mlp, eps = params["self_attn"], params["mlp"], c.rms_norm_eps
    norms = (attention["q_norm"]["scale"], attention["k_norm"]["scale"]) if c.qk_norm else None
    qkv = product(x, attention["qkv_proj"]["weight"], eps)
    mixed, keys, values = decode_attention(qkv, norms, angles, start, *buffers, eps)
    scale = params["post_attention_layernorm"]["scale"]
    x = onto(x.rows, mixed, attention["o_proj"]["weight"], scale, eps)
    wide = gated(x, mlp["gate_up_proj"]["weight"], eps)
    return onto(x.rows, wide, mlp["down_proj"]["weight"], behind, eps), (keys, values)
