"""Nothing that a request may choose compiles again; the cache is donated; work follows the filled part."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.monitoring
import numpy as np
import pytest

from models.buckets import bucket
from sample import SamplingConfig, prepare_inputs, sample, sample_streaming
from sample.request import make_request
from sample.step import decode_step, prefill

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
    after, _ = decode_step(model, params, state, r.sampling, top=0)
    assert all(buffer.is_deleted() for buffer in state.cache.keys + state.cache.values)
    assert [b.unsafe_buffer_pointer() for b in (*after.cache.keys, *after.cache.values)] == before


@pytest.mark.parametrize("new_tokens", [100, 900])
def test_a_step_makes_no_copy_of_the_cache(tiny, new_tokens):
    """Beside its inputs and outputs a step needs less memory than one layer's keys and values."""
    model, params, _ = tiny()
    rows = np.arange(12, dtype=np.int32)[None].repeat(8, 0)
    r = make_request(model, rows, SamplingConfig(max_new_tokens=new_tokens), jax.random.key(0))
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    cache = sum(buffer.nbytes for buffer in state.cache.keys + state.cache.values)
    memory = decode_step.lower(model, params, state, r.sampling, top=0).compile().memory_analysis()
    logits = 8 * model.vocab_size * 4
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 2 + 20 * logits


def test_what_lies_behind_the_filled_part_is_not_read(running):
    """Attention goes block by block up to the filled part: NaN in later blocks reaches nothing."""
    model, params, state, r = running
    poisoned = state._replace(
        cache=type(state.cache)(
            tuple(k.at[..., 256:].set(np.nan) for k in state.cache.keys),
            tuple(v.at[..., 256:, :].set(np.nan) for v in state.cache.values),
        )
    )
    _, packed = decode_step(model, params, poisoned, r.sampling, top=0)
    assert np.isfinite(np.asarray(packed).view(np.float32)[0, 2])
