"""What the step lets its drivers do: prompts in several pieces, and rows that sit a step out."""

import jax
import numpy as np
import pytest

from sample import SamplingConfig
from sample.request import make_request
from sample.step import Prompt, decode_step, prefill, prefill_chunk, unpack

CFG = SamplingConfig(max_new_tokens=20, temperature=1.3)


def request_for(tiny, rows: int):
    tokens = np.random.default_rng(0).integers(0, 400, (rows, 40)).astype(np.int32)
    return make_request(tiny().model, tokens, CFG, jax.random.key(0))


def started(tiny, rows: int):
    model, params, _ = tiny()
    r = request_for(tiny, rows)
    return r, *prefill(model, params, *r.arguments, slots=r.slots, top=0)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_row_that_is_not_live_stays_as_it_is(tiny):
    model, params, _ = tiny()
    r, state, first = started(tiny, 2)
    alone = unpack(np.asarray(first)).token.tolist()
    for live in ([True, False], [True, False], [False, True]):
        held = live.index(False)
        before = bits(jax.tree.map(lambda x, held=held: x[held], state._replace(cache=())))
        length = int(state.length[held])
        filled = bits([k[held, ..., :length] for k in state.cache.keys])
        state, packed = decode_step(model, params, state, r.sampling, np.array(live), top=0)
        assert bits(jax.tree.map(lambda x, held=held: x[held], state._replace(cache=()))) == before
        assert bits([k[held, ..., :length] for k in state.cache.keys]) == filled
        assert unpack(np.asarray(packed)).token[held] == np.frombuffer(before[0], np.int32)[0]
    r, state, _ = started(tiny, 2)
    tokens = []
    for _ in range(2):
        state, packed = decode_step(model, params, state, r.sampling, top=0)
        tokens.append(unpack(np.asarray(packed)).token.tolist())
    r, state, _ = started(tiny, 2)
    for live, row, n in (([True, False], 0, 0), ([True, False], 0, 1), ([False, True], 1, 0)):
        state, packed = decode_step(model, params, state, r.sampling, np.array(live), top=0)
        assert unpack(np.asarray(packed)).token[row] == tokens[n][row]
    assert alone != tokens[0]


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
