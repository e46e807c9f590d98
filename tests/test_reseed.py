"""A cache that is renewed holds what a fresh one would, and the stream notices nothing.

The reference computes every token from the whole content of the cache anew, in plain Python.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import InputError, SettingsError, load_model
from models.config import Qwen3VLConfig
from models.model import Model
from models.qwen3_vl import Qwen3VL
from sample import (
    SamplingConfig,
    StreamConfig,
    SummaryConfig,
    VLMInputs,
    clear_and_reseed,
    prepare_inputs,
    sample_streaming,
)
from sample import endless as endless_module
from sample.logits import allowed_logits, draw, process_logits, sampling_params
from sample.loops import history_of
from sample.request import make_request
from sample.step import EXHAUSTED, decode_step, prefill, unpack, unpack_taken
from sample.text import decode
from tests.paces import Steady
from tests.test_compiles import compilations
from tests.tiny import random_params, tiny_config
from tests.tiny_smolvlm import tiny_checkpoint as smolvlm_checkpoint
from tests.tokenizer_fixture import IMAGE_PAD_ID, VISION_END_ID

CONTEXT, TAIL = 112, 24


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def pictured(tiny, pictures: int = 1) -> VLMInputs:
    model, params, processor = tiny()
    images = [picture(64, 64, seed) for seed in range(pictures)]
    return prepare_inputs(model, params, processor, images=images, prompt="Describe this")


def text(length: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 400, (1, length)).astype(np.int32)


@partial(jax.jit, static_argnames="model")
def next_token(model: Model, params, sampling, vision, content, past, key):
    """A token, all raw log-probabilities, and how far apart the best two scores of a greedy row are: from all
    of the content at once and without a cache."""
    tokens, positions, vision_rows, length = content
    history, in_prompt, counts = past
    start = jnp.zeros(1, jnp.int32)
    arguments = (tokens, positions, start, None, vision, tokens.shape[1], vision_rows)
    hidden, _ = model.call("forward", params, *arguments)
    logits = model.call("head", params, hidden[:, length - 1])
    allowed, _ = allowed_logits(logits, sampling, history)
    processed = process_logits(allowed, sampling, in_prompt, counts)
    best, _ = jax.lax.top_k(processed[0], 2)
    return draw(key[None], processed, sampling)[0], jax.nn.log_softmax(logits[0]), best[0] - best[1]


class Reference:
    """The content of the cache as a list, and the whole of it computed anew for each token."""

    def __init__(self, model, params, inputs, cfg: SamplingConfig, key, stream: StreamConfig) -> None:
        self.model, self.params, self.cfg, self.stream = model, params, cfg, stream
        self.request = make_request(model, inputs, dataclasses.replace(cfg, max_new_tokens=1), key)
        self.prompt = self.request.prompt.tokens[0, : self.request.lengths[0]].tolist()
        self.sinks = len(self.prompt) if stream.sinks is None else stream.sinks
        frames = [i for i, token in enumerate(self.prompt) if token == VISION_END_ID]
        self.floor = max(self.sinks, frames[-1] + 1 if frames else 0)
        self.longest = -(-stream.context // 64) * 64  # one program
        self.sampling = sampling_params([cfg])

    def run(self, steps: int, told: Sequence[int] = ()) -> tuple[list[int], list[float]]:
        """Tokens and log-probabilities; behind each token comes the one that was told, where there is one."""
        tokens, drawn, logprobs, start = list(self.prompt), [], [], self.sinks
        self.gaps: list[float] = []
        for step in range(steps):
            if self.sinks + len(tokens) - start > self.stream.context:
                kept = self.stream.tail
                if self.stream.policy == "window":
                    kept = self.stream.context - self.sinks
                start = max(len(tokens) - kept, self.floor)
            token, logprob, gap = next_token(
                self.model,
                self.params,
                self.sampling,
                self.request.vision,
                self._content(tokens, start),
                self._past(tokens),
                jax.random.fold_in(self.request.key[0], len(tokens) - len(self.prompt)),
            )
            drawn.append(int(token))
            tokens.append(told[step] if told else drawn[-1])
            logprobs.append(float(logprob[tokens[-1]]))
            self.gaps.append(float(gap))
        return drawn, logprobs

    def _content(self, tokens: list[int], start: int):
        """Behind the sinks, or the whole prompt while it is there, text goes on without a gap."""
        prompt, S = self.request.prompt, self.sinks
        front = len(self.prompt) if start == S else S
        content = tokens[:S] + tokens[start:]
        ids = np.zeros((1, self.longest), np.int32)
        ids[0, : len(content)] = content
        rows = np.full((1, self.longest), -1, np.int32)
        rows[0, :front] = prompt.vision_rows[0, :front]
        positions = np.zeros((len(prompt.positions), 1, self.longest), np.int32)
        positions[:, :, :front] = prompt.positions[:, :, :front]
        behind = prompt.positions[:, 0, :front].max(initial=-1) + 1
        positions[:, :, front:] = behind + np.arange(self.longest - front)
        return ids, positions, rows, len(content)

    def _past(self, tokens: list[int]):
        V, drawn = self.model.vocab_size, tokens[len(self.prompt) :]
        history = history_of([np.array(tokens, np.int32)], 512, 512)
        in_prompt = np.isin(np.arange(V), self.prompt)[None]
        return history, in_prompt, np.bincount(drawn, minlength=V)[None].astype(np.int32)


SAMPLED = {
    "temperature": 1.2,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.2,
    "no_repeat_ngram_size": 2,
    "no_repeat_ngram_threshold": 1,
}


@pytest.mark.parametrize(
    ("stream", "pictures"),
    [
        (StreamConfig(context=CONTEXT, tail=TAIL), 1),
        (StreamConfig(context=CONTEXT, tail=TAIL, sinks=2), 1),  # the picture leaves whole
        pytest.param(StreamConfig(context=CONTEXT, tail=TAIL), 0, marks=pytest.mark.slow),
        pytest.param(StreamConfig(context=CONTEXT, tail=TAIL, sinks=0), 0, marks=pytest.mark.slow),
        pytest.param(StreamConfig(context=CONTEXT, tail=0), 1, marks=pytest.mark.slow),
        pytest.param(  # the tail reaches into the prompt
            StreamConfig(context=CONTEXT, tail=70, sinks=3), 1, marks=pytest.mark.slow
        ),
        pytest.param(StreamConfig(policy="window", context=CONTEXT), 1, marks=pytest.mark.slow),
        (StreamConfig(policy="window", context=CONTEXT, sinks=3), 1),
    ],
    ids=lambda value: (
        f"{value.policy}-{value.sinks}+{value.tail}" if isinstance(value, StreamConfig) else None
    ),
)
def test_each_token_is_that_of_a_fresh_prefill(tiny, stream, pictures):
    """Draws, penalties, n-grams and positions go on through several reseeds, and logits are the same."""
    model, params, _processor = tiny()
    inputs = pictured(tiny, pictures) if pictures else text()
    steps = 190
    cfg = SamplingConfig(max_new_tokens=steps, **SAMPLED)
    key = jax.random.key(5)
    running = sample_streaming(model, params, inputs, cfg, key, stream=stream)
    tokens = list(running)
    ids, logprobs = Reference(model, params, inputs, cfg, key, stream).run(steps)
    assert running.stats.reseeds >= 2
    assert [t.token_id for t in tokens] == ids
    assert [t.logprob for t in tokens] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.slow
def test_smolvlm_s_tiles_go_through_reseeds(tmp_path):
    model, params, processor = load_model(smolvlm_checkpoint(tmp_path), dtype="float32")
    inputs = prepare_inputs(model, params, processor, images=[picture(64, 40)], prompt="hi")
    stream = StreamConfig(context=inputs.prompt_tokens.shape[1] + 30, tail=12)
    cfg = SamplingConfig(max_new_tokens=70, **SAMPLED)
    key = jax.random.key(5)
    running = sample_streaming(model, params, inputs, cfg, key, stream=stream)
    tokens = list(running)
    ids, logprobs = Reference(model, params, inputs, cfg, key, stream).run(70)
    assert running.stats.reseeds >= 2
    assert [t.token_id for t in tokens] == ids
    assert [t.logprob for t in tokens] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["reseed", "shift"])
def test_a_stream_may_end_right_at_a_reseed(tiny, policy):
    model, params, _ = tiny()
    stream = StreamConfig(policy=policy, context=64, tail=20, sinks=8)

    def run(**settings):
        cfg = SamplingConfig(temperature=2.0, **{"max_new_tokens": 120, **settings})
        running = sample_streaming(model, params, text(), cfg, jax.random.key(1), stream=stream)
        return [t.token_id for t in running], running

    ids, whole = run()
    fresh = [r.token for r in whole.stats.recent_reseeds if ids[r.token] not in ids[: r.token]]
    seam = fresh[0]
    for length in (seam - 1, seam, seam + 1):
        cut, running = run(max_new_tokens=length)
        assert cut == ids[:length]
        assert running.finish_reason == "length"
        told = sum(r.token < length for r in whole.stats.recent_reseeds)
        assert running.stats.reseeds == told
    for last in (seam - 1, seam, seam + 1):
        if ids[last] in ids[:last]:
            continue
        cut, running = run(eos_id=ids[last])
        assert cut == ids[: last + 1]
        assert running.finish_reason == "stop"


@pytest.mark.slow
def test_a_batch_of_ragged_rows_is_renewed_as_by_a_fresh_prefill(tiny):
    """Rows of other lengths, pictures that leave, a drawn picture token that is but text."""
    model, params, processor = tiny()
    images = [[picture(64, 64)], [picture(64, 64, 1), picture(96, 32, 2)], []]
    prompts = ["One picture", "Two pictures", "No picture but longer text instead of it"]
    inputs = prepare_inputs(model, params, processor, images=images, prompt=prompts)
    cfg = SamplingConfig(temperature=0, max_new_tokens=60, top_logprobs=20)
    r = make_request(model, inputs, cfg, jax.random.key(0))
    r = r._replace(
        history=history_of([t[:n] for t, n in zip(r.prompt.tokens, r.lengths, strict=True)], 64, 0)
    )
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    for _ in range(20):
        state, _ = decode_step(model, params, state, r.sampling, top=r.top)
    tail = np.array([9, 15, 1], np.int32)
    state = state._replace(
        history=state.history._replace(tokens=state.history.tokens.at[0, -3].set(IMAGE_PAD_ID))
    )
    latest = np.asarray(state.history.tokens)

    # Sinks: all of row 0; of row 1 what is before its second picture; three tokens of row 2.
    pads = np.flatnonzero(r.prompt.vision_rows[1] >= 0)
    gap = pads[np.flatnonzero(np.diff(pads) > 1)[0]] + 2
    lengths = np.array([r.lengths[0], gap, 3], np.int32)
    real = np.arange(r.prompt.tokens.shape[1]) < lengths[:, None]
    grid = np.asarray(inputs.grid_thw)
    _, deltas = model.prompt_positions(r.prompt.tokens, grid[:2], lengths)
    sinks = r.prompt._replace(lengths=lengths, deltas=deltas)
    before = [b.unsafe_buffer_pointer() for b in (*state.cache.keys, *state.cache.values)]
    renewed, packed = clear_and_reseed(
        model, params, state, sinks, r.vision, r.sampling, tail, width=128, top=r.top
    )
    after = [b.unsafe_buffer_pointer() for b in (*renewed.cache.keys, *renewed.cache.values)]
    assert sorted(after) == sorted(before)  # the old cache's memory

    width = r.prompt.tokens.shape[1]
    fresh = np.zeros((3, width), np.int32)
    positions = np.zeros((3, 3, width), np.int32)
    for i in range(3):
        S, T = lengths[i], tail[i]
        fresh[i, :S], fresh[i, S : S + T] = r.prompt.tokens[i, :S], latest[i, -T:]
        positions[:, i, :S] = r.prompt.positions[:, i, :S]
        positions[:, i, S:] = np.arange(S, width) + deltas[i]
    rows = np.where(real, r.prompt.vision_rows, -1)
    prompt = r.prompt._replace(
        tokens=fresh, positions=positions, lengths=lengths + tail, deltas=deltas, vision_rows=rows
    )
    wanted, first = prefill(
        model, params, prompt, r.vision, r.sampling, r.key, r.history, slots=r.slots, top=r.top
    )
    got, expected = unpack(np.asarray(packed)), unpack(np.asarray(first))
    assert got.token.tolist() == expected.token.tolist()
    assert got.top_ids.tolist() == expected.top_ids.tolist()
    np.testing.assert_allclose(got.top_logprobs, expected.top_logprobs, atol=1e-5)
    assert renewed.length.tolist() == wanted.length.tolist() == (lengths + tail).tolist()
    assert renewed.delta.tolist() == wanted.delta.tolist()
    assert renewed.count.tolist() == [22] * 3
    for a, b in zip(renewed.cache.values, wanted.cache.values, strict=True):
        for i, n in enumerate(lengths + tail):
            np.testing.assert_allclose(a[i, :, :n], b[i, :, :n], atol=1e-5)


@pytest.mark.parametrize(
    ("sinks", "tail", "width", "line"),
    [
        (3, 65, 128, "tail: [65]; allowed: 0 to 64, what the history holds"),
        (3, -1, 128, "tail: [-1]; allowed: 0 to 64, what the history holds"),
        (65, 4, 128, "sinks: lengths of [65]; allowed: 0 to 64, their tokens"),
        (60, 5, 64, "sinks + tail: [65]; allowed: 1 to 64, the width"),
        (0, 0, 64, "sinks + tail: [0]; allowed: 1 to 64, the width"),
        (3, 4, 257, "width: 257; allowed: up to 256, the slots of the cache"),
    ],
)
def test_a_reseed_of_wrong_sizes_is_one_line_and_leaves_the_state(tiny, sinks, tail, width, line):
    model, params, _ = tiny()
    stream = StreamConfig(context=CONTEXT, tail=TAIL)
    r = make_request(model, text(), SamplingConfig(), jax.random.key(0), stream=stream)
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    kept = r.prompt._replace(lengths=np.array([sinks], np.int32))
    sizes = np.array([tail], np.int32)
    with pytest.raises(InputError) as caught:
        clear_and_reseed(model, params, state, kept, r.vision, r.sampling, sizes, width=width, top=r.top)
    assert str(caught.value) == line
    assert not state.length.is_deleted()


@pytest.mark.slow
def test_a_cleared_cache_forgets_what_is_not_finite(tiny, monkeypatch):
    model, params, _ = tiny()
    monkeypatch.setattr("sample.streaming.Pace", lambda: Steady(1))
    cfg = SamplingConfig(max_new_tokens=400)
    stream = StreamConfig(context=CONTEXT, tail=TAIL)
    running = sample_streaming(model, params, text(), cfg, jax.random.key(0), stream=stream)
    for _ in range(60):
        next(running)
    assert running._state is not None
    cache = jax.tree.map(lambda b: jnp.full_like(b, jnp.nan), running._state.cache)
    running._state = running._state._replace(cache=cache)
    surprisals = []
    for _ in running:
        surprisals.append(running.surprisal)
        if len(surprisals) > 100:
            break
    assert np.isnan(surprisals[5])
    assert np.isfinite(surprisals[-1])
    assert running.stats.surprisal_errors == np.isnan(surprisals).sum()
    assert running.perplexity.tokens == 60 + np.isfinite(surprisals).sum()


def test_moved_keys_are_those_computed_at_their_new_place(tiny):
    model, params, _ = tiny()
    inputs = pictured(tiny)
    r = make_request(model, inputs, SamplingConfig(max_new_tokens=9), jax.random.key(0))
    n, (kept, dropped) = r.lengths[0], (5, 60)
    distance = 7

    def cache(moved_by: int):
        prompt = r.prompt._replace(positions=r.prompt.positions - moved_by)
        return prefill(model, params, prompt, *r.arguments[1:], slots=r.slots, top=r.top)[0].cache

    there, there_before = cache(distance), cache(0)
    moved = model.shifted_cache(there_before, jnp.array([kept]), jnp.array([dropped]), jnp.array([distance]))
    for layer in range(len(moved.keys)):
        keys, values = moved.keys[layer][0], moved.values[layer][0]
        end = n - dropped
        np.testing.assert_array_equal(keys[..., :kept], there_before.keys[layer][0, ..., :kept])
        np.testing.assert_allclose(
            keys[..., kept:end], there.keys[layer][0, ..., kept + dropped : n], atol=2e-4
        )
        np.testing.assert_array_equal(
            values[:, kept:end], there_before.values[layer][0, :, kept + dropped : n]
        )


@pytest.fixture(scope="module")
def one_layer():
    """Keys and values of a single layer depend on token and position alone: to move is to compute anew."""
    config = tiny_config()
    config["text_config"]["num_hidden_layers"] = 1
    config["vision_config"]["deepstack_visual_indexes"] = []
    model = Qwen3VL(Qwen3VLConfig.from_dict(config))
    return model, random_params(model)


@pytest.mark.slow
@pytest.mark.parametrize("sinks", [0, 4, None])
def test_shift_is_reseed_where_there_is_one_layer(one_layer, sinks):
    model, params = one_layer
    cfg = SamplingConfig(max_new_tokens=200)

    def run(policy):
        stream = StreamConfig(policy=policy, context=CONTEXT, tail=TAIL, sinks=sinks)
        running = sample_streaming(model, params, text(), cfg, jax.random.key(2), stream=stream)
        tokens = list(running)
        assert [r.policy for r in running.stats.recent_reseeds] == [policy] * running.stats.reseeds
        return [t.token_id for t in tokens], [t.logprob for t in tokens], running.stats.reseeds

    moved, computed = run("shift"), run("reseed")
    assert moved[2] == computed[2] >= 2
    assert moved[0] == computed[0]
    assert moved[1] == pytest.approx(computed[1], abs=1e-4)


def test_shift_moves_a_prompt_s_text_from_behind_a_picture(tiny):
    """The tail's positions come down by slots and by what the picture's shape had put between."""
    model, params, _ = tiny()
    inputs = pictured(tiny)
    length = inputs.prompt_tokens.shape[1]
    stream = StreamConfig(policy="shift", context=length + 3, tail=20, sinks=2)
    running = sample_streaming(
        model, params, inputs, SamplingConfig(max_new_tokens=80), jax.random.key(0), stream=stream
    )
    for _ in running:
        if running._state is not None and running._endless is not None:
            assert int(running._state.length[0]) == running._endless.filled <= stream.context
        if running.stats.reseeds and running._state is not None:
            assert int(running._state.delta[0]) == 0
    assert running.stats.recent_reseeds[0].tail == length + 4 - 69  # behind the picture, shorter than wished
    assert running.stats.recent_reseeds[1].tail == 20


def test_text_goes_on_through_reseeds(tiny):
    """Half characters wait, and stop strings are found across a reseed."""
    model, params, processor = tiny()
    stream = StreamConfig(context=64, tail=40, sinks=8)
    cfg = SamplingConfig(temperature=2.0, max_new_tokens=400)

    def run(cfg):
        running = sample_streaming(
            model, params, text(), cfg, jax.random.key(1), tokenizer=processor.tokenizer, stream=stream
        )
        tokens = []
        seams = []
        for token in running:
            if running.reseed is not None:
                assert running.reseed.token == len(tokens)
                seams.append(len(tokens))
            tokens.append(token)
        return tokens, seams, running

    tokens, seams, running = run(cfg)
    assert len(seams) == running.stats.reseeds > 5
    whole = "".join(t.text for t in tokens)
    assert whole == decode(processor.tokenizer, [t.token_id for t in tokens])
    assert any(not tokens[seam - 1].text for seam in seams)  # held back when the cache was cleared
    # A stop string of the two tokens on both sides of a reseed, where both have text.
    for seam in seams:
        stop = tokens[seam - 1].text + tokens[seam].text
        before = "".join(t.text for t in tokens[: seam - 1])
        if tokens[seam - 1].text and tokens[seam].text and stop not in before:
            break
    else:
        pytest.fail("no reseed has text on both sides")
    stopped, _, ended = run(dataclasses.replace(cfg, stop=stop))
    assert ended.finish_reason == "stop"
    assert "".join(t.text for t in stopped) == whole[: whole.index(stop)]
    assert len(stopped) <= seam + 1


@pytest.mark.slow
def test_nothing_compiles_from_one_reseed_to_the_next(tiny):
    model, params, _ = tiny()
    inputs = pictured(tiny)

    def run(stream, steps, **settings):
        ngrams = {"no_repeat_ngram_size": 3, "no_repeat_ngram_window": 64}
        cfg = SamplingConfig(max_new_tokens=steps, **ngrams, **settings)
        running = sample_streaming(model, params, inputs, cfg, jax.random.key(0), stream=stream)
        list(running)
        return running.stats.reseeds

    def first(policy):
        return StreamConfig(policy=policy, context=CONTEXT, tail=TAIL)

    for policy in ("reseed", "shift"):
        run(first(policy), 120)
        with compilations() as again:
            assert run(first(policy), 400) > 20
            # Another size of everything, in the same buckets.
            assert run(StreamConfig(policy=policy, context=109, tail=22), 300, temperature=0.5) > 20
            assert run(StreamConfig(policy=policy, context=111, tail=30, sinks=75), 300, top_k=5) > 20
        assert again == []


def test_cancelling_during_a_reseed_leaves_nothing_behind(tiny):
    """Not even while the stream is kept."""
    model, params, _ = tiny()
    stream = StreamConfig(context=CONTEXT, tail=TAIL)
    cfg = SamplingConfig(max_new_tokens=10**6)

    def cancelled():
        running = sample_streaming(model, params, pictured(tiny), cfg, jax.random.key(0), stream=stream)
        for _ in running:
            ahead = running._ahead
            if ahead is not None and ahead.reseed is not None:  # it is on its way
                running.cancel()
        assert running.finish_reason == "cancelled"
        return running

    cancelled()
    before = len(jax.live_arrays())
    kept = [cancelled(), cancelled()]
    assert len(jax.live_arrays()) <= before
    assert all(1 < running.stats.new_tokens <= CONTEXT - 76 + 1 for running in kept)


def test_a_pause_is_what_the_host_waits(tiny, monkeypatch):
    """Neither the time of the caller between two tokens, nor that of the token before."""
    model, params, _ = tiny()
    now = 0.0

    def arrives(packed):
        nonlocal now
        now += 3.0
        return unpack_taken(packed)

    monkeypatch.setattr("sample.streaming.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr("sample.streaming.unpack_taken", arrives)
    stream = StreamConfig(context=CONTEXT, tail=TAIL)
    cfg = SamplingConfig(max_new_tokens=200)
    running = sample_streaming(model, params, text(), cfg, jax.random.key(0), stream=stream)
    for _ in running:
        now += 10.0
    assert [reseed.pause for reseed in running.stats.recent_reseeds] == [3.0] * 2


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["reseed", "shift", "window"])
def test_a_reseed_without_a_token_is_not_told(tiny, monkeypatch, policy):
    model, params, _ = tiny()
    until = CONTEXT - 30 + 1  # tokens that are drawn before the cache is full

    def exhausts(packed):
        nonlocal arrived
        output = unpack_taken(packed)
        arrived += len(output.token)
        if arrived <= until:
            return output
        return output._replace(status=np.full_like(output.status, EXHAUSTED))

    arrived = 0
    monkeypatch.setattr("sample.streaming.unpack_taken", exhausts)
    stream = StreamConfig(policy=policy, context=CONTEXT, tail=TAIL)
    cfg = SamplingConfig(max_new_tokens=200)
    running = sample_streaming(model, params, text(), cfg, jax.random.key(0), stream=stream)
    assert len(list(running)) == until
    assert running.finish_reason == "repetition"
    assert (running.reseed, running.stats.reseeds, [*running.stats.recent_reseeds]) == (None, 0, [])


@pytest.mark.parametrize("late", [False, True])
def test_a_device_error_during_a_reseed_keeps_what_there_is(tiny, monkeypatch, late):
    model, params, processor = tiny()
    stream = StreamConfig(context=CONTEXT, tail=TAIL)
    cfg = SamplingConfig(max_new_tokens=200)
    arguments = (model, params, text(), cfg, jax.random.key(0))
    whole = list(sample_streaming(*arguments, tokenizer=processor.tokenizer, stream=stream))
    running = sample_streaming(*arguments, tokenizer=processor.tokenizer, stream=stream)

    class Lost:
        def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
            raise jax.errors.JaxRuntimeError("INTERNAL: lost")

    def fails(*args, **kwargs):
        if not late:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return args[2], Lost()

    monkeypatch.setattr(endless_module, "clear_and_reseed", fails)
    tokens = []
    with pytest.raises(jax.errors.JaxRuntimeError):
        tokens.extend(running)
    assert running.finish_reason == "error"
    until = CONTEXT - 30 + 1  # all that were drawn before the cache was full
    assert tokens == whole[:until]
    ids = [t.token_id for t in tokens]
    assert "".join(t.text for t in tokens) + running.rest == decode(processor.tokenizer, ids)
    assert running._state is None
    assert list(running) == []


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ({"policy": "forget"}, "policy: got 'forget'; allowed: reseed, shift, window, stop"),
        ({"context": 1}, "context: got 1; allowed: an integer from 2"),
        ({"context": 2048}, "context: 2048; allowed: up to 1024, the model's context"),
        ({"tail": -1}, "tail: got -1; allowed: an integer from 0"),
        ({"tail": 2.5}, "tail: got 2.5"),
        ({"sinks": -1}, "sinks: got -1"),
        ({"sinks": True}, "sinks: got True"),
        ({"sinks": 0, "tail": 0}, "tail: 0 with 0 sinks and the policy reseed; allowed: 1 or more"),
        ({"tail": 0, "policy": "shift"}, "tail: 0 with "),
        ({"sinks": 100, "tail": 28}, "tail: 100 sinks + a tail of 28 = 128; allowed: up to 127"),
        ({"tail": 100}, "tail: 76 sinks + a tail of 100 = 176; allowed: up to 127"),
        ({"sinks": 40}, "sinks: 40 tokens end inside a picture, at 3 to 68; allowed: up to 3, or 69 or more"),
        ({"sinks": 90}, "sinks: 90; allowed: up to 76, the tokens of the prompt"),
        ({"sinks": 128, "policy": "window"}, "context: 128 with 128 sinks; allowed: more than the sinks"),
        ({"context": 76}, "the prompt has 76 tokens; allowed: up to 75"),
        ({"context": 60, "policy": "stop"}, "the prompt has 76 tokens; allowed: up to 59"),
        ({"summary": SummaryConfig()}, "sinks: 76 tokens; allowed with a summary: up to 50"),
        ({"summary": SummaryConfig(), "policy": "shift"}, "summary: the policy is shift; allowed: with"),
        ({"summary": "model"}, "summary: got 'model'; allowed: a SummaryConfig, or None"),
        (
            {"summary": SummaryConfig(sink_ratio=0.7), "tail": 60},
            "tail: 76 sinks + 13 of the summary + a tail of 60 = 149; allowed: up to 127",
        ),
    ],
)
def test_wrong_settings_are_one_line_before_anything_runs(tiny, chosen, line):
    model, params, processor = tiny()
    with pytest.raises((SettingsError, InputError)) as caught:
        sample_streaming(
            model,
            params,
            pictured(tiny),
            SamplingConfig(),
            jax.random.key(0),
            tokenizer=processor.tokenizer,
            stream=StreamConfig(**({"context": 128, "tail": 16} | chosen)),
        )
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_stream_has_one_row_and_a_summary_a_tokenizer(tiny):
    model, params, _ = tiny()
    key, stream = jax.random.key(0), StreamConfig(context=128, tail=16)
    with pytest.raises(InputError, match=r"^stream: a batch of 2; allowed: 1$"):
        sample_streaming(model, params, np.repeat(text(), 2, 0), SamplingConfig(), key, stream=stream)
    stream = dataclasses.replace(stream, summary=SummaryConfig())
    with pytest.raises(SettingsError, match=r"^summary: a summary needs a tokenizer$"):
        sample_streaming(model, params, text(), SamplingConfig(), key, stream=stream)
    with pytest.raises(SettingsError, match=r"^stream: dict; allowed: a StreamConfig, or None$"):
        sample_streaming(model, params, text(), SamplingConfig(), key, stream={})  # pyright: ignore[reportArgumentType]


def test_stop_ends_with_length_when_the_context_is_full(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(max_new_tokens=10**6)
    stream = StreamConfig(policy="stop", context=100)
    running = sample_streaming(model, params, text(), cfg, jax.random.key(0), stream=stream)
    assert len(list(running)) == 70
    assert running.finish_reason == "length"
    assert running.stats.reseeds == 0


def test_surprisal_is_of_the_raw_logits_whatever_logprob_is(tiny):
    model, params, _ = tiny()
    raw = SamplingConfig(temperature=2.0, top_k=20, max_new_tokens=20)
    streams = [
        sample_streaming(model, params, text(), cfg, jax.random.key(0))
        for cfg in (raw, dataclasses.replace(raw, logprobs="processed"))
    ]
    for first, second in zip(*streams, strict=True):
        assert first.token_id == second.token_id
        assert streams[0].surprisal == pytest.approx(-first.logprob)
        assert streams[1].surprisal == pytest.approx(streams[0].surprisal, rel=1e-6)
        assert second.logprob != pytest.approx(first.logprob)
    assert streams[0].perplexity.tokens == 20


def test_a_summary_stands_between_sinks_and_tail(tiny, monkeypatch):
    """The tokens that leave are told exactly, once each, and what `take` gives is fed behind the sinks."""
    model, params, processor = tiny()
    told: list[list[int]] = []
    fed: list[list[int]] = []

    class Sidecar:
        closed = False

        def summarise(self, evicted):
            told.append(list(evicted))

        def take(self):
            return [7] * (9 * len(told))

        def close(self):
            self.closed = True

    sidecar = Sidecar()
    monkeypatch.setattr("sample.streaming.SummarySidecar.for_stream", lambda *args: sidecar)
    original = endless_module.clear_and_reseed

    def watched(model, params, state, sinks, *rest, **static):
        fed.append(sinks.tokens[0, : sinks.lengths[0]].tolist())
        return original(model, params, state, sinks, *rest, **static)

    monkeypatch.setattr(endless_module, "clear_and_reseed", watched)
    stream = StreamConfig(context=CONTEXT, tail=TAIL, sinks=10, summary=SummaryConfig())
    cfg = SamplingConfig(max_new_tokens=400)
    prompt = text()
    running = sample_streaming(
        model, params, prompt, cfg, jax.random.key(0), tokenizer=processor.tokenizer, stream=stream
    )
    with compilations() as compiled:
        ids = [t.token_id for t in running]
    assert compiled.count("_clear_and_reseed") <= 1  # the summary's length is traced
    budget = int(CONTEXT * 0.4) - 10
    sizes = [r.summary for r in running.stats.recent_reseeds]
    assert sizes[:3] == [9, 18, 27]
    assert max(sizes) == budget
    assert fed[1] == prompt[0, :10].tolist() + [7] * 18
    everything = [*prompt[0].tolist(), *ids]
    left = [token for tokens in told for token in tokens]
    assert left == everything[10 : 10 + len(left)]
    assert [len(tokens) for tokens in told[: len(sizes)]] == [r.evicted for r in running.stats.recent_reseeds]
    assert sidecar.closed
