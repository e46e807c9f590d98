"""On an NVIDIA GPU, in bfloat16: the fused model and its kernels against float32, and what makes them fast.

A greedy token may be another than float32's only where float32's best two logits are nearer to one another
than TOLERANCE: logits of order 10, rounded to 8 bits in some thirty places on their way. One row and several
take different kernels, and so do a prompt as a whole and in pieces: of these, too, that is all that holds.
What runs the same programs gives the same bits.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import layer
from benchmarks.shapes import SHAPES
from models import load_model
from models.cache import KVCache
from models.config import Qwen3VLConfig
from models.kernels.choice import decodes_whole_layers, on_cuda
from models.load import LoadedModel
from models.qwen3_vl import Qwen3VL
from sample import SamplingConfig, StreamConfig, prepare_inputs, sample, sample_streaming
from sample.inputs import VLMInputs
from sample.pace import on_device
from sample.request import make_request
from sample.step import NOT_TAKEN, ROUND, decode_step, decode_steps, prefill, prefill_chunk, unpack
from tests import test_parity, test_smolvlm_parity, tiny_smolvlm
from tests.judge import assert_drawn, assert_same, scores
from tests.paces import Steady
from tests.profiles import called, dispatches, profiled
from tests.test_kernels import PRODUCTS, WIDTHS, assert_product, assert_sum_and_norm, layer_case
from tests.test_reseed import Reference
from tests.tiny import VARIANTS, random_params, tiny_checkpoint, tiny_config

pytestmark = pytest.mark.gpu
TOLERANCE = 0.25
RELATIVE = 0.05  # of the largest value, for features and logits of the tiny checkpoints; 0.025 were seen
PICTURES = ("panda_climbing", "coffee_laptop")
STEPS = 64
KEY = jax.random.key(0)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)
DRAWN = SamplingConfig(temperature=0.8, max_new_tokens=STEPS, seed=11)
PROGRAMS = [(1, "decode_step", ()), (ROUND, "decode_steps", (ROUND,))]  # steps, name, axes before the rows


@pytest.fixture(autouse=True, scope="module")
def device() -> None:
    if not on_cuda():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def bfloat16() -> LoadedModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def float32() -> LoadedModel:
    return load_model("embedded", dtype="float32")


def inputs_of(loaded: LoadedModel, picture: str) -> VLMInputs:
    return prepare_inputs(*loaded, images=[f"examples/imgs/{picture}.png"], prompt="Tell me a story")


def story(loaded: LoadedModel, picture: str, **how: Any) -> np.ndarray:
    config = SamplingConfig(temperature=0, max_new_tokens=STEPS, **how)
    model, params, _ = loaded
    return sample(model, params, inputs_of(loaded, picture), config, KEY).tokens[0]


def test_the_model_is_fused(bfloat16):
    assert bfloat16.model.fused
    assert bfloat16.model.dtype == jnp.bfloat16


def exact(
    loaded: LoadedModel, inputs_of: Callable[[], VLMInputs], told: np.ndarray, configs: Any
) -> np.ndarray:
    """The scores of float32, pictures included."""
    with jax.default_matmul_precision("highest"):
        return scores(loaded, inputs_of(), told, configs, KEY)


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("picture", PICTURES)
def test_tokens_are_those_of_float32(bfloat16, float32, picture, config):
    """Wherever float32's best two scores differ by more than the tolerance, behind the same tokens."""
    model, params, _ = bfloat16
    told = sample(model, params, inputs_of(bfloat16, picture), config, KEY).tokens
    assert told.shape == (1, STEPS)
    found = exact(float32, partial(inputs_of, float32, picture), told, config)
    assert_drawn(found, told, TOLERANCE / (config.temperature or 1), 0.8 if config is GREEDY else 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


FAMILIES = [("qwen3_vl", variant) for variant in VARIANTS]
FAMILIES += [("smolvlm", variant) for variant in tiny_smolvlm.VARIANTS]


@pytest.mark.parametrize(("family", "variant"), FAMILIES)
def test_the_families_are_transformers(folder, family, variant):
    """The golden files' ragged batch, which has a bit of everything."""
    parity, write = test_parity, tiny_checkpoint
    cases = parity.CASES
    if family == "smolvlm":
        parity, write = test_smolvlm_parity, tiny_smolvlm.tiny_checkpoint
        cases = parity.CASES[variant]
    path = write(folder / f"{family}-{variant}", variant)
    half, full = load_model(path), load_model(path, dtype="float32")
    with np.load(parity.FILE) as stored:
        expected = {name: stored[f"{variant}/ragged/{name}"] for name in ("vision", "logits", "tokens")}

    def close(ours: jax.Array, theirs: np.ndarray) -> None:
        assert np.abs(np.asarray(ours, np.float32) - theirs).max() < RELATIVE * np.abs(theirs).max()

    model, params, _ = half
    inputs = parity.inputs_of(model, params, cases["ragged"])
    close(inputs.vision.embeddings[: len(expected["vision"])], expected["vision"])
    lengths = np.asarray(inputs.attention_mask).sum(1)
    positions, _ = model.prompt_positions(inputs.prompt_tokens, np.asarray(inputs.grid_thw), lengths)
    logits = parity.all_logits(model, params, inputs.prompt_tokens, positions, inputs.vision)
    close(logits[np.arange(len(lengths)), lengths - 1], expected["logits"])

    config = dataclasses.replace(GREEDY, logit_bias={model.image_pad_id: -100.0}, max_new_tokens=parity.STEPS)
    told = sample(model, params, inputs, config, KEY).tokens
    found = exact(full, lambda: parity.inputs_of(*full[:2], cases["ragged"]), told, config)
    tolerance = RELATIVE * np.abs(expected["logits"]).max()
    assert_drawn(found, told, tolerance)
    for row, golden, behind in zip(told, expected["tokens"], found, strict=True):
        assert_same(behind, row, golden, tolerance)


def rows_of(loaded: LoadedModel, row: int | None = None) -> VLMInputs:
    """Three rows with two, one and no pictures, or one of them."""
    opened = [[f"examples/imgs/{p}.png" for p in PICTURES], [f"examples/imgs/{PICTURES[0]}.png"], []]
    texts = ["What do these show?", "Tell me a story", "No picture here, but longer text instead of it"]
    picked = slice(None) if row is None else slice(row, row + 1)
    return prepare_inputs(*loaded, images=opened[picked], prompt=texts[picked])


def test_a_row_in_a_batch_is_the_row_alone(bfloat16, float32):
    """Greedy or drawn, as far as float32 is sure."""
    model, params, _ = bfloat16
    configs = [GREEDY, DRAWN, dataclasses.replace(DRAWN, seed=12, temperature=1.2)]
    together = sample(model, params, rows_of(bfloat16), configs, KEY).tokens
    for row, config in enumerate(configs):
        alone = sample(model, params, rows_of(bfloat16, row), config, KEY).tokens
        tolerance = TOLERANCE / (config.temperature or 1)
        for told in (together[row : row + 1], alone):
            found = exact(float32, partial(rows_of, float32, row), told, config)
            assert_drawn(found, told, tolerance)
        assert_same(found[0], alone[0], together[row], tolerance)


def test_a_seed_gives_the_same_bits_again_whatever_the_kind_of_key(bfloat16):
    model, params, _ = bfloat16
    inputs = rows_of(bfloat16)

    def run(key: jax.Array, **settings: Any) -> tuple[list, bytes]:
        config = SamplingConfig(temperature=1.2, top_p=0.9, max_new_tokens=STEPS, **settings)
        result = sample(model, params, inputs, config, key)
        return result.tokens.tolist(), result.logprobs.tobytes()

    first = run(KEY)
    assert run(KEY) == first == run(jax.random.PRNGKey(0))
    assert run(jax.random.key(1)) != first
    assert run(KEY, seed=5) == run(jax.random.key(1), seed=5) != first


def test_alternatives_are_the_best_of_float32(bfloat16, float32):
    model, params, _ = bfloat16
    config = dataclasses.replace(GREEDY, top_logprobs=5)
    result = sample(model, params, inputs_of(bfloat16, PICTURES[0]), config, KEY)
    found = exact(float32, partial(inputs_of, float32, PICTURES[0]), result.tokens, config)[0]
    wanted = np.asarray(jax.nn.log_softmax(found))
    for step, (top, token, logprob) in enumerate(
        zip(result.top_logprobs[0], result.tokens[0], result.logprobs[0], strict=True)
    ):
        ids, values = (list(column) for column in zip(*top, strict=True))
        assert (ids[0], values[0]) == (token, pytest.approx(logprob, abs=1e-5))
        assert values == sorted(values, reverse=True)
        likely = [i for i in ids if wanted[step, i] > -8]
        assert [v for i, v in zip(ids, values, strict=True) if i in likely] == pytest.approx(
            wanted[step, likely].tolist(), abs=TOLERANCE
        )


def decoded(loaded: LoadedModel, batch: int) -> np.ndarray:
    """Log-probabilities of made-up tokens, fed one by one to a batch of unequal rows."""
    model, params, _ = loaded
    rng = np.random.default_rng(batch)
    rows = [rng.integers(0, 2000, 20 + 7 * i % 50) for i in range(batch)]
    width = max(map(len, rows))
    tokens, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    for row, (t, m) in zip(rows, zip(tokens, mask, strict=True), strict=True):
        t[: len(row)], m[: len(row)] = row, True
    inputs = VLMInputs(tokens, None, np.zeros((0, 3), np.int32), model.image_pad_id, attention_mask=mask)
    config = SamplingConfig(temperature=0, max_new_tokens=100)
    r = make_request(model, inputs, config, KEY)
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
    found = []
    for _ in range(8):
        state = state._replace(token=jnp.asarray(rng.integers(0, 2000, state.token.shape).astype(np.int32)))
        hidden, cache = forward(model, params, state)
        state = state._replace(cache=cache, length=state.length + 1)
        found.append(np.asarray(jax.nn.log_softmax(model.call("head", params, hidden)[:batch, 0])))
    return np.stack(found)


@partial(jax.jit, static_argnums=0)
def forward(model, params, state):
    positions = (state.length + state.delta)[:, None]
    positions = jnp.broadcast_to(positions, (model.position_axes, *positions.shape))
    return model.call("forward", params, state.token[:, None], positions, state.length, state.cache)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 32])
