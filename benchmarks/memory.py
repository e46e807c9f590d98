"""The memory that programs take on the device, by XLA's own account: feeding the prompts, and a step.

    python -m benchmarks.memory [shape=qwen3_vl_2b] [batch=1,8,32] [filled=1060] [new_tokens=128]

Without an NVIDIA GPU they are compiled for an H200 by its description; that takes a plugin, of JAX's version:
`JAX_PLATFORMS=cpu uv run --with "jax-cuda13-plugin==0.10.2" python -m benchmarks.memory`.
"""

import dataclasses
from contextlib import ExitStack
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from benchmarks.drivers import DRAWN, slots_needed
from benchmarks.limits import cache_bytes
from benchmarks.options import run
from benchmarks.shapes import SHAPES
from models.config import Qwen3VLConfig
from models.errors import SettingsError
from models.kernels.choice import compiling_for, on_cuda
from models.model import Model
from models.qwen3_vl import Qwen3VL
from sample import SamplingConfig, make_request
from sample.step import decode_step, prefill

_H200 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 150000000000
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
MESH = AbstractMesh((1,), ("x",), abstract_device=AbstractDevice("NVIDIA H200", 132, "gpu"))
_CUDNN = "jax._src.cudnn.fused_attention_stablehlo"  # asks the library and the device, which are not here


@dataclasses.dataclass(frozen=True)
class Options:
    shape: str = "qwen3_vl_2b"
    batch: tuple[int, ...] = (1, 8, 32)
    filled: int = 1060
    new_tokens: int = 128


def described(stack: ExitStack) -> Any:
    """An H200 to compile for, until the stack is left; raises SettingsError without the plugin."""
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=_H200, topology="1x1x1")
    except NotImplementedError as error:
        raise SettingsError('device: allowed: an NVIDIA GPU, or --with "jax-cuda13-plugin"') from error
    stack.enter_context(compiling_for("hopper"))
    for name, answer in {"check_cudnn_version": 91000, "is_cuda_compute_capability_equal": False}.items():
        stack.enter_context(mock.patch(f"{_CUDNN}.{name}", return_value=answer))
    return found.devices[0]


def taken(model: Model, o: Options, batch: int, device: Any) -> list[int]:
    """Bytes of the weights, of the cache, and what else the prompts' program and a step's take."""

    def shapes(tree: Any) -> Any:
        where = SingleDeviceSharding(device)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=where), tree
        )

    made = jax.eval_shape(model.init_params, jax.random.key(0))
    weights = [(part, leaf) for part, leaf in made.items() if part not in model.vision_parts]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype), dict(weights))
    config = SamplingConfig(max_new_tokens=slots_needed(0, o.new_tokens), **DRAWN)
    r = make_request(model, np.ones((batch, o.filled), np.int32), config, jax.random.key(0))
    given, how = (shapes(params), *shapes(r.arguments)), {"slots": r.slots, "top": r.top}
    state, _ = jax.eval_shape(lambda *given: prefill(model, *given, **how), *given)
    step = given[0], shapes(state), shapes(r.sampling)
    with jax.sharding.use_abstract_mesh(MESH):  # whose device Pallas asks for
        traced = prefill.trace(model, *given, **how), decode_step.trace(model, *step, top=r.top)
        programs = [program.lower(lowering_platforms=("cuda",)) for program in traced]
    accounts: list[Any] = [program.compile().memory_analysis() for program in programs]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return [size, cache_bytes(model, batch, r.slots), *(account.temp_size_in_bytes for account in accounts)]


def main(options: Options) -> None:
    """Raises SettingsError for an unknown shape, and without a GPU or the plugin."""
    if options.shape not in SHAPES:
        raise SettingsError(f"shape: {options.shape!r}; allowed: {', '.join(SHAPES)}")
    config = Qwen3VLConfig.from_dict(SHAPES[options.shape])
    with ExitStack() as stack:
        device = jax.devices()[0] if on_cuda() else described(stack)
        model = Qwen3VL(config, jnp.bfloat16, fused=True)
        print(f"{options.shape}, {device.device_kind}, GB; the peak over weights and cache")
        print("batch  weights   cache  prompts  step  peak")
        for batch in options.batch:
            weights, cache, prompts, step = (part / 1e9 for part in taken(model, options, batch, device))
            peak = 1 + max(prompts, step) / (weights + cache)
            print(f"{batch:5} {weights:8.2f} {cache:7.2f} {prompts:8.3f} {step:5.3f} {peak:5.2f}", flush=True)


if __name__ == "__main__":
    run(main, Options, str(__doc__))
