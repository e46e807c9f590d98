"""Many streams over one step: each gets what it gets alone, and nothing compiles as they come and go."""

import time

import jax
import pytest
from PIL import Image

from models import SettingsError, load_model
from sample import SamplingConfig, prepare_inputs, sample, sample_streaming
from sample.step import STEPS
from sample.text import TextStream
from serve import batch as batch_module
from serve import prefill as prefill_module
from serve.engine import Engine, EngineBusyError, EngineDeadError
from serve.engine_config import EngineConfig
from serve.pictures import PictureCache
from serve.prompt import content_key, prepare_picture
from tests.engines import (
    SIZES,
    Broken,
    Reader,
    about,
    assert_same,
    crowd,
    expected,
    picture,
    profiled_turns,
    until,
    words,
)
from tests.paces import Steady, as_on_a_gpu
from tests.profiles import called, dispatches
from tests.test_compiles import compilations

CONFIGS = {
    "greedy": {"temperature": 0},
    "filters": {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {5: 4.0, 9: -100.0}},
    "loops": {"temperature": 0.3, "no_repeat_ngram_size": 3, "max_pattern_repeats": 4},
    "top": {"temperature": 1.2, "top_logprobs": 2, "logprobs": "processed"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_alone_gives_what_sample_gives(tiny, engine, name):
    config = SamplingConfig(seed=7, max_new_tokens=40, eos_id=tiny().processor.eos_ids, **CONFIGS[name])
    reader = Reader()
    engine.submit(words(30), config, reader)
    result = expected(tiny(), words(30), config)
    assert_same(reader.wait(), result)
    for piece, top in zip(reader.pieces, result.top_logprobs[0], strict=True):
        assert [token for token, _ in piece.top_logprobs] == [token for token, _ in top]


def test_sample_streaming_gives_the_same(tiny, engine):
    model, params, processor = tiny()
    config = SamplingConfig(seed=3, max_new_tokens=30)
    reader = Reader()
    engine.submit(words(30), config, reader)
    stream = sample_streaming(
        model, params, words(30).tokens[None], config, jax.random.key(0), tokenizer=processor.tokenizer
    )
    tokens = list(stream)
    reader.wait()
    assert reader.tokens == [token.token_id for token in tokens]
    assert reader.text == "".join(token.text for token in tokens)
    assert reader.ends == [stream.finish_reason]


def test_pictures_in_several_chunks_give_what_sample_gives(tiny, engine):
    model, params, processor = tiny()
    pictures = [picture(64, 64), picture(96, 32, 1)]
    inputs = prepare_inputs(model, params, processor, images=pictures, prompt="What's this? " * 3)
    config = SamplingConfig(seed=5, max_new_tokens=20)
    whole = sample(model, params, inputs, config, jax.random.key(0), tokenizer=processor.tokenizer)
    prompt = about(tiny(), "What's this? " * 3, *pictures)
    assert len(prompt.tokens) > 2 * 64
    before = engine.figures
    for _ in range(2):
        reader = Reader()
        engine.submit(prompt, config, reader)
        assert_same(reader.wait(), whole)
    after = engine.figures
    assert after.picture_misses - before.picture_misses == 2
    assert after.picture_hits - before.picture_hits == 2


def test_a_picture_is_known_by_its_content_not_by_its_bytes_alone():
    wide = Image.frombytes("RGB", (150, 30), bytes(range(150)) * 90)
    high = Image.frombytes("RGB", (30, 150), bytes(range(150)) * 90)
    assert content_key(wide) == content_key(wide.copy())
    assert content_key(wide) != content_key(high)
    assert content_key(wide) != content_key(Image.frombytes("L", (450, 30), wide.tobytes()))


def test_pictures_are_kept_within_a_budget_of_bytes(tiny):
    model, params, processor = tiny()
    seen = [prepare_picture(processor, picture(64, 64, seed)) for seed in range(3)]
    cache = PictureCache(model, params, 10**9)
    one = (cache.encode(seen[0]), cache.bytes)[1]
    cache = PictureCache(model, params, 2 * one)
    for made in seen[:2]:
        cache.encode(made)
    assert cache.get(seen[0]) is not None  # and so the second was not used for the longest time
    cache.encode(seen[2])
    assert cache.get(seen[1]) is None
    assert cache.get(seen[0]) is not None
    assert (cache.bytes, cache.hits, cache.misses) == (2 * one, 2, 3)


def test_the_same_tokens_alone_and_among_31_others_that_join_and_leave(tiny, engine):
    watched = (words(40), SamplingConfig(seed=11, max_new_tokens=120, temperature=1.2))
    result = expected(tiny(), *watched)
    others = [Reader() for _ in range(70)]
    reader = Reader()
    with compilations() as compiled:
        for number, other in enumerate(others):
            if number == 5:
                engine.submit(*watched, reader)
            while number - sum(o.over.is_set() for o in others) > 31:
                time.sleep(0.002)
            engine.submit(*crowd(number), other)
            if number % 8 == 3:
                other.closed = True
                other.over.set()
                engine.wake()
        for other in (*others, reader):
            other.wait()
    assert compiled == []
    assert_same(reader, result)
    for number in (0, 3, 5, 13, 69):
        alone = Reader()
        engine.submit(*crowd(number), alone)
        alone.wait()
        if not others[number].closed:
            assert others[number].tokens == alone.tokens
            assert others[number].ends == alone.ends == ["length"]


def test_a_stream_without_credit_takes_no_step_and_goes_on_as_if_it_had(tiny, engine):
    config = SamplingConfig(seed=2, max_new_tokens=30, temperature=1.2)
    paused, neighbour = Reader(credit=5), Reader()
    engine.submit(words(20), config, paused)
    engine.submit(words(21), config, neighbour)
    neighbour.wait()
    assert len(paused.pieces) == 5
    for credit in (6, 9, 30):
        paused.credit = credit
        engine.wake()
        until(lambda wanted=credit: len(paused.pieces) == wanted)
    assert_same(paused.wait(), expected(tiny(), words(20), config))


def with_few_rows(engine) -> None:
    """Take steps until it has given up the rows that it does not need."""
    for _ in range(3):
        reader = Reader()
        engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=90), reader)
        reader.wait()
    assert engine.figures.rows == 4


