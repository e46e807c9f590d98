"""The benchmark's pieces give what a stream would that draws these very tokens, and nothing is flattered."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.english import prose
from benchmarks.forced import GIVEN, Feeder, Policy, Run, forced, foresee, windowed
from benchmarks.perplexity import by_seen, policies, ratio_of, row_of, write_results
from models import LoadedModel, load_model
from sample import SamplingConfig, StreamConfig
from sample.endless import EndlessCache
from sample.request import make_request
from sample.step import prefill, unpack_taken
from tests.tiny_smolvlm import tiny_checkpoint

CONTEXT, TOKENS = 32, 90


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_checkpoint(tmp_path_factory.mktemp("smolvlm") / "tied"), dtype="float32")


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, TOKENS).astype(np.int32)


def streamed(loaded: LoadedModel, text: np.ndarray, stream: StreamConfig) -> list[float]:
    """One step per token, each of which draws the token that comes next."""
    model, params, _ = loaded
    config = SamplingConfig(temperature=0, max_new_tokens=TOKENS)
    request = make_request(model, text[None, :GIVEN], config, jax.random.key(0), stream=stream)
    steps = [forced(int(token), model.vocab_size) for token in text[GIVEN:]]
    arguments = (request.prompt, None, steps[0], request.key, request.history)
    state, packed = prefill(model, params, *arguments, slots=request.slots, top=0)
    assert request.plan is not None
    endless, outputs = EndlessCache(request.plan, None), [packed]
    for sampling in steps[1:]:
        state, packed, _, _ = endless.steps(model, params, state, sampling, 0, 1)
        outputs.append(packed)
    assert [int(unpack_taken(np.asarray(output)).token[0, 0]) for output in outputs] == text[GIVEN:].tolist()
    return [-float(unpack_taken(np.asarray(output)).raw_logprob[0, 0]) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        StreamConfig(context=CONTEXT, sinks=4, tail=12),
        StreamConfig(context=CONTEXT, sinks=0, tail=16),
        StreamConfig(policy="shift", context=CONTEXT, sinks=4, tail=12),
        StreamConfig(policy="shift", context=CONTEXT, sinks=0, tail=16),
    ],
    ids=lambda stream: f"{stream.policy}-{stream.sinks}-{stream.tail}",
)
def test_pieces_give_the_surprisals_of_a_stream(loaded, text, stream):
    run = foresee(loaded.model, loaded.params, text, Policy("", stream))
    np.testing.assert_allclose(run.surprisals, streamed(loaded, text, stream), rtol=0, atol=1e-4)
    renewed = stream.sinks + stream.tail
    assert run.seen[: CONTEXT - GIVEN + 1].tolist() == list(range(GIVEN, CONTEXT + 1))
    period = CONTEXT - renewed + 1
    behind = run.seen[CONTEXT - GIVEN + 1 :]
    assert behind.tolist() == [renewed + i % period for i in range(len(behind))]


@pytest.mark.slow
@pytest.mark.parametrize("sinks", [0, 4])
def test_a_window_is_foreseen_as_the_policy_does(loaded, text, sinks):
    stream = StreamConfig("window", context=CONTEXT, sinks=sinks)
    run = windowed(loaded.model, loaded.params, text, stream, 5)
    there = np.flatnonzero(np.isfinite(run.surprisals))
    assert there.tolist() == list(range(CONTEXT - GIVEN, TOKENS - GIVEN, 5))
    expected = np.asarray(streamed(loaded, text, stream))[there]
    np.testing.assert_allclose(run.surprisals[there], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_base_sees_the_whole_text(loaded, text):
    whole = Policy("", StreamConfig(context=256, sinks=0, tail=64))
    run = foresee(loaded.model, loaded.params, text, whole, piece=CONTEXT - GIVEN)
    model, params, _ = loaded
    logits = model.call("logits", params, jnp.asarray(text[None]), jnp.arange(TOKENS)[None, None])[0]
    logprobs = np.asarray(jax.nn.log_softmax(logits))[np.arange(TOKENS - 1), text[1:]]
    np.testing.assert_allclose(run.surprisals, -logprobs[GIVEN - 1 :], rtol=0, atol=1e-4)
    assert run.seen.tolist() == list(range(GIVEN, TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("turned", [True, False])
def test_old_positions_stay_those_of_the_text(loaded, text, turned):
    stream = StreamConfig(policy="shift", context=CONTEXT, sinks=4, tail=12)
    feeder = Feeder(loaded.model, loaded.params, text, Policy("", stream, turned=turned))
    while not feeder.ended:
        feeder.advance()
    place = int(feeder.state.length[0] + feeder.state.delta[0])
    assert place == (feeder.filled if turned else TOKENS - 1)


def test_a_token_that_is_not_drawn_is_told(loaded, text, monkeypatch):
    monkeypatch.setattr("benchmarks.forced.forced", lambda token, size: forced((token + 1) % size, size))
    with pytest.raises(ValueError, match="could not be forced"):
        foresee(loaded.model, loaded.params, text, Policy("", StreamConfig(context=CONTEXT, tail=12)))


def test_ratio_and_its_error():
    rng = np.random.default_rng(0)
    base = Run(rng.random(4000), np.arange(4000))
    same = ratio_of(Run(base.surprisals + math.log(1.5), base.seen), base)
    assert same.value == pytest.approx(1.5)
    assert same.error == pytest.approx(0, abs=1e-12)
    noisy = ratio_of(Run(base.surprisals + rng.normal(0, 0.5, 4000), base.seen), base)
    assert noisy.error == pytest.approx(0.5 / math.sqrt(4000), rel=0.6)
    assert math.isnan(ratio_of(_first(base, 600), _first(base, 600)).error)


def test_what_was_not_foreseen_is_left_out_on_both_sides():
    base = Run(np.arange(4000) / 1000, np.arange(4000))
    some = np.where(np.arange(4000) % 7 == 3, base.surprisals + 0.1, np.nan)
    ratio = ratio_of(Run(some, base.seen), base)
    assert ratio.value == pytest.approx(math.exp(0.1))
    assert ratio.error == pytest.approx(0, abs=1e-12)


def test_a_row_has_a_ratio_to_each_base():
    worse, base = (Run(np.full(1000, x), np.arange(1000)) for x in (2.0, 1.0))
    row = row_of("worse", worse, [base, worse])
    assert row.apart is not None
    assert (row.perplexity, row.whole.value, row.apart.value) == pytest.approx((math.e**2, math.e, 1))
    assert row_of("alone", base, [base]).apart is None


def test_ratios_by_tokens_seen_leave_out_what_was_before_the_first_renewal():
    seen = np.r_[np.arange(4, 33), np.tile(np.arange(16, 33), 3)]
    surprisals = np.where(np.arange(len(seen)) < 29, 50.0, np.where(seen < 20, 2.0, 1.0))
    rows = by_seen(Run(surprisals, seen), Run(np.ones(len(seen)), seen))
    assert [(low, high) for low, high, _, _ in rows] == [(16, 19), (20, 23), (24, 27), (28, 32)]
    assert [ratio for _, _, ratio, _ in rows] == pytest.approx([math.e, 1, 1, 1])


def test_results_are_written_as_they_come(tmp_path):
    ways = policies(CONTEXT, 64)
    names, seen = (ways[0].name, ways[2].name), np.r_[np.arange(4, 33), np.tile(np.arange(16, 33), 4)]
    runs = {name: Run(np.random.default_rng(0).random(len(seen)), seen) for name in names}
    write_results(tmp_path, {"tokens": TOKENS}, {names[0]: runs[names[0]]}, ways)
    rows = write_results(tmp_path, {"tokens": TOKENS}, runs, ways)
    assert [row.name for row in rows] == ["full context", "reseed 4 + 12"]
    assert rows[0].whole.value == 1
    assert rows[1].apart is not None
    assert rows[1].apart.value == 1
    written = json.loads((tmp_path / "perplexity.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["full context", "reseed 4 + 12"]
    assert written["ratio_by_tokens_seen"].keys() == {"full context", "reseed 4 + 12"}
    assert np.load(tmp_path / "surprisals.npz")["reseed 4 + 12"].shape == seen.shape
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_prose_is_what_stands_in_sentences():
    html = (
        "<h1>Title</h1><dl><dt>contents <p>no</p></dt></dl><p>One\n  <code>two</code>.</p><pre>no</pre>"
        "<ul><li><p>item</p><pre>no</pre> more</li></ul><table><tr><td><p>no</p></td></tr></table>no"
        "<p>&lt;end"
    )
    assert prose(html) == "Title\n\nOne two.\n\nitem\n\nmore\n\n<end"


def _first(run: Run, count: int) -> Run:
    return Run(run.surprisals[:count], run.seen[:count])