def test_kernels_give_the_layers_logits(bfloat16, float32, batch):
    kernels = decoded(bfloat16, batch)
    with jax.default_matmul_precision("highest"):
        exact = decoded(float32, batch)
    likely = exact > -8
    assert np.abs(kernels - exact)[likely].max() < TOLERANCE


def test_streaming_gives_the_tokens_of_sample(bfloat16):
    model, params, _ = bfloat16
    inputs = inputs_of(bfloat16, PICTURES[0])
    for how in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3}):
        config = SamplingConfig(max_new_tokens=STEPS, **how)
        whole = sample(model, params, inputs, config, KEY)
        stream = sample_streaming(model, params, inputs, config, KEY)
        assert [token for token, _, _ in stream] == whole.tokens[0].tolist()


def test_a_row_without_a_quota_stays_as_it_is_and_the_others_do_not_notice(bfloat16):
    model, params, _ = bfloat16
    params = model.decoder_params(params)
    r = make_request(model, np.arange(60).reshape(2, 30) + 100, DRAWN, KEY)

    def bits(tree: Any) -> list[bytes]:
        return [np.asarray(leaf, np.float32).tobytes() for leaf in jax.tree.leaves(tree)]

    def run(lives: list[list[bool]]) -> list[list[int]]:
        state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
        told: list[list[int]] = [[], []]
        for live in lives:
            held = [row for row in (0, 1) if not live[row]]
            before = [bits(jax.tree.map(lambda x, row=row: x[row], state._replace(cache=()))) for row in held]
            state, packed = decode_step(model, params, state, r.sampling, np.array(live), top=0)
            after = [bits(jax.tree.map(lambda x, row=row: x[row], state._replace(cache=()))) for row in held]
            assert before == after
            output = unpack(np.asarray(packed))
            for row in (0, 1):
                assert (output.status[row] == NOT_TAKEN) == (row in held)
                told[row] += [] if row in held else [int(output.token[row])]
        return told

    whole = run([[True, True]] * 8)
    assert run([[True, False]] * 3 + [[True, True]] * 5 + [[False, True]] * 3) == whole


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_a_round_is_as_many_single_steps(bfloat16, rows):
    """Bit for bit: which of the two comes is a matter of time."""
    model, params, _ = bfloat16
    params = model.decoder_params(params)
    prompt = np.random.default_rng(0).integers(100, 400, (rows, 30)).astype(np.int32)
    r = make_request(model, prompt, DRAWN, KEY)
    quota = -np.arange(rows, dtype=np.int32) % ROUND  # of the last round
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
    single = []
    for n in range(3 * ROUND):
        live = np.full(rows, n < 2 * ROUND) | (n % ROUND < quota)
        state, packed = decode_step(model, params, state, r.sampling, live, top=0)
        single.append(np.asarray(packed))
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
    rounds = []
    for asked in (np.full(rows, ROUND, np.int32), np.full(rows, ROUND, np.int32), quota):
        state, packed = decode_steps(model, params, state, r.sampling, asked, top=0, most=ROUND)
        rounds += list(np.asarray(packed))
    assert np.stack(single).tobytes() == np.stack(rounds).tobytes()


