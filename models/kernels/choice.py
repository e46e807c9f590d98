"""Where kernels stand for plain JAX: by device and shape, here alone. Pallas, slow to import, is left out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.cache import KVCache
from models.config_parts import DecoderConfig

SLOTS = 64  # of the cache, read at once
_MOST_ROWS = 64  # beyond it the arithmetic counts, and libraries are better at that
_WIDTH = 64  # divides every width
PROGRAMS = 256  # of the kernel for a whole layer, two on a processor
_WHOLE_LAYERS = (2048, 6144, 16, 8, 128), (4096, 12288, 32, 8, 128)  # hidden, wide, heads, of keys, head_dim
_FEW_TOKENS = 8
_MANY_TOKENS = 8192  # enough for the speed of products; activations of more take memory
_plain = ContextVar("plain", default=False)
_target = ContextVar("target", default="")


@contextmanager
def plain_jax() -> Iterator[None]:
    """What is traced in it is plain JAX on any device: training takes gradients, and `vmap`s the tower."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@contextmanager
def compiling_for(device: str) -> Iterator[None]:
    """What is traced in it is for another device than this process has: "hopper", "cuda" or "cpu"."""
    token = _target.set(device)
    try:
        yield
    finally:
        _target.reset(token)


def on_cpu() -> bool:
    """Whether the device is the host's own processor."""
    return _device() == "cpu"


def on_cuda() -> bool:
    """Whether the device is NVIDIA's, for which the kernels are written."""
    return _device() in ("cuda", "hopper")


def _device() -> str:
    return _target.get() or _own()


@cache
def _own() -> str:
    devices: list[Any] = jax.local_devices()
    if devices[0].platform != "gpu" or "cuda" not in devices[0].client.platform_version:
        return jax.default_backend()
    whole = all(d.compute_capability == "9.0" and 2 * d.core_count >= PROGRAMS for d in devices)
    return "hopper" if whole and not _with_mps() else "cuda"


def _with_mps() -> bool:
    """Whether kernels of several processes may run at once, by CUDA's Multi-Process Service."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")).exists()


def has_library_attention(q: Float[Array, "B T H D"]) -> bool:
    """Whether cuDNN has attention for these queries."""
    return _allowed() and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0


def multiplies_one_by_one(tokens: int) -> bool:
    """Whether a matrix is multiplied with each of so many tokens in turn.

    XLA's product of a matrix `[out, in]` with one vector is fast on a CPU; with a few, four times as slow.
    """
    return on_cpu() and 1 < tokens <= _FEW_TOKENS


def at_once(rows: int, tokens: int = 1) -> int:
    """How many rows of so many tokens go through half a layer at once, in equal parts: activations are large.

    All, where gradients are taken, which would keep what each part is made from.
    """
    most = rows if _plain.get() else max(_MANY_TOKENS // tokens, 1)
    return next(n for n in range(min(rows, most), 0, -1) if rows % n == 0)


def decodes_in_kernels(c: DecoderConfig, x: Float[Array, "B T D"], cache: KVCache) -> bool:
    """Whether kernels take one token of a few rows through the layers: on a GPU, in bfloat16."""
    widths = (c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim)
    return (
        _allowed()
        and x.dtype == jnp.bfloat16
        and x.shape[1] == 1
        and x.shape[0] <= _MOST_ROWS
        and not c.attention_bias
        and c.head_dim in (32, 64, 128, 256)
        and cache.values[0].shape[2] % SLOTS == 0
        and all(width % _WIDTH == 0 for width in widths)
    )


def decodes_whole_layers(c: DecoderConfig, rows: int) -> bool:
    """Whether one kernel takes one row's token through a layer, where others do at all: on a Hopper GPU.

    Its programs wait for each other, so the device must have room for all of them: the sizes are those whose
    registers and shared memory were looked at, Qwen3-VL's of 2B and 8B.
    """
    sizes = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    return (
        _device() == "hopper"
        and (0, 11) <= jax.__version_info__ < (0, 12)  # whose Mosaic was looked at
        and rows == 1
        and c.qk_norm
        and sizes in _WHOLE_LAYERS
    )


def _allowed() -> bool:
    return on_cuda() and not _plain.get()
