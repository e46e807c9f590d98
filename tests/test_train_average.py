"""The mean of checkpoints."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import load_model
from models.errors import SaccadeError
from models.load import EMBEDDED
from models.weights import save_checkpoint
from train.average import average


@pytest.mark.slow
def test_the_mean_of_two_checkpoints_loads(tmp_path: Path) -> None:
    model, params, _ = load_model(EMBEDDED, dtype=jnp.float32)
    shifted = tmp_path / "shifted"
    average([EMBEDDED], shifted)  # its own mean
    save_checkpoint(shifted, model.config, jax.tree.map(lambda x: np.asarray(x) + 0.5, params), jnp.bfloat16)
    average([EMBEDDED, shifted], tmp_path / "mean")
    mean = load_model(tmp_path / "mean", dtype=jnp.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.asarray(b) + 0.25, rtol=0.01, atol=0.003),
        mean.params,
        params,
    )


def test_checkpoints_that_differ_have_no_mean(tiny_directory: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"differ in their config\.json"):
        average([tiny_directory("tied"), tiny_directory("untied")], tmp_path / "mean")
    with pytest.raises(SaccadeError, match="one of the checkpoints"):
        average([EMBEDDED], EMBEDDED)
