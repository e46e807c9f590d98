"""SmolVLM checkpoints load strictly, and are saved as they were; what does not fit is one line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import CheckpointError, InputError, encode_vision, load_model
from models.smolvlm import SmolVLM
from models.smolvlm_config import SmolVLMConfig
from models.weights import save_checkpoint
from tests.tiny_smolvlm import VARIANTS, image_settings, tiny_checkpoint, tiny_config

MODEL = SmolVLM(SmolVLMConfig.from_dict(tiny_config()))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvlm")
    return {variant: tiny_checkpoint(folder / variant, variant) for variant in VARIANTS}


@pytest.fixture
def copy(checkpoints, tmp_path):
    return shutil.copytree(checkpoints["untied"], tmp_path / "copy")


def refusal(directory) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_on_disk_are_those_of_published_checkpoints(checkpoints):
    names = set(load_file(checkpoints["untied"] / "model.safetensors"))
    assert names > {
        "lm_head.weight",
        "model.connector.modality_projection.proj.weight",
        "model.text_model.embed_tokens.weight",
        "model.text_model.layers.0.self_attn.k_proj.weight",
        "model.text_model.layers.1.mlp.gate_proj.weight",
        "model.text_model.norm.weight",
        "model.vision_model.embeddings.patch_embedding.bias",
        "model.vision_model.embeddings.patch_embedding.weight",
        "model.vision_model.embeddings.position_embedding.weight",
        "model.vision_model.encoder.layers.1.layer_norm2.weight",
        "model.vision_model.encoder.layers.1.mlp.fc1.bias",
        "model.vision_model.encoder.layers.1.self_attn.out_proj.weight",
        "model.vision_model.post_layernorm.bias",
    }
    assert "lm_head.weight" not in load_file(checkpoints["tied"] / "model.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_weights_are_loaded_again(checkpoints, tmp_path, variant):
    model, params, _ = load_model(checkpoints[variant], dtype="float32")
    directory = shutil.copytree(checkpoints[variant], tmp_path / "copy")
    save_checkpoint(directory, model.config, params, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, load_model(directory, dtype="float32").params, params)
    shapes = [
        {name: t.shape for name, t in load_file(d / "model.safetensors").items()}
        for d in (directory, checkpoints[variant])
    ]
    assert shapes[0] == shapes[1]


def test_all_faults_are_named_in_one_line(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.connector.modality_projection.proj.weight"]
    tensors["model.extra.weight"] = np.zeros(3, np.float32)
    patches = "model.vision_model.embeddings.patch_embedding.weight"
    tensors[patches] = tensors[patches][:, :2].copy()
    save_file(tensors, copy / "model.safetensors")
    message = refusal(copy)
    assert "missing: model.connector.modality_projection.proj.weight" in message
    assert "surplus: model.extra.weight" in message
    assert f"misshaped: {patches} [32, 2, 14, 14]" in message


def test_a_tied_head_may_be_stored_twice(checkpoints, tmp_path):
    directory = shutil.copytree(checkpoints["tied"], tmp_path / "copy")
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.text_model.embed_tokens.weight"].copy()
    save_file(tensors, directory / "model.safetensors")
    assert "lm_head" not in load_model(directory).params
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, directory / "model.safetensors")
    assert "surplus: lm_head.weight" in refusal(directory)


def test_the_decoder_takes_no_weights_of_the_tower(checkpoints):
    model, params, _ = load_model(checkpoints["untied"])
    assert set(model.decoder_params(params)) == {"text_model", "lm_head"}
    assert set(params) == {"text_model", "lm_head", "vision_model", "connector"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_dialects_and_defaults_are_those_of_transformers(variant):
    from transformers import SmolVLMConfig as Reference

    ours = SmolVLMConfig.from_dict(tiny_config(variant))
    assert SmolVLMConfig.from_dict(json.loads(Reference(**tiny_config(variant)).to_json_string())) == ours
    bare = Reference(text_config={"model_type": "llama"}, vision_config={}, image_token_id=7).to_dict()
    least = {"text_config": {}, "vision_config": {}, "image_token_id": 7}
    assert SmolVLMConfig.from_dict(least) == SmolVLMConfig.from_dict(bare)


CONFIGS = {
    "no text": ({"text_config": 5}, "no text_config"),
    "no vision": ({"vision_config": None}, "no vision_config"),
    "another decoder": ({"text_config": {"model_type": "qwen2"}}, "model_type 'qwen2'; allowed: 'llama'"),
    "another activation": ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
    "biases": ({"text_config": {"mlp_bias": True}}, "mlp_bias True"),
    "heads": ({"text_config": {"num_key_value_heads": 2}}, "9 query heads over 2 key heads"),
    "width": ({"text_config": {"hidden_size": 73}}, "hidden_size 73 over 9 heads"),
    "text for heads": ({"text_config": {"num_attention_heads": "9"}}, "72 over '9' heads"),
    "odd heads": ({"text_config": {"head_dim": 7}}, "head_dim 7; allowed: an even number"),
    "longer positions": ({"text_config": {"rope_scaling": {"rope_type": "llama3"}}}, "rope_type 'llama3'"),
    "text for a size": ({"text_config": {"num_hidden_layers": "4"}}, "num_hidden_layers '4'"),
    "heads of the tower": ({"vision_config": {"num_attention_heads": 3}}, "vision hidden_size 32 over 3"),
    "patches": ({"vision_config": {"patch_size": 65}}, "image_size 64 with patch_size 65"),
    "channels": ({"vision_config": {"num_channels": 4}}, "num_channels 4"),
    "two sides": ({"vision_config": {"image_size": [64, 64]}}, r"image_size \[64, 64\]"),
    "tower's activation": ({"vision_config": {"hidden_act": "gelu"}}, "vision hidden_act 'gelu'"),
    "image token": ({"image_token_id": 384}, "image_token_id 384; allowed: a token id, 0 to 383"),
    "scale": ({"scale_factor": 0}, "scale_factor 0; allowed: a whole number from 1 up"),
    "tied": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings 'yes'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit_is_one_line(name):
    changes, part = CONFIGS[name]
    config = tiny_config()
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    with pytest.raises(CheckpointError, match=f"^config.json: .*{part}") as caught:
        SmolVLMConfig.from_dict(config)
    assert "\n" not in str(caught.value)


def test_pictures_that_do_not_fit_the_tower_are_named_with_their_file(copy):
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(image_settings("untied") | {"max_image_size": {"longest_edge": 140}}))
    assert refusal(copy).startswith(f"{path}: max_image_size's longest_edge is 140, 10 patches a side")


@pytest.mark.parametrize(
    ("patches", "grid", "message"),
    [
        (64, [[1, 4, 4]], r"pixel_values: \[64, 192\]; grid_thw .* needs \[16, 192\]"),
        (32, [[1, 4, 8]], "allowed: tiles"),
        (32, [[2, 4, 4]], "allowed: tiles"),
        (80, [[1, 8, 8], [1, 4, 4]], "allowed: tiles"),
        (36, [[1, 6, 6]], "side a multiple of 4"),
    ],
)
def test_grids_that_are_no_tiles(patches, grid, message):
    with pytest.raises(InputError, match=message) as caught:
        encode_vision(MODEL, {}, np.zeros((patches, 192), np.float32), np.array(grid))
    assert "\n" not in str(caught.value)


def test_picture_tokens_that_do_not_match_the_tiles():
    tokens = np.array([[1, MODEL.image_pad_id, MODEL.image_pad_id, MODEL.image_pad_id, MODEL.image_pad_id]])
    positions, deltas = MODEL.prompt_positions(tokens, np.array([[1, 8, 8]]), np.array([5]))
    assert positions.tolist() == [[[0, 1, 2, 3, 4]]]
    assert deltas.tolist() == [0]
    with pytest.raises(
        InputError, match=r"^prompt_tokens: 4 picture tokens; the 2 tiles of grid_thw have 8$"
    ):
        MODEL.prompt_positions(tokens, np.array([[1, 8, 8]] * 2), np.array([5]))
