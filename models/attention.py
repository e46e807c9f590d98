"""Attention over blocks of keys with a running softmax, so that only the filled part of a cache is read.

Source: online softmax as in FlashAttention (arXiv:2205.14135), grouped queries as in arXiv:2305.13245.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.kernels.choice import has_library_attention, on_cpu

BLOCK = 256  # keys per block
_STEP_BLOCK = 64  # the same for one token of several rows, which is read for each of them
_SMALLEST = 128  # keys that are worth a block of their own
MASKED = jnp.finfo(jnp.float32).min


def causal_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B H D S"],
    v: Float[Array, "B H S D"],
    slots: Int[Array, "B T"],
    filled: int | Int[Array, ""],
) -> Float[Array, "B T Hq D"]:
    """Each query, at its slot of the cache, attends to the slots up to its own.

    Args:
        slots: where each query stands in its row.
        filled: a bound on `slots + 1` of the rows that count. Where only the device knows it (a decode step),
            a CPU reads so many slots, so that the cost follows them, and other devices all S.
    """
    T, S = q.shape[1], v.shape[2]
    if isinstance(filled, int):
        if begins_at_first_slot(T, filled) and has_library_attention(q):
            return _library_attention(q, k[..., :T], v[:, :, :T], causal=True)
        block = _block(S)
    elif not on_cpu():  # a trip count that only the device knows makes a GPU wait for the host, in each layer
        block = filled = S
    elif q.shape[:2] == (1, 1):
        return _in_one_block(q, k, v, slots)
    else:
        block = _part(S, _STEP_BLOCK if T == 1 else BLOCK)
    return _attend(q, k, v, _up_to(slots, block), (filled + block - 1) // block, block)


def begins_at_first_slot(tokens: int, filled: int | Int[Array, ""]) -> bool:
    """Whether it is known while tracing that all rows' tokens begin at slot 0."""
    return isinstance(filled, int) and filled == tokens


