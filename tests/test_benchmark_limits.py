"""What the benchmarks of speed say of a case: bytes, shares and tables, never times."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from benchmarks import decode, first_token, limits
from benchmarks.compiles import Compiled
from benchmarks.drivers import drivers, prompt_tokens
from benchmarks.options import parse
from benchmarks.peers import COMPILED, peer_names
from benchmarks.shapes import SHAPES, parameter_shapes, random_params, subject
from benchmarks.start import by_package, parts
from models.config import Qwen3VLConfig
from models.errors import SettingsError
from models.qwen3_vl import Qwen3VL
from sample import SamplingConfig, sample

ROOT = Path(__file__).parents[1]
RUN_AS_IT_IS = {"backend": "eager", "fullgraph": True, "dynamic": False}  # a graph of torch's, not compiled


@pytest.fixture(scope="module")
def tiny_shape():
    return subject("", "tiny", "", vision=False)


def test_a_tied_head_is_read_once_and_of_a_table_its_rows(tiny):
    for variant in ("tied", "untied"):
        model, params, _ = tiny(variant)
        stored = limits.parameter_bytes(model.decoder_params(params))
        table = params["language_model"]["embed_tokens"]["embedding"]
        read = stored if variant == "tied" else stored - table.nbytes + 3 * model.hidden_size * 4
        assert limits.weight_bytes(model, 3) == read


@pytest.mark.slow
def test_the_limit_of_qwen3_vl_2b_reads_what_the_issue_says():
    model = Qwen3VL(Qwen3VLConfig.from_dict(SHAPES["qwen3_vl_2b"]), "bfloat16")
    assert limits.weight_bytes(model) == pytest.approx(3.44e9, rel=1e-3)
    assert limits.cache_bytes(model, 1, 1060) == 2 * 28 * 8 * 128 * 1060 * 2
    large = Qwen3VL(Qwen3VLConfig.from_dict(SHAPES["qwen3_vl_8b"]), "bfloat16")
    assert limits.weight_bytes(large) == pytest.approx(15.1e9, rel=5e-3)


def test_operations_of_a_step_are_two_per_weight_and_attention(tiny):
    model, params, _ = tiny("tied")
    shapes = parameter_shapes(model)
    products = sum(
        math.prod(leaf.shape)
        for path, leaf in shapes.items()
        if path[0] != "visual" and path[-1] in ("kernel", "embedding")
    )
    c = model.config.text
    scores = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * 10
    assert limits.step_operations(model, 2, 10) == 2 * (2 * products + scores)
    assert limits.step_operations(model.clone(fused=True), 2, 10) == 2 * (2 * products + scores)
    del params


def test_random_weights_have_the_shapes_of_the_model():
    model = Qwen3VL(Qwen3VLConfig.from_dict(SHAPES["tiny"]))
    whole = random_params(model, vision=True)
    assert jax.tree.map(lambda x: x.shape, whole) == jax.tree.map(
        lambda x: x.shape, jax.eval_shape(model.init_params, jax.random.key(0))
    )
    assert "visual" not in random_params(model, vision=False)


def test_the_share_of_the_limit_is_bytes_over_bandwidth_over_time(tiny_shape):
    options = decode.Options(shape="tiny", new_tokens=10, repeats=2)
    rates = np.array([1e9, 2e9])
    found = decode.figures(
        tiny_shape,
        decode.Case(2, 100, None),
        options,
        rates,
        {"streaming": [1e-3, 1e-3], "sample": [5e-4] * 2},
    )
    size = limits.weight_bytes(tiny_shape.model, 2) + limits.cache_bytes(tiny_shape.model, 2, 105)
    assert found["contestants"]["streaming"]["percent_of_limit"]["repeats"] == pytest.approx(
        [100 * size / 1e9 / 1e-3, 100 * size / 2e9 / 1e-3]
    )
    assert found["contestants"]["sample"]["tokens_per_second"]["median"] == pytest.approx(4000)
    assert found["limit_tokens_per_second"]["repeats"] == pytest.approx([2 * 1e9 / size, 2 * 2e9 / size])
    assert found["ratios"]["streaming / sample"]["median"] == pytest.approx(0.5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_driver_takes_its_steps_in_the_buffer_that_was_asked_for(tiny_shape, batch, monkeypatch):
    seen = []
    for module, name in (("sample.streaming", "prefill"), ("sample.batch", "prefill")):
        monkeypatch.setattr(f"{module}.{name}", lambda *a, slots, **k: seen.append(slots) or 1 / 0)
    monkeypatch.setattr("benchmarks.drivers.prefill", lambda *a, slots, **k: seen.append(slots) or 1 / 0)
    for driver in drivers(tiny_shape, batch, 20, 512, 8, greedy=True).values():
        with pytest.raises(ZeroDivisionError):
            driver()
    assert seen == [512, 512]


@pytest.mark.slow
def test_decode_writes_its_numbers_and_its_plot(tmp_path, capsys):
    options = decode.Options(
        shape="tiny", batch=(1, 2), filled=(20,), new_tokens=3, repeats=1, peers="none", out=str(tmp_path)
    )
    decode.benchmark(options)
    content = json.loads((tmp_path / "decode.json").read_text())
    assert [case["batch"] for case in content["cases"]] == [1, 2]
    assert set(content["cases"][0]["contestants"]) == {"streaming", "sample"}
    assert all(second["fetched"] == second["programs"] for _, second in content["compile"].values())
    assert {"date", "device", "versions", "bandwidth_is"} <= content.keys()
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.count("| streaming |") == 2
    assert str(Compiled(**content["compile"]["batch 1, 20 filled, sample"][1])) in out


@pytest.mark.slow
def test_first_token_writes_the_total_and_its_parts(tmp_path, capsys):
    options = first_token.Options(
        shape="tiny", picture="256x256", kind="png", text=5, repeats=1, peers="none", out=str(tmp_path)
    )
    content = first_token.benchmark(options)
    assert json.loads((tmp_path / "first_token.json").read_text()) == content
    assert next(iter(content["milliseconds"])) == "total"
    out = capsys.readouterr().out
    assert all(f"| {name} |" in out for name in content["milliseconds"])


def test_made_up_prompts_have_no_picture_tokens(tiny_shape):
    assert not (prompt_tokens(tiny_shape, 4, 500) == tiny_shape.model.image_pad_id).any()
    ids = first_token.prompt_ids(tiny_shape, 7, 5)
    assert (ids == tiny_shape.model.image_pad_id).sum() == 7
    assert ids.shape == (1, 12)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("peers", ["transformers", "torch"])
def test_the_peer_is_measured_in_turns(tmp_path, peers, monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import compiled_torch

    monkeypatch.setattr(compiled_torch, "HOW", RUN_AS_IT_IS)
    options = decode.Options(
        shape="tiny", filled=(20,), new_tokens=3, repeats=1, out=str(tmp_path), compiles=False, peers=peers
    )
    (case,) = decode.benchmark(options)["cases"]
    assert any(name.startswith(peers) for name in case["contestants"])
    assert any(peers in ratio for ratio in case["ratios"])


@pytest.mark.torch
def test_all_peers_are_those_of_the_device(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    static = "transformers, static cache + torch.compile"
    assert peer_names("transformers", plain=True) == ["transformers"]
    assert peer_names("all", plain=True) == ["transformers", static, COMPILED]
    assert peer_names("all", plain=False) == ["transformers", static]
    assert peer_names("torch", plain=True) == [COMPILED]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peer_names("all", plain=True) == peer_names("transformers", plain=True)
    assert peer_names("torch", plain=True) == [COMPILED]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(("batch", "filled"), [(1, 20), (3, 70)])
def test_the_compiled_peer_says_what_our_model_says(tiny_shape, batch, filled, monkeypatch):
    """With the same weights: so it does all that our step does."""
    torch = pytest.importorskip("torch")
    from benchmarks import compiled_torch

    monkeypatch.setattr(compiled_torch, "HOW", RUN_AS_IT_IS)
    monkeypatch.setattr(compiled_torch, "_PIECE", 32)
    peer = compiled_torch.CompiledTorch(tiny_shape)
    params = tiny_shape.params
    weights = flatten_dict(params["language_model"] | {"lm_head": params["lm_head"]}, sep=".")
    peer.model.load_state_dict(
        {
            re.sub("embedding$|scale$", "weight", name).replace("layers_", "layers."): torch.tensor(
                np.asarray(weight)
            )
            for name, weight in weights.items()
        }
    )
    tokens = prompt_tokens(tiny_shape, batch, filled)
    config = SamplingConfig(temperature=0, max_new_tokens=41)
    wanted = sample(tiny_shape.model, params, tokens, config, jax.random.key(0)).tokens
    peer.prepare(batch, filled, 40)
    assert np.stack(list(peer.stream(tokens, 40)), 1).tolist() == wanted.tolist()
    assert peer.decode(tokens, 2)() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch=x"], "batch: 'x'; allowed: whole numbers with commas between them"),
        (["greedy=yes"], "greedy: 'yes'; allowed: true or false"),
        (["bach=1"], "'bach=1'; allowed: KEY=VALUE with one of model, shape, batch"),
        (["model=embedded", "shape=tiny"], "model=embedded shape=tiny; allowed: one of the two"),
        (["shape=huge"], "shape: 'huge'; allowed: qwen3_vl_2b, qwen3_vl_8b, tiny"),
        (["shape=tiny", "filled=100", "slots=128"], "slots: 128; allowed: from 230 up"),
        (["shape=tiny", "filled=100", "slots=256", "new_tokens=129"], "slots: 256; allowed: from 294 up"),
        (["shape=tiny", "peers=gptq"], "peers: 'gptq'; allowed: none, transformers, torch, all"),
        (["shape=tiny", "peers=vllm"], "peers: 'vllm'; allowed: none, transformers, torch, all; vLLM takes"),
        (["shape=tiny", "peers=torch", "greedy=false"], "peers: 'torch'; allowed: none, transformers, all"),
        (["shape=tiny", "batch=0"], "batch, new_tokens and repeats: 0"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, message, tmp_path):
    with pytest.raises(SettingsError) as raised:
        decode.benchmark(parse(decode.Options, [*arguments, f"out={tmp_path}"]))
    assert str(raised.value).startswith(message)


def test_a_picture_is_a_size_and_a_kind():
    for size, kind in (("1024", "png"), ("0x5", "png"), ("8x8", "gif")):
        with pytest.raises(SettingsError):
            first_token.picture_file(size, kind)


def test_the_parts_of_a_start_add_up():
    said = [(1.0, "device: cpu\n"), (1.5, "loaded 22 MB in 0.2 s\n"), (9.0, "first token: ...\n")]
    found = parts(said, 2.5)
    assert list(found.values()) == [1.0, 0.5, 1.0, 2.5]


def test_imports_are_added_up_by_package():
    printed = "import time: self [us] | cumulative | imported package\n"
    printed += (
        "import time:       200 |        200 |   jax._src.core\nimport time:   1000 |  1200 | jax\nhello\n"
    )
    assert by_package(printed) == {"jax": 0.0012}


def test_what_an_accelerator_needs_is_imported_without_hydra():
    missing = "hydra", "omegaconf", "platformdirs", "torch"
    modules = "models", "sample", "benchmarks.decode", "benchmarks.first_token"
    code = f"import sys; sys.modules |= dict.fromkeys({missing}); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
