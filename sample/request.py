"""From what a caller hands over to the arrays of the step: checked, compacted and padded to buckets."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from models.buckets import bucket
from models.decoder import VisionEmbeddings
from models.errors import InputError, SettingsError
from models.model import Model
from sample.config import SamplingConfig
from sample.endless import StreamPlan, make_plan
from sample.inputs import VLMInputs
from sample.logits import SamplingParams, sampling_params
from sample.loops import LONGEST_PATTERN, History, history_of
from sample.step import Prompt
from sample.stream_config import StreamConfig
from sample.transfer import to_device

_SHORTEST_PROMPT, _SMALLEST_CACHE = 64, 256  # tokens
_MOST_ALTERNATIVES = 20
_PADDING = SamplingConfig(temperature=0, max_new_tokens=1)


class Request(NamedTuple):
    """The arguments of `prefill`; rows beyond `len(configs)` are padding that ends with its first token."""

    configs: list[SamplingConfig]
    lengths: list[int]
    image_tokens: int
    prompt: Prompt
    vision: VisionEmbeddings | None
    sampling: SamplingParams
    key: UInt32[Array, "B words"]
    history: History
    slots: int
    top: int
    plan: StreamPlan | None = None

    @property
    def arguments(self) -> tuple[Prompt, VisionEmbeddings | None, SamplingParams, Array, History]:
        """What `prefill` takes behind the model and its parameters."""
        return self.prompt, self.vision, self.sampling, self.key, self.history


def make_request(
    model: Model,
    inputs: VLMInputs | Array | np.ndarray,
    configs: SamplingConfig | Sequence[SamplingConfig],
    rng: Array,
    tokenizer: Any = None,
    stream: StreamConfig | None = None,
) -> Request:
    """Check the inputs against the model and round all sizes up to buckets.

    Args:
        inputs: pictures and prompts, or `[B, T]` token ids for text alone.
        configs: one for all rows, or one per row.
        rng: one key (row i gets `fold_in(rng, i)`) or B keys; old-style or new-style.
        tokenizer: only asked whether there is one, as stop strings and summaries need it.
        stream: how a single row goes on when its cache is full.

    Raises:
        InputError: tokens that are no ids of this model, or do not fit its context, `grid_thw` or `vision`.
        SettingsError: no key, no configuration, a number of either that is not the number of rows, stop
            strings or a summary without a tokenizer, or what the cache is to keep does not fit it.
    """
    if not isinstance(inputs, VLMInputs):
        inputs = VLMInputs(inputs, None, np.zeros((0, 3), np.int32), model.image_pad_id)
    rows = _rows(model, inputs)
    grid_thw = _grid(inputs)
    configs = _configs(configs, len(rows))
    if tokenizer is None and any(c.stop for c in configs):
        raise SettingsError("stop: stop strings need a tokenizer")
    if stream is None:
        _check_room(model, rows, configs)
    else:
        configs = _check_stream(model, rows, configs, stream, tokenizer)
    padding = bucket(len(rows), 1) - len(rows)
    width = bucket(max(map(len, rows)), _SHORTEST_PROMPT, steps=8)  # whose padding is computed, not only kept
    prompt = padded_prompt(model, grid_thw, rows, padding, width)
    image_tokens = int((prompt.vision_rows >= 0).sum())
    _check_vision(model, inputs.vision, image_tokens)
    plan = None
    if stream is not None and stream.policy != "stop":
        plan = make_plan(model, prompt, grid_thw, stream)
    needed = max(len(r) + c.max_new_tokens for r, c in zip(rows, configs, strict=True))
    needed = needed if plan is None else min(needed, plan.context)
    padded = configs + [_PADDING] * padding
    return Request(
        configs=configs,
        lengths=[len(r) for r in rows],
        image_tokens=image_tokens,
        prompt=prompt,
        vision=inputs.vision,
        sampling=to_device(sampling_params(padded, vocab_size=model.vocab_size)),
        key=_row_keys(rng, configs, len(rows), padding),
        history=_history(rows + [rows[0][:0]] * padding, padded, plan),
        slots=bucket(max(needed, prompt.tokens.shape[1]), _SMALLEST_CACHE),
        top=min(_MOST_ALTERNATIVES, model.vocab_size) if any(c.top_logprobs for c in configs) else 0,
        plan=plan,
    )


def _check_stream(
    model: Model,
    rows: list[np.ndarray],
    configs: list[SamplingConfig],
    stream: StreamConfig,
    tokenizer: Any,
) -> list[SamplingConfig]:
    """The configurations; "stop" shortens the answer to what the stream's context leaves."""
    if not isinstance(stream, StreamConfig):
        raise SettingsError(f"stream: {type(stream).__name__}; allowed: a StreamConfig, or None")
    if len(rows) != 1:
        raise InputError(f"stream: a batch of {len(rows)}; allowed: 1")
    if stream.summary is not None and tokenizer is None:
        raise SettingsError("summary: a summary needs a tokenizer")
    if stream.context > model.context_length:
        raise SettingsError(
            f"context: {stream.context}; allowed: up to {model.context_length}, the model's context"
        )
    room = stream.context - len(rows[0])
    if room < 1:
        raise InputError(
            f"the prompt has {len(rows[0])} tokens;"
            f" allowed: up to {stream.context - 1}, one less than {stream.context}, the stream's context"
        )
    if stream.policy != "stop":
        return configs
    return [dataclasses.replace(c, max_new_tokens=min(c.max_new_tokens, room)) for c in configs]


