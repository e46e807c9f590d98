"""The layers of one row's step alone, on an H200: as six kernels each, and as one (what the models run).

    python -m benchmarks.layer [shape=qwen3_vl_2b] [filled=1060] [slots=2048] [steps=30] [repeats=9]

Prints microseconds a layer, the memory that it reads a second, and how far the two are apart in the end.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import Spread, interleaved
from benchmarks.options import run
from benchmarks.shapes import subject
from models.cache import KVCache
from models.config_parts import DecoderConfig
from models.errors import SettingsError
from models.kernels.choice import compiling_for, decodes_whole_layers, on_cuda
from models.kernels.layer import decode_layers


@dataclasses.dataclass(frozen=True)
class Options:
    shape: str = "qwen3_vl_2b"
    filled: int = 1060
    slots: int = 2048
    steps: int = 30
    repeats: int = 9


def layers_for(device: str, c: DecoderConfig, params: Any, *given: Any) -> Any:
    """`decode_layers` as it is for a Hopper GPU, or for another ("cuda")."""
    with compiling_for(device):
        return decode_layers(c, params, *given)


def several(step: Callable[[KVCache], tuple[Any, KVCache]], cache: KVCache, count: int) -> Callable[[], None]:
    """So many steps behind one another, at each call; `step` donates the cache to the next."""

    def run() -> None:
        nonlocal cache
        x = None
        for _ in range(count):
            x, cache = step(cache)
        jax.block_until_ready(x)

    return run


def main(options: Options) -> None:
    """Raises SettingsError without an NVIDIA GPU, and for a shape that one kernel is not written for."""
    if not on_cuda():
        raise SettingsError("device: allowed: an NVIDIA GPU")
    what = subject("", options.shape, "bfloat16", vision=False)
    c = what.model.config.text
    if not decodes_whole_layers(c, 1):
        raise SettingsError(f"shape: {options.shape!r}; allowed, on a Hopper GPU: those that a kernel is for")
    decoder = what.params["language_model"]
    layers = [decoder[f"layers_{i}"] for i in range(c.num_hidden_layers)]
    H, d, S = c.num_key_value_heads, c.head_dim, options.slots
    random = partial(jax.random.normal, dtype=jnp.bfloat16)
    given = (random(jax.random.key(0), (1, 1, c.hidden_size)), jnp.linspace(0, 3, d // 2)[None, None])
    filled = jnp.array([options.filled], jnp.int32)
    steps, ends = {}, {}
    for name, device in {"six kernels": "cuda", "one kernel": "hopper"}.items():
        compiled = jax.jit(partial(layers_for, device, c), donate_argnums=4)
        keys = jax.random.split(jax.random.key(1), len(layers))
        sizes = (1, H, d, S), (1, H, S, d)
        cache = KVCache(*(tuple(random(key, size) for key in keys) for size in sizes))
        once = partial(compiled, decoder, *given, filled)
        ends[name], cache = once(cache)
        steps[name] = several(once, cache, options.steps)
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(layers)) + len(layers) * options.filled * H * d * 2 * 2
    for name, seconds in interleaved(steps, options.repeats).items():
        each = Spread.of(seconds / options.steps / len(layers) * 1e6)
        print(f"{name:12} {each} us a layer, {read / len(layers) / each.median / 1e6:.2f} TB/s")
    six, one = (end.astype(jnp.float32) for end in ends.values())
    print(f"furthest apart {float(jnp.abs(six - one).max()):.3f} of {float(jnp.abs(six).max()):.3f}")


if __name__ == "__main__":
    run(main, Options, str(__doc__))
