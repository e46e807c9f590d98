"""The layers of one row's step alone, on an H200: as six kernels each (what the models run), and as one.

    python -m benchmarks.layer [shape=qwen3_vl_2b] [filled=1060] [slots=2048] [steps=30] [repeats=9]

Prints microseconds a layer, the memory that it reads a second, and how far the two are apart in the end.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import one_kernel
from benchmarks.measure import Spread, interleaved
from benchmarks.options import run
from benchmarks.shapes import subject
from models.config_parts import DecoderConfig
from models.errors import SettingsError
from models.kernels.choice import on_cuda
from models.kernels.layer import decode_layer
from models.kernels.products import hidden


@dataclasses.dataclass(frozen=True)
class Options:
    shape: str = "qwen3_vl_2b"
    filled: int = 1060
    slots: int = 2048
    steps: int = 30
    repeats: int = 9


def in_six(c: DecoderConfig, layers: list[Any], x: Any, angles: Any, filled: Any, caches: list[Any]) -> Any:
    """x: [D]; caches: of each layer, [H, d, S] and [H, S, d]."""
    scales = [params["input_layernorm"]["scale"] for params in layers]
    made, row = [], hidden(x[None], scales[0], c.rms_norm_eps)
    for params, behind, (keys, values) in zip(layers, scales[1:] + scales[:1], caches, strict=True):
        row, buffers = decode_layer(c, params, behind, row, angles[None], filled, (keys[None], values[None]))
        made.append(tuple(buffer[0] for buffer in buffers))
    return row.rows[0], made


def in_one(c: DecoderConfig, layers: list[Any], x: Any, angles: Any, filled: Any, caches: list[Any]) -> Any:
    """The same."""
    met, made = jax.new_ref(one_kernel.counters()), []

    @jax.jit  # traced and lowered once, not for each layer
    def layer(params: Any, x: Any, keys: Any, values: Any) -> Any:
        refs = jax.new_ref(keys), jax.new_ref(values)
        x = one_kernel.decode_layer(c, params, x, angles, filled, *refs, met)
        return x, tuple(jax.freeze(ref) for ref in refs)

    for params, buffers in zip(layers, caches, strict=True):
        x, new = layer(params, x, *buffers)
        made.append(new)
    return x, made


def several(step: Callable[[Any], tuple[Any, Any]], caches: Any, count: int) -> Callable[[], None]:
    """So many steps behind one another, at each call; `step` donates the caches to the next."""

    def run() -> None:
        nonlocal caches
        x = None
        for _ in range(count):
            x, caches = step(caches)
        jax.block_until_ready(x)

    return run


def main(options: Options) -> None:
    """Raises SettingsError without an NVIDIA GPU, and for a shape that one kernel is not written for."""
    if not on_cuda():
        raise SettingsError("device: allowed: an NVIDIA GPU")
    what = subject("", options.shape, "bfloat16", vision=False)
    c = what.model.config.text
    if not one_kernel.fits(c):
        raise SettingsError(f"shape: {options.shape!r}; allowed: widths that are multiples of 2048")
    layers = [what.params["language_model"][f"layers_{i}"] for i in range(c.num_hidden_layers)]
    H, d, S = c.num_key_value_heads, c.head_dim, options.slots
    random = partial(jax.random.normal, dtype=jnp.bfloat16)
    given = (random(jax.random.key(0), (c.hidden_size,)), jnp.linspace(0, 3, d // 2))
    filled = jnp.array([options.filled], jnp.int32)
    steps, ends = {}, {}
    for name, step in {"six kernels": in_six, "one kernel": in_one}.items():
        compiled = jax.jit(partial(step, c), donate_argnums=4)
        caches = [
            (random(key, (H, d, S)), random(key, (H, S, d)))
            for key in jax.random.split(jax.random.key(1), len(layers))
        ]
        once = partial(compiled, layers, *given, filled)
        ends[name], caches = once(caches)
        steps[name] = several(once, caches, options.steps)
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(layers)) + len(layers) * options.filled * H * d * 2 * 2
    for name, seconds in interleaved(steps, options.repeats).items():
        each = Spread.of(seconds / options.steps / len(layers) * 1e6)
        print(f"{name:12} {each} us a layer, {read / len(layers) / each.median / 1e6:.2f} TB/s")
    six, one = (end.astype(jnp.float32) for end in ends.values())
    print(f"furthest apart {float(jnp.abs(six - one).max()):.3f} of {float(jnp.abs(six).max()):.3f}")


if __name__ == "__main__":
    run(main, Options, str(__doc__))