def _history(rows: list[np.ndarray], configs: list[SamplingConfig], plan: StreamPlan | None) -> History:
    """As wide as n-grams, patterns or a stream's tail need, and no wider than the sequences become."""
    watched = 0
    for row, config in zip(rows, configs, strict=True):
        if config.no_repeat_ngram_size:
            watched = max(watched, min(config.no_repeat_ngram_window, len(row) + config.max_new_tokens))
        if config.max_pattern_repeats:
            watched = max(watched, LONGEST_PATTERN + 1)
    watched = bucket(watched, _SHORTEST_PROMPT) if watched else 0
    remembered = 0 if plan is None else plan.remembered
    return history_of(rows, max(watched, bucket(remembered, _SHORTEST_PROMPT) if remembered else 0), watched)


def _configs(given: Any, rows: int) -> list[SamplingConfig]:
    configs = [given] * rows if isinstance(given, SamplingConfig) else given
    if not isinstance(configs, list | tuple) or not all(isinstance(c, SamplingConfig) for c in configs):
        raise SettingsError(
            f"cfg: {type(given).__name__}; allowed: a SamplingConfig, or a list of one per row"
        )
    if len(configs) != rows:
        raise SettingsError(
            f"cfg: {len(configs)} configurations for {rows} rows; allowed: one, or one per row"
        )
    return list(configs)


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: no array; allowed: an array, or lists of one length") from None


def _rows(model: Model, inputs: VLMInputs) -> list[np.ndarray]:
    tokens = _array("prompt_tokens", inputs.prompt_tokens)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(
            f"prompt_tokens: {tokens.dtype}{list(tokens.shape)}; allowed: integers [B, T], neither 0"
        )
    if inputs.image_pad_id != model.image_pad_id:
        raise InputError(f"image_pad_id: {inputs.image_pad_id}; this model's is {model.image_pad_id}")
    mask = (
        np.ones(tokens.shape, bool)
        if inputs.attention_mask is None
        else _array("attention_mask", inputs.attention_mask).astype(bool)
    )
    if mask.shape != tokens.shape:
        raise InputError(f"attention_mask: {list(mask.shape)}; prompt_tokens are {list(tokens.shape)}")
    rows = [t[m] for t, m in zip(tokens, mask, strict=True)]
    for i, row in enumerate(rows):
        if not len(row):
            raise InputError(f"prompt_tokens: row {i} is empty; allowed: one token or more")
        if row.min() < 0 or row.max() >= model.vocab_size:
            raise InputError(f"prompt_tokens: row {i} has ids outside 0..{model.vocab_size - 1}")
        if inputs.vision is None and (row == model.image_pad_id).any():
            raise InputError(f"prompt_tokens: row {i} has picture tokens, but vision is None")
    return [row.astype(np.int32) for row in rows]


