"""Endless streams in the engine: the tokens of `sample_streaming`, alone and among others."""

import time

import jax
import pytest

from models import SettingsError
from sample import SamplingConfig, StreamConfig, prepare_inputs, sample_streaming
from serve import prefill as prefill_module
from serve.engine import Engine
from serve.prompt import PreparedPrompt
from tests.engines import Broken, Reader, about, crowd, expected, picture, until, words
from tests.test_compiles import compilations

LONG = 300  # tokens
SAMPLING = {"temperature": 1.2, "ignore_eos": True, "no_repeat_ngram_size": 4, "max_new_tokens": LONG}


def alone(loaded, inputs, config: SamplingConfig, stream: StreamConfig) -> tuple[list[int], str, int]:
    """What `sample_streaming` gives: tokens, text, reseeds."""
    model, params, processor = loaded
    told = sample_streaming(
        model, params, inputs, config, jax.random.key(0), tokenizer=processor.tokenizer, stream=stream
    )
    tokens = list(told)
    return [t.token_id for t in tokens], "".join(t.text for t in tokens) + told.rest, told.stats.reseeds


def same(reader: Reader, result: tuple[list[int], str, int]) -> None:
    assert (reader.tokens, reader.text, reader.reseeds) == result
    assert reader.reseeds >= 2
    assert reader.ends == ["length"]


CASES = {
    "whole prompt": StreamConfig(context=100, tail=32),
    "few sinks": StreamConfig(context=128, sinks=4, tail=40),
    "no sinks": StreamConfig(context=128, sinks=0, tail=60),
    "no tail": StreamConfig(context=100, sinks=30, tail=0),
    "all rows": StreamConfig(context=300, sinks=4, tail=200),
}
COSTLY = ("whole prompt", "all rows")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in COSTLY else name for name in CASES]
)
def test_an_endless_stream_gives_what_sample_streaming_gives(tiny, engine: Engine, name):
    config = SamplingConfig(seed=7, **SAMPLING | {"max_new_tokens": 420 if name == "all rows" else LONG})
    prompt, reader = words(40), Reader()
    engine.submit(prompt, config, reader, CASES[name])
    same(reader.wait(), alone(tiny(), prompt.tokens[None], config, CASES[name]))


@pytest.mark.parametrize("sinks", [None, 2], ids=["kept", "left"])
def test_a_picture_is_seen_again_or_leaves(tiny, engine: Engine, sinks):
    model, params, processor = tiny()
    image = picture(64, 64)
    inputs = prepare_inputs(model, params, processor, images=[image], prompt="What's this?")
    stream = StreamConfig(context=128, sinks=sinks, tail=40)
    config = SamplingConfig(seed=3, **SAMPLING)
    reader = Reader()
    engine.submit(about(tiny(), "What's this?", image), config, reader, stream)
    same(reader.wait(), alone(tiny(), inputs, config, stream))


@pytest.mark.slow
def test_endless_streams_among_others_change_nobodys_tokens_and_compile_nothing(tiny, engine: Engine):
    stream = CASES["few sinks"]
    config = SamplingConfig(seed=7, **SAMPLING)
    endless = [Reader() for _ in range(3)]
    others = [Reader() for _ in range(40)]
    with compilations() as compiled:
        for number, other in enumerate(others):
            if number % 8 == 2 and number < 24:
                engine.submit(words(40), config, endless[number // 8], stream)
            while number - sum(o.over.is_set() for o in others) > 20:
                time.sleep(0.002)
            engine.submit(*crowd(number), other)
        for reader in (*endless, *others):
            reader.wait()
    assert compiled == []
    result = alone(tiny(), words(40).tokens[None], config, stream)
    for reader in endless:
        same(reader, result)
    for number in (0, 9, 33):
        assert others[number].tokens == expected(tiny(), *crowd(number)).tokens[0].tolist()


def test_a_full_row_without_credit_is_renewed_when_there_is_some(tiny, engine: Engine):
    stream = CASES["few sinks"]
    config = SamplingConfig(seed=7, **SAMPLING)
    reader = Reader(credit=89)  # the row is full behind the 88th step
    engine.submit(words(40), config, reader, stream)
    until(lambda: len(reader.pieces) == 89)
    assert reader.reseeds == 0
    reader.credit = LONG
    engine.wake()
    same(reader.wait(), alone(tiny(), words(40).tokens[None], config, stream))


def test_a_stream_that_ends_while_it_is_renewed_leaves_its_row(tiny, engine: Engine):
    class Leaving(Reader):
        def reseeding(self) -> None:
            self.closed = True
            engine.wake()

    stream = CASES["few sinks"]
    reader = Leaving()
    engine.submit(words(40), SamplingConfig(seed=7, **SAMPLING), reader, stream)
    until(lambda: reader.closed and engine.figures.running == 0)
    assert len(reader.pieces) == 89


def test_a_renewal_that_fails_ends_its_stream_alone(tiny, engine: Engine, monkeypatch):
    stream = CASES["few sinks"]
    config = SamplingConfig(seed=7, **SAMPLING)
    original = prefill_module.prefill_chunk

    class Failing(Reader):
        def reseeding(self) -> None:
            broken = Broken(original, RuntimeError("out of memory"), 1)
            monkeypatch.setattr(prefill_module, "prefill_chunk", broken)

    neighbour, failing = Reader(), Failing()
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=200), neighbour)
    engine.submit(words(40), config, failing, stream)
    assert failing.wait().ends == ["prefill_failed"]
    assert neighbour.wait().ends == ["length"]
    until(lambda: engine.figures.running == 0)
    monkeypatch.undo()
    reader = Reader()
    engine.submit(words(40), config, reader, stream)
    same(reader.wait(), alone(tiny(), words(40).tokens[None], config, stream))


@pytest.mark.parametrize(
    ("stream", "prompt", "message"),
    [
        (StreamConfig(policy="shift", context=100, tail=32), words(9), "policy: shift; allowed: reseed"),
        (StreamConfig(context=401, tail=32), words(9), "context: 401; allowed: up to 400"),
        (StreamConfig(context=100, tail=32), words(100), "allowed: more than the prompt"),
        (StreamConfig(context=100, tail=60), words(50), "tail: 50 sinks"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(
    engine: Engine, stream: StreamConfig, prompt: PreparedPrompt, message
):
    with pytest.raises(SettingsError, match=message):
        engine.submit(prompt, SamplingConfig(seed=1), Reader(), stream)
