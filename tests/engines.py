"""An engine's sizes, consumers and prompts, for tests."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from models import LoadedModel
from sample import SamplingConfig, sample
from sample.chat import encode_chat
from sample.outcome import FinishReason
from serve.engine_config import EngineConfig
from serve.job import Piece
from serve.prompt import PreparedPrompt, prepare_prompt
from tests.paces import Steady
from tests.profiles import profiled

SIZES = EngineConfig(
    rows=(4, 32),
    context=400,
    chunks=(16, 64),
    top_logprobs=3,
    pictures=((64, 64), (96, 32)),
    waiting=64,
    prefix_bytes=0,
)


class Reader:
    """A consumer that takes all, or as many tokens as it has been given credit for."""

    def __init__(self, credit: int = 10**6) -> None:
        self.pieces: list[Piece] = []
        self.ends: list[str] = []
        self.rest = ""
        self.credit = credit
        self.prefilled = False
        self.reseeds = 0
        self.closed = False
        self.over = threading.Event()

    def room(self, in_flight: int) -> int:
        return max(self.credit - len(self.pieces) - in_flight, 0)

    def prefilling(self) -> None:
        self.prefilled = True

    def reseeding(self) -> None:
        self.reseeds += 1

    def push(self, piece: Piece) -> None:
        assert not self.ends
        self.pieces.append(piece)

    def finish(self, reason: FinishReason, rest: str) -> None:
        self.ends.append(reason)
        self.rest = rest
        self.over.set()

    def fail(self, code: str) -> None:
        self.ends.append(code)
        self.over.set()

    @property
    def tokens(self) -> list[int]:
        return [piece.token_id for piece in self.pieces]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces) + self.rest

    def wait(self) -> "Reader":
        assert self.over.wait(60), "the stream does not end"
        return self


def words(length: int, seed: int = 0) -> PreparedPrompt:
    return PreparedPrompt(np.random.default_rng(seed).integers(0, 400, length).astype(np.int32))


def expected(loaded: LoadedModel, prompt: PreparedPrompt, config: SamplingConfig):
    """What `sample` says to a prompt without pictures."""
    model, params, processor = loaded
    return sample(
        model, params, prompt.tokens[None], config, jax.random.key(0), tokenizer=processor.tokenizer
    )


def assert_same(reader: Reader, result) -> None:
    assert reader.tokens == result.tokens[0].tolist()
    assert [p.logprob for p in reader.pieces] == pytest.approx(result.logprobs[0].tolist(), abs=1e-3)
    assert reader.text == result.texts[0]
    assert reader.ends == result.finish_reasons


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def about(loaded: LoadedModel, text: str, *pictures: Image.Image) -> PreparedPrompt:
    model, _, processor = loaded
    ids = encode_chat(processor.tokenizer, text, image_pad_id=model.image_pad_id, pictures=len(pictures))
    return prepare_prompt(model, processor, ids, pictures)


def crowd(number: int) -> tuple[PreparedPrompt, SamplingConfig]:
    """One of many: prompts of 1 to 200 tokens, answers of 3 to 39."""
    lengths = (1, 16, 17, 200, 64, 65)
    config = SamplingConfig(seed=number, max_new_tokens=3 + number * 7 % 37, temperature=number % 3 / 2)
    return words(lengths[number % 6], number), config


def until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.002)


def profiled_turns(
    engine, monkeypatch, folder: Path, steps: int, pace: int = 1
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Three streams take so many steps, `pace` in a turn, and nothing else happens.

    Returns:
        What the profiler saw, and the shapes of the device's arrays that the host looked at.
    """
    looks: list[tuple[int, ...]] = []

    def asarray(value: object, *args: object) -> np.ndarray:
        if isinstance(value, jax.Array):
            looks.append(value.shape)
        return np.array(value, *args, copy=None)

    monkeypatch.setattr(engine, "_pace", Steady(pace))
    readers = [Reader(credit=5) for _ in range(3)]
    for number, reader in enumerate(readers):
        engine.submit(words(20 + number), SamplingConfig(seed=number, max_new_tokens=200), reader)
    until(lambda: all(len(reader.pieces) == 5 for reader in readers))
    monkeypatch.setattr("serve.batch.np", SimpleNamespace(**{**vars(np), "asarray": asarray}))
    with profiled(folder) as events:
        for reader in readers:
            reader.credit = 5 + steps
        engine.wake()
        until(lambda: all(len(reader.pieces) == 5 + steps for reader in readers))
    monkeypatch.undo()
    for reader in readers:
        reader.closed = True
    engine.wake()
    until(lambda: engine.figures.running == 0)
    return events, looks


class Broken:
    """Stands for a function, and raises as many times as it is told."""

    def __init__(self, original, error: Exception, times: int) -> None:
        self.original, self.error, self.times = original, error, times

    def __call__(self, *args, **kwargs):
        if self.times > 0:
            self.times -= 1
            raise self.error
        return self.original(*args, **kwargs)
