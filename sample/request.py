"""From what a caller hands over to the arrays of the step: checked, compacted and padded to buckets."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from models.buckets import bucket
from models.errors import InputError, SettingsError
from models.qwen3_vl import Qwen3VL, VisionEmbeddings
from sample.config import SamplingConfig
from sample.inputs import VLMInputs
from sample.logits import SamplingParams, sampling_params
from sample.step import Prompt

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
    slots: int
    top: int


def make_request(
    model: Qwen3VL,
    inputs: VLMInputs | Array | np.ndarray,
    configs: SamplingConfig | Sequence[SamplingConfig],
    rng: Array,
) -> Request:
    """Check the inputs against the model and round all sizes up to buckets.

    Args:
        inputs: pictures and prompts, or `[B, T]` token ids for text alone.
        configs: one for all rows, or one per row.
        rng: one key (row i gets `fold_in(rng, i)`) or B keys; old-style or new-style.

    Raises:
        InputError: the tokens are no ids of this model, or do not fit its context.
        SettingsError: a number of configurations or keys that is not the number of rows.
    """
    if not isinstance(inputs, VLMInputs):
        inputs = VLMInputs(inputs, None, np.zeros((0, 3), np.int32), model.image_pad_id)
    rows = _rows(model, inputs)
    configs = [configs] * len(rows) if isinstance(configs, SamplingConfig) else list(configs)
    if len(configs) != len(rows):
        raise SettingsError(
            f"sampling: {len(configs)} configurations for {len(rows)} rows; allowed: one, or one per row"
        )
    _check_room(model, rows, configs)
    longest = max(map(len, rows))
    padding = bucket(len(rows), 1) - len(rows)
    prompt = _prompt(model, inputs, rows, padding, bucket(longest, _SHORTEST_PROMPT))
    needed = max(len(r) + c.max_new_tokens for r, c in zip(rows, configs, strict=True))
    return Request(
        configs=configs,
        lengths=[len(r) for r in rows],
        image_tokens=sum(int((r == inputs.image_pad_id).sum()) for r in rows),
        prompt=prompt,
        vision=inputs.vision,
        sampling=jax.device_put(sampling_params(configs + [_PADDING] * padding, vocab_size=model.vocab_size)),
        key=_row_keys(rng, configs, len(rows), padding),
        slots=bucket(max(needed, prompt.tokens.shape[1]), _SMALLEST_CACHE),
        top=_MOST_ALTERNATIVES if any(c.top_logprobs for c in configs) else 0,
    )


def _rows(model: Qwen3VL, inputs: VLMInputs) -> list[np.ndarray]:
    tokens = np.asarray(inputs.prompt_tokens)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(
            f"prompt_tokens: {tokens.dtype}{list(tokens.shape)}; allowed: integers [B, T], neither 0"
        )
    if inputs.image_pad_id != model.image_pad_id:
        raise InputError(f"image_pad_id: {inputs.image_pad_id}; this model's is {model.image_pad_id}")
    mask = (
        np.ones(tokens.shape, bool)
        if inputs.attention_mask is None
        else np.asarray(inputs.attention_mask, bool)
    )
    if mask.shape != tokens.shape:
        raise InputError(f"attention_mask: {list(mask.shape)}; prompt_tokens are {list(tokens.shape)}")
    rows = [t[m].astype(np.int32) for t, m in zip(tokens, mask, strict=True)]
    for i, row in enumerate(rows):
        if not len(row):
            raise InputError(f"prompt_tokens: row {i} is empty; allowed: one token or more")
        if row.min() < 0 or row.max() >= model.vocab_size:
            raise InputError(f"prompt_tokens: row {i} has ids outside 0..{model.vocab_size - 1}")
        if inputs.vision is None and (row == model.image_pad_id).any():
            raise InputError(f"prompt_tokens: row {i} has picture tokens, but vision is None")
    return rows


def _check_room(model: Qwen3VL, rows: list[np.ndarray], configs: list[SamplingConfig]) -> None:
    for i, (row, config) in enumerate(zip(rows, configs, strict=True)):
        needed = len(row) + config.max_new_tokens
        if needed > model.context_length:
            raise InputError(
                f"row {i}: {len(row)} prompt tokens + max_new_tokens {config.max_new_tokens} = {needed}; "
                f"allowed: up to {model.context_length}, the model's context"
            )


def _prompt(model: Qwen3VL, inputs: VLMInputs, rows: list[np.ndarray], padding: int, width: int) -> Prompt:
    rows = rows + [np.zeros(1, np.int32)] * padding
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(r) for r in rows], np.int32)
    positions, deltas = model.prompt_positions(tokens, np.asarray(inputs.grid_thw), lengths)
    return Prompt(tokens, positions, lengths, deltas)


def _row_keys(rng: Array, configs: list[SamplingConfig], rows: int, padding: int) -> UInt32[Array, "B words"]:
    """Raw words: a typed key would be unwrapped in Python at each step."""
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(rng) if typed else rng
    if words.shape not in ((2,), (rows, 2)):
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
