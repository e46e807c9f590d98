"""Nothing that a request may choose compiles again; the cache is donated; work follows the filled part."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.monitoring
import numpy as np
import pytest

from benchmarks import limits
from benchmarks.shapes import SHAPES
from models import Model, load_model
from models.attention import BLOCK
from models.buckets import bucket
from models.config import Qwen3VLConfig
from models.qwen3_vl import Qwen3VL
from sample import SamplingConfig, prepare_inputs, sample, sample_streaming
from sample.request import make_request
from sample.step import STEPS, decode_step, decode_steps, prefill
from tests.profiles import called, dispatches, profiled

_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that XLA compiled meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration: float, **kwargs: object) -> None:
        if event == _COMPILED:
            seen.append(str(kwargs.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run_both(tiny, number: int, prompt: str, size: tuple[int, int], **settings) -> None:
    model, params, processor = tiny()
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
    inputs = prepare_inputs(model, params, processor, images=[pixels], prompt=prompt)
    cfg = SamplingConfig(eos_id=processor.eos_ids, **settings)
    sample(model, params, inputs, cfg, jax.random.key(number), tokenizer=processor.tokenizer)
    list(
        sample_streaming(
            model, params, inputs, cfg, jax.random.PRNGKey(number), tokenizer=processor.tokenizer
        )
    )


def test_a_second_call_compiles_nothing(tiny):
    with compilations() as counted:
        jax.jit(lambda x: x + 1)(1)
    assert counted  # the count counts
    run_both(tiny, 0, "Describe this image", (64, 64), max_new_tokens=20)
    with compilations() as again:
        run_both(tiny, 1, "What?", (64, 64), max_new_tokens=30, temperature=0)
        run_both(tiny, 2, "Hm.", (64, 64), max_new_tokens=9, top_k=3, top_p=0.5, min_p=0.1)
        run_both(tiny, 3, "Hm?", (66, 66), max_new_tokens=20, repetition_penalty=1.5, presence_penalty=1.0)
        run_both(
            tiny,
            4,
            "",
            (62, 62),
            max_new_tokens=50,
            frequency_penalty=0.1,
            logit_bias={3: 2.0},
            seed=8,
            stop=["xyz"],
        )
        run_both(tiny, 5, "Hm", (64, 64), max_new_tokens=100, logprobs="processed")
    assert again == []


def test_buckets_waste_at_most_a_quarter():
    sizes = range(1, 20000)
    assert all(n <= bucket(n, 1) <= max(1.25 * n, n + 1) for n in sizes)
    assert all(n <= bucket(n, 1, steps=8) <= max(1.125 * n, n + 1) for n in sizes)
    assert len({bucket(n, 64) for n in sizes}) < 36


@pytest.fixture
def running(tiny):
    model, params, _ = tiny()
    tokens = np.arange(12, dtype=np.int32)[None]
    r = make_request(model, tokens, SamplingConfig(max_new_tokens=900), jax.random.key(0))
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    return model, params, state, r


def test_the_cache_is_donated_and_written_in_place(running):
    model, params, state, r = running
    before = [b.unsafe_buffer_pointer() for b in (*state.cache.keys, *state.cache.values)]
    after, _ = decode_steps(model, params, state, r.sampling, np.array([STEPS]), top=0)
    assert all(buffer.is_deleted() for buffer in state.cache.keys + state.cache.values)
    assert [b.unsafe_buffer_pointer() for b in (*after.cache.keys, *after.cache.values)] == before


@pytest.mark.parametrize("new_tokens", [100, pytest.param(900, marks=pytest.mark.slow)])
def test_a_step_makes_no_copy_of_the_cache(tiny, new_tokens):
    """Beside its inputs and outputs a step needs less memory than one layer's keys and values."""
    model, params, _ = tiny()
    rows = np.arange(12, dtype=np.int32)[None].repeat(8, 0)
    r = make_request(model, rows, SamplingConfig(max_new_tokens=new_tokens), jax.random.key(0))
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    cache = sum(buffer.nbytes for buffer in state.cache.keys + state.cache.values)
    quota = np.full(8, STEPS)
    lowered = decode_steps.lower(model, params, state, r.sampling, quota, top=0)
    memory = lowered.compile().memory_analysis()
    logits = 8 * model.vocab_size * 4
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 2 + 20 * logits


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_what_lies_behind_the_filled_part_is_not_read(tiny, rows):
    """Of one row a block is read that holds what is filled, of several block by block: NaN behind that
    reaches nothing."""
    model, params, _ = tiny()
    tokens = np.arange(12, dtype=np.int32)[None].repeat(rows, 0)
    r = make_request(model, tokens, SamplingConfig(max_new_tokens=900), jax.random.key(0))
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    poisoned = state._replace(
        cache=type(state.cache)(
            tuple(k.at[..., 256:].set(np.nan) for k in state.cache.keys),
            tuple(v.at[..., 256:, :].set(np.nan) for v in state.cache.values),
        )
    )
    _, packed = decode_step(model, params, poisoned, r.sampling, top=0)
    assert np.isfinite(np.asarray(packed).view(np.float32)[0, 2])


