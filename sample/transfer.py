"""What goes between host and device, in as few transfers as may be."""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from models.kernels.choice import on_cpu, on_cuda

_Tree = TypeVar("_Tree")
_Shapes = tuple[tuple[tuple[int, ...], str], ...]


def to_device(tree: _Tree) -> _Tree:
    """The same small arrays there, sent as one: on its own each takes the host a tenth of a millisecond.

    Args:
        tree: numpy arrays of bools, or of numbers of four bytes.
    """
    leaves, structure = jax.tree.flatten(tree)
    words = [leaf.astype(np.int32) if leaf.dtype == bool else leaf.view(np.int32) for leaf in leaves]
    shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
    return structure.unflatten(_apart(np.concatenate([word.ravel() for word in words]), shapes))


@partial(jax.jit, static_argnames="shapes")
def _apart(words: Int32[Array, " N"], shapes: _Shapes) -> list[Array]:
    ends = np.cumsum([np.prod(shape, dtype=int) for shape, _ in shapes])
    parts = zip(jnp.split(words, ends[:-1]), shapes, strict=True)
    return [
        part.reshape(shape) != 0 if dtype == "bool" else part.reshape(shape).view(dtype)
        for part, (shape, dtype) in parts
    ]


def to_host(packed: Int[Array, "..."], *, behind_prompt: bool = False) -> Int[Array, "..."]:
    """The same, on its way to the host while the device goes on. A CPU's memory is the host's.

    A copy begins once the host has heard of the end of the program before it, which takes half a millisecond
    on an NVIDIA GPU: a first token, for which the host waits, is taken there by a program of its own.
    """
    if on_cpu():
        return packed
    if behind_prompt and on_cuda():
        packed = _in_host_memory(packed)
    packed.copy_to_host_async()
    return packed


@jax.jit
def _in_host_memory(packed: Int[Array, "..."]) -> Int[Array, "..."]:
    return jax.device_put(packed, jax.memory.Space.Host)