def _in_one_block(
    q: Float[Array, "1 1 Hq D"],
    k: Float[Array, "1 H D S"],
    v: Float[Array, "1 H S D"],
    slots: Int[Array, "1 1"],
) -> Float[Array, "1 1 Hq D"]:
    """One block for one token of one row: of all slots, a half, a quarter, ... where no more are filled.

    In a branch, since XLA would fuse what it reads with the write to the cache before it, and copy the cache;
    and flat, since it fuses products with the reshape behind it, which is slow. A block that is not all slots
    is copied before it is multiplied, by one thread: so half of the heads stand beside the other half.
    """
    S = v.shape[2]

    def block(size: int) -> Callable[..., Float[Array, "1 1 F"]]:
        parts = 2 if size < S and v.shape[1] % 2 == 0 else 1

        def attend(q: Array, k: Array, v: Array) -> Float[Array, "1 1 F"]:
            heads = zip(jnp.split(q, parts, 2), jnp.split(k, parts, 1), jnp.split(v, parts, 1), strict=True)
            mixed = [
                _attend(q, k[..., :size], v[:, :, :size], _up_to(slots, size), 1, size) for q, k, v in heads
            ]
            return jnp.concatenate([part.reshape(*q.shape[:2], -1) for part in mixed], axis=-1)

        return attend

    sizes = [S >> i for i in range(S.bit_length()) if S >> i >= min(_SMALLEST, S // 2)][::-1]
    chosen = sum(slots[0, 0] >= size for size in sizes[:-1])
    return jax.lax.switch(chosen, [block(size) for size in sizes], q, k, v).reshape(q.shape)


def _part(keys: int, most: int) -> int:
    """A block that is not all of the keys, which XLA would move out of the loop at the price of a copy."""
    block = _block(keys, most)
    return block if block < keys else max(keys // 2, 1)


def _up_to(slots: Int[Array, "B T"], block: int) -> Callable[[Array | int], Bool[Array, "B 1 T S"]]:
    """Which of a block's keys each query may see: those up to its own slot."""
    return lambda start: (start + jnp.arange(block) <= slots[..., None])[:, None]


def segment_attention(
    q: Float[Array, "1 P H D"],
    k: Float[Array, "1 H D P"],
    v: Float[Array, "1 H P D"],
    ends: Int[Array, "F"],
) -> Float[Array, "1 P H D"]:
    """Each patch attends to all patches of its own segment (a frame of a picture).

    Args:
        ends: the number behind each segment's last patch, ascending; patches behind the last one are padding,
            of which nothing is told.
    """
    if has_library_attention(q) and len(ends) == 1:  # a mask costs more than the rest of it
        return _library_attention(q, k, v, lengths=ends)
    segments = (jnp.arange(v.shape[2])[:, None] >= ends).sum(1)
    if has_library_attention(q):
        return _library_attention(q, k, v, mask=(segments[:, None] == segments)[None, None])
    block = _largest_block(v.shape[2])

    def visible(start: Array | int) -> Bool[Array, "1 1 P S"]:
        own = jax.lax.dynamic_slice_in_dim(segments, start, block)
        return (segments[:, None] == own)[None, None]

    return _attend(q, k, v, visible, v.shape[2] // block, block)


def full_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B H D T"], v: Float[Array, "B H T D"]
) -> Float[Array, "B T H D"]:
    """Each patch attends to all patches of its own row (a tile of a picture)."""
    if has_library_attention(q):
        return _library_attention(q, k, v)
    keys = v.shape[2]
    block = _largest_block(keys)

    def visible(start: Array | int) -> Bool[Array, "1 1 1 S"]:
        return jnp.ones((1, 1, 1, block), bool)

    return _attend(q, k, v, visible, keys // block, block)


def _library_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B H D S"],
    v: Float[Array, "B H S D"],
    *,
    causal: bool = False,
    mask: Bool[Array, "1 1 T S"] | None = None,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B T Hq D"]:
    """The same by cuDNN; `lengths` are those of each row's keys."""
    k, v = k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _largest_block(keys: int) -> int:
    """The fewest equal blocks."""
    return max(size for size in range(1, min(keys, BLOCK) + 1) if keys % size == 0)


def _block(keys: int, most: int = BLOCK) -> int:
    """Blocks are equal, so their size divides the number of keys; a few keys are one block."""
    return keys if keys <= most else math.gcd(keys, most)


def _attend(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B H D S"],
    v: Float[Array, "B H S D"],
    visible: Callable[[Array | int], Bool[Array, "..."]],
    blocks: Array | int,
    block: int,
) -> Float[Array, "B T Hq D"]:
    B, T, heads, D = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    q = (q.reshape(B, T, kv_heads, group, D) * D**-0.5).transpose(0, 2, 3, 1, 4)  # [B, H, G, T, D]

    def step(i: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, mixed = carry
        start = i * block
        kb = jax.lax.dynamic_slice_in_dim(k, start, block, axis=3)
        vb = jax.lax.dynamic_slice_in_dim(v, start, block, axis=2)
        scores = jnp.einsum("bhgtd,bhds->bhgts", q, kb, preferred_element_type=jnp.float32)
        scores = jnp.where(visible(start)[:, :, None], scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - new_top)
        faded = total * jnp.exp(top - new_top)
        new_total = faded + weights.sum(-1, keepdims=True)
        # The mean so far, not the sum: a division behind the loop is fused with the product that follows,
        # and done anew for each of its outputs.
        shares = (weights / new_total).astype(v.dtype)
        update = jnp.einsum("bhgts,bhsd->bhgtd", shares, vb, preferred_element_type=jnp.float32)
        return new_top, new_total, mixed * (faded / new_total) + update

    shape = (B, kv_heads, group, T)
    carry = (jnp.full((*shape, 1), MASKED), jnp.zeros((*shape, 1)), jnp.zeros((*shape, D)))
    carry = (
        step(0, carry)
        if isinstance(blocks, int) and blocks == 1
        else jax.lax.fori_loop(0, blocks, step, carry)
    )
    mixed = carry[-1]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, heads, D).astype(q.dtype)
