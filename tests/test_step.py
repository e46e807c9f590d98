"""What the step lets its drivers do: prompts in several pieces, and rows that sit a step out."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from sample import SamplingConfig
from sample.pace import Pace, decode, fitting
from sample.request import make_request
from sample.step import (
    NOT_TAKEN,
    ROUND,
    RUNNING,
    STEPS,
    Prompt,
    decode_step,
    decode_steps,
    prefill,
    prefill_chunk,
    unpack,
    unpack_taken,
)
from tests.paces import as_on_a_gpu

CFG = SamplingConfig(max_new_tokens=20, temperature=1.3)


def request_for(tiny, rows: int, **settings):
    tokens = np.random.default_rng(0).integers(0, 400, (rows, 40)).astype(np.int32)
    return make_request(tiny().model, tokens, replace(CFG, **settings), jax.random.key(0))


def started(tiny, rows: int, **settings):
    model, params, _ = tiny()
    r = request_for(tiny, rows, **settings)
    return r, *prefill(model, params, *r.arguments, slots=r.slots, top=0)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_row_without_a_quota_stays_as_it_is(tiny):
    model, params, _ = tiny()
    r, state, first = started(tiny, 2)
    alone = unpack(np.asarray(first)).token.tolist()
    for quota in ([1, 0], [1, 0], [0, 1]):
        held = quota.index(0)
        before = bits(jax.tree.map(lambda x, held=held: x[held], state._replace(cache=())))
        length = int(state.length[held])
        filled = bits([k[held, ..., :length] for k in state.cache.keys])
        state, packed = decode_steps(model, params, state, r.sampling, np.array(quota), top=0)
        assert bits(jax.tree.map(lambda x, held=held: x[held], state._replace(cache=()))) == before
        assert bits([k[held, ..., :length] for k in state.cache.keys]) == filled
        assert unpack_taken(np.asarray(packed)).status[:, held].tolist() == [NOT_TAKEN]
    r, state, _ = started(tiny, 2)
    tokens = []
    for _ in range(2):
        state, packed = decode_step(model, params, state, r.sampling, top=0)
        tokens.append(unpack(np.asarray(packed)).token.tolist())
    r, state, _ = started(tiny, 2)
    for quota, row, n in (([1, 0], 0, 0), ([1, 0], 0, 1), ([0, 1], 1, 0)):
        state, packed = decode_steps(model, params, state, r.sampling, np.array(quota), top=0)
        assert unpack_taken(np.asarray(packed)).token[0, row] == tokens[n][row]
    assert alone != tokens[0]


def test_a_long_row_that_waits_makes_the_others_read_no_more(tiny):
    model, params, _ = tiny()
    r, state, _ = started(tiny, 2, max_new_tokens=900)
    length = 800  # of the row that waits; what it would read beyond the other's blocks is not finite
    spoiled = tuple(keys.at[1, ..., 600].set(np.nan) for keys in state.cache.keys)
    state = state._replace(cache=state.cache._replace(keys=spoiled), length=state.length.at[1].set(length))
    state, _ = decode_steps(model, params, state, r.sampling, np.array([3, 0]), top=0)
    written = [np.asarray(keys[1, ..., length]) for keys in state.cache.keys]
    assert all(np.isfinite(keys).all() and keys.any() for keys in written)
    state, _ = decode_steps(model, params, state, r.sampling, np.array([1, 1]), top=0)
    assert not np.isfinite(np.asarray(state.cache.keys[-1][1, ..., length])).any()


def test_steps_in_one_program_are_those_of_one_by_one(tiny):
    model, params, _ = tiny()
    r, state, _ = started(tiny, 2)
    single = []
    for _ in range(5):
        state, packed = decode_step(model, params, state, r.sampling, top=0)
        single.append(np.asarray(packed))
    _, state, _ = started(tiny, 2)
    state, packed = decode_steps(model, params, state, r.sampling, np.array([5, 2]), top=0)
    packed = np.asarray(packed)
    assert packed[:5, 0].tobytes() == np.stack(single)[:, 0].tobytes()
    assert packed[:2, 1].tobytes() == np.stack(single)[:2, 1].tobytes()
    output = unpack_taken(packed)
    assert output.status[:, 0].tolist() == [RUNNING] * 5
    assert output.status[:, 1].tolist() == [RUNNING] * 2 + [NOT_TAKEN] * 3
    assert state.length.tolist() == [40 + 5, 40 + 2]


def test_a_quota_ends_at_what_a_program_holds_and_where_a_row_ends(tiny):
    model, params, _ = tiny()
    r, state, _ = started(tiny, 1, max_new_tokens=2 * STEPS)
    _, packed = decode_steps(model, params, state, r.sampling, np.array([STEPS + 1]), top=0)
    tokens = unpack_taken(np.asarray(packed)).token[:, 0].tolist()
    assert len(tokens) == STEPS
    end = next(i for i in range(1, STEPS) if tokens[i] not in tokens[:i])
    r, state, _ = started(tiny, 1, max_new_tokens=2 * STEPS, eos_id=tokens[end])
    _, packed = decode_steps(model, params, state, r.sampling, np.array([STEPS]), top=0)
    assert unpack_taken(np.asarray(packed)).token[:, 0].tolist() == tokens[: end + 1]


@pytest.mark.parametrize("size", [16, 64])
def test_a_prompt_in_chunks_gives_the_first_token_of_a_prefill(tiny, size):
    model, params, _ = tiny()
    r, _, packed = started(tiny, 1)
    whole = unpack(np.asarray(packed))
    _, state, _ = started(tiny, 1)
    zero = np.zeros(1, np.int32)
    state = state._replace(
        cache=jax.tree.map(lambda x: x * 0, state.cache),
        length=zero,
        token=zero,
        count=zero,
        drawn=np.zeros_like(state.drawn),
    )
    for start in range(0, 40, size):
        part = slice(start, start + size)
        chunk = Prompt(
            tokens=r.prompt.tokens[:, part],
            positions=r.prompt.positions[:, :, part],
            lengths=np.minimum(40 - start, size).reshape(1).astype(np.int32),
            deltas=r.prompt.deltas,
            vision_rows=r.prompt.vision_rows[:, part],
        )
        last = np.array([start + size >= 40])
        state, packed = prefill_chunk(model, params, state, chunk, None, r.sampling, last, top=0)
        assert int(state.count[0]) == int(last[0])
    output = unpack(np.asarray(packed))
    assert output.token.tolist() == whole.token.tolist()
    assert output.logprob == pytest.approx(whole.logprob, abs=1e-4)
    assert state.length.tolist() == [40]


def test_a_gpus_program_is_one_step_or_a_round_of_the_rows_with_a_quota(tiny, monkeypatch):
    model, params, _ = tiny()
    quotas = ((1, 0), (ROUND, 0), (2, ROUND))
    looped = []
    for quota in quotas:
        r, state, _ = started(tiny, 2)
        looped.append(decode_steps(model, params, state, r.sampling, np.array(quota), top=0)[1])
    as_on_a_gpu(monkeypatch)
    for quota, wanted in zip(quotas, looped, strict=True):
        r, state, _ = started(tiny, 2)
        _, program = decode(model, params, state, r.sampling, quota, top=0)
        one, other = unpack_taken(np.asarray(wanted)), unpack_taken(np.asarray(program))
        assert program.shape[:-2] == (() if max(quota) == 1 else (ROUND,))
        assert one.status.tolist() == other.status.tolist()
        assert one.token.tolist() == other.token.tolist()
        assert one.logprob.tobytes() == other.logprob.tobytes()


def test_a_gpu_looks_at_the_rows_every_round(tiny, monkeypatch):
    """What is behind a row's end in its round is not taken, and no round behind that is begun."""
    model, params, _ = tiny()
    r, state, _ = started(tiny, 1)
    _, packed = decode_steps(model, params, state, r.sampling, np.array([8]), top=0)
    tokens = unpack_taken(np.asarray(packed)).token[:, 0].tolist()
    assert tokens[5] not in tokens[:5]
    as_on_a_gpu(monkeypatch)
    for eos, steps in ((None, 8), (tokens[5], 6)):
        ends = {} if eos is None else {"eos_id": eos}
        r, state, _ = started(tiny, 1, **ends)
        state, packed = decode_steps(model, params, state, r.sampling, np.array([8]), top=0, most=12)
        assert packed.shape[0] == 12
        assert unpack_taken(np.asarray(packed)).token[:, 0].tolist() == tokens[:steps]
        assert state.length.tolist() == [40 + steps]
    for most, looks in ((12, 1), (ROUND, 0)):
        program = partial(decode_steps, model, top=0, most=most)
        text = str(jax.make_jaxpr(program)(params, state, r.sampling, np.array([8])))
        assert text.count("while[") == looks
        assert text.count(f"length={ROUND}\n") == 1  # a loop of so many steps, in it


