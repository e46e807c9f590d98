"""Long prompts go through attention and MLP in parts: the same values, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoder import DecoderLayer
from models.kernels import choice
from models.kernels.choice import at_once, plain_jax
from tests.test_kernels import config

WIDE = {"hidden_size": 32, "intermediate_size": 1024, "head_dim": 16, "num_attention_heads": 2}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(choice, "_MANY_TOKENS", 100)


@pytest.mark.parametrize(("tokens", "parts"), [(1, 1), (100, 1), (101, 101), (200, 2), (330, 5), (1024, 16)])
def test_parts_are_equal_and_no_longer_than_allowed(few, tokens, parts):
    assert tokens // at_once(tokens) == parts


@pytest.mark.parametrize(
    ("rows", "tokens", "together"), [(1, 160, 1), (4, 160, 1), (4, 50, 2), (6, 33, 3), (5, 33, 1), (4, 25, 4)]
)
def test_rows_divide_and_have_no_more_tokens_than_allowed_where_they_can(few, rows, tokens, together):
    assert at_once(rows, tokens) == together


def test_where_gradients_are_taken_there_is_one_part(few):
    with plain_jax():
        assert at_once(1024) == 1024


def compiled(fused: bool, slots: int | None, **sizes: int):
    c = config(num_key_value_heads=2, **WIDE | sizes)
    x = jax.random.normal(jax.random.key(0), (4, 160, 32))
    angles = jax.random.normal(jax.random.key(2), (4, 160, 8))
    start = jnp.zeros(4, jnp.int32)
    layer = DecoderLayer(c, fused)
    with plain_jax():
        params = layer.init(jax.random.key(1), x, angles, start, None, 160)
    buffers = None if slots is None else (jnp.ones((4, 2, 16, slots)), jnp.ones((4, 2, slots, 16)))

    def apply(params, x, buffers):  # anew, since what `jit` has traced it keeps
        return layer.apply(params, x, angles, start, buffers, 160)

    program = jax.jit(apply, donate_argnums=2).lower(params, x, buffers).compile()
    return program.memory_analysis().temp_size_in_bytes, jax.device_get(program(params, x, buffers))


@pytest.mark.parametrize(
    ("slots", "sizes"), [(None, {}), (192, {}), (192, {"num_attention_heads": 32, "intermediate_size": 64})]
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_in_parts_gives_the_same_in_less_memory(monkeypatch, fused, slots, sizes):
    """Where the MLP takes most of it, and where attention does."""
    whole_bytes, whole = compiled(fused, slots, **sizes)
    monkeypatch.setattr(choice, "_MANY_TOKENS", 100)  # of 640: in 8 parts, and a row at a time
    bytes_, made = compiled(fused, slots, **sizes)
    for wanted, got in zip(jax.tree.leaves(whole), jax.tree.leaves(made), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert bytes_ < whole_bytes / 2