def test_a_token_costs_at_most_one_dispatch_and_one_transfer(tiny, monkeypatch, tmp_path):
    """A warm stream calls no program but the steps, and looks at nothing but their packed output."""
    model, params, _ = tiny()
    tokens = np.arange(12, dtype=np.int32)[None]
    looks: list[tuple[int, ...]] = []

    def asarray(value: object, *args: object) -> np.ndarray:
        if isinstance(value, jax.Array):
            looks.append(value.shape)
        return np.array(value, *args, copy=None)

    for _ in range(2):  # the first compiles
        stream = sample_streaming(model, params, tokens, SamplingConfig(max_new_tokens=99), jax.random.key(0))
        next(stream)
        next(stream)
        monkeypatch.setattr("sample.streaming.np", SimpleNamespace(asarray=asarray))
        looks.clear()
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with (
            profiled(folder) as events,
            jax.transfer_guard_host_to_device("disallow"),  # a step sends nothing up
        ):
            made = len([next(stream) for _ in range(40)])
        monkeypatch.undo()
    assert called(events) == {"decode_steps"}
    dispatched = dispatches(events)
    assert looks == [(STEPS, 1, 4)] * dispatched
    assert dispatched <= made


def step_bytes(model: Model, filled: int, slots: int) -> float:
    """What the compiled step moves, by XLA's count; no weights are needed for it."""
    prompt = np.zeros((1, filled), np.int32)
    config = SamplingConfig(temperature=0, max_new_tokens=slots - filled)
    r = make_request(model, prompt, config, jax.random.key(0))
    params = model.decoder_params(jax.eval_shape(model.init_params, jax.random.key(0)))
    state, _ = jax.eval_shape(lambda p: prefill(model, p, *r.arguments, slots=r.slots, top=0), params)
    compiled = decode_step.lower(model, params, state, r.sampling, top=0).compile()
    return compiled.cost_analysis()["bytes accessed"]


def wide_model() -> Model:
    """Two layers of Qwen3-VL-2B, with part of its vocabulary."""
    config = Qwen3VLConfig.from_dict(SHAPES["qwen3_vl_2b"])
    text = dataclasses.replace(config.text, num_hidden_layers=2, vocab_size=16384)
    return Qwen3VL(dataclasses.replace(config, text=text, image_token_id=100))


def test_a_step_moves_the_weights_and_the_filled_cache():
    """Within 10 %. XLA counts a loop's body once, so one block of keys is filled."""
    model = wide_model()
    needed = limits.weight_bytes(model) + limits.cache_bytes(model, 1, BLOCK)
    assert needed <= step_bytes(model, BLOCK - 56, 2 * BLOCK) < 1.1 * needed


@pytest.mark.slow
def test_each_further_block_of_keys_costs_less_than_twice_its_bytes():
    """Two and three blocks filled, in a buffer of as many: within 10 % of weights and cache, and beside the
    weights, which would hide a copy of so few keys, by the difference.

    In a larger buffer no count tells what is read: of the branches that one row's attention may take XLA
    counts the largest, of the loop of several rows one block; and with the length known at compile time it
    leaves the branches out, but fuses the reading with the write to the cache. There NaN behind what is
    filled shows it.
    """
    model = wide_model()
    moved = [step_bytes(model, blocks * BLOCK - 56, blocks * BLOCK) for blocks in (1, 2, 3)]
    for blocks, count in enumerate(moved, 1):
        needed = limits.weight_bytes(model) + limits.cache_bytes(model, 1, blocks * BLOCK)
        assert needed <= count < 1.1 * needed
    block = limits.cache_bytes(model, 1, BLOCK)
    assert all(block <= more < 2 * block for more in np.diff(moved))


@pytest.mark.slow
def test_a_small_step_moves_its_block_thrice():
    """The shipped checkpoint's: a block of keys is cut out of its buffer before it is multiplied (read,
    written, read), which its few weights do not hide. The rest is within 10 %. XLA counts the largest of
    the blocks that it may take; that no more is read than the one it takes, NaN behind it shows."""
    model = load_model("embedded").model
    block = limits.cache_bytes(model, 1, BLOCK)
    needed = limits.weight_bytes(model) + 3 * block
    assert 0.9 * needed < step_bytes(model, BLOCK - 56, 2 * BLOCK) < 1.1 * needed
