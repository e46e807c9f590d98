"""`sample` and `sample_streaming` are two loops over one step, and a row is alone in its batch."""

import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import InputError, SettingsError, VisionEmbeddings, load_model
from models.config import Qwen3VLConfig
from models.qwen3_vl import Qwen3VL
from sample import SamplingConfig, VLMInputs, prepare_inputs, sample, sample_streaming
from sample import request as request_module
from sample import streaming as streaming_module
from sample.text import TextStream
from tests.paces import Steady, as_on_a_gpu
from tests.tiny import random_params, tiny_config

CONFIGS = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 1.3},
    "top_k": {"temperature": 2.0, "top_k": 7},
    "top_p": {"temperature": 2.0, "top_p": 0.7},
    "min_p": {"temperature": 2.0, "min_p": 0.1},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "bias": {"temperature": 1.5, "logit_bias": {5: 8.0, 9: -100.0}},
    "processed": {"temperature": 2.0, "top_k": 20, "logprobs": "processed"},
    "all": {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1},
}
STEPS = 24


def prompt(rows: int = 1, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 400, (rows, width)).astype(np.int32)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_is_sample_token_for_token(tiny, name, seed):
    model, params, processor = tiny()
    cfg = SamplingConfig(max_new_tokens=STEPS, eos_id=processor.eos_ids, **CONFIGS[name])
    key = jax.random.PRNGKey(seed)
    whole = sample(model, params, prompt(seed=seed), cfg, key, tokenizer=processor.tokenizer)
    stream = sample_streaming(model, params, prompt(seed=seed), cfg, key, tokenizer=processor.tokenizer)
    tokens = list(stream)
    assert [t.token_id for t in tokens] == whole.tokens[0].tolist()
    assert np.array([t.logprob for t in tokens], np.float32).tolist() == whole.logprobs[0].tolist()
    assert "".join(t.text for t in tokens) == whole.texts[0]
    assert stream.finish_reason == whole.finish_reasons[0]
    if name != "greedy":
        other = sample(model, params, prompt(seed=seed), cfg, jax.random.PRNGKey(seed + 77))
        assert other.tokens.tolist() != whole.tokens.tolist()


def test_a_picture_too(tiny):
    model, params, processor = tiny()
    inputs = prepare_inputs(model, params, processor, images=[picture(70, 40)], prompt="What's this?")
    cfg = SamplingConfig(max_new_tokens=STEPS, eos_id=processor.eos_ids)
    whole = sample(model, params, inputs, cfg, jax.random.key(3), tokenizer=processor.tokenizer)
    tokens = list(
        sample_streaming(model, params, inputs, cfg, jax.random.key(3), tokenizer=processor.tokenizer)
    )
    assert [t.token_id for t in tokens] == whole.tokens[0].tolist()
    assert np.array([t.logprob for t in tokens], np.float32).tolist() == whole.logprobs[0].tolist()
    other = prepare_inputs(model, params, processor, images=[picture(70, 40, 1)], prompt="What's this?")
    assert sample(model, params, other, cfg, jax.random.key(3)).logprobs.tolist() != whole.logprobs.tolist()


@pytest.mark.slow
def test_bfloat16_from_a_picture_to_the_same_tokens_in_both_drivers(tiny_directory):
    model, params, processor = load_model(tiny_directory(), dtype="bfloat16")
    inputs = prepare_inputs(model, params, processor, images=[picture(70, 40)], prompt="What's this?")
    cfg = SamplingConfig(max_new_tokens=STEPS)
    whole = sample(model, params, inputs, cfg, jax.random.key(3))
    tokens = list(sample_streaming(model, params, inputs, cfg, jax.random.key(3)))
    assert inputs.vision is not None
    assert inputs.vision.embeddings.dtype == jnp.bfloat16
    assert [t.token_id for t in tokens] == whole.tokens[0].tolist()
    assert [t.logprob for t in tokens] == pytest.approx(whole.logprobs[0].tolist(), abs=1e-5)


