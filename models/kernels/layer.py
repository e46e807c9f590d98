"""One token of a few rows through a fused decoder layer, in six kernels: time goes into reading weights."""

from typing import Any

from jaxtyping import Array, Float, Int

from models.config_parts import DecoderConfig
from models.kernels.attention import decode_attention
from models.kernels.products import gated, onto, product


def decode_layer(
    c: DecoderConfig,
    params: Any,
    x: Float[Array, "B 1 D"],
    angles: Float[Array, "B 1 half"],
    start: Int[Array, "B"],
    buffers: tuple[Float[Array, "B H d S"], Float[Array, "B H S d"]],
) -> tuple[Float[Array, "B 1 D"], tuple[Array, Array]]:
    """What a `DecoderLayer` of fused parameters does with one token a row.

    Args:
        params: the layer's, fused.
        start: how many slots of each row are filled; the token's key and value go into the next one.
    """
    attention, mlp, eps = params["self_attn"], params["mlp"], c.rms_norm_eps
    norms = (attention["q_norm"]["scale"], attention["k_norm"]["scale"]) if c.qk_norm else None
    row = x[:, 0]
    qkv = product(row, attention["qkv_proj"]["weight"], params["input_layernorm"]["scale"], eps)
    mixed, keys, values = decode_attention(qkv, norms, angles[:, 0], start, *buffers, eps)
    row = onto(row, mixed, attention["o_proj"]["weight"])
    wide = gated(row, mlp["gate_up_proj"]["weight"], params["post_attention_layernorm"]["scale"], eps)
    return onto(row, wide, mlp["down_proj"]["weight"])[:, None], (keys, values)
