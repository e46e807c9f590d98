"""Blocked attention against plain softmax, M-RoPE against its rule, the cache against a list."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import causal_attention, segment_attention
from models.cache import write_keys, write_values
from models.config import Qwen3VLConfig
from models.errors import InputError
from models.qwen3_vl import Qwen3VL, prompt_positions
from models.rope import mrope_angles, mrope_axes
from models.vision import encode_vision
from tests.tiny import tiny_config
from tests.tokenizer_fixture import IMAGE_PAD_ID


def plain(q, k, v, visible):
    """Softmax attention in float64: q [T Hq D], k [H D S], v [H S D], visible [T S]."""
    group = q.shape[1] // k.shape[0]
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[head // group] / np.sqrt(q.shape[-1])
        weights = np.where(visible, np.exp(scores - scores.max()), 0)
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[head // group]
    return out


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("slots", [64, 256, 320, 1024])
@pytest.mark.parametrize("known", [True, False])
def test_causal_attention_is_plain_softmax(slots, known):
    q, k, v = random(2, 3, 6, 8), random(2, 2, 8, slots, seed=1), random(2, 2, slots, 8, seed=2)
    at = np.array([[0, 1, 2], [slots - 3, slots - 2, slots - 1]], np.int32)
    bound = slots if known else jnp.int32(slots)
    got = jax.jit(causal_attention, static_argnums=4 if known else ())(q, k, v, at, bound)
    for row in range(2):
        visible = np.arange(slots) <= at[row][:, None]
        np.testing.assert_allclose(got[row], plain(q[row], k[row], v[row], visible), atol=2e-6)


def test_a_row_is_not_changed_by_a_longer_one():
    q, k, v = random(2, 1, 4, 8), random(2, 2, 8, 1024, seed=1), random(2, 2, 1024, 8, seed=2)
    attend = jax.jit(causal_attention)
    short = attend(q, k, v, np.array([[5], [9]], np.int32), 10)
    long = attend(q, k, v, np.array([[5], [900]], np.int32), 901)
    assert np.asarray(short[0]).tolist() == np.asarray(long[0]).tolist()


@pytest.mark.parametrize("lengths", [(24, 40), (200, 312)])
def test_segments_do_not_see_one_another(lengths):
    patches = sum(lengths)
    q, k, v = random(1, patches, 2, 8), random(1, 2, 8, patches, seed=1), random(1, 2, patches, 8, seed=2)
    segments = np.repeat([0, 1], lengths)
    got = segment_attention(q, k, v, jnp.cumsum(jnp.array(lengths)))
    np.testing.assert_allclose(got[0], plain(q[0], k[0], v[0], segments[:, None] == segments), atol=2e-6)


@pytest.mark.parametrize("start", [(0, 5), 0, 4])
def test_entries_are_written_at_each_rows_own_slot_or_at_one(start):
    new = random(2, 3, 2, 4)
    slots = np.broadcast_to(start, 2)
    start = start if isinstance(start, int) else jnp.array(start)
    keys = write_keys(jnp.zeros((2, 2, 4, 8)), new, start)
    values = write_values(jnp.zeros((2, 2, 8, 4)), new, start)
    for row, at in enumerate(slots):
        np.testing.assert_array_equal(keys[row, :, :, at : at + 3], new[row].transpose(1, 2, 0))
        np.testing.assert_array_equal(values[row, :, at : at + 3], new[row].transpose(1, 0, 2))
    assert int((keys != 0).sum()) == int((values != 0).sum()) == new.size


def test_one_slot_for_all_rows_takes_no_scatter():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 2, 4, 8), (2, 3, 2, 4))]
    assert "scatter" not in jax.jit(partial(write_keys, start=0)).lower(*shapes).as_text()


def test_sections_are_interleaved():
    axes = mrope_axes((24, 20, 20))
    assert axes[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert axes[54:].tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 0, 0]
    assert np.bincount(axes).tolist() == [24, 20, 20]


def test_each_frequency_turns_with_its_own_axis():
    positions = jnp.array([[[3]], [[5]], [[7]]])
    angles = mrope_angles(positions, 8, 100.0, (2, 1, 1))[0, 0]
    frequencies = 100.0 ** (-np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(angles, np.array([3, 5, 7, 3]) * frequencies, rtol=1e-6)


@pytest.fixture
def config() -> Qwen3VLConfig:
    return Qwen3VLConfig.from_dict(tiny_config())


def test_text_goes_on_behind_the_larger_side_of_a_picture(config):
    tokens = np.array([[1, 2, *[IMAGE_PAD_ID] * 6, 3, 4, 0, 0]], np.int32)
    positions, delta = prompt_positions(config, tokens, np.array([[1, 4, 6]]), np.array([10]))
    assert positions[0, 0, :10].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[1, 0, :10].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2, 0, :10].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert delta.tolist() == [-3]


def test_pictures_side_by_side_share_a_run_and_rows_take_pictures_in_order(config):
    tokens = np.array([[1, *[IMAGE_PAD_ID] * 6, 3], [*[IMAGE_PAD_ID] * 2, 4, 5, 0, 0, 0, 0]], np.int32)
    grids = np.array([[1, 4, 4], [1, 4, 2], [1, 2, 4]])
    positions, delta = prompt_positions(config, tokens, grids, np.array([8, 4]))
    assert positions[:, 0].T.tolist() == [
        [0, 0, 0],
        *([1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]),
        *([3, 3, 3], [3, 4, 3]),
        [5, 5, 5],
    ]
    assert positions[:, 1, :4].T.tolist() == [[0, 0, 0], [0, 0, 1], [2, 2, 2], [3, 3, 3]]
    assert not positions[:, 1, 4:].any()
    assert delta.tolist() == [-2, 0]


WRONG_RUNS = {
    "too few pictures": ([IMAGE_PAD_ID] * 4, []),
    "too many pictures": ([1, 2], [[1, 4, 4]]),
    "a run too short": ([*[IMAGE_PAD_ID] * 3, 1], [[1, 4, 4]]),
    "a picture without tokens": ([IMAGE_PAD_ID], [[-1, 2, 2]]),
    "a run too long": ([IMAGE_PAD_ID] * 5, [[1, 4, 4]]),
}


@pytest.mark.parametrize("name", WRONG_RUNS)
def test_picture_tokens_must_match_the_grids(config, name):
    tokens, grids = WRONG_RUNS[name]
    row = np.array([tokens], np.int32)
    with pytest.raises(InputError, match="prompt_tokens"):
        prompt_positions(config, row, np.array(grids).reshape(-1, 3), np.array([len(tokens)]))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((16, 1536), [[1, 4, 6]]),
        ((24, 1000), [[1, 4, 6]]),
        ((15, 1536), [[1, 3, 5]]),
        ((24, 1536), [[1, -4, -6]]),
        ((0, 1536), np.zeros((0, 3), np.int32)),
    ],
)
def test_patches_must_match_the_grids(config, shape, grid):
    with pytest.raises(InputError, match="grid_thw"):
        encode_vision(Qwen3VL(config), {}, np.zeros(shape, np.float32), np.array(grid))


def test_the_frames_of_a_clip_are_segments_with_the_same_positions(config):
    layout = Qwen3VL(config).vision_layout(np.array([[2, 2, 4]]), 20)
    assert layout.ends.tolist() == [8, 16]
    np.testing.assert_array_equal(layout.coordinates[:8], layout.coordinates[8:16])
    np.testing.assert_array_equal(layout.taps[:8], layout.taps[8:16])