def test_old_and_new_keys_are_the_same(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(max_new_tokens=STEPS)
    old, new = (sample(model, params, prompt(), cfg, k) for k in (jax.random.PRNGKey(5), jax.random.key(5)))
    assert old.tokens.tolist() == new.tokens.tolist()


def test_a_row_gives_in_a_batch_what_it_gives_alone(tiny):
    model, params, processor = tiny()
    texts = ["Describe this image", "What do you see in this photo? " * 3, "no picture"]
    images = [[picture(64, 64)], [picture(96, 32), picture(40, 90, 1)], []]
    configs = [
        SamplingConfig(temperature=1.2, max_new_tokens=30, seed=11, eos_id=processor.eos_ids),
        SamplingConfig(temperature=0, max_new_tokens=9, repetition_penalty=1.2, eos_id=processor.eos_ids),
        SamplingConfig(temperature=2.0, top_p=0.8, top_k=50, max_new_tokens=20, seed=12, stop=["zzz"]),
    ]
    key = jax.random.key(0)
    batch = prepare_inputs(model, params, processor, images=images, prompt=texts)
    together = sample(model, params, batch, configs, key, tokenizer=processor.tokenizer)
    for row, config in enumerate(configs):
        single = prepare_inputs(model, params, processor, images=images[row], prompt=texts[row])
        alone = sample(model, params, single, config, key, tokenizer=processor.tokenizer)
        n = alone.tokens.shape[1]
        assert together.tokens[row, :n].tolist() == alone.tokens[0].tolist()
        assert together.logprobs[row, :n] == pytest.approx(alone.logprobs[0], abs=1e-4)
        assert together.texts[row] == alone.texts[0]
        assert together.finish_reasons[row] == alone.finish_reasons[0]
        assert (together.tokens[row, n:] == config.pad_id).all()


@pytest.mark.slow
def test_keys_of_ones_own_per_row(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(max_new_tokens=STEPS)
    keys = jax.random.split(jax.random.key(9), 3)
    rows = prompt(rows=3)
    together = sample(model, params, rows, cfg, keys)
    for i in range(3):
        alone = sample(model, params, rows[i : i + 1], cfg, keys[i : i + 1])
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()


def test_rows_of_one_key_differ(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(temperature=1.5, max_new_tokens=STEPS)
    result = sample(model, params, np.repeat(prompt(), 4, 0), cfg, jax.random.key(0))
    assert len({tuple(row) for row in result.tokens.tolist()}) == 4


def test_more_steps_than_one_program_makes(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(max_new_tokens=200)
    whole = sample(model, params, prompt(), cfg, jax.random.key(1))
    assert whole.tokens.shape == (1, 200)
    assert whole.finish_reasons == ["length"]
    tokens = [t.token_id for t in sample_streaming(model, params, prompt(), cfg, jax.random.key(1))]
    assert tokens == whole.tokens[0].tolist()


def test_any_end_token_of_the_set_ends(tiny):
    model, params, _ = tiny()
    free = sample(model, params, prompt(), SamplingConfig(max_new_tokens=STEPS), jax.random.key(4))
    ends = free.tokens[0, 6]
    first = free.tokens[0].tolist().index(ends)
    cfg = SamplingConfig(max_new_tokens=STEPS, eos_id=[499, int(ends)])
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(4))
    assert [t.token_id for t in stream] == free.tokens[0, : first + 1].tolist()
    assert stream.finish_reason == "stop"
    assert sample(model, params, prompt(), cfg, jax.random.key(4)).tokens.shape[1] == first + 1


def test_the_end_token_has_no_text_and_held_back_text_comes_with_it(tiny):
    model, params, processor = tiny()
    tokenizer = processor.tokenizer
    free = SamplingConfig(temperature=1.5, max_new_tokens=STEPS, seed=3)
    ids = sample(model, params, prompt(), free, jax.random.key(0)).tokens[0].tolist()
    ends = (i for i in range(2, STEPS) if ids[i] not in ids[:i])
    end, text = next((i, text) for i in ends if (text := tokenizer.decode(ids[:i]))[-1:].isalnum())
    cfg = replace(free, eos_id=ids[end], stop=[text[-1] + "never seen"])
    tokens = list(sample_streaming(model, params, prompt(), cfg, jax.random.key(0), tokenizer=tokenizer))
    assert [t.token_id for t in tokens] == ids[: end + 1]
    assert "".join(t.text for t in tokens[:-1]) == text[:-1]
    assert tokens[-1].text == text[-1]


def test_a_stop_string_ends_both_drivers_at_the_same_token(tiny):
    model, params, processor = tiny()
    free = SamplingConfig(temperature=1.5, max_new_tokens=120, seed=3)
    text = sample(model, params, prompt(), free, jax.random.key(0), tokenizer=processor.tokenizer).texts[0]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cfg = SamplingConfig(temperature=1.5, max_new_tokens=120, seed=3, stop=[stop])
    whole = sample(model, params, prompt(), cfg, jax.random.key(0), tokenizer=processor.tokenizer)
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(0), tokenizer=processor.tokenizer)
    tokens = list(stream)
    assert whole.texts[0] == text[: text.index(stop)] == "".join(t.text for t in tokens)
    assert [t.token_id for t in tokens] == whole.tokens[0].tolist()
    assert (whole.finish_reasons, stream.finish_reason) == (["stop"], "stop")


def test_a_stop_string_that_the_end_of_the_text_completes_is_a_stop(tiny):
    model, params, processor = tiny()
    tokenizer, replacement = processor.tokenizer, "\N{REPLACEMENT CHARACTER}"
    half = next(i for i in range(400) if tokenizer.decode([i]) == replacement)  # of a character
    cfg = SamplingConfig(temperature=0, max_new_tokens=1, logit_bias={half: 100.0}, stop=[replacement])
    whole = sample(model, params, prompt(), cfg, jax.random.key(0), tokenizer=tokenizer)
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(0), tokenizer=tokenizer)
    assert [t.token_id for t in stream] == whole.tokens[0].tolist() == [half]
    assert (whole.finish_reasons, whole.texts) == (["stop"], [""])
    assert (stream.finish_reason, stream.rest) == ("stop", "")


def test_top_logprobs_are_the_best_and_contain_a_greedy_token(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(temperature=0, max_new_tokens=5, top_logprobs=4)
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(0))
    for token in stream:
        ids, values = zip(*stream.top_logprobs, strict=True)
        assert len(ids) == 4
        assert ids[0] == token.token_id
        assert values[0] == pytest.approx(token.logprob, abs=1e-5)
        assert list(values) == sorted(values, reverse=True)
    assert stream.stats.new_tokens == 5


@pytest.mark.slow
def test_top_logprobs_of_a_batch_are_those_of_the_stream(tiny):
    model, params, _ = tiny()
    configs = [
        SamplingConfig(max_new_tokens=6, seed=1, top_logprobs=3),
        SamplingConfig(max_new_tokens=9, seed=2),
    ]
    whole = sample(model, params, prompt(rows=2), configs, jax.random.key(0))
    stream = sample_streaming(model, params, prompt(rows=2)[:1], configs[0], jax.random.key(0))
    streamed = [stream.top_logprobs for _ in stream]
    assert whole.lengths.tolist() == [6, 9]
    assert whole.top_logprobs[1] == [[]] * 9
    for ours, theirs in zip(whole.top_logprobs[0], streamed, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert len(ours) == 3
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1e-4)


@pytest.mark.slow
def test_a_vocabulary_smaller_than_the_most_alternatives():
    config = tiny_config()
    config["text_config"]["vocab_size"] = 12
    config |= {
        "image_token_id": 11,
        "video_token_id": 10,
        "vision_start_token_id": 9,
        "vision_end_token_id": 8,
    }
    model = Qwen3VL(Qwen3VLConfig.from_dict(config))
    cfg = SamplingConfig(max_new_tokens=2, top_logprobs=20)
    result = sample(model, random_params(model), np.array([[1, 2]]), cfg, jax.random.key(0))
    assert [sorted(token for token, _ in top) for top in result.top_logprobs[0]] == [list(range(12))] * 2


def test_a_result_unpacks_to_four_and_counts_a_certain_last_token_like_padding(tiny):
    model, params, _ = tiny()
    sure = SamplingConfig(
        temperature=0, max_new_tokens=3, logit_bias={0: 100.0}, logprobs="processed", top_k=1
    )
    longer = SamplingConfig(max_new_tokens=5)
    result = sample(model, params, prompt(rows=2), [sure, longer], jax.random.key(0))
    tokens, logprobs, texts, reasons = result
    assert (texts, reasons) == (["", ""], ["length", "length"])
    assert tokens[0].tolist() == [0] * 5
    assert logprobs[0].tolist() == [0.0] * 5
    assert result.lengths.tolist() == [3, 5]


def test_cancelled_is_asked_between_programs_and_ends_the_rows_that_run(tiny):
    model, params, processor = tiny()
    tokenizer, asked = processor.tokenizer, []
    configs = [SamplingConfig(temperature=1.5, max_new_tokens=n, seed=3) for n in (200, 20)]
    ids = sample(model, params, prompt(rows=2), configs, jax.random.key(0)).tokens[0, :65].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=True)
    configs[0] = replace(configs[0], stop=[text[-1] + "never seen"])  # the last character is held back

    def at_the_second() -> bool:
        asked.append(1)
        return len(asked) == 2

    result = sample(
        model,
        params,
        prompt(rows=2),
        configs,
        jax.random.key(0),
        tokenizer=tokenizer,
        cancelled=at_the_second,
    )
    assert result.finish_reasons == ["cancelled", "length"]
    assert result.lengths.tolist() == [65, 20]  # the prefill's token, and a program's 64
    assert result.tokens[0].tolist() == ids
    assert result.texts[0] == text
    assert len(asked) == 2