@pytest.mark.slow
def test_streams_without_credit_do_not_make_the_batch_larger(tiny, engine, monkeypatch):
    monkeypatch.setattr(engine, "_pace", Steady(1))
    with_few_rows(engine)
    config = SamplingConfig(seed=2, max_new_tokens=200, temperature=1.2)
    paused = [Reader(credit=5 + number) for number in range(4)]
    with compilations() as compiled:
        for number, reader in enumerate(paused):
            engine.submit(words(20 + number), config, reader)
        until(lambda: all(len(reader.pieces) == reader.credit for reader in paused))
        going = [Reader() for _ in range(3)]
        for reader in going:
            engine.submit(words(30), config, reader)
        until(lambda: all(reader.pieces for reader in going))
        assert (engine.figures.rows, engine.figures.running) == (4, 7)
        paused[0].closed = True
        for reader in paused[1:]:
            reader.credit = 30
        engine.wake()
        until(lambda: engine.figures.rows == 32)
        until(lambda: all(len(reader.pieces) == 30 for reader in paused[1:]))
        until(lambda: engine.figures.rows == 4)  # those who wait again went aside
        assert not any(reader.over.is_set() for reader in going)
        for reader in paused[1:]:
            reader.credit = 200
        engine.wake()
        for reader in (*paused[1:], *going):
            reader.wait()
    assert compiled == []
    for number in (1, 2, 3):
        assert_same(paused[number], expected(tiny(), words(20 + number), config))


def test_a_row_that_cannot_come_back_ends_its_stream_too(tiny, engine, monkeypatch):
    with_few_rows(engine)
    config = SamplingConfig(seed=2, max_new_tokens=30)
    aside, held = Reader(credit=5), [Reader() for _ in range(4)]
    engine.submit(words(20), config, aside)
    until(lambda: len(aside.pieces) == 5)
    for reader in held:
        reader.credit = 5
        engine.submit(words(21), config, reader)
    until(lambda: all(len(reader.pieces) == 5 for reader in held))
    assert engine.figures.rows == 4
    broken = Broken(batch_module.insert, RuntimeError("no memory"), times=1)
    monkeypatch.setattr(batch_module, "insert", broken)
    for reader in (aside, *held):
        reader.credit = 30
    engine.wake()
    for reader in (aside, *held):
        assert reader.wait().ends == ["step_failed"]
    last = Reader()
    engine.submit(words(20), config, last)
    assert_same(last.wait(), expected(tiny(), words(20), config))


