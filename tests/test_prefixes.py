"""A beginning that prompts share is computed once, and changes no token."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from models.cache import KVCache
from sample import SamplingConfig, prepare_inputs, sample
from serve import prefill as prefill_module
from serve.engine import Engine
from serve.prefixes import PrefixCache
from serve.prompt import PreparedPrompt
from tests.engines import SIZES, Reader, about, assert_same, expected, picture, words
from tests.test_compiles import compilations

BLOCK = 64
CONFIG = SamplingConfig(seed=5, max_new_tokens=20, temperature=1.2)


@pytest.fixture(scope="module")
def engine(tiny) -> Iterator[Engine]:
    engine = Engine(tiny(), replace(SIZES, rows=(4,), prefix_bytes=10**8))
    engine.start()
    yield engine
    engine.close()


def joined(*prompts: PreparedPrompt) -> PreparedPrompt:
    return PreparedPrompt(np.concatenate([prompt.tokens for prompt in prompts]))


def told(engine: Engine, prompt: PreparedPrompt) -> tuple[Reader, int]:
    """An answer, and how many tokens of its prompt were not computed again."""
    before = engine.figures.prefix_tokens_reused
    reader = Reader()
    engine.submit(prompt, CONFIG, reader)
    return reader.wait(), engine.figures.prefix_tokens_reused - before


@pytest.mark.slow
def test_what_is_shared_is_copied_and_the_tokens_are_those_of_sample(tiny, engine, monkeypatch):
    fed: list[int] = []
    original = prefill_module.prefill_chunk
    monkeypatch.setattr(
        prefill_module,
        "prefill_chunk",
        lambda *a, **k: (fed.append(a[3].tokens.shape[1]), original(*a, **k))[1],
    )
    shared = words(2 * BLOCK, 1)
    cases = [
        (joined(shared, words(30, 2)), 0, 3),
        (joined(shared, words(30, 2)), 2, 1),  # the same again
        (joined(shared, words(90, 3)), 2, 2),  # another end
        (joined(words(BLOCK, 1), words(90, 4)), 1, 2),  # shares one block
        (shared, 1, 1),  # its last token is fed in any case
        (joined(words(1, 9), shared), 0, 3),  # the same tokens elsewhere
        (words(20, 1), 0, 1),
    ]
    readers = []
    with compilations() as compiled:
        for prompt, blocks, chunks in cases:
            fed.clear()
            reader, reused = told(engine, prompt)
            assert (reused, len(fed)) == (blocks * BLOCK, chunks)
            readers.append(reader)
    assert compiled == []
    for reader, (prompt, *_) in zip(readers, cases, strict=True):
        assert_same(reader, expected(tiny(), prompt, CONFIG))


def test_a_picture_belongs_to_the_beginning(tiny, engine):
    model, params, processor = tiny()
    text = "What's this? " * 8
    for image, ending, known in (
        (picture(128, 64), "a", False),
        (picture(128, 64), "b", True),
        (picture(128, 64, 1), "a", False),
    ):
        prompt = about(tiny(), text + ending, image)
        reader, reused = told(engine, prompt)
        assert (reused > 0) == known
        inputs = prepare_inputs(model, params, processor, images=[image], prompt=text + ending)
        whole = sample(model, params, inputs, CONFIG, jax.random.key(0), tokenizer=processor.tokenizer)
        assert_same(reader, whole)


def test_blocks_are_kept_within_a_budget_and_the_beginning_leaves_last(tiny):
    model = tiny().model
    cache = KVCache.empty(2, 1, 2, 256, 4, "float32")
    one = 2 * 2 * 2 * 4 * 8 * 4  # bytes: layers, keys and values, heads, width, tokens, float32
    prefixes = PrefixCache(model, 8, 3 * one)
    first, second = prefixes.keys(words(25, 1)), prefixes.keys(words(16, 2))
    assert (len(first), len(second)) == (3, 2)
    for number, key in enumerate(first):
        prefixes.keep(key, cache, 8 * number)
    assert len(prefixes.known(first)) == 3
    for number, key in enumerate(second):
        prefixes.keep(key, cache, 8 * number)
    assert (len(prefixes.known(first)), len(prefixes.known(second))) == (1, 2)
    assert (prefixes.bytes, prefixes.reused) == (3 * one, (3 + 1 + 2) * 8)
    assert PrefixCache(model, 8, 0).keys(words(25, 1)) == []
