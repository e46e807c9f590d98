"""The model is transformers' Qwen3-VL: features, logits and greedy tokens, live and by golden file."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import pytest

from models import encode_vision
from models.qwen3_vl import prompt_positions
from sample import SamplingConfig, VLMInputs, sample, sample_streaming
from tests.golden.parity.make import FILE, STEPS, Case, cases, load_reference, reference
from tests.tiny import VARIANTS

TOLERANCE = 2e-4  # of the largest value
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)
CASES = cases()
EACH = [  # the ragged batch has a bit of everything
    pytest.param(variant, name, marks=[] if name == "ragged" else pytest.mark.slow)
    for variant in VARIANTS
    for name in CASES
]
KEY = jax.random.key(0)


@pytest.fixture(
    scope="module", params=["golden", pytest.param("torch", marks=[pytest.mark.torch, pytest.mark.slow])]
)
def truth(
    request: pytest.FixtureRequest, tiny_directory: Callable
) -> Callable[[str, str], dict[str, np.ndarray]]:
    """What transformers computes for a variant's case: written down, or computed now."""
    if request.param == "golden":
        stored = np.load(FILE)
        return lambda variant, name: {
            key.rsplit("/", 1)[1]: stored[key] for key in stored if key.startswith(f"{variant}/{name}/")
        }
    pytest.importorskip("torch", reason="torch is not installed: the golden files stand for transformers")
    models = {}

    def compute(variant: str, name: str) -> dict[str, np.ndarray]:
        if variant not in models:
            models[variant] = load_reference(tiny_directory(variant))
        return reference(models[variant], CASES[name])

    return compute


def inputs_of(model, params, case: Case) -> VLMInputs:
    vision = encode_vision(model, params, case.pixel_values, case.grid_thw) if len(case.grid_thw) else None
    width = max(map(len, case.rows))
    tokens, mask = np.zeros((len(case.rows), width), np.int32), np.zeros((len(case.rows), width), bool)
    for i, row in enumerate(case.rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return VLMInputs(tokens, vision, case.grid_thw.astype(np.int32), model.image_pad_id, attention_mask=mask)


@partial(jax.jit, static_argnums=0)
def all_logits(model, params, tokens, positions, vision):
    return model.apply({"params": params}, tokens, positions, vision, method="logits")


def assert_close(ours, theirs) -> None:
    scale = np.abs(theirs).max()
    assert scale > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(("variant", "name"), EACH)
def test_features_logits_and_greedy_tokens(truth, tiny, variant, name):
    model, params, _ = tiny(variant)
    case, expected = CASES[name], truth(variant, name)
    inputs = inputs_of(model, params, case)
    if len(case.grid_thw):
        tokens = len(expected["vision"])
        assert_close(inputs.vision.embeddings[:tokens], expected["vision"])
        assert_close(inputs.vision.deepstack[:, :tokens], expected["deepstack"])
    lengths = np.asarray(inputs.attention_mask).sum(1)
    positions, _ = prompt_positions(model.config, inputs.prompt_tokens, case.grid_thw, lengths)
    logits = all_logits(model, params, inputs.prompt_tokens, positions, inputs.vision)
    assert_close(logits[np.arange(len(lengths)), lengths - 1], expected["logits"])
    assert sample(model, params, inputs, GREEDY, KEY).tokens.tolist() == expected["tokens"].tolist()
    if len(case.rows) == 1:
        stream = sample_streaming(model, params, inputs, GREEDY, KEY)
        assert [token.token_id for token in stream] == expected["tokens"][0].tolist()


def test_logprobs_are_those_of_the_logits(truth, tiny):
    model, params, _ = tiny("untied")
    expected = truth("untied", "one_picture")
    inputs = inputs_of(model, params, CASES["one_picture"])
    first = next(sample_streaming(model, params, inputs, GREEDY, KEY))
    theirs = jax.nn.log_softmax(expected["logits"][0].astype(np.float64))[first.token_id]
    assert first.logprob == pytest.approx(float(theirs), abs=1e-4)


def test_both_dialects_of_config_json_are_one_model(tiny_directory):
    from models import load_model

    hub, saved = (load_model(tiny_directory("tied", dialect)) for dialect in ("hub", "saved"))
    assert hub.model == saved.model


def test_left_padding_is_as_good_as_right_padding(tiny):
    model, params, _ = tiny("tied")
    right = inputs_of(model, params, CASES["ragged"])
    shift = [right.prompt_tokens.shape[1] - int(m.sum()) for m in right.attention_mask]
    left = VLMInputs(
        np.stack([np.roll(t, s) for t, s in zip(right.prompt_tokens, shift, strict=True)]),
        right.vision,
        right.grid_thw,
        right.image_pad_id,
        attention_mask=np.stack([np.roll(m, s) for m, s in zip(right.attention_mask, shift, strict=True)]),
    )
    a, b = (sample(model, params, inputs, GREEDY, KEY) for inputs in (left, right))
    assert a.tokens.tolist() == b.tokens.tolist()