@pytest.mark.parametrize("size", [16, 64])
def test_a_prompt_in_chunks_is_the_prompt_as_a_whole(bfloat16, float32, size):
    model, params, _ = bfloat16
    inputs = np.random.default_rng(0).integers(100, 1000, (1, 150)).astype(np.int32)
    r = make_request(model, inputs, GREEDY, KEY)
    decoder = model.decoder_params(params)
    state, packed = prefill(model, decoder, *r.arguments, slots=r.slots, top=0)
    fed = {name: getattr(state, name) for name in ("cache", "length", "token", "count", "drawn")}
    state = state._replace(**jax.tree.map(jnp.zeros_like, fed))
    for start in range(0, 150, size):
        chunk, last = r.prompt.part(start, min(start + size, 150), size), np.array([start + size >= 150])
        state, packed = prefill_chunk(model, decoder, state, chunk, None, r.sampling, last, top=0)
    told = [int(unpack(np.asarray(packed)).token[0])]
    while len(told) < STEPS:
        state, packed = decode_step(model, decoder, state, r.sampling, top=0)
        told.append(int(unpack(np.asarray(packed)).token[0]))
    whole = sample(model, params, inputs, GREEDY, KEY).tokens
    text = VLMInputs(inputs, None, np.zeros((0, 3), np.int32), model.image_pad_id)
    found = exact(float32, lambda: text, np.array([told]), GREEDY)
    assert_drawn(found, np.array([told]), TOLERANCE)
    assert_same(found[0], np.array(told), whole[0], TOLERANCE)