def test_a_closed_stream_leaves_its_row_and_hears_no_more(engine):
    reader = Reader()
    engine.submit(words(20), SamplingConfig(seed=1, max_new_tokens=300), reader)
    until(lambda: len(reader.pieces) > 3)
    reader.closed = True
    engine.wake()
    until(lambda: engine.figures.running == 0)
    assert not reader.ends


def test_who_goes_while_decoding_takes_at_most_the_step_that_is_on_its_way(engine, monkeypatch):
    steps: list[int] = []
    original = batch_module.decode

    class Leaving(Reader):
        def push(self, piece) -> None:
            super().push(piece)
            self.closed = len(self.pieces) == 10

    monkeypatch.setattr(
        batch_module,
        "decode",
        lambda *a, **k: (steps.append(a[4]), original(*a, **k))[1],
    )
    monkeypatch.setattr(engine, "_pace", Steady(1))
    leaving, neighbour = Leaving(), Reader()
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=100), neighbour)
    until(lambda: neighbour.pieces)
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=100), leaving)
    neighbour.wait()
    assert leaving.closed
    together = sum(sum(map(bool, quota)) == 2 for quota in steps)
    assert together <= 10  # nine tokens behind the first, and one ahead


def test_a_stream_that_is_closed_while_it_waits_is_never_prefilled(engine):
    held = [Reader(credit=1) for _ in range(32)]
    for reader in held:
        engine.submit(words(3), SamplingConfig(seed=1, max_new_tokens=9), reader)
    until(lambda: engine.figures.running == 32)
    waiting, closed = Reader(), Reader()
    for reader in (closed, waiting):
        engine.submit(words(3), SamplingConfig(seed=1, max_new_tokens=2), reader)
    closed.closed = held[7].closed = True
    engine.wake()
    waiting.wait()
    assert not closed.prefilled
    for reader in held:
        reader.closed = True
    engine.wake()
    until(lambda: engine.figures.running == 0)


def test_a_long_prompt_keeps_running_streams_waiting_for_one_chunk_at_most(engine, monkeypatch):
    calls: list[str] = []
    for module, name in ((batch_module, "decode"), (prefill_module, "prefill_chunk")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1]
        )
    running, long = Reader(), Reader()
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=200), running)
    until(lambda: len(running.pieces) > 2)
    engine.submit(words(300), SamplingConfig(seed=1, max_new_tokens=2), long)
    long.wait()
    running.wait()
    assert calls.count("prefill_chunk") == 1 + 5
    assert "prefill_chunk prefill_chunk" not in " ".join(calls)


def test_short_prompts_share_what_a_long_one_may_cost_between_two_steps(engine, monkeypatch):
    calls: list[int] = []
    for module, name, width in (
        (batch_module, "decode", lambda *_: 0),
        (prefill_module, "prefill_chunk", lambda *arguments: arguments[3].tokens.shape[1]),
    ):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, _f=original, _w=width, **k: (calls.append(_w(*a)), _f(*a, **k))[1]
        )
    running, short = Reader(), [Reader() for _ in range(9)]
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=300), running)
    until(lambda: len(running.pieces) > 2)
    for reader in short:
        engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=2), reader)
    for reader in (*short, running):
        reader.wait()
    between = "".join("|" if width == 0 else "c" for width in calls).split("|")
    assert max(map(len, between)) <= 64 // 16
    assert sum(calls) == 10 * 16


def test_a_stream_that_is_closed_while_it_is_prefilled_stops_at_the_next_chunk(engine, monkeypatch):
    closing, chunks = Reader(), []
    original = prefill_module.prefill_chunk

    def chunk(*arguments, **options):
        chunks.append(1)
        closing.closed = len(chunks) == 2
        return original(*arguments, **options)

    monkeypatch.setattr(prefill_module, "prefill_chunk", chunk)
    engine.submit(words(300), SamplingConfig(seed=1, max_new_tokens=9), closing)
    until(lambda: closing.closed)
    reader = Reader()
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=2), reader)
    reader.wait()
    assert len(chunks) == 2 + 1
    assert not closing.pieces