def test_the_next_steps_are_dispatched_before_the_last_are_waited_for(tiny, monkeypatch):
    model, params, _ = tiny()
    events = []
    for name in ("prefill", "decode", "unpack_taken"):
        original = getattr(streaming_module, name)
        monkeypatch.setattr(
            streaming_module, name, lambda *a, _f=original, _n=name, **k: (events.append(_n), _f(*a, **k))[1]
        )
    monkeypatch.setattr(streaming_module, "Pace", lambda: Steady(2))
    list(sample_streaming(model, params, prompt(), SamplingConfig(max_new_tokens=6), jax.random.key(0)))
    first, steps, wait = ["prefill", "unpack_taken"], "decode", "unpack_taken"
    # No prompt token is fed twice, no step is made in vain: 1 + 2 + 2 + 1 tokens.
    assert events == [*first, steps, steps, wait, steps, wait, wait]


def recorded_quotas(monkeypatch) -> list[int]:
    """Of a stream's programs that are to come, as they are dispatched."""
    quotas, original = [], streaming_module.decode

    def decode(*args, **kwargs):
        quotas.extend(args[4])
        return original(*args, **kwargs)

    monkeypatch.setattr(streaming_module, "decode", decode)
    return quotas


def test_the_first_time_that_is_known_says_how_many_steps_come_next(tiny, monkeypatch):
    """That of the prompt; the next one is that of the first steps."""
    model, params, _ = tiny()
    times = iter(np.arange(0, 100, 0.004))
    monkeypatch.setattr(streaming_module, "time", SimpleNamespace(perf_counter=lambda: float(next(times))))
    quotas = recorded_quotas(monkeypatch)
    cfg = SamplingConfig(max_new_tokens=100)
    assert len(list(sample_streaming(model, params, prompt(), cfg, jax.random.key(0)))) == 100
    assert quotas[:2] == [33, 33]  # 4 ms for a prompt, which counts as four steps, and a frame of 33.3 ms
    assert quotas[2] == 100 - 1 - 2 * 33


