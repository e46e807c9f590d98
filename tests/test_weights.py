"""Loading is strict, complete, and straight to the wanted dtype."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import CheckpointError, SettingsError, load_model
from models.config import Qwen3VLConfig
from models.weights import save_checkpoint
from tests.tiny import VARIANTS, tiny_config

DOWN = "model.language_model.layers.0.mlp.down_proj.weight"
NORM = "model.visual.blocks.1.norm2.bias"


@pytest.fixture
def copy(tiny_directory, tmp_path):
    return shutil.copytree(tiny_directory("untied"), tmp_path / "copy")


def rewrite(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def refusal(directory) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_all_faults_are_named_in_one_line(copy):
    def change(tensors):
        del tensors[DOWN], tensors[NORM]
        tensors["model.extra.weight"] = np.zeros(3, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()

    rewrite(copy, change)
    message = refusal(copy)
    assert f"missing: {DOWN}, {NORM}" in message
    assert "surplus: model.extra.weight" in message
    assert "misshaped: lm_head.weight [512, 47] instead of [512, 48]" in message


def test_a_convolution_of_another_shape_is_misshaped(copy):
    def change(tensors):
        name = "model.visual.patch_embed.proj.weight"
        tensors[name] = np.zeros((32, 3, 1, 16, 16), np.float32)

    rewrite(copy, change)
    assert "misshaped: model.visual.patch_embed.proj.weight [32, 3, 1, 16, 16]" in refusal(copy)


def test_a_tied_head_may_be_stored_twice_but_not_otherwise(tiny_directory, tmp_path):
    directory = shutil.copytree(tiny_directory("tied"), tmp_path / "copy")

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()

    rewrite(directory, change)
    assert "lm_head" not in load_model(directory).params

    def spoil(tensors):
        tensors["lm_head.weight"][0, 0] += 1

    rewrite(directory, spoil)
    assert "surplus: lm_head.weight" in refusal(directory)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_are_one_file(tiny_directory, tmp_path, variant):
    whole = load_model(tiny_directory(variant))
    directory = shutil.copytree(tiny_directory(variant), tmp_path / "copy")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[i::3]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shards = load_model(directory)
    assert shards.model == whole.model
    jax.tree.map(np.testing.assert_array_equal, shards.params, whole.params)
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: no such file" in refusal(directory)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", jnp.bfloat16), (jnp.float32, jnp.float32)])
def test_every_parameter_has_the_wanted_dtype(tiny_directory, dtype, expected):
    seen = []
    model, params, _ = load_model(tiny_directory(), dtype=dtype, progress=lambda *p: seen.append(p))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(expected)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert model.empty_cache(1, 64).keys[0].dtype == expected
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(tiny_directory, variant):
    model, params, _ = load_model(tiny_directory(variant), dtype="bfloat16")
    hidden = jax.random.normal(jax.random.key(0), (2, 48), jnp.bfloat16)
    logits = model.call("head", params, hidden)
    table = params["language_model"]["embed_tokens"]["embedding"].T
    kernel = table if variant == "tied" else params["lm_head"]["weight"].T
    exact = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_stored_in_bfloat16(tiny, tiny_directory, tmp_path):
    model, params, _ = tiny()
    directory = shutil.copytree(tiny_directory(), tmp_path / "copy")
    save_checkpoint(directory, model.config, params, jnp.bfloat16)
    loaded = load_model(directory, dtype="float32").params
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


def test_the_default_dtype_is_the_fast_one(tiny_directory):
    fast = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    assert load_model(tiny_directory()).model.dtype == fast


def test_saved_weights_are_loaded_again(tiny, tiny_directory, tmp_path):
    model, params, _ = tiny("untied")
    directory = shutil.copytree(tiny_directory("untied"), tmp_path / "copy")
    save_checkpoint(directory, model.config, params, jnp.float32)
    again = load_model(directory)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    on_disk = load_file(directory / "model.safetensors")
    original = load_file(tiny_directory("untied") / "model.safetensors")
    assert {n: t.shape for n, t in on_disk.items()} == {n: t.shape for n, t in original.items()}


def test_a_name_or_dtype_of_the_wrong_kind_is_one_line(tiny_directory):
    for name in (None, "", 5, ["embedded"]):
        with pytest.raises(CheckpointError, match="neither a directory, nor a hub id"):
            load_model(name)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match="dtype: 'int8'; allowed: float32, bfloat16, float16"):
        load_model(tiny_directory(), dtype="int8")


def test_what_is_no_checkpoint(tmp_path, copy):
    assert "neither a directory, nor a hub id" in refusal(tmp_path / "nowhere" / "at" / "all")
    assert "config.json: no such file" in refusal(tmp_path)
    index = copy / "model.safetensors.index.json"
    for content in ("[]", "5", "{}", "not JSON", '{"weight_map": {"a": 5}}'):
        index.write_text(content)
        assert str(index) in refusal(copy)
    index.unlink()
    (copy / "model.safetensors").write_bytes(b"no tensors")
    assert "not a safetensors file" in refusal(copy)
    (copy / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in refusal(copy)
    (copy / "config.json").write_text('{"model_type": "llava"}')
    assert "model_type 'llava'; allowed: qwen3_vl" in refusal(copy)
    (copy / "config.json").write_text('{"model_type": ["qwen3_vl"]}')
    assert "model_type ['qwen3_vl']" in refusal(copy)


CONFIGS = {
    "no text": ({"text_config": None}, "text_config"),
    "a size missing": ({"text_config": {"hidden_size": None}}, "hidden_size"),
    "another activation": ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
    "heads": ({"text_config": {"num_key_value_heads": 4}}, "query heads"),
    "sections": ({"text_config": {"rope_scaling": {"mrope_section": [1, 2, 3]}}}, "mrope_section"),
    "yarn": ({"text_config": {"rope_scaling": {"rope_type": "yarn"}}}, "rope_type"),
    "widths": ({"vision_config": {"out_hidden_size": 32}}, "out_hidden_size"),
    "positions": ({"vision_config": {"num_position_embeddings": 35}}, "square"),
    "text for a size": ({"text_config": {"num_hidden_layers": "4"}}, "num_hidden_layers '4'"),
    "a size of zero": ({"vision_config": {"num_heads": 0}}, "num_heads 0"),
    "half a layer": ({"vision_config": {"depth": 1.5}}, "depth 1.5"),
    "text for theta": ({"text_config": {"rope_theta": "x"}}, "rope_theta 'x'"),
    "no section": ({"text_config": {"rope_scaling": {"mrope_section": 5}}}, "mrope_section 5"),
    "odd heads": ({"text_config": {"head_dim": 17}}, "mrope_section"),
    "list for rope": ({"text_config": {"rope_parameters": [1]}}, "rope_parameters"),
    "no list": ({"vision_config": {"deepstack_visual_indexes": 5}}, "deepstack_visual_indexes 5"),
    "heads of the tower": ({"vision_config": {"num_heads": 3}}, "32 over 3 heads"),
    "no truth": ({"text_config": {"attention_bias": "no"}}, "attention_bias 'no'"),
}


@pytest.mark.parametrize(
    ("key", "value"), [("image_token_id", 512), ("image_token_id", "x"), ("tie_word_embeddings", "yes")]
)
def test_a_config_with_a_wrong_value_at_the_top_is_one_line(key, value):
    with pytest.raises(CheckpointError, match=f"config.json: {key} {value!r}; allowed: "):
        Qwen3VLConfig.from_dict(tiny_config() | {key: value})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit_is_one_line(name):
    changes, part = CONFIGS[name]
    config = tiny_config("tied")
    for section, change in changes.items():
        if change is None:
            del config[section]
            continue
        for key, value in change.items():
            if value is None:
                del config[section][key]
            elif isinstance(value, dict):
                config[section][key] |= value
            else:
                config[section][key] = value
    with pytest.raises(CheckpointError, match=part) as caught:
        Qwen3VLConfig.from_dict(config)
    assert "\n" not in str(caught.value)