def test_a_limit_below_the_rows_keeps_streams_waiting(engine):
    engine.limit = 2
    readers = [Reader() for _ in range(6)]
    for reader in readers:
        engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=60), reader)
    most = 0
    while not all(reader.ends for reader in readers):
        most = max(most, engine.figures.running)
        time.sleep(0.001)
    engine.limit = 32
    assert most <= 2
    assert {tuple(reader.tokens) for reader in readers} == {tuple(readers[0].tokens)}


def test_steps_are_counted_and_the_rows_in_them(engine):
    before = engine.figures
    readers = [Reader() for _ in range(6)]
    for number, reader in enumerate(readers):
        engine.submit(*crowd(number), reader)
    behind_the_first = sum(len(reader.wait().tokens) - 1 for reader in readers)
    until(lambda: engine.figures.running == 0)
    steps, stepped = (getattr(engine.figures, of) - getattr(before, of) for of in ("steps", "stepped"))
    assert (stepped, max(len(reader.tokens) for reader in readers) - 1 <= steps) == (behind_the_first, True)
    assert steps <= stepped


def test_the_next_step_is_dispatched_before_the_last_is_waited_for(engine, monkeypatch):
    calls: list[str] = []
    for name in ("decode", "unpack_taken"):
        original = getattr(batch_module, name)
        monkeypatch.setattr(
            batch_module, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1]
        )
    reader = Reader()
    monkeypatch.setattr(engine, "_pace", Steady(2))
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=6), reader)
    reader.wait()
    steps, wait = "decode", "unpack_taken"
    assert calls == [steps, wait, steps, wait, steps, wait, wait]  # of the prompt, and of 2 + 2 + 1 tokens


def test_a_turn_of_all_streams_is_one_dispatch_and_one_transfer(engine, monkeypatch, tmp_path):
    """Between joins and leaves the engine calls no program but the steps, and looks at their output alone."""
    with_few_rows(engine)
    events, looks = profiled_turns(engine, monkeypatch, tmp_path, 40)
    assert called(events) == {"decode_steps"}
    assert dispatches(events) == 40
    assert looks == [(STEPS, 4, 4)] * 40


def test_in_a_gpus_programs_streams_are_what_they_are_alone(tiny, monkeypatch):
    """One step, whose output has no axis of steps, and four; all are compiled before the first stream."""
    chosen = [(words(20 + n), SamplingConfig(seed=n, max_new_tokens=13 * n + 9)) for n in range(3)]
    alone = [expected(tiny(), *asked) for asked in chosen]
    as_on_a_gpu(monkeypatch)
    sizes = EngineConfig(
        rows=(1, 3), context=400, chunks=(64,), pictures=(), prefix_bytes=0, top_logprobs=0, burst=10
    )
    shapes = set()
    original = batch_module.decode
    engine = Engine(tiny(), sizes)
    engine.start()

    def decode(*args, **kwargs):
        state, packed = original(*args, **kwargs)
        shapes.add(packed.shape[:-1])
        return state, packed

    monkeypatch.setattr(batch_module, "decode", decode)
    try:
        with compilations() as compiled:
            readers = [Reader() for _ in chosen]
            for reader, (prompt, config) in zip(readers, chosen, strict=True):
                engine.submit(prompt, config, reader)
            ended = [reader.wait() for reader in readers]
    finally:
        engine.close()
    assert compiled == []
    assert {(3,), (4, 3)} <= shapes
    for reader, result in zip(ended, alone, strict=True):
        assert_same(reader, result)


def test_what_does_not_fit_the_programs_is_refused_at_once(engine):
    wrong = {
        "399 prompt tokens .2 = 401": (words(399), {"max_new_tokens": 2}),
        "seed: None": (words(3), {"seed": None}),
        "top_logprobs: 4": (words(3), {"top_logprobs": 4}),
        "logit_bias: 65": (words(3), {"logit_bias": dict.fromkeys(range(65), 1.0)}),
        "logit_bias: got token id 512": (words(3), {"logit_bias": {512: 1.0}}),
        "eos_id: 17": (words(3), {"eos_id": tuple(range(17))}),
    }
    for message, (prompt, settings) in wrong.items():
        with pytest.raises(SettingsError, match=message.replace(".", ".+")):
            engine.submit(prompt, SamplingConfig(**{"seed": 1, "max_new_tokens": 2} | settings), Reader())


