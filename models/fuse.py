"""A decoder's parameters for decoding: products of one input joined, and a row of weights for each output."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.blocks import JOINED
from models.config_parts import DecoderConfig
from models.kernels.choice import on_cpu
from models.model import Model

_JOINED_AS = {part: joined for joined, parts in JOINED.items() for part in parts}


def fuse(model: Model, params: Any) -> tuple[Model, Any]:
    """The same model with `fused` parameters; `params` is used up.

    Layers are joined one by one, so that little more than the parameters is in memory at any time.
    """
    decoder = params[model.decoder_part]
    for name in [n for n in decoder if n.startswith("layers_")]:
        layer = decoder.pop(name)
        decoder[name] = {n: _fused(part) if n in ("self_attn", "mlp") else part for n, part in layer.items()}
        jax.block_until_ready(decoder[name])  # else all layers' old and new arrays are alive at once
    if "lm_head" in params:
        params["lm_head"] = _joined([params["lm_head"]])
    return model.clone(fused=True), params


def unfused(config: DecoderConfig, params: Any) -> Any:
    """Parameters as a checkpoint has them, from those of `fuse`; others stay as they are."""
    counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    features = {
        "qkv_proj": tuple(count * config.head_dim for count in counts),
        "gate_up_proj": (config.intermediate_size,) * 2,
    }

    def plain(tree: Any) -> Any:
        made: dict[str, Any] = {}
        for name, part in tree.items():
            if not isinstance(part, dict):
                made[name] = part
            elif "weight" in part:
                made |= _parted(JOINED.get(name, (name,)), features.get(name), part)
            else:
                made[name] = plain(part)
        return made

    return plain(params)


def _fused(module: dict[str, Any]) -> dict[str, Any]:
    """One module of a layer: its products by rows, those of one input together, its norms as they are."""
    made: dict[str, Any] = {}
    for name, part in module.items():
        joined = _JOINED_AS.get(name, name)
        if "kernel" not in part:
            made[name] = part
        elif joined not in made:
            made[joined] = _joined([module[n] for n in JOINED.get(joined, (name,))])
    return made


def _joined(linears: Sequence[dict[str, Array]]) -> dict[str, Array]:
    made = {"weight": _rows([linear["kernel"] for linear in linears])}
    if "bias" in linears[0]:
        made["bias"] = jnp.concatenate([linear["bias"] for linear in linears])
    return made


def _rows(kernels: list[Float[Array, "I _"]]) -> Float[Array, "O I"]:
    if on_cpu():  # numpy reads the same memory, and there is nothing to compile
        joined = np.concatenate([np.asarray(kernel) for kernel in kernels], axis=1)
        return jnp.asarray(np.ascontiguousarray(joined.T))
    return _rows_on_device(kernels)


@jax.jit
def _rows_on_device(kernels: list[Float[Array, "I _"]]) -> Float[Array, "O I"]:
    return jnp.concatenate(kernels, axis=1).T


def _parted(
    names: Sequence[str], features: Sequence[int] | None, joined: dict[str, Array | np.ndarray]
) -> dict[str, dict[str, Array]]:
    ends = [] if features is None else np.cumsum(features)[:-1].tolist()
    made = {
        name: {"kernel": part.T} for name, part in zip(names, jnp.split(joined["weight"], ends), strict=True)
    }
    if "bias" in joined:
        for name, part in zip(names, jnp.split(joined["bias"], ends), strict=True):
            made[name]["bias"] = part
    return made
