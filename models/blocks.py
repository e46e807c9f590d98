"""Layers that the families share. Parameters keep transformers' names; kernels are `[in, out]`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.kernels.choice import multiplies_one_by_one

_NORMAL = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """`x @ kernel + bias`, in the dtype of `x`; the result in `out_dtype`, where one is given.

    With `rows` the parameter is `weight`, `[out, in]`: a row per output, the fast layout for few tokens.
    """

    features: int
    use_bias: bool = True
    out_dtype: Any = None
    rows: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*L I"]) -> Float[Array, "*L O"]:
        if self.rows:
            weight = self.param("weight", _NORMAL, (self.features, x.shape[-1]))
            y = product_by_rows(x, weight, self.out_dtype)
        else:
            kernel = self.param("kernel", _NORMAL, (x.shape[-1], self.features))
            y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=self.out_dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y


def product_by_rows(
    x: Float[Array, "*L I"], weight: Float[Array, "O I"], dtype: Any = None
) -> Float[Array, "*L O"]:
    """`x @ weight.T`; a few tokens one by one, where that is faster."""
    tokens, kernel = x.reshape(-1, x.shape[-1]), weight.astype(x.dtype).T
    parts = jnp.split(tokens, len(tokens)) if multiplies_one_by_one(len(tokens)) else [tokens]
    products = [jnp.matmul(part, kernel, preferred_element_type=dtype) for part in parts]
    return jnp.concatenate(products).reshape(*x.shape[:-1], len(weight))


JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def projections(
    x: Float[Array, "*L I"], joined: str, features: tuple[int, ...], use_bias: bool, fused: bool
) -> list[Array]:
    """Several `Linear`s of one input, in the module that calls: one by one, or `fused` into one product."""
    if fused:
        together = Linear(sum(features), use_bias, rows=True, name=joined)(x)
        return jnp.split(together, np.cumsum(features)[:-1], axis=-1)
    names = zip(JOINED[joined], features, strict=True)
    return [Linear(size, use_bias, name=name)(x) for name, size in names]


class Embedding(nn.Module):
    """A table `[vocabulary, features]`, for lookup and, where the head is tied, for the logits."""

    num_embeddings: int
    features: int

    def setup(self) -> None:
        self.embedding = self.param("embedding", _NORMAL, (self.num_embeddings, self.features))

    def __call__(self, ids: Array) -> Array:
        return self.embedding[ids]

    def attend(self, x: Float[Array, "*L D"]) -> Float[Array, "*L V"]:
        return product_by_rows(x, self.embedding, jnp.float32)


class RMSNorm(nn.Module):
    """Root-mean-square norm, in float32 (arXiv:1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, scale.astype(x.dtype), self.eps)


def rms_norm(x: Float[Array, "*L D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*L D"]:
    """`RMSNorm` with a given scale."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale


class LayerNorm(nn.Module):
    """Layer norm, in float32 (arXiv:1607.06450)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (normed * scale + bias).astype(x.dtype)


class GatedMLP(nn.Module):
    """SwiGLU (arXiv:2002.05202): `down(silu(gate(x)) * up(x))`."""

    intermediate_size: int
    fused: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        gate, up = projections(x, "gate_up_proj", (self.intermediate_size,) * 2, False, self.fused)
        return Linear(x.shape[-1], False, rows=self.fused, name="down_proj")(nn.silu(gate) * up)