def test_a_gpus_pace_counts_a_step_or_a_round(monkeypatch):
    as_on_a_gpu(monkeypatch)
    counted = Pace(0.03)
    steps = []
    for seconds in (0.001, 0.004, 0.031, 0.035, 0.011, 0.0074, 9.0):  # of so many steps as were counted
        counted.took(seconds, counted.steps, STEPS)
        steps.append(counted.steps)
    assert steps == [ROUND, ROUND, ROUND, 1, 1, ROUND, 1]
    assert [fitting(most) for most in (1, 3, 4, 5, 64)] == [1, 1, 4, 4, 4]


def test_a_program_takes_the_nearest_number_of_steps_and_behind_another_four_times_as_many_at_most():
    counted, now = Pace(0.03), 0.0
    steps = []
    for seconds in (9.0, 0.001, 0.004, 0.016, 0.062, 0.03, 0.25, 0.04, 9.0):
        now += seconds
        counted.arrived(now, now - seconds - 0.01, counted.steps)
        steps.append(counted.steps)
    assert steps == [1, 4, 16, 30, 15, 15, 2, 2, 1]  # in place of 14.5, 15, 1.8, 1.5


def test_a_program_that_waited_for_none_tells_at_once_how_many_steps_come_next():
    counted = Pace(0.03)
    counted.arrived(1.001, 1.0, 1)
    assert counted.steps == 30
    counted.arrived(1.002, 1.0005, 30)  # behind that one: it was there before it was waited for
    assert counted.steps == STEPS
    counted.arrived(9.0, 2.0, STEPS)
    assert counted.steps == 1
    counted.arrived(9.011, 9.01, 1)
    assert counted.steps == 30
