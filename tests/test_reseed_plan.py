"""Where the tokens of a renewed cache stand, for any sinks, tail, context and prompt."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import SettingsError, VisionEmbeddings, load_model
from sample import (
    SamplingConfig,
    StreamConfig,
    VLMInputs,
    prepare_inputs,
    sample_streaming,
)
from sample import endless as endless_module
from sample.endless import EndlessCache, make_plan
from sample.step import Prompt
from sample.text import decode
from tests.tiny_smolvlm import tiny_checkpoint as smolvlm_checkpoint
from tests.tokenizer_fixture import IMAGE_PAD_ID, VISION_END_ID, VISION_START_ID


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


SEGMENTS = st.lists(
    st.integers(1, 12) | st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=5
)
PLANS = {
    "segments": SEGMENTS,
    "policy": st.sampled_from(["reseed", "shift", "window"]),
    "sinks": st.none() | st.integers(0, 30),
    "tail": st.integers(0, 40),
    "room": st.integers(1, 40),
}


def prompt_of(segments) -> tuple[np.ndarray, np.ndarray]:
    """Text of so many tokens, pictures of so many rows and columns; `[1, T]` and `grid_thw`."""
    tokens: list[int] = []
    grids = []
    for segment in segments:
        if isinstance(segment, int):
            tokens += range(1, segment + 1)
        else:
            pads = [IMAGE_PAD_ID] * (segment[0] * segment[1])
            tokens += [VISION_START_ID, *pads, VISION_END_ID] if segment[0] > 1 else pads
            grids.append((1, 2 * segment[0], 2 * segment[1]))
    return np.array([tokens], np.int32), np.array(grids, np.int64).reshape(-1, 3)


class Content(NamedTuple):
    """A cache as a list: of each slot the index of its token in the sequence, and where it stands."""

    tokens: list[int]
    positions: list[tuple[int, ...]]
    delta: int
    total: int  # tokens of the sequence, the pending one among them

    def fed(self) -> "Content":
        place = (len(self.tokens) + self.delta,) * 3
        return self._replace(
            tokens=[*self.tokens, self.total - 1], positions=[*self.positions, place], total=self.total + 1
        )


class ListDevice:
    """The device's part of a stream, on lists."""

    def decode(self, model, params, state, sampling, quota, *, top):
        for _ in range(int(quota[0])):
            state = state.fed()
        return state, None

    def clear_and_reseed(self, model, params, state, sinks, vision, sampling, tail, *, width, top):
        S, T, delta = int(sinks.lengths[0]), int(tail[0]), int(sinks.deltas[0])
        assert 1 <= S + T <= width
        kept = [*range(S), *range(state.total - T, state.total)]
        places = [tuple(p) for p in np.asarray(sinks.positions)[:, 0, :S].T.tolist()]
        places += [(slot + delta,) * 3 for slot in range(S, S + T)]
        return Content(kept, places, delta, state.total + 1), None

    def shift_tail(self, model, state, sinks, delta, tail):
        S, T = int(sinks[0]), int(tail[0])
        dropped = len(state.tokens) - S - T
        distance = dropped + state.delta - int(delta[0])
        moved = [tuple(x - distance for x in place) for place in state.positions[S + dropped :]]
        tokens = state.tokens[:S] + state.tokens[S + dropped :]
        return state._replace(tokens=tokens, positions=state.positions[:S] + moved, delta=int(delta[0]))


