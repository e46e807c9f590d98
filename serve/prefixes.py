"""What prompts begin with alike is computed once: blocks of the cache, by all that stands before their end.

A block is as long as the largest chunk, and kept as the program of that chunk made it, so that a row has the
same bits whether it was copied or computed. Source of the chained hashes, and of an owner in the first of
them (`cache_salt`): vLLM's prefix caching.
"""

from collections import OrderedDict
from functools import partial

import jax
import numpy as np
from blake3 import blake3
from jaxtyping import Array, Int

from models.cache import KVCache
from models.model import Model
from serve.prompt import PreparedPrompt


class PrefixCache:
    """The latest used blocks, within a budget of bytes. Of one thread: the one that owns the device.

    `reused` counts tokens that were not computed again, `bytes` what is held now.
    """

    def __init__(self, model: Model, block: int, budget: int) -> None:
        self.reused = self.bytes = 0
        self.block = block
        self._model, self._budget = model, budget
        self._held: OrderedDict[bytes, KVCache] = OrderedDict()

    def keys(self, prompt: PreparedPrompt) -> list[bytes]:
        """What its whole blocks are known by: the owner, their tokens and pictures, and all before them."""
        keys, before = [], prompt.owner.encode()
        begins = _picture_begins(self._model, prompt)
        for start in range(0, len(prompt.tokens) - self.block + 1, self.block) if self._budget else ():
            end = start + self.block
            seen = [p.key for p, begin in zip(prompt.pictures, begins, strict=True) if start <= begin < end]
            before = blake3(b"".join([before, prompt.tokens[start:end].tobytes(), *seen])).digest()
            keys.append(before)
        return keys

    def known(self, keys: list[bytes]) -> list[KVCache]:
        """The blocks with which a prompt begins, as far as they are held."""
        count = next((n for n, key in enumerate(keys) if key not in self._held), len(keys))
        for key in reversed(keys[:count]):  # the first is needed by all, and so leaves last
            self._held.move_to_end(key)
        self.reused += count * self.block
        return [self._held[key] for key in keys[:count]]

    def keep(self, key: bytes, cache: KVCache, start: int) -> None:
        """Copy a block from a row; those that were not used for the longest time make room."""
        if key in self._held:
            return
        self._held[key] = made = read_block(cache, np.int32(start), self.block)
        self.bytes += _size(made)
        while self.bytes > self._budget:
            self.bytes -= _size(self._held.popitem(last=False)[1])


@partial(jax.jit, static_argnames="size")
def read_block(cache: KVCache, start: Int[Array | np.ndarray, ""], size: int) -> KVCache:
    """The slots of `cache` from `start` on."""
    cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
    return KVCache(tuple(cut(k, axis=3) for k in cache.keys), tuple(cut(v, axis=2) for v in cache.values))


@partial(jax.jit, donate_argnames="cache")
def write_block(cache: KVCache, block: KVCache, start: Int[Array | np.ndarray, ""]) -> KVCache:
    """`cache` with the slots from `start` on as in `block`, written in place."""
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start)
    return KVCache(
        tuple(put(k, new, axis=3) for k, new in zip(cache.keys, block.keys, strict=True)),
        tuple(put(v, new, axis=2) for v, new in zip(cache.values, block.values, strict=True)),
    )


def _picture_begins(model: Model, prompt: PreparedPrompt) -> list[int]:
    """The place of each picture's first token."""
    places = np.flatnonzero(prompt.tokens == model.image_pad_id)
    counts = [int(model.picture_tokens(p.grid_thw).sum()) for p in prompt.pictures]
    return [int(places[first]) for first in np.cumsum([0, *counts])[:-1]]


def _size(block: KVCache) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(block))
