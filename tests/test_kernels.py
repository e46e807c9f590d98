"""Kernels, interpreted, against the plain layer; and that they can be lowered for a GPU at real sizes."""

import re
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.memory import MESH
from models import decoder
from models.blocks import rms_norm
from models.cache import KVCache, write_keys, write_values
from models.config_parts import DecoderConfig
from models.decoder import Decoder, DecoderLayer, VisionEmbeddings
from models.kernels import choice
from models.kernels.attention import decode_attention
from models.kernels.choice import compiling_for, decodes_in_kernels, decodes_whole_layers
from models.kernels.layer import decode_layers
from models.kernels.products import TILES, gated, hidden, onto, product
from models.kernels.sums import sum_and_norm

SLOTS = 128


class NormedConfig(DecoderConfig):
    """With RMS norms on queries and keys."""

    qk_norm: ClassVar[bool] = True


def config(kind=NormedConfig, **sizes):
    given = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "rope_theta": 1e4,
    }
    return kind(**given | sizes)


def layer_case(c, batch, dtype, seed=0):
    """A fused layer's parameters, and what a step hands to it."""
    key = partial(jax.random.fold_in, jax.random.key(seed))
    x = jax.random.normal(key(0), (batch, 1, c.hidden_size), dtype)
    angles = jax.random.uniform(key(1), (batch, 1, c.head_dim // 2), maxval=6.0)
    filled = jnp.array([127, 37, 0, 64][:batch], jnp.int32)  # the first row's last slot
    buffers = (
        jax.random.normal(key(2), (batch, c.num_key_value_heads, c.head_dim, SLOTS), dtype),
        jax.random.normal(key(3), (batch, c.num_key_value_heads, SLOTS, c.head_dim), dtype),
    )
    shapes = jax.eval_shape(DecoderLayer(c, True).init, key(4), x, angles, filled, buffers, SLOTS)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    made = [jax.random.normal(key(5 + i), leaf.shape, dtype) * 0.3 for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, made), x, angles, filled, buffers


def decoded(monkeypatch, c, batch, dtype, vision=None):
    """A token of each row through a decoder: plain, and in kernels."""
    cases = [layer_case(c, batch, dtype, seed) for seed in range(c.num_hidden_layers)]
    _, _, angles, filled, _ = cases[0]
    cache = KVCache(*zip(*(case[-1] for case in cases), strict=True))
    params = {f"layers_{i}": case[0] for i, case in enumerate(cases)}
    params["embed_tokens"] = {"embedding": jax.random.normal(jax.random.key(0), (64, c.hidden_size), dtype)}
    params["norm"] = {"scale": jnp.linspace(0.5, 1.5, c.hidden_size).astype(dtype)}
    given = jnp.arange(batch)[:, None] + 7, angles, filled, cache, vision, SLOTS
    plain = Decoder(c, dtype, True).apply({"params": params}, *given)
    monkeypatch.setattr(decoder, "decodes_in_kernels", lambda *_: True)
    return plain, Decoder(c, dtype, True).apply({"params": params}, *given)


def test_deepstack_reaches_a_token_where_there_are_kernels(monkeypatch):
    made = jax.random.normal(jax.random.key(1), (2, 2, 64))
    features = VisionEmbeddings(made[0], made[1:])
    vision = jnp.array([[0], [-1], [1]]), features
    plain, kernels = decoded(monkeypatch, config(), 3, jnp.float32, vision)
    assert np.array_equal(plain[0], kernels[0])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "sizes", [{}, {"kind": DecoderConfig, "num_attention_heads": 2}], ids=["normed", "plain"]
)
def test_a_decoder_in_kernels_is_the_plain_one(monkeypatch, batch, sizes):
    plain, kernels = decoded(monkeypatch, config(**sizes), batch, jnp.float32)
    for wanted, got in zip(jax.tree.leaves(plain), jax.tree.leaves(kernels), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("batch", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_it_rounds_where_the_layers_round(monkeypatch, batch):
    (wanted, _), (got, _) = decoded(monkeypatch, config(), batch, jnp.bfloat16)
    apart = np.abs(np.asarray(got - wanted, np.float32)).max()
    assert apart <= 2**-6 * np.abs(np.asarray(wanted, np.float32)).max()


@pytest.mark.parametrize(
    "filled", [0, 63, 65, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 64, 127))]
)
def test_attention_reads_the_filled_slots_and_no_others(filled):
    key = partial(jax.random.fold_in, jax.random.key(filled))
    qkv = jax.random.normal(key(0), (2, 1, 8 * 32))
    keys, values = jax.random.normal(key(1), (1, 2, 32, SLOTS)), jax.random.normal(key(2), (1, 2, SLOTS, 32))
    angles = jnp.zeros((1, 16))
    length = jnp.array([filled], jnp.int32)
    clean, *_ = decode_attention(qkv, None, angles, length, keys, values, 1e-6)
    behind = np.arange(SLOTS) >= filled
    keys, values = jnp.where(behind, jnp.nan, keys), jnp.where(behind[:, None], jnp.nan, values)
    poisoned, keys, values = decode_attention(qkv, None, angles, length, keys, values, 1e-6)
    assert np.array_equal(clean, poisoned)
    assert np.isfinite(keys[..., : filled + 1]).all()
    heads = qkv.sum(0).reshape(1, 1, 8, 32)
    assert np.array_equal(keys, write_keys(keys, heads[:, :, 4:6], length), equal_nan=True)
    assert np.array_equal(values, write_values(values, heads[:, :, 6:], length), equal_nan=True)


PRODUCTS = [*TILES, ("product", 704), ("gated", 704), ("onto", 704)]  # tuned, and one that is not


def assert_product(kind: str, inputs: int, batch: int, dtype, tolerance: float) -> None:
    """One of such a width with 64 outputs is that of plain JAX in float32, within so much of the largest."""
    outputs, parts = 64, 2 if kind == "gated" else 1
    key = partial(jax.random.fold_in, jax.random.key(inputs))
    x = jax.random.normal(key(0), (batch, inputs), dtype)
    weight = jax.random.normal(key(1), (parts * outputs, inputs), dtype) * inputs**-0.5
    scale = 1 + 0.1 * jax.random.normal(key(2), (inputs,), dtype)
    residual = jax.random.normal(key(3), (batch, outputs), dtype)
    x32, weight32, scale32, residual32 = (a.astype(jnp.float32) for a in (x, weight, scale, residual))
    row = x32 if kind == "onto" else rms_norm(x32, scale32, 1e-6)
    plain = jnp.matmul(row, weight32.T, precision="highest")
    given = hidden(x, scale, 1e-6), weight
    if kind == "product":
        got, wanted = product(*given, 1e-6).sum(0), plain
    elif kind == "gated":
        got, wanted = gated(*given, 1e-6), jax.nn.silu(plain[:, :outputs]) * plain[:, outputs:]
    else:
        got, wanted = onto(residual, x, weight, scale[:outputs], 1e-6).rows, residual32 + plain
    assert got.shape == wanted.shape == (batch, outputs)
    apart = np.abs(np.asarray(got, np.float32) - wanted)
    assert apart.max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_in_tuned_tiles_are_plain_ones(kind):
    assert_product(*kind, 1, jnp.float32, 1e-5)


def assert_sum_and_norm(width: int, dtype) -> None:
    """To the bit the sum of plain JAX, and its norm but for the order of a sum."""
    key = partial(jax.random.fold_in, jax.random.key(width))
    residual = jax.random.normal(key(0), (3, width), dtype)
    parts = jax.random.normal(key(1), (2, 3, width))
    scale = 1 + 0.1 * jax.random.normal(key(2), (width,), dtype)
    summed, normed = sum_and_norm(residual, parts, scale, 1e-6)
    assert np.array_equal(summed, residual + (parts[0] + parts[1]).astype(dtype))
    wanted = np.asarray(rms_norm(summed, scale, 1e-6), np.float32)
    np.testing.assert_allclose(np.asarray(normed, np.float32), wanted, rtol=4 * float(jnp.finfo(dtype).eps))


WIDTHS = [2048, 704]  # a power of two, and one that is not


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_sum_and_its_norm_are_plain_ones(width, dtype):
    assert_sum_and_norm(width, dtype)


WHOLE = (0, 11) <= jax.__version_info__ < (0, 12)
REAL = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@pytest.mark.parametrize(
    ("device", "batch", "kernels"),
    [("cuda", 1, 6), ("cuda", 32, 4), ("hopper", 1, 1 if WHOLE else 6)],
)
def test_real_sizes_are_lowered_for_a_gpu(device, batch, kernels):
    c = config(**REAL, num_hidden_layers=5)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    x, angles, filled = (
        shape(batch, 1, 2048),
        shape(batch, 1, 64, dtype=jnp.float32),
        shape(batch, dtype=jnp.int32),
    )
    buffers = (shape(batch, 8, 128, 2048), shape(batch, 8, 2048, 128))
    layer = DecoderLayer(c, True)
    params = jax.eval_shape(layer.init, jax.random.key(0), x, angles, filled, buffers, 2048)["params"]
    params = jax.tree.map(lambda leaf: shape(*leaf.shape), params)
    params = {f"layers_{i}": params for i in range(5)} | {"norm": {"scale": shape(2048)}}
    given = params, x, angles, filled, KVCache(*((buffer,) * 5 for buffer in buffers))

    def lowered() -> str:
        with compiling_for(device), jax.sharding.use_abstract_mesh(MESH):
            traced = jax.jit(partial(decode_layers, c), donate_argnums=4).trace(*given)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    text = lowered()
    assert text == lowered()  # else the next process would not find what this one keeps
    functions = len(re.findall(r"func private @(decode_)?layer", text))
    assert 1 <= functions <= 3  # for the first, the last and all between
    kind, other = ("mosaic_gpu", "xla.gpu.triton") if kernels == 1 else ("xla.gpu.triton", "mosaic_gpu")
    assert len(re.findall(f"custom_call @.*{kind}", text)) == functions * kernels
    assert other not in text


@pytest.mark.skipif(not WHOLE, reason="written for JAX 0.11")
@pytest.mark.parametrize(
    ("device", "rows", "sizes"),
    [
        ("cuda", 1, {}),
        ("hopper", 2, {}),
        ("hopper", 1, {"kind": DecoderConfig}),
        ("hopper", 1, {"head_dim": 64}),
        ("hopper", 1, {"intermediate_size": 12288}),
        ("hopper", 1, {"num_key_value_heads": 4}),
    ],
    ids=str,
)
def test_a_whole_layer_is_one_kernel_where_it_fits(device, rows, sizes):
    with compiling_for("hopper"):
        assert decodes_whole_layers(config(**REAL), 1)
    with compiling_for(device):
        assert not decodes_whole_layers(config(**REAL | sizes), rows)


class Device(NamedTuple):
    """As JAX tells of one."""

    platform: str = "gpu"
    compute_capability: str = "9.0"
    core_count: int = 132
    platform_version: str = "PJRT C API\ncuda 13000"

    @property
    def client(self):
        return self


@pytest.mark.parametrize(
    ("devices", "mps", "kind"),
    [
        ([Device()], False, "hopper"),
        ([Device()] * 2, False, "hopper"),
        ([Device()], True, "cuda"),
        ([Device(core_count=114)], False, "cuda"),
        ([Device(compute_capability="8.0")], False, "cuda"),
        ([Device(), Device(compute_capability="10.0")], False, "cuda"),
        ([Device(platform_version="rocm 60000")], False, "gpu"),
        ([Device("METAL")], False, "METAL"),
    ],
    ids=str,
)
def test_kernels_are_chosen_by_what_jax_reports(monkeypatch, tmp_path, devices, mps, kind):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path if mps else tmp_path / "none"))
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: devices[0].platform)
    assert choice._own.__wrapped__() == kind


def test_a_cpu_has_no_kernels():
    cache = KVCache.empty(1, 1, 2, 2048, 32, jnp.bfloat16)
    assert not decodes_in_kernels(config(), jnp.zeros((1, 1, 64), jnp.bfloat16), cache)
