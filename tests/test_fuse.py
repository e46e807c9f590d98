"""Fused parameters: the same model, in fewer and larger products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.fuse import fuse, unfused


@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_a_fused_model_gives_the_same_logits_and_can_be_parted_again(tiny, variant):
    fused, joined, _ = tiny(variant)
    model, params = fused.clone(fused=False), unfused(fused.config.text, joined)
    assert "kernel" in params["language_model"]["layers_0"]["mlp"]["up_proj"]
    wanted = jax.eval_shape(fused.init_params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, joined) == jax.tree.map(jnp.shape, wanted)
    tokens = jnp.arange(14, dtype=jnp.int32).reshape(2, 7)
    positions = jnp.broadcast_to(jnp.arange(7, dtype=jnp.int32), (3, 2, 7))

    def logits(model, params):
        return jax.jit(partial(model.call, "logits"))(params, tokens, positions)

    np.testing.assert_allclose(logits(fused, joined), logits(model, params), atol=2e-5)
    again, rejoined = fuse(model, params)  # it takes the tree apart
    assert again == fused
    jax.tree.map(np.testing.assert_array_equal, rejoined, joined)
