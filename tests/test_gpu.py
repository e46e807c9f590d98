"""On an NVIDIA GPU, in bfloat16: the fused model and its kernels against float32, and what makes them fast.

A greedy token may be another than float32's only where float32's best two logits are nearer to one another
than TOLERANCE: logits of order 10, rounded to 8 bits in some thirty places on their way.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import load_model
from models.load import LoadedModel
from sample import SamplingConfig, prepare_inputs, sample, sample_streaming
from sample.inputs import VLMInputs
from sample.request import make_request
from sample.step import decode_step, prefill

pytestmark = pytest.mark.gpu
TOLERANCE = 0.25
PICTURES = ("panda_climbing", "coffee_laptop")
STEPS = 64


@pytest.fixture(scope="module")
def bfloat16() -> LoadedModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def float32() -> LoadedModel:
    return load_model("embedded", dtype="float32")


def inputs_of(loaded: LoadedModel, picture: str) -> VLMInputs:
    return prepare_inputs(*loaded, images=[f"examples/imgs/{picture}.png"], prompt="Tell me a story")


def story(loaded: LoadedModel, picture: str, **how: Any) -> np.ndarray:
    config = SamplingConfig(temperature=0, max_new_tokens=STEPS, **how)
    model, params, _ = loaded
    return sample(model, params, inputs_of(loaded, picture), config, jax.random.key(0)).tokens[0]


def test_the_model_is_fused(bfloat16):
    assert bfloat16.model.fused
    assert bfloat16.model.dtype == jnp.bfloat16


@pytest.mark.parametrize("picture", PICTURES)
def test_greedy_tokens_are_those_of_float32(bfloat16, float32, picture):
    """Wherever float32's best two logits differ by more than the tolerance, behind the same tokens."""
    told = story(bfloat16, picture)
    model, params, _ = float32
    inputs = inputs_of(float32, picture)
    prompt = np.asarray(inputs.prompt_tokens)[0]
    tokens = np.concatenate([prompt, told])[None]
    lengths = np.array([tokens.shape[1]], np.int32)
    positions, _ = model.prompt_positions(tokens, np.asarray(inputs.grid_thw), lengths)
    with jax.default_matmul_precision("highest"):
        logits = model.call("logits", params, jnp.asarray(tokens), jnp.asarray(positions), inputs.vision)
    wanted = np.asarray(logits)[0, len(prompt) - 1 : -1]
    best = np.sort(wanted, axis=-1)
    clear = best[:, -1] - best[:, -2] > TOLERANCE
    assert len(told) == STEPS or told[-1] in bfloat16.processor.eos_ids
    assert clear.mean() > 0.8
    assert (wanted.argmax(-1) == told)[clear].all()


def decoded(loaded: LoadedModel, batch: int) -> np.ndarray:
    """Log-probabilities of made-up tokens, fed one by one to a batch of unequal rows."""
    model, params, _ = loaded
    rng = np.random.default_rng(batch)
    rows = [rng.integers(0, 2000, 20 + 7 * i % 50) for i in range(batch)]
    width = max(map(len, rows))
    tokens, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    for row, (t, m) in zip(rows, zip(tokens, mask, strict=True), strict=True):
        t[: len(row)], m[: len(row)] = row, True
    inputs = VLMInputs(tokens, None, np.zeros((0, 3), np.int32), model.image_pad_id, attention_mask=mask)
    config = SamplingConfig(temperature=0, max_new_tokens=100)
    r = make_request(model, inputs, config, jax.random.key(0))
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
    found = []
    for _ in range(8):
        state = state._replace(token=jnp.asarray(rng.integers(0, 2000, state.token.shape).astype(np.int32)))
        hidden, cache = forward(model, params, state)
        state = state._replace(cache=cache, length=state.length + 1)
        found.append(np.asarray(jax.nn.log_softmax(model.call("head", params, hidden)[:batch, 0])))
    return np.stack(found)


@partial(jax.jit, static_argnums=0)
def forward(model, params, state):
    positions = (state.length + state.delta)[:, None]
    positions = jnp.broadcast_to(positions, (model.position_axes, *positions.shape))
    return model.call("forward", params, state.token[:, None], positions, state.length, state.cache)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 32])
def test_kernels_give_the_layers_logits(bfloat16, float32, batch):
    kernels = decoded(bfloat16, batch)
    with jax.default_matmul_precision("highest"):
        exact = decoded(float32, batch)
    likely = exact > -8
    assert np.abs(kernels - exact)[likely].max() < TOLERANCE


def test_streaming_gives_the_tokens_of_sample(bfloat16):
    model, params, _ = bfloat16
    inputs = inputs_of(bfloat16, PICTURES[0])
    for how in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3}):
        config = SamplingConfig(max_new_tokens=STEPS, **how)
        whole = sample(model, params, inputs, config, jax.random.key(0))
        stream = sample_streaming(model, params, inputs, config, jax.random.key(0))
        assert [token for token, _, _ in stream] == whole.tokens[0].tolist()


def test_the_cache_is_aliased_and_a_step_waits_for_nothing(bfloat16):
    model, params, _ = bfloat16
    r = make_request(model, np.ones((1, 20), np.int32), SamplingConfig(temperature=0), jax.random.key(0))
    params = model.decoder_params(params)
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
    compiled = decode_step.lower(model, params, state, r.sampling, top=0).compile()
    cache = sum(buffer.nbytes for buffer in jax.tree.leaves(state.cache))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 4
    text = compiled.as_text()
    assert " while(" not in text
    assert " conditional(" not in text


def test_a_second_stream_compiles_nothing(bfloat16, caplog):
    story(bfloat16, PICTURES[0])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        story(bfloat16, PICTURES[0])
    assert [r for r in caplog.records if "Compiling" in r.getMessage()] == []