def test_a_prompt_that_fails_ends_alone(tiny, engine, monkeypatch):
    running, failing, behind = Reader(), Reader(), Reader()
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=100), running)
    until(lambda: running.pieces)
    broken = Broken(prefill_module.prefill_chunk, RuntimeError("out of memory"), 1)
    monkeypatch.setattr(prefill_module, "prefill_chunk", broken)
    for reader in (failing, behind):
        engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=9), reader)
    assert failing.wait().ends == ["prefill_failed"]
    assert (behind.wait().ends, running.wait().ends) == (["length"], ["length"])
    assert (
        running.tokens
        == expected(tiny(), words(9), SamplingConfig(seed=1, max_new_tokens=100)).tokens[0].tolist()
    )


def test_a_text_that_fails_ends_alone(engine, monkeypatch):
    running, failing = Reader(), Reader()
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=100), running)
    until(lambda: running.pieces)
    original = TextStream.push

    def push(self, token):
        if self._stop == ("fail",):
            raise RuntimeError("no text")
        return original(self, token)

    monkeypatch.setattr(TextStream, "push", push)
    engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=9, stop="fail"), failing)
    assert failing.wait().ends == ["text_failed"]
    assert running.wait().ends == ["length"]


def test_a_step_that_fails_ends_all_that_run_once_and_the_next_stream_works(tiny, engine, monkeypatch):
    running = [Reader() for _ in range(3)]
    for reader in running:
        engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=300), reader)
    until(lambda: all(len(reader.pieces) > 3 for reader in running))
    broken = Broken(batch_module.decode, RuntimeError("device lost"), 1)
    monkeypatch.setattr(batch_module, "decode", broken)
    for reader in running:
        assert reader.wait().ends == ["step_failed"]
    config = SamplingConfig(seed=1, max_new_tokens=9)
    again = Reader()
    engine.submit(words(9), config, again)
    assert_same(again.wait(), expected(tiny(), words(9), config))
    assert engine.alive


def test_a_step_that_fails_again_and_again_ends_the_engine_and_all_streams(tiny, monkeypatch):
    engine = Engine(tiny(), SIZES)
    engine.start()
    monkeypatch.setattr(batch_module, "decode", Broken(batch_module.decode, RuntimeError("device lost"), 99))
    readers = [Reader() for _ in range(6)]
    for reader in readers:
        engine.submit(words(200), SamplingConfig(seed=1, max_new_tokens=9), reader)
    for reader in readers:
        assert len(reader.wait().ends) == 1
    until(lambda: not engine.alive)
    assert {reader.ends[0] for reader in readers} <= {"step_failed", "engine_dead"}
    with pytest.raises(EngineDeadError):
        engine.submit(words(9), SamplingConfig(seed=1, max_new_tokens=9), Reader())
    engine.close()


def test_closing_ends_running_and_waiting_streams_and_a_full_queue_refuses(tiny):
    engine = Engine(tiny(), SIZES)
    engine.start()
    readers = [Reader(credit=1) for _ in range(32 + 64)]
    for number, reader in enumerate(readers):
        until(lambda wanted=number: engine.figures.running >= min(wanted, 32))
        engine.submit(words(3), SamplingConfig(seed=1, max_new_tokens=9), reader)
    until(lambda: engine.figures.running == 32)
    with pytest.raises(EngineBusyError):
        engine.submit(words(3), SamplingConfig(seed=1, max_new_tokens=9), Reader())
    engine.close()
    assert all(reader.ends == ["engine_closed"] for reader in readers)
    assert not engine.alive


@pytest.mark.slow
def test_pictures_of_any_size_have_their_programs_before_the_first_stream():
    """Of the checkpoint that ships: no number of patches that it pads a picture to is missing."""
    model, _, processor = load_model("embedded")

    def padded(width: int, height: int) -> int:
        found, grid = processor.images.levels([Image.new("RGB", (width, height))])
        return len(model.pack_pictures(found.pixels, grid)[0])

    warm = {padded(*size) for size in EngineConfig().pictures}
    sides = range(64, 1100, 97)
    assert {padded(w, h) for w in sides for h in sides if w <= 3 * h and h <= 3 * w} <= warm
