"""What the memory allows: the bytes that a step must read, over the bandwidth measured in the same run."""

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import parameter_shapes
from models.kernels.choice import on_cpu
from models.model import Model

_COPIED = 2 << 30  # bytes of the array that a GPU copies
_COPIES = 10
_READS = 9
HOW = {
    "copy": "device-to-device copy of 2 GiB, read and write counted",
    "read": "reading an array of the weights' size on the host",
}


def weight_bytes(model: Model, batch: int = 1) -> int:
    """What a step reads of them: the decoder and the head once; of an untied embedding `batch` rows."""
    count = 0
    for path, leaf in parameter_shapes(model).items():
        if path[0] in model.vision_parts:
            continue
        looked_up = path[-2:] == ("embed_tokens", "embedding") and not model.config.tie_word_embeddings
        count += batch * leaf.shape[1] if looked_up else math.prod(leaf.shape)
    return count * jnp.dtype(model.dtype).itemsize


def cache_bytes(model: Model, batch: int, filled: float) -> int:
    """Keys and values of so many tokens in each row."""
    c = model.config.text
    per_token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    return round(per_token * filled * batch) * jnp.dtype(model.dtype).itemsize


def step_operations(model: Model, batch: int, filled: float) -> float:
    """Floating-point operations of a step: two per weight of a product, and attention."""
    c = model.config.text
    kernels = sum(
        math.prod(leaf.shape)
        for path, leaf in parameter_shapes(model).items()
        if path[0] not in model.vision_parts and path[-1] == "kernel"
    )
    head = model.vocab_size * c.hidden_size if model.config.tie_word_embeddings else 0
    attention = 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * filled
    return 2.0 * batch * (kernels + head + attention)


def bandwidth_meter(size: int) -> tuple[str, Callable[[], float]]:
    """How the memory is measured, and a measurement of it in bytes per second.

    Args:
        size: bytes that a CPU reads, whose caches make small sizes fast.
    """
    if on_cpu():
        return HOW["read"], _reader(size)
    return HOW["copy"], _copier()


def _copier() -> Callable[[], float]:
    """The faster of two ways to copy on the device: the driver's, and a kernel's."""

    @jax.jit
    def kernel(x: jax.Array) -> jax.Array:
        return x + jnp.float32(1)

    copies = (jax.jit(jnp.copy), kernel)

    def rate(copy: Callable[[Any], Any], x: Any) -> float:
        jax.block_until_ready(copy(x))
        begun = time.perf_counter()
        y = x
        for _ in range(_COPIES):
            y = copy(y)
        jax.block_until_ready(y)
        return 2 * x.nbytes * _COPIES / (time.perf_counter() - begun)

    def measure() -> float:
        x = jnp.zeros(_COPIED // 4, jnp.float32)
        return max(rate(copy, x) for copy in copies)

    return measure


def _reader(size: int) -> Callable[[], float]:
    """The fastest of what numpy reads memory with, by one thread or one per core."""
    array = np.ones(size // 8, np.uint64)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)

    def rate(threads: int, read: Callable[[np.ndarray], Any]) -> float:
        parts = np.array_split(array, threads)
        seconds = []
        for _ in range(_READS):
            begun = time.perf_counter()
            list(pool.map(read, parts)) if threads > 1 else read(parts[0])
            seconds.append(time.perf_counter() - begun)
        return array.nbytes / float(np.median(seconds))

    def measure() -> float:
        return max(rate(n, read) for n in {1, cores} for read in (np.bitwise_or.reduce, np.max, _dot))

    return measure


def _dot(part: np.ndarray) -> Any:
    values = part.view(np.float32)
    return np.dot(values, values)


def compute_rate(dtype: Any) -> float:
    """Operations per second of one large matrix product: the roof's flat part."""
    side = 1024 if on_cpu() else 8192
    a = jnp.full((side, side), 0.01, dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 2.0 * side**3 / float(np.median(seconds))


def parameter_bytes(params: Any) -> int:
    """Of all arrays on the device."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
