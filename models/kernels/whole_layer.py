"""One row's token through a decoder layer as one kernel, on a Hopper GPU.

What separates a layer's six kernels from the memory's speed are their starts and ends. Here programs that are
all on the device at once do a layer's phases one behind the other, and meet between them; the weights of the
phases to come are on their way meanwhile, in a ring of tiles. `benchmarks.layer` times it beside the six.

Two programs have to fit on each processor, or they wait for ever for those that never start: 256 of them,
with less than 113 KiB of shared memory and 256 registers a thread each, where there are 128 processors.
Source: "Look Ma, No Bubbles!" (Hazy Research, 2025); Flash-Decoding (Dao et al., 2023) for the splits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as mosaic
from jaxlib.mlir import ir
from jaxtyping import Array, Float, Int

from models.config_parts import DecoderConfig
from models.kernels.choice import PROGRAMS, SLOTS
from models.kernels.products import Hidden, hidden

_LINE, _LINES, _ROWS = 256, 8, 4  # a tile has 4 rows' 8 lines of 256 weights: 16 KiB
_WIDTH = _LINE * _LINES
_TILES = 5  # on their way, or read: more do not fit twice on a processor
_FIRST = 2  # of them, before what the attention will read
_APART = 32  # numbers between two counters
_MEETINGS = 4  # of all programs; those of each head have one more
_MASKED = -1e30

_tiled = partial(mosaic.Layout.TILED, vector_dim=-1)
_every_warp = (mosaic.Replicated(4),)
_PAIRS = _tiled(mosaic.Tiling(((4, _LINE // 2), (4,))), warp_dims=(-3,), lane_dims=(-2,))  # a row for a warp
_EACH = _PAIRS.reduce((1,))
_WHOLE = _tiled(mosaic.Tiling(((1, _LINE), (8,))), warp_dims=_every_warp, lane_dims=(-2,))
_SHARED = _tiled(mosaic.Tiling(((4, _LINE), (8,))), warp_dims=(-3,), lane_dims=(-2,))
_KEYS = _tiled(mosaic.Tiling(((16, 64), (16, 16), (8,))), warp_dims=(-4,), lane_dims=(-3, -2))
_VALUES = _tiled(mosaic.Tiling(((8, 128), (8, 32), (8,))), warp_dims=(-4,), lane_dims=(-3, -2))
_HALF = _tiled(mosaic.Tiling(((64,), (2,))), warp_dims=_every_warp, lane_dims=(-2,))


class _Shape(NamedTuple):
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    def rows(self) -> tuple[int, int, int]:
        """A program's rows of q/k/v, of `o` and `down`, and of gate or up."""
        projected = (self.heads + 2 * self.kv_heads) * self.head_dim
        return projected // PROGRAMS, self.hidden // PROGRAMS, self.wide // PROGRAMS

    def starts(self) -> list[int]:
        """The first tile of each product, in the order of use, and the number of all."""
        projected, out, wide = (rows // _ROWS for rows in self.rows())
        chunks, wide_chunks = self.hidden // _WIDTH, self.wide // _WIDTH
        counts = (projected * chunks, out * chunks, 2 * wide * chunks, out * wide_chunks)
        return [sum(counts[:i]) for i in range(5)]


def counters(c: DecoderConfig) -> Any:
    """What programs meet by, of all layers that follow one another."""
    return jax.new_ref(jnp.zeros((_MEETINGS + c.num_key_value_heads) * _APART, jnp.int32))


def decode_layer(
    c: DecoderConfig,
    met: Any,
    params: Any,
    behind: Float[Array, "D"],
    x: Hidden,
    angles: Float[Array, "1 half"],
    start: Int[Array, "1"],
    buffers: tuple[Float[Array, "1 H d S"], Float[Array, "1 H S d"]],
) -> tuple[Hidden, tuple[Array, Array]]:
    """`models.kernels.layer.decode_layer` of one row; `met` is the `counters`."""
    keys, values = (jax.new_ref(buffer[0]) for buffer in buffers)
    row = _launch(c, params, x.rows[0], angles[0], start, keys, values, met)
    written = jax.freeze(keys)[None], jax.freeze(values)[None]
    return hidden(row[None], behind, c.rms_norm_eps), written


def _launch(
    c: DecoderConfig,
    params: Any,
    x: Float[Array, "D"],
    angles: Float[Array, "half"],
    filled: Int[Array, "1"],
    keys: Any,
    values: Any,
    met: Any,
) -> Float[Array, "D"]:
    """The row behind the layer.

    Args:
        keys: [H, d, S], as a `jax.Ref` that is written to.
        values: [H, S, d], likewise.
        met: the counters, likewise.
    """
    attention, mlp = params["self_attn"], params["mlp"]
    shape = _Shape(
        c.hidden_size, c.intermediate_size, c.num_attention_heads, keys.shape[0], c.head_dim, c.rms_norm_eps
    )
    lines, wide_lines = shape.hidden // _LINE, shape.wide // _LINE
    H, heads, d = shape.kv_heads, shape.heads, shape.head_dim
    splits = PROGRAMS // H

    def array(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def either(*sizes: int) -> Any:
        """Memory as numbers, and as pairs of them."""
        *most, last = sizes
        return mosaic.RefUnion(mosaic.SMEM(sizes, jnp.bfloat16), mosaic.SMEM((*most, last // 2), jnp.int32))

    def tiled(weight: Array) -> Array:
        return weight.reshape(weight.shape[0], -1, _LINES, _LINE)

    outs = mosaic.kernel(
        lambda *refs: _Program(shape, *refs).run(),
        out_type=(
            array(heads + 2 * H, d),
            array(heads, splits, d, dtype=jnp.float32),
            array(2, heads, splits, dtype=jnp.float32),
            array(lines, _LINE),
            array(lines, _LINE),
            array(wide_lines, _LINE),
            array(lines, _LINE),
        ),
        scratch_types=[
            either(_TILES, _ROWS, _LINES, _LINE),
            either(wide_lines, _LINE),
            mosaic.SMEM((heads // H, d), jnp.bfloat16),
            mosaic.SMEM((d,), jnp.bfloat16),
            mosaic.SMEM((heads // H, SLOTS), jnp.float32),
            mosaic.Barrier(num_arrivals=1, num_barriers=_TILES),
        ],
        grid=(PROGRAMS,),
        grid_names=("program",),
        compiler_params=mosaic.CompilerParams(
            reduction_scratch_bytes=0, lowering_semantics=mosaic.LoweringSemantics.Lane
        ),
    )(
        x.reshape(lines, _LINE),
        params["input_layernorm"]["scale"].reshape(lines, _LINE),
        tiled(attention["qkv_proj"]["weight"]),
        attention["q_norm"]["scale"],
        attention["k_norm"]["scale"],
        tiled(attention["o_proj"]["weight"]),
        params["post_attention_layernorm"]["scale"].reshape(lines, _LINE),
        tiled(mlp["gate_up_proj"]["weight"]),
        tiled(mlp["down_proj"]["weight"]),
        jnp.cos(angles),
        jnp.sin(angles),
        filled,
        keys,
        values,
        met,
    )
    return outs[-1].reshape(-1)


class _Refs(NamedTuple):
    """What the kernel is given, in the order of its operands, outputs and scratch."""

    x: Any
    norm1: Any
    w_qkv: Any
    q_scale: Any
    k_scale: Any
    w_o: Any
    norm2: Any
    w_wide: Any
    w_down: Any
    cos: Any
    sin: Any
    filled: Any
    keys: Any
    values: Any
    met: Any
    qkv: Any
    parts: Any  # of the splits: mixed values, then their tops and totals
    sums: Any
    mixed: Any
    middle: Any  # behind attention
    wide: Any
    out: Any
    ring: Any  # of tiles, and the same memory in pairs
    laid: Any  # the row that is multiplied, likewise
    queries: Any
    key: Any
    scores: Any
    barriers: Any


_Carry = list[tuple[Array, Array, Array]]  # of each query: the top score, the total and the mixed values


class _Program:
    """One of the programs: its part of each phase."""

    def __init__(self, shape: _Shape, *refs: Any) -> None:
        self.shape, self.refs = shape, _Refs(*refs)
        self.ring, self.ring_pairs = self.refs.ring
        self.laid, self.laid_pairs = self.refs.laid
        self.d = shape.head_dim
        self.group, self.splits = shape.heads // shape.kv_heads, PROGRAMS // shape.kv_heads
        self.chunks, self.wide_chunks = shape.hidden // _WIDTH, shape.wide // _WIDTH
        self.projected_rows, self.out_rows, self.wide_rows = shape.rows()
        self.starts = shape.starts()
        self.program = jax.lax.axis_index("program")
        self.head, self.split = self.program // self.splits, jax.lax.rem(self.program, self.splits)
        self.low, self.high = pl.ds(0, self.d // 2), pl.ds(self.d // 2, self.d // 2)
        # before and behind a kernel all counters are the same
        self.goal = self.refs.met[(_MEETINGS - 1) * _APART] + PROGRAMS
        self.length = self.refs.filled[0]

    def run(self) -> None:
        """The layer."""
        _unnumbered()  # pyright: ignore[reportCallIssue]
        r = self.refs
        # what is waited for goes before the weights, which fill the memory's queue
        x, scale = _load(r.x, _WHOLE), _load(r.norm1, _WHOLE)
        turns = _load(r.cos, _HALF), _load(r.sin, _HALF)
        scales = [
            [_load(ref.at[half], _HALF) for half in (self.low, self.high)] for ref in (r.q_scale, r.k_scale)
        ]
        self.begin()
        self.project(self.lay(x, scale))
        first = self.meet(0, lambda: self.read(0))
        self.attend(first, turns, scales)
        self.meet(_MEETINGS + self.head, programs=self.splits)
        self.join()
        self.meet(1)
        self.onto(r.x, self.lay(_load(r.mixed, _SHARED)), self.starts[1], self.chunks, r.middle)
        scale = self.meet(2, self.store)
        self.widen(self.lay(_load(r.middle, _WHOLE), scale))
        self.meet(3)
        self.onto(r.middle, self.lay(_load(r.wide, _SHARED)), self.starts[3], self.wide_chunks, r.out)

    def meet(self, i: Any, meanwhile: Callable[[], Any] = lambda: None, programs: int = PROGRAMS) -> Any:
        """Behind it, the so many programs that meet there see what all of them have written before it."""
        counter = self.refs.met.at[i * _APART]
        _arrive(counter, jnp.int32(PROGRAMS // programs))  # pyright: ignore[reportCallIssue]
        made = meanwhile()
        _wait(counter, self.goal)  # pyright: ignore[reportCallIssue]
        return made

    def begin(self) -> None:
        """The first tiles on their way; between them, into the device's cache, what attention will read."""
        _times(_FIRST)(self.fetch)

        @pl.when(self.program == 0)
        def _() -> None:
            mosaic.async_prefetch(self.refs.norm2)

        @pl.when(self.split * SLOTS < self.length)
        def _() -> None:
            for ref in self.block(self.split):
                mosaic.async_prefetch(ref)

        _times(_TILES - _FIRST)(lambda n: self.fetch(n + _FIRST))

    def fetch(self, n: Array) -> None:
        """The `n`-th tile of this program on its way."""
        chunks, starts = self.chunks, self.starts

        def copy(weight: Any, row: Any, chunk: Any) -> None:
            at = jax.lax.rem(n, _TILES)
            tile = weight.at[pl.ds(row, _ROWS), chunk]
            mosaic.copy_gmem_to_smem(tile, self.ring.at[at], self.refs.barriers.at[at])

        def plain(weight: Any, start: int, end: int, rows: int, chunks: int) -> None:
            @pl.when((n >= start) & (n < end))
            def _() -> None:
                m = n - start
                copy(weight, self.program * rows + m // chunks * _ROWS, jax.lax.rem(m, chunks))

        plain(self.refs.w_qkv, starts[0], starts[1], self.projected_rows, chunks)
        plain(self.refs.w_o, starts[1], starts[2], self.out_rows, chunks)
        plain(self.refs.w_down, starts[3], starts[4], self.out_rows, self.wide_chunks)

        @pl.when((n >= starts[2]) & (n < starts[3]))
        def _() -> None:  # gate's and up's in turns
            m = n - starts[2]
            pair, part = m // (2 * chunks), jax.lax.rem(m // chunks, 2)
            row = part * self.shape.wide + self.program * self.wide_rows + pair * _ROWS
            copy(self.refs.w_wide, row, jax.lax.rem(m, chunks))

    def lay(self, row: Array, scale: Array | None = None) -> Any:
        """A row where `dots` finds it, behind its norm where there is a scale."""
        if scale is not None:
            full = row.astype(jnp.float32)
            factor = jax.lax.rsqrt((full * full).sum(0).sum(0) / row.size + self.shape.eps)
            row = (full * factor).astype(jnp.bfloat16) * scale
        self.laid[pl.ds(0, row.shape[0])] = row
        return self.row_of(0) if row.shape[0] == _LINES else None

    def row_of(self, chunk: Any) -> list[list[Array]]:
        """A chunk of the row, line by line, for each row of a tile."""
        lines = [_halves(self.laid_pairs.at[chunk * _LINES + i], _PAIRS.reduce((0,))) for i in range(_LINES)]
        return [[_spread(half, (_ROWS, _LINE // 2), 1, _PAIRS) for half in line] for line in lines]

    def dots(self, n: Any, chunks: int, row: Any) -> Array:
        """The rows of weights in the tiles from `n` on times what lies in `laid`: that is `row`, if short."""

        def add(chunk: Any, totals: tuple[Array, ...]) -> tuple[Array, ...]:
            at = jax.lax.rem(n + chunk, _TILES)
            lines = self.row_of(chunk) if row is None else row
            mosaic.barrier_wait(self.refs.barriers.at[at])
            for i, line in enumerate(lines):
                found = _halves(self.ring_pairs.at[at, :, i], _PAIRS)
                totals = tuple(w * r + total for w, r, total in zip(found, line, totals, strict=True))
            self.fetch(n + chunk + _TILES)
            return totals

        zero = mosaic.layout_cast(jnp.zeros((_ROWS, _LINE // 2)), _PAIRS)
        even, odd = add(0, (zero, zero)) if chunks == 1 else jax.lax.fori_loop(0, chunks, add, (zero, zero))
        return _rounded((even + odd).sum(1))

    def project(self, row: Any) -> None:
        """This program's rows of queries, keys and values."""

        @_times(self.projected_rows // _ROWS)
        def _(i: Array) -> None:
            first = self.program * self.projected_rows + i * _ROWS
            made = self.dots(i * self.chunks, self.chunks, row).astype(jnp.bfloat16)
            self.refs.qkv[first // self.d, pl.ds(jax.lax.rem(first, self.d), _ROWS)] = made

    def onto(self, residual: Any, row: Any, start: int, chunks: int, target: Any) -> None:
        """This program's rows of a product, onto the residual."""

        @_times(self.out_rows // _ROWS)
        def _(i: Array) -> None:
            first = self.program * self.out_rows + i * _ROWS
            at = first // _LINE, pl.ds(jax.lax.rem(first, _LINE), _ROWS)
            before = _load(residual.at[at], _EACH).astype(jnp.float32)
            _put(target, first, self.dots(start + i * chunks, chunks, row) + before)

    def widen(self, row: Any) -> None:
        """This program's rows between the MLP's products."""

        @_times(self.wide_rows // _ROWS)
        def _(i: Array) -> None:
            n = self.starts[2] + 2 * i * self.chunks
            gate, up = (self.dots(n + part * self.chunks, self.chunks, row) for part in range(2))
            first = self.program * self.wide_rows + i * _ROWS
            _put(self.refs.wide, first, gate / (1 + jnp.exp(-gate)) * up)

    def block(self, i: Any) -> tuple[Any, Any]:
        """Keys and values of this program's head, of so many slots."""
        at = pl.ds(i * SLOTS, SLOTS)
        return self.refs.keys.at[self.head, :, at], self.refs.values.at[self.head, at]

    def read(self, n: Any) -> tuple[Array, Array]:
        """Keys and values of this program's `n`-th block; of one that is not there, what is in the cache."""
        last = jnp.maximum(self.length - 1, 0) // SLOTS
        keys, values = self.block(jnp.minimum(self.split + n * self.splits, last))
        return _load(keys, _KEYS), _load(values, _VALUES)

    def projected(self, i: Any) -> list[Array]:
        """Both halves of a projected head."""
        return [_load(self.refs.qkv.at[i, half], _HALF) for half in (self.low, self.high)]

    def turned(
        self, halves: list[Array], turns: tuple[Array, Array], scale: list[Array]
    ) -> tuple[Array, Array]:
        """The same behind its norm and the rotation."""
        halves = [half.astype(jnp.float32) for half in halves]
        squares = halves[0] * halves[0] + halves[1] * halves[1]
        factor = jax.lax.rsqrt(squares.sum(0) / self.d + self.shape.eps)
        a, b = (
            _rounded(_rounded(half * factor) * by.astype(jnp.float32))
            for half, by in zip(halves, scale, strict=True)
        )
        cos, sin = turns
        return (a * cos - b * sin).astype(jnp.bfloat16), (b * cos + a * sin).astype(jnp.bfloat16)

    def attend(
        self, first: tuple[Array, Array], turns: tuple[Array, Array], scales: list[list[Array]]
    ) -> None:
        """Over a split of the filled slots, whose first block is given; the first has the new token, too."""
        r, head, group = self.refs, self.head, self.group
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        # all that is waited for at once
        value = _load(r.qkv.at[heads + kv_heads + head], _VALUES.reduce((0,)))
        key, *queries = [
            self.projected(heads + head),
            *(self.projected(head * group + g) for g in range(group)),
        ]
        new_key = self.turned(key, turns, scales[1])
        r.key[self.low], r.key[self.high] = new_key
        one = jnp.where(self.split == 0, 1.0, 0.0).astype(jnp.float32)
        carry: _Carry = []
        for g in range(group):
            query = self.turned(queries[g], turns, scales[0])
            r.queries[g, self.low], r.queries[g, self.high] = query
            pairs = [
                a.astype(jnp.float32) * b.astype(jnp.float32) for a, b in zip(query, new_key, strict=True)
            ]
            score = (pairs[0] + pairs[1]).sum(0) * self.d**-0.5
            carry.append((jnp.where(self.split == 0, score, _MASKED), one, value.astype(jnp.float32) * one))
        asked = [_load(r.queries.at[g], _KEYS.reduce((1,))).astype(jnp.float32) for g in range(group)]
        blocks = (self.length + SLOTS - 1) // SLOTS
        own = jnp.maximum(blocks - self.split + self.splits - 1, 0) // self.splits

        # the first block, of a program that has none masked as a whole, was read before the meeting
        carry = self.add(self.split, first, asked, carry)
        carry = jax.lax.fori_loop(
            1, own, lambda n, carry: self.add(self.split + n * self.splits, self.read(n), asked, carry), carry
        )
        for g, (top, total, mixed) in enumerate(carry):
            r.parts[head * group + g, self.split] = mixed
            r.sums[0, head * group + g, self.split] = top
            r.sums[1, head * group + g, self.split] = total

    def add(self, i: Array, block: tuple[Array, Array], asked: list[Array], carry: _Carry) -> _Carry:
        """A block of slots to what the queries have seen."""
        scores, by_slot = self.refs.scores, _VALUES.reduce((1,))
        k, v = (part.astype(jnp.float32) for part in block)
        for g, query in enumerate(asked):
            found = (k * _spread(query, (self.d, SLOTS), 0, _KEYS)).sum(0) * self.d**-0.5
            scores[g, :] = jnp.where(self.seen(i, _KEYS.reduce((0,))), found, _MASKED)
        v = jnp.where(_spread(self.seen(i, by_slot), (SLOTS, self.d), 0, _VALUES), v, 0)
        new = []
        for g, (top, total, mixed) in enumerate(carry):
            found = _load(scores.at[g], _HALF)
            new_top = jnp.maximum(top, found.max(0))
            fade = jnp.exp(top - new_top)
            weights = _rounded(jnp.exp(_load(scores.at[g], by_slot) - new_top))
            update = (v * _spread(weights, (SLOTS, self.d), 0, _VALUES)).sum(0)
            new.append((new_top, total * fade + jnp.exp(found - new_top).sum(0), mixed * fade + update))
        return new

    def seen(self, i: Array, layout: Any) -> Array:
        """Which of a block's slots are filled."""
        return i * SLOTS + mosaic.broadcasted_iota(jnp.int32, (SLOTS,), 0, layout=layout) < self.length

    def store(self) -> Array:
        """The new key and value into their slot, by one program of each head; the next norm's scale."""
        r, block = self.refs, self.length // SLOTS

        @pl.when(self.split == jax.lax.rem(block, self.splits))
        def _() -> None:
            keys, _ = self.block(block)
            key = _load(r.key, _KEYS.reduce((1,))).astype(jnp.float32)
            slot = block * SLOTS + mosaic.broadcasted_iota(jnp.int32, (self.d, SLOTS), 1, layout=_KEYS)
            column, old = _spread(key, (self.d, SLOTS), 0, _KEYS), _load(keys, _KEYS).astype(jnp.float32)
            keys[...] = jnp.where(slot == self.length, column, old).astype(jnp.bfloat16)
            r.values[self.head, self.length] = _load(
                r.qkv.at[self.shape.heads + self.shape.kv_heads + self.head], _VALUES.reduce((0,))
            )

        return _load(r.norm2, _WHOLE)

    def join(self) -> None:
        """A few columns of what the splits have mixed."""
        rows, splits = self.out_rows, self.splits
        first = self.program * rows
        head, column = first // self.d, jax.lax.rem(first, self.d)
        layout = _tiled(mosaic.Tiling(((32, rows),)), warp_dims=_every_warp, lane_dims=(-2,))
        top, total = (_load(self.refs.sums.at[i, head], layout.reduce((1,))) for i in range(2))
        found = _load(self.refs.parts.at[head, :, pl.ds(column, rows)], layout)
        weights = jnp.exp(top - top.max(0))
        joined = (found * _spread(weights, (splits, rows), 0, layout)).sum(0)
        _put(self.refs.mixed, first, joined / (total * weights).sum(0))


@mosaic.inline_mgpu(arg_types=())
def _unnumbered(_: Any) -> None:
    """JAX numbers kernels as a process meets them: another one would not find the programs that it keeps."""
    point: Any = ir.InsertionPoint.current
    module = point.block.owner.operation
    while module.parent is not None:
        module = module.parent.operation
    module.attributes["mosaic_gpu.dump_basename"] = ir.StringAttr.get("whole_layer")


_counter = mosaic.inline_mgpu(arg_types=(mosaic.RefType(), mosaic.Layout.WG_SPLAT(())))


@_counter
def _arrive(_: Any, counter: Any, by: Any) -> None:
    utils.warpgroup_barrier()  # all threads have written
    counter = utils.SemaphoreRef(utils.memref_ptr(counter))
    counter.signal(by.registers.item(), memory_scope="gpu")  # pyright: ignore[reportCallIssue]


@_counter
def _wait(_: Any, counter: Any, value: Any) -> None:
    counter = utils.SemaphoreRef(utils.memref_ptr(counter))
    counter.wait(value.registers.item(), decrement=False, memory_scope="gpu")  # pyright: ignore[reportCallIssue]


def _times(n: int) -> Callable[[Callable[[Array], None]], None]:
    """A loop as a decorator: a kernel whose loops are written out does not fit the cache of instructions."""
    return lambda step: jax.lax.fori_loop(0, n, lambda i, _: step(i), None)


def _put(ref: Any, first: Any, value: Array) -> None:
    ref[first // _LINE, pl.ds(jax.lax.rem(first, _LINE), value.shape[0])] = value.astype(jnp.bfloat16)


def _load(ref: Any, layout: Any) -> Array:
    return mosaic.load(ref, layout=layout, optimized=False)  # pyright: ignore[reportCallIssue]


def _halves(ref: Any, layout: Any) -> list[Array]:
    """The even and the odd of bfloat16 numbers that lie there in pairs."""
    both = _load(ref, layout)
    return [jax.lax.bitcast_convert_type(half, jnp.float32) for half in (both << 16, both & -65536)]


def _spread(x: Array, shape: tuple[int, ...], axis: int, layout: Any) -> Array:
    return mosaic.layout_cast(jax.lax.broadcast_in_dim(x, shape, (axis,)), layout)


def _rounded(x: Array) -> Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)