@pytest.mark.parametrize("new_tokens", [1, 2, 6, STEPS])
def test_a_stream_in_a_gpus_programs_is_sample(tiny, monkeypatch, new_tokens):
    model, params, processor = tiny()
    cfg = SamplingConfig(max_new_tokens=new_tokens, eos_id=processor.eos_ids)
    whole = sample(model, params, prompt(), cfg, jax.random.key(0), tokenizer=processor.tokenizer)
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(streaming_module, "Pace", lambda: Steady(4))
    quotas = recorded_quotas(monkeypatch)
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(0), tokenizer=processor.tokenizer)
    tokens = list(stream)
    assert [t.token_id for t in tokens] == whole.tokens[0].tolist()
    assert "".join(t.text for t in tokens) == whole.texts[0]
    assert stream.finish_reason == whole.finish_reasons[0]
    behind = new_tokens - 1
    assert quotas == [4] * (behind // 4) + [1] * (behind % 4)


def test_cancel_ends_before_the_next_token_and_lets_go_of_the_device(tiny):
    model, params, processor = tiny()
    cfg = SamplingConfig(max_new_tokens=STEPS)
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(0), tokenizer=processor.tokenizer)
    got = [next(stream), next(stream)]
    stream.cancel()
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"
    assert stream.stats.new_tokens == len(got) == 2

    def caches() -> int:
        return sum(array.ndim == 4 for array in jax.live_arrays())

    before = caches()
    with sample_streaming(model, params, prompt(), cfg, jax.random.key(0)) as other:
        next(other)
        assert caches() > before
    assert other.finish_reason == "cancelled"
    assert caches() == before