@pytest.mark.parametrize("policy", ["reseed", "window", "shift"])
def test_tokens_behind_a_reseed_are_those_of_float32_from_the_same_content(bfloat16, float32, policy):
    """A shift is what a reseed is where there is one layer, and so has a model of its own."""
    inputs, steps = np.random.default_rng(0).integers(100, 400, (1, 30)).astype(np.int32), 160
    half, full = bfloat16.model, float32.model
    weights = bfloat16.params, float32.params
    if policy == "shift":
        content = tiny_config()
        content["text_config"]["num_hidden_layers"] = 1
        content["vision_config"]["deepstack_visual_indexes"] = []
        config = Qwen3VLConfig.from_dict(content)
        full, half = Qwen3VL(config), Qwen3VL(config, bfloat16.model.dtype)
        made = random_params(full)
        weights = jax.tree.map(lambda x: x.astype(half.dtype), made), made
    stream = StreamConfig(policy=policy, context=100, tail=24, sinks=4)
    cfg = SamplingConfig(temperature=0, max_new_tokens=steps, repetition_penalty=1.2)
    running = sample_streaming(half, weights[0], inputs, cfg, KEY, stream=stream)
    told = [token.token_id for token in running]
    assert running.stats.reseeds >= 2
    as_reseed = dataclasses.replace(stream, policy="reseed") if policy == "shift" else stream
    with jax.default_matmul_precision("highest"):
        reference = Reference(full, weights[1], inputs, cfg, KEY, as_reseed)
        drawn, _ = reference.run(steps, told)
    sure = np.array(reference.gaps) > TOLERANCE
    assert sure.mean() > 0.5
    assert (np.array(drawn) == told)[sure].all()


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_products_in_tuned_tiles_are_plain_ones(kind, batch):
    assert_product(*kind, batch, jnp.bfloat16, 2**-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sum_and_its_norm_are_plain_ones(width):
    assert_sum_and_norm(width, jnp.bfloat16)


@pytest.fixture(scope="module")
def engine(bfloat16):
    pytest.importorskip("blake3", reason="the engine needs blake3 (extra: serve)")
    from serve.engine import Engine
    from serve.engine_config import EngineConfig

    sizes = EngineConfig(rows=(8,), context=256, chunks=(64,), pictures=(), prefix_bytes=0, top_logprobs=0)
    engine = Engine(bfloat16, sizes)
    engine.start()
    yield engine
    engine.close()


def test_a_stream_of_the_engine_is_the_stream_alone(engine, bfloat16, float32):
    """With the same bits alone in the engine, and as far as float32 is sure those of `sample`."""
    from tests.engines import Reader, words

    configs = [GREEDY if n % 2 else dataclasses.replace(DRAWN, seed=n) for n in range(8)]
    configs = [dataclasses.replace(config, seed=n) for n, config in enumerate(configs)]
    prompts = [words(150 if n == 7 else 20 + 6 * n, n) for n in range(8)]  # one of several chunks

    def run(chosen: list[int]) -> list[Reader]:
        readers = [Reader() for _ in chosen]
        for n, reader in zip(chosen, readers, strict=True):
            engine.submit(prompts[n], configs[n], reader)
        return [reader.wait() for reader in readers]

    model, params, _ = bfloat16
    for n, reader in enumerate(run(list(range(8)))):
        config, tolerance = configs[n], TOLERANCE / (configs[n].temperature or 1)
        (alone,) = run([n])
        assert [(p.token_id, p.logprob) for p in reader.pieces] == [
            (p.token_id, p.logprob) for p in alone.pieces
        ]
        told, tokens = np.array([reader.tokens]), prompts[n].tokens[None]
        text = VLMInputs(tokens, None, np.zeros((0, 3), np.int32), model.image_pad_id)
        found = exact(float32, lambda text=text: text, told, config)
        assert_drawn(found, told, tolerance)
        assert_same(found[0], told[0], sample(model, params, tokens, config, KEY).tokens[0], tolerance)


@pytest.mark.parametrize(("pace", "program", "shape"), PROGRAMS)
def test_a_turn_of_the_engine_is_one_dispatch_and_one_transfer(
    engine, monkeypatch, tmp_path, pace, program, shape
):
    from tests.engines import profiled_turns

    events, looks = profiled_turns(engine, monkeypatch, tmp_path, 40, pace)
    assert called(events) == {program}
    assert dispatches(events) == len(looks) == 40 // pace
    assert set(looks) == {(*shape, 8, 4)}


@pytest.mark.parametrize(("pace", "program", "shape"), PROGRAMS)
def test_a_program_of_a_stream_is_one_dispatch(bfloat16, monkeypatch, tmp_path, pace, program, shape):
    model, params, _ = bfloat16
    monkeypatch.setattr("sample.streaming.Pace", lambda: Steady(pace))
    with sample_streaming(model, params, inputs_of(bfloat16, PICTURES[0]), GREEDY, KEY) as stream:
        for _ in range(1 + pace):
            next(stream)
        with profiled(tmp_path) as events:
            for _ in range(40):
                next(stream)
    assert called(events) == {program}
    assert dispatches(events) == 40 // pace


@pytest.mark.parametrize(("pace", "program", "shape"), PROGRAMS)
def test_the_cache_is_aliased_and_a_program_waits_for_nothing(bfloat16, pace, program, shape):
    model, params, _ = bfloat16
    r = make_request(model, np.ones((1, 20), np.int32), SamplingConfig(temperature=0), KEY)
    params = model.decoder_params(params)
    state, _ = prefill(model, params, *r.arguments, slots=r.slots, top=0)
    arguments = model, params, state, r.sampling
    if pace == 1:
        lowered = decode_step.lower(*arguments, top=0)
    else:
        lowered = decode_steps.lower(*arguments, on_device((pace,)), top=0, most=pace)
    compiled = lowered.compile()
    cache = sum(buffer.nbytes for buffer in jax.tree.leaves(state.cache))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 4
    loops = [line for line in compiled.as_text().splitlines() if " while(" in line]
    assert len(loops) == len(shape)
    assert all('"known_trip_count":{"n":"4"}' in loop for loop in loops)  # else the host reads the condition
    assert " conditional(" not in compiled.as_text()


def test_a_second_stream_compiles_nothing(bfloat16, caplog):
    story(bfloat16, PICTURES[0])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        story(bfloat16, PICTURES[0])
    assert [r for r in caplog.records if "Compiling" in r.getMessage()] == []


@pytest.mark.parametrize("shape", ["qwen3_vl_2b", "qwen3_vl_8b"])
def test_a_layer_as_one_kernel_is_the_layer_in_six(shape):
    """At real widths: two layers behind one another, up to more slots than the programs take at once."""
    what = Qwen3VL(Qwen3VLConfig.from_dict(SHAPES[shape]), jnp.bfloat16)
    c = dataclasses.replace(what.config.text, num_hidden_layers=2)
    if not decodes_whole_layers(c, 1):
        pytest.skip("needs a Hopper GPU")
    params = {f"layers_{i}": layer_case(c, 1, jnp.bfloat16, seed=i)[0] for i in range(2)}
    params["norm"] = {"scale": jax.random.normal(KEY, (c.hidden_size,), jnp.bfloat16)}
    params = jax.tree.map(lambda leaf: 0.1 * leaf if leaf.ndim == 2 else 1 + 0.3 * leaf, params)
    x = jax.random.normal(KEY, (1, 1, c.hidden_size), jnp.bfloat16)
    angles = jnp.linspace(0, 3, 64)[None, None]
    shapes = (1, 8, 128, 4160), (1, 8, 4160, 128)
    cache = KVCache(
        *(tuple(jax.random.normal(jax.random.key(i), s, jnp.bfloat16) for i in range(2)) for s in shapes)
    )
    steps = [jax.jit(partial(layer.layers_for, device, c)) for device in ("cuda", "hopper")]
    for filled in (0, 1, 63, 64, 300, 2047, 2048, 2049, 4095, 4159):
        made = [step(params, x, angles, jnp.array([filled], jnp.int32), cache) for step in steps]
        for wanted, got in zip(*map(jax.tree.leaves, made), strict=True):
            apart = np.abs(np.asarray(wanted, np.float32) - np.asarray(got, np.float32)).max()
            assert apart <= RELATIVE * np.abs(np.asarray(wanted, np.float32)).max()
