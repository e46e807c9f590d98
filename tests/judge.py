"""What float32 says to the tokens of another run: which it would have drawn, and how clearly."""

import jax
import jax.numpy as jnp
import numpy as np

from models import LoadedModel
from sample import SamplingConfig, VLMInputs
from sample.request import make_request

_WIDTH = 128  # rows are padded to a multiple, so that most share a program


def scores(
    loaded: LoadedModel,
    inputs: VLMInputs,
    told: np.ndarray,
    configs: SamplingConfig | list[SamplingConfig],
    key: jax.Array,
) -> np.ndarray:
    """`[B, n, V]`: of what each told token `[B, n]` was drawn from; the largest is the one to draw.

    Args:
        loaded: in float32; `inputs` are of its own vision.
        configs: with temperature and logit bias, but no filters and penalties, whose effects jump.
    """
    model, params, _ = loaded
    r = make_request(model, inputs, configs, key)
    rows, n = [t[:length] for t, length in zip(r.prompt.tokens, r.lengths, strict=False)], told.shape[1]
    lengths = np.array([len(row) + n for row in rows], np.int32)
    tokens = np.zeros((len(rows), -(-int(lengths.max()) // _WIDTH) * _WIDTH), np.int32)
    for line, row, more in zip(tokens, rows, told, strict=True):
        line[: len(row) + n] = [*row, *more]
    positions, _ = model.prompt_positions(tokens, np.asarray(inputs.grid_thw), lengths)
    with jax.default_matmul_precision("highest"):
        logits = model.call("logits", params, jnp.asarray(tokens), jnp.asarray(positions), inputs.vision)
    logits = np.array(logits, np.float32)  # a copy, which is written to
    made = [
        _noisy(line[length - n - 1 : length - 1], config, row_key)
        for line, length, config, row_key in zip(logits, lengths, r.configs, r.key, strict=False)
    ]
    return np.stack(made)


def _noisy(logits: np.ndarray, config: SamplingConfig, key: jax.Array) -> np.ndarray:
    """A row's logits `[n, V]` as its tokens are drawn from them (`sample.logits.draw`)."""
    for token, bias in config.logit_bias:
        logits[:, token] += bias
    if config.temperature == 0:
        return logits
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(logits)))
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:], jnp.float32, mode="high"))(keys)
    return logits / config.temperature + np.asarray(noise)


def clear(found: np.ndarray, tolerance: float) -> np.ndarray:
    """Where the best two scores `[..., V]` are further apart than the tolerance."""
    best = np.partition(found, -2, axis=-1)[..., -2:]
    return best[..., 1] - best[..., 0] > tolerance


def assert_drawn(found: np.ndarray, told: np.ndarray, tolerance: float, share: float = 0.5) -> None:
    """Where float32 is sure, and that is so for a share of the tokens, they are its own."""
    sure = clear(found, tolerance)
    assert sure.mean() > share
    assert (found.argmax(-1) == told)[sure].all()


def assert_same(found: np.ndarray, told: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    """Two runs of one row `[n]` part where float32 is not sure, or never."""
    apart = np.flatnonzero(told != other)
    assert not len(apart) or not clear(found, tolerance)[apart[0]]