def test_an_error_of_the_device_keeps_what_was_generated(tiny, monkeypatch):
    model, params, _ = tiny()
    monkeypatch.setattr(streaming_module, "Pace", lambda: Steady(2))
    stream = sample_streaming(
        model, params, prompt(), SamplingConfig(max_new_tokens=STEPS), jax.random.key(0)
    )
    got = [next(stream), next(stream)]

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(streaming_module, "decode", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        got.extend(stream)
    assert stream.finish_reason == "error"
    assert stream.stats.new_tokens == len(got) == 5  # the last two were on their way
    assert list(stream) == []


def test_an_error_of_the_detokeniser_ends_the_stream_too(tiny, monkeypatch):
    model, params, processor = tiny()
    cfg = SamplingConfig(max_new_tokens=STEPS)
    stream = sample_streaming(model, params, prompt(), cfg, jax.random.key(0), tokenizer=processor.tokenizer)
    next(stream)

    def broken(*args):
        raise RuntimeError("no text")

    monkeypatch.setattr(TextStream, "push", broken)
    with pytest.raises(RuntimeError, match="no text"):
        next(stream)
    assert (stream.finish_reason, stream.stats.new_tokens) == ("error", 1)
    assert stream._state is stream._ahead is None
    assert list(stream) == []


def test_statistics(tiny):
    model, params, processor = tiny()
    inputs = prepare_inputs(model, params, processor, images=[picture(64, 64)], prompt="hello")
    stream = sample_streaming(model, params, inputs, SamplingConfig(max_new_tokens=6), jax.random.key(0))
    begun = time.perf_counter()
    list(stream)
    elapsed = time.perf_counter() - begun
    stats = stream.stats
    assert stats.image_tokens == int(np.prod(inputs.grid_thw)) // 4
    assert stats.prompt_tokens == int(np.asarray(inputs.attention_mask).sum()) > stats.image_tokens
    assert stats.new_tokens == 6
    assert len(stats.inter_token_latencies) == 5
    assert stats.time_to_first_token + sum(stats.inter_token_latencies) <= elapsed + 1
    assert stats.tokens_per_second == pytest.approx(5 / sum(stats.inter_token_latencies))
    assert stats.median_latency <= stats.p99_latency <= max(stats.inter_token_latencies)


WRONG = {
    "no tokens": (np.zeros((1, 0), np.int32), {}, InputError, "prompt_tokens"),
    "one axis": (np.zeros(4, np.int32), {}, InputError, "prompt_tokens"),
    "ragged": ([[1, 2], [3]], {}, InputError, "prompt_tokens"),
    "floats": (np.zeros((1, 4), np.float32), {}, InputError, "prompt_tokens"),
    "beyond the vocabulary": (np.full((1, 4), 512, np.int32), {}, InputError, "0..511"),
    "negative": (np.full((1, 4), -1, np.int32), {}, InputError, "0..511"),
    "beyond 32 bits": (np.full((1, 4), 2**32 + 1, np.int64), {}, InputError, "0..511"),
    "beyond the context": (prompt(), {"max_new_tokens": 1013}, InputError, "1024"),
    "bias beyond the vocabulary": (prompt(), {"logit_bias": {600: 1.0}}, SettingsError, "logit_bias"),
    "stop without tokenizer": (prompt(), {"stop": "x"}, SettingsError, "tokenizer"),
}


@pytest.mark.parametrize("driver", [sample, sample_streaming])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(tiny, name, driver):
    model, params, _ = tiny()
    tokens, settings, kind, part = WRONG[name]
    with pytest.raises(kind) as caught:
        driver(model, params, tokens, SamplingConfig(**settings), jax.random.key(0))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("driver", [sample, sample_streaming])
@pytest.mark.parametrize("cfg", [None, {"temperature": 0}, [{"temperature": 0}], 5, "greedy"])
def test_what_is_no_configuration_is_refused(tiny, driver, cfg):
    model, params, _ = tiny()
    with pytest.raises(SettingsError, match=r"^cfg: \w+; allowed: a SamplingConfig"):
        driver(model, params, prompt(), cfg, jax.random.key(0))


def test_a_list_of_one_configuration_streams(tiny):
    model, params, _ = tiny()
    cfg = SamplingConfig(max_new_tokens=3)
    one, listed = (sample_streaming(model, params, prompt(), c, jax.random.key(0)) for c in (cfg, [cfg]))
    assert list(one) == list(listed)


def test_a_batch_does_not_stream(tiny):
    model, params, _ = tiny()
    with pytest.raises(InputError, match=r"batch of 2; allowed: 1 \(use sample\(\) for more\)"):
        sample_streaming(model, params, prompt(rows=2), SamplingConfig(), jax.random.key(0))


def test_numbers_of_configurations_keys_and_pictures_must_fit(tiny):
    model, params, _ = tiny()
    rows = prompt(rows=2)
    with pytest.raises(SettingsError, match="3 configurations for 2 rows"):
        sample(model, params, rows, [SamplingConfig()] * 3, jax.random.key(0))
    with pytest.raises(SettingsError, match=r"rng: \[3\] .* for 2 rows"):
        sample(model, params, rows, SamplingConfig(), jax.random.split(jax.random.key(0), 3))
    slots = np.full((1, 4), model.image_pad_id, np.int32)
    with pytest.raises(InputError, match="vision is None"):
        sample(model, params, slots, SamplingConfig(), jax.random.key(0))
    wrong = VLMInputs(rows, None, np.zeros((0, 3), np.int32), model.image_pad_id, np.ones((2, 3), bool))
    with pytest.raises(InputError, match="attention_mask"):
        sample(model, params, wrong, SamplingConfig(), jax.random.key(0))


def test_vision_and_grid_that_do_not_fit_the_prompt_are_refused(tiny):
    model, params, processor = tiny()
    inputs = prepare_inputs(model, params, processor, images=[picture(64, 64)], prompt="hi")
    seen, deep = inputs.vision
    wrong = {
        "at least the prompt's 64 picture tokens": {"vision": VisionEmbeddings(seen[:63], deep[:, :63])},
        "allowed: \\[M, 48\\]": {"vision": VisionEmbeddings(seen[:, :8], deep[..., :8])},
        "and deepstack": {"vision": VisionEmbeddings(seen, deep[:, :-1])},
        "vision: .*allowed: VisionEmbeddings": {"vision": seen},
        r"grid_thw: int32\[3\]": {"grid_thw": inputs.grid_thw[0]},
        r"grid_thw: object\[\]": {"grid_thw": None},
    }
    for message, change in wrong.items():
        with pytest.raises(InputError, match=message):
            sample(model, params, replace(inputs, **change), SamplingConfig(), jax.random.key(0))


@pytest.mark.parametrize("rng", [42, None, np.zeros(2, np.float32)])
def test_what_is_no_key_is_refused(rng):
    with pytest.raises(SettingsError, match=r"rng: .*allowed: "):
        request_module._row_keys(rng, [SamplingConfig()], 1, 0)