@settings(max_examples=200, deadline=None)
@given(**PLANS, steps=st.integers(1, 200))
@pytest.mark.slow
def test_positions_have_no_gap_and_the_cache_never_overflows(
    tiny, segments, policy, sinks, tail, room, steps
):
    """For any sinks, tail, context and prompt: at every step the content stands as a fresh prompt would."""
    model, _, _ = tiny()
    tokens, grid = prompt_of(segments)
    P = tokens.shape[1]
    lengths = np.array([P], np.int32)
    positions, deltas = model.prompt_positions(tokens, grid, lengths)
    pictured = tokens == IMAGE_PAD_ID
    rows = np.where(pictured, np.cumsum(pictured) - 1, -1).astype(np.int32)
    prompt = Prompt(tokens, positions, lengths, deltas, rows)
    try:
        config = StreamConfig(policy=policy, context=P + room, sinks=sinks, tail=tail)
        plan = make_plan(model, prompt, grid, config)
    except SettingsError:
        assume(False)
    spans = model.picture_spans(tokens[0], grid) if len(grid) else []
    told: list[int] = []
    sidecar = SimpleNamespace(summarise=told.extend, take=list, close=lambda: None)
    cache = EndlessCache(plan, None, sidecar if policy == "reseed" else None)
    state = Content(list(range(P)), [tuple(p) for p in positions[:, 0].T.tolist()], int(deltas[0]), P + 1)
    left: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        for name in ("decode", "clear_and_reseed", "shift_tail"):
            patched.setattr(endless_module, name, getattr(ListDevice(), name))
        for step in range(steps):
            before, total = state.tokens, state.total
            most = step % 5 + 1
            state, _, made, reseed = cache.steps(
                model,
                None,
                state,
                None,
                0,
                most,  # pyright: ignore[reportArgumentType]
            )
            assert 1 <= made <= most
            assert state.total == total + made
            assert len(state.tokens) == cache.filled <= config.context
            assert state.tokens[: plan.anchor] == list(range(plan.anchor))
            assert state.tokens[plan.anchor :] == list(range(cache.tail_start, state.total - 1))
            if reseed is not None:
                assert made == 1  # its pause is that of one token
                gone = sorted({*before, total - 1} - set(state.tokens))
                assert len(gone) == reseed.evicted > 0
                left += gone
            # Pictures are there as wholes, and all tokens stand where those of a fresh prompt would.
            whole = [first in state.tokens for first, _ in spans]
            assert whole == [end - 1 in state.tokens for _, end in spans]
            content = np.array([[tokens[0, i] if i < P else 1 for i in state.tokens]], np.int32)
            fresh, delta = model.prompt_positions(
                content, grid[whole] if len(grid) else grid, np.array([content.shape[1]])
            )
            assert fresh[:, 0].T.tolist() == [list(p) for p in state.positions]
            assert delta[0] == state.delta
            for index in range(total - 1, state.total - 1):
                cache.delivered(index)  # in place of its id
    if policy == "reseed" and left:
        indexed = [i if i >= P else int(tokens[0, i]) for i in left]
        assert told[: len(left)] == indexed


def test_the_tiles_of_a_picture_are_one_picture(tmp_path):
    model, params, processor = load_model(smolvlm_checkpoint(tmp_path), dtype="float32")
    images = [picture(64, 40), picture(20, 20, 1), picture(64, 64, 2)]
    inputs = prepare_inputs(model, params, processor, images=images, prompt="hi")
    tokens = np.asarray(inputs.prompt_tokens)[0]
    spans = model.picture_spans(tokens, np.asarray(inputs.grid_thw))
    assert len(spans) == 3 < len(inputs.grid_thw)
    pads = np.flatnonzero(tokens == model.image_pad_id)
    assert [spans[0][0], spans[-1][1]] == [pads[0] - 2, pads[-1] + 2]
    frame = "<fake_token_around_image>"
    assert [processor.tokenizer.decode(tokens[end - 1 : end]) for _, end in spans] == [frame] * 3
    begins = [processor.tokenizer.decode(tokens[first : first + 2]) for first, _ in spans]
    assert all(begin.startswith(frame) and "<row_1_col_1>" in begin for begin in begins)
    stream = StreamConfig(context=200, tail=16, sinks=spans[1][0] + 5)
    with pytest.raises(SettingsError, match="end inside a picture"):
        sample_streaming(model, params, inputs, SamplingConfig(), jax.random.key(0), stream=stream)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(**PLANS, seed=st.integers(0, 2**31))
def test_host_and_device_agree_and_the_text_is_whole(tiny, segments, policy, sinks, tail, room, seed):
    """For any sinks, tail, context and prompt: the device holds what the host counts."""
    model, params, processor = tiny()
    tokens, grid = prompt_of(segments)
    noise = np.random.default_rng(seed).standard_normal
    vision = VisionEmbeddings(
        noise((64, model.hidden_size)).astype(np.float32),
        0.1 * noise((1, 64, model.hidden_size)).astype(np.float32),
    )
    inputs = VLMInputs(tokens, vision if len(grid) else None, grid, model.image_pad_id)
    try:
        stream = sample_streaming(
            model,
            params,
            inputs,
            SamplingConfig(temperature=1.5, max_new_tokens=120),
            jax.random.key(seed),
            tokenizer=processor.tokenizer,
            stream=StreamConfig(policy=policy, context=tokens.shape[1] + room, sinks=sinks, tail=tail),
        )
    except SettingsError:
        assume(False)
    texts, ids = [], []
    for token in stream:
        texts.append(token.text)
        ids.append(token.token_id)
        state, cache = stream._state, stream._endless
        if state is not None and cache is not None:
            assert int(state.length[0]) == cache.filled <= cache.plan.context
            assert int(state.count[0]) == cache.total - tokens.shape[1]
            assert np.isfinite(token.logprob)
    assert len(ids) == 120
    assert "".join(texts) == decode(processor.tokenizer, ids)
