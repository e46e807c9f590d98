"""The model is transformers' SmolVLM: features, logits and greedy tokens, live and by golden file."""

from collections.abc import Callable
from functools import cache, partial

import jax
import numpy as np
import pytest

from models import LoadedModel, encode_vision, load_model
from models.smolvlm import tile_places
from sample import SamplingConfig, VLMInputs, sample, sample_streaming
from tests.golden.parity.make_smolvlm import FILE, STEPS, Case, cases, load_reference, reference
from tests.tiny_smolvlm import VARIANTS, patches_of, tiny_checkpoint

TOLERANCE = 2e-4  # of the largest value
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)
CASES = {variant: cases(variant) for variant in VARIANTS}
EACH = [  # the ragged batch has a bit of everything
    pytest.param(variant, name, marks=[] if name == "ragged" else pytest.mark.slow)
    for variant in VARIANTS
    for name in CASES["tied"]
]
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    folder = tmp_path_factory.mktemp("smolvlm")
    return cache(lambda variant: tiny_checkpoint(folder / variant, variant))


@pytest.fixture(scope="module")
def loaded(directory: Callable) -> Callable[[str], LoadedModel]:
    return cache(lambda variant: load_model(directory(variant), dtype="float32"))


@pytest.fixture(
    scope="module", params=["golden", pytest.param("torch", marks=[pytest.mark.torch, pytest.mark.slow])]
)
def truth(request: pytest.FixtureRequest, directory: Callable) -> Callable[[str, str], dict[str, np.ndarray]]:
    """What transformers computes for a variant's case: written down, or computed now."""
    if request.param == "golden":
        stored = np.load(FILE)
        return lambda variant, name: {
            key.rsplit("/", 1)[1]: stored[key] for key in stored if key.startswith(f"{variant}/{name}/")
        }
    pytest.importorskip("torch", reason="torch is not installed: the golden files stand for transformers")
    model = cache(lambda variant: load_reference(directory(variant)))
    return lambda variant, name: reference(model(variant), CASES[variant][name])


def inputs_of(model, params, case: Case) -> VLMInputs:
    tiles, size = np.concatenate(case.tiles), model.config.vision.patch_size
    side = tiles.shape[2] // size
    grid = np.tile(np.array([1, side, side], np.int32), (len(tiles), 1))
    width = max(map(len, case.rows))
    tokens, mask = np.zeros((len(case.rows), width), np.int32), np.zeros((len(case.rows), width), bool)
    for i, row in enumerate(case.rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    vision = encode_vision(model, params, patches_of(tiles, size), grid) if len(grid) else None
    return VLMInputs(tokens, vision, grid, model.image_pad_id, attention_mask=mask)


@partial(jax.jit, static_argnums=0)
def all_logits(model, params, tokens, positions, vision):
    return model.apply({"params": params}, tokens, positions, vision, method="logits")


def assert_close(ours, theirs) -> None:
    scale = np.abs(theirs).max()
    assert scale > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(("variant", "name"), EACH)
def test_features_logits_and_greedy_tokens(truth, loaded, variant, name):
    model, params, _ = loaded(variant)
    case, expected = CASES[variant][name], truth(variant, name)
    inputs = inputs_of(model, params, case)
    if inputs.vision is not None:
        assert_close(inputs.vision.embeddings[: len(expected["vision"])], expected["vision"])
    lengths = np.asarray(inputs.attention_mask).sum(1)
    positions, _ = model.prompt_positions(inputs.prompt_tokens, inputs.grid_thw, lengths)
    logits = all_logits(model, params, inputs.prompt_tokens, positions, inputs.vision)
    assert_close(logits[np.arange(len(lengths)), lengths - 1], expected["logits"])
    assert sample(model, params, inputs, GREEDY, KEY).tokens.tolist() == expected["tokens"].tolist()
    if len(case.rows) == 1:
        stream = sample_streaming(model, params, inputs, GREEDY, KEY)
        assert [token.token_id for token in stream] == expected["tokens"][0].tolist()


def test_logprobs_are_those_of_the_logits(truth, loaded):
    model, params, _ = loaded("untied")
    expected = truth("untied", "one_picture")
    inputs = inputs_of(model, params, CASES["untied"]["one_picture"])
    first = next(sample_streaming(model, params, inputs, GREEDY, KEY))
    theirs = jax.nn.log_softmax(expected["logits"][0].astype(np.float64))[first.token_id]
    assert first.logprob == pytest.approx(float(theirs), abs=1e-4)


# (patches a side, learned positions a side): those of the published checkpoints, 224 to 512 pixels by 14 and
# 16, and tiles of another size than the table's.
SIDES = [(n, n) for n in (1, 2, 8, 14, 16, 24, 26, 27, 32)] + [(9, 10), (27, 32), (32, 27), (16, 24), (4, 3)]


def test_places_whose_coordinates_are_exact_are_their_own():
    for side in (1, 2, 8, 16, 32):
        np.testing.assert_array_equal(tile_places(side, side), np.arange(side * side))


@pytest.mark.torch
@pytest.mark.parametrize(("side", "table"), SIDES)
def test_places_equal_transformers(side, table):
    torch = pytest.importorskip("torch")
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    config = SmolVLMVisionConfig(hidden_size=1, image_size=table, patch_size=1)
    embeddings = SmolVLMVisionEmbeddings(config)
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight[:, 0] = torch.arange(table * table)
        mask = torch.ones((1, side, side), dtype=torch.bool)
        found = embeddings(torch.zeros((1, 3, side, side)), mask)
    np.testing.assert_array_equal(tile_places(side, table), found[0, :, 0].numpy().astype(int))