def _grid(inputs: VLMInputs) -> np.ndarray:
    grid = _array("grid_thw", inputs.grid_thw)
    if grid.ndim != 2 or grid.shape[1] != 3 or (grid.size and not np.issubdtype(grid.dtype, np.integer)):
        raise InputError(f"grid_thw: {grid.dtype}{list(grid.shape)}; allowed: integers [pictures, 3]")
    return grid


def _check_vision(model: Model, vision: Any, image_tokens: int) -> None:
    if vision is None:
        return
    if not isinstance(vision, VisionEmbeddings):
        raise InputError(f"vision: {type(vision).__name__}; allowed: VisionEmbeddings, or None")
    found, deepstack = list(vision.embeddings.shape), list(vision.deepstack.shape)
    if len(found) != 2 or found[0] < image_tokens or found[1] != model.hidden_size or deepstack[1:] != found:
        raise InputError(
            f"vision: embeddings {found} and deepstack {deepstack}; allowed: [M, {model.hidden_size}] and "
            f"[layers, M, {model.hidden_size}], M at least the prompt's {image_tokens} picture tokens"
        )


def _check_room(model: Model, rows: list[np.ndarray], configs: list[SamplingConfig]) -> None:
    for i, (row, config) in enumerate(zip(rows, configs, strict=True)):
        needed = len(row) + config.max_new_tokens
        if needed > model.context_length:
            raise InputError(
                f"row {i}: {len(row)} prompt tokens + max_new_tokens {config.max_new_tokens} = {needed}; "
                f"allowed: up to {model.context_length}, the model's context"
            )


def padded_prompt(
    model: Model, grid_thw: np.ndarray, rows: list[np.ndarray], padding: int, width: int
) -> Prompt:
    """Token rows, and `padding` rows of one token behind them, in rows of `width`; pictures in order.

    Raises:
        InputError: the picture tokens do not match `grid_thw`.
    """
    rows = rows + [np.zeros(1, np.int32)] * padding
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(r) for r in rows], np.int32)
    positions, deltas = model.prompt_positions(tokens, grid_thw, lengths)
    seen = (tokens == model.image_pad_id) & (np.arange(width) < lengths[:, None])
    vision_rows = np.where(seen, np.cumsum(seen).reshape(seen.shape) - 1, -1).astype(np.int32)
    return Prompt(tokens, positions, lengths, deltas, vision_rows)


def _row_keys(rng: Any, configs: list[SamplingConfig], rows: int, padding: int) -> UInt32[Array, "B words"]:
    """Raw words: a typed key would be unwrapped in Python at each step."""
    if not isinstance(rng, Array | np.ndarray):
        raise SettingsError(f"rng: {type(rng).__name__}; allowed: a key, as jax.random.key(seed) makes it")
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(rng) if typed else rng
    if words.shape not in ((2,), (rows, 2)) or words.dtype != np.uint32:
        given = f"{list(rng.shape)} {rng.dtype}"
        raise SettingsError(f"rng: {given} for {rows} rows; allowed: one threefry key, or one per row")
    seeds = np.array([-1 if c.seed is None else c.seed for c in configs] + [0] * padding, np.int64)
    if words.ndim == 2:
        words = words[np.minimum(np.arange(rows + padding), rows - 1)]
    return _mix_keys(words, (seeds & 0xFFFFFFFF).astype(np.uint32), seeds >= 0)


@jax.jit
def _mix_keys(words: UInt32[Array, "..."], seeds: Array, seeded: Array) -> UInt32[Array, "B words"]:
    rows = np.arange(seeds.shape[0])
    own = words if words.ndim == 2 else jax.vmap(jax.random.fold_in, (None, 0))(words, rows)
    return jnp.where(seeded[:, None], jax.vmap(jax.random.PRNGKey)(seeds), own)
