"""Fused parameters: the same model, in fewer and larger products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import Qwen3VLConfig
from models.fuse import fuse
from models.qwen3_vl import Qwen3VL
from tests.tiny import VARIANTS, tiny_config


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fused_model_gives_the_same_logits(variant):
    model = Qwen3VL(Qwen3VLConfig.from_dict(tiny_config(variant)))
    params = model.init_params(jax.random.key(0))
    tokens = jnp.arange(14, dtype=jnp.int32).reshape(2, 7)
    positions = jnp.broadcast_to(jnp.arange(7, dtype=jnp.int32), (3, 2, 7))
    wanted = model.call("logits", params, tokens, positions)
    fused, params = fuse(model, params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(fused.init_params, jax.random.key(0))
    )
    np.testing.assert_allclose(fused.call("logits", params, tokens, positions), wanted, atol=1e-5)
