"""Pure functions from a model's logits to a drawn token and its log-probability, a row per sequence.

All that a request may choose is a traced array with a value per row, so other values never compile again; on
a GPU, which parts any row asks for at all is part of the program (`Wanted`). The order and the kept sets are
those of transformers' logits processors: penalties, bias, temperature, top-k, top-p, min-p, exact over the
whole vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt32

from models.errors import SettingsError
from models.kernels.choice import on_cpu
from sample.config import SamplingConfig
from sample.loops import History, blocked_followers, may_block

HostOrDevice = Array | np.ndarray

_ONE = 2.0**31  # the integer that stands for a probability of 1
_ROUNDING = 64  # of it: half of float32's last place below 1


@jax.tree_util.register_static
@dataclass(frozen=True)
class Wanted:
    """What at least one row asks for, as far as that is known while tracing: what is False is left out.

    On a CPU the program itself looks whether any row wants a part, and other requests never compile again.
    A GPU would wait for the host at each such branch: there it is part of the program.
    """

    noise: bool = True
    top_k: bool = True
    top_p: bool = True
    min_p: bool = True
    processed: bool = True
    ngrams: bool = True
    penalties: bool = True
    bias: bool = True
    ignored_eos: bool = True

    @classmethod
    def by(cls, configs: Sequence[SamplingConfig]) -> "Wanted":
        """Of these rows."""
        if on_cpu():
            return cls()
        drawing = [config for config in configs if config.temperature > 0]
        return cls(
            noise=bool(drawing),
            top_k=any(config.top_k > 0 for config in drawing),
            top_p=any(config.top_p < 1 for config in drawing),
            min_p=any(config.min_p > 0 for config in drawing),
            processed=any(config.logprobs == "processed" for config in configs),
            ngrams=any(config.no_repeat_ngram_size > 0 for config in configs),
            penalties=any(
                (config.repetition_penalty, config.presence_penalty, config.frequency_penalty) != (1, 0, 0)
                for config in configs
            ),
            bias=any(config.logit_bias for config in configs),
            ignored_eos=any(config.ignore_eos for config in configs),
        )

    @classmethod
    def noise_or_all(cls, configs: Sequence[SamplingConfig]) -> "Wanted":
        """Of these rows, for who may have two programs and no more: with what costs little, or everything."""
        little = {"noise": True, "penalties": True, "bias": True, "ignored_eos": True}
        few = replace(cls(*(False for _ in fields(cls))), **little)
        return few if replace(cls.by(configs), **little) == few else cls()


class SamplingParams(NamedTuple):
    """What each row asks for. Arrays of B rows; K and E are rounded up so that few shapes occur."""

    temperature: Float[HostOrDevice, " B"]  # 0 is greedy
    top_k: Int32[HostOrDevice, " B"]  # 0 is off
    top_p: Float[HostOrDevice, " B"]  # 1 is off
    min_p: Float[HostOrDevice, " B"]  # 0 is off
    repetition_penalty: Float[HostOrDevice, " B"]  # 1 is off
    presence_penalty: Float[HostOrDevice, " B"]
    frequency_penalty: Float[HostOrDevice, " B"]
    bias_ids: Int32[HostOrDevice, "B K"]  # -1 is unused
    bias_values: Float[HostOrDevice, "B K"]
    eos_ids: Int32[HostOrDevice, "B E"]  # -1 is unused
    max_new_tokens: Int32[HostOrDevice, " B"]
    processed_logprobs: Bool[HostOrDevice, " B"]  # False: log-probabilities of the raw logits
    no_repeat_ngram_size: Int32[HostOrDevice, " B"]  # 0 is off
    no_repeat_ngram_threshold: Int32[HostOrDevice, " B"]
    no_repeat_ngram_window: Int32[HostOrDevice, " B"]
    no_repeat_ngram_exempt: Int32[HostOrDevice, "B X"]  # -1 is unused
    max_pattern_repeats: Int32[HostOrDevice, " B"]  # 0 is off
    ignore_eos: Bool[HostOrDevice, " B"]
    wanted: Wanted = Wanted()


class LogProbabilities(NamedTuple):
    """Natural logarithms of probabilities: of each row's token, and of its likeliest tokens, best first."""

    token: Float[Array, " B"]
    raw: Float[Array, " B"]  # the token's under the raw logits, whatever the row asks for
    top_ids: Int32[Array, "B n"]
    top: Float[Array, "B n"]


def sampling_params(configs: Sequence[SamplingConfig], *, vocab_size: int | None = None) -> SamplingParams:
    """Stacks one configuration per row into host (numpy) arrays.

    Raises:
        SettingsError: `vocab_size` is given and a logit bias names a token beyond it.
    """
    biases = [dict(config.logit_bias) for config in configs]
    for token in (token for bias in biases for token in bias):
        if vocab_size is not None and token >= vocab_size:
            raise SettingsError(f"logit_bias: got token id {token}; allowed: 0 to {vocab_size - 1}")

    def column(name, dtype):
        return np.array([getattr(config, name) for config in configs], dtype)

    return SamplingParams(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        bias_ids=_ragged([list(bias) for bias in biases], 16, -1, np.int32),
        bias_values=_ragged([list(bias.values()) for bias in biases], 16, 0, np.float32),
        eos_ids=_ragged([config.eos_ids for config in configs], 4, -1, np.int32),
        max_new_tokens=column("max_new_tokens", np.int32),
        processed_logprobs=np.array([config.logprobs == "processed" for config in configs]),
        no_repeat_ngram_size=column("no_repeat_ngram_size", np.int32),
        no_repeat_ngram_threshold=column("no_repeat_ngram_threshold", np.int32),
        no_repeat_ngram_window=column("no_repeat_ngram_window", np.int32),
        no_repeat_ngram_exempt=_ragged([c.exempt_ids for c in configs], 4, -1, np.int32),
        max_pattern_repeats=column("max_pattern_repeats", np.int32),
        ignore_eos=column("ignore_eos", bool),
        wanted=Wanted.by(configs),
    )


def _ragged(rows: Sequence[Sequence], width: int, fill: int, dtype) -> np.ndarray:
    """Rows of different lengths in one array, `width` or the next double of it that holds them all."""
    while width < max(map(len, rows), default=0):
        width *= 2
    array = np.full((len(rows), width), fill, dtype)
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values
    return array


def allowed_logits(
    logits: Float[HostOrDevice, "B V"], params: SamplingParams, history: History
) -> tuple[Float[Array, "B V"], Bool[Array, " B"]]:
    """The raw logits, -inf at tokens that may not come, and the rows of which loops have taken all tokens.

    Args:
        logits: of the next token, float32.
        params: one row per sequence.
        history: the tokens so far; with none watched, no n-gram is looked for.
    """
    logits = _where_wanted(
        params.ignore_eos,
        partial(_without_eos, params),
        jnp.asarray(logits),
        possible=params.wanted.ignored_eos,
    )
    if not history.matched.shape[1]:
        return logits, jnp.zeros(logits.shape[0], bool)
    size, threshold = params.no_repeat_ngram_size, params.no_repeat_ngram_threshold
    window, exempt = params.no_repeat_ngram_window, params.no_repeat_ngram_exempt

    def unlooped(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        blocked = blocked_followers(history, size, threshold, window, exempt, logits.shape[-1])
        return jnp.where(blocked, -jnp.inf, logits)

    looping = may_block(history, size, threshold, window)
    allowed = _where_wanted(looping, unlooped, logits, possible=params.wanted.ngrams)
    return allowed, (logits > -jnp.inf).any(-1) & ~(allowed > -jnp.inf).any(-1)


def _without_eos(params: SamplingParams, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    B, V = logits.shape
    unwanted = params.ignore_eos[:, None] & (params.eos_ids >= 0)
    return logits.at[jnp.arange(B)[:, None], jnp.where(unwanted, params.eos_ids, V)].set(
        -jnp.inf, mode="drop"
    )


def process_logits(
    logits: Float[HostOrDevice, "B V"],
    params: SamplingParams,
    prompt_mask: Bool[HostOrDevice, "B V"],
    counts: Int[HostOrDevice, "B V"],
) -> Float[Array, "B V"]:
    """The logits that a token is drawn from; tokens that the filters removed are -inf.

    A row of temperature 0 has its penalties and bias applied and nothing else. NaN counts as -inf.

    Args:
        logits: of the next token, float32, from `allowed_logits`.
        params: one row per sequence.
        prompt_mask: the tokens that occur in the row's prompt (without padding).
        counts: how often the row has generated each token.
    """
    logits = jnp.asarray(logits)
    if params.wanted.penalties:
        logits = _penalised(logits, params, prompt_mask, counts)
    if params.wanted.bias:
        logits = _biased(logits, params)
    logits = _finite(logits)
    if not params.wanted.noise:
        return logits
    greedy = (params.temperature <= 0)[:, None]
    scaled = _finite(logits / jnp.where(greedy, 1.0, params.temperature[:, None]))
    drawing = params.temperature > 0
    for keep, possible, wanted in (
        (_keep_top_k, params.wanted.top_k, params.top_k > 0),
        (_keep_top_p, params.wanted.top_p, params.top_p < 1),
        (_keep_min_p, params.wanted.min_p, params.min_p > 0),
    ):
        scaled = _where_wanted(drawing & wanted, partial(_filtered, keep, params), scaled, possible=possible)
    return jnp.where(greedy, logits, scaled)


def _filtered(
    keep: Callable[[Array, SamplingParams], Array], params: SamplingParams, logits: Float[Array, "B V"]
) -> Float[Array, "B V"]:
    return jnp.where(keep(logits, params), logits, -jnp.inf)


def _where_wanted(
    wanted: Bool[HostOrDevice, " B"],
    work: Callable[[Any], Array],
    given: Float[HostOrDevice, "B *V"],
    *,
    possible: bool = True,
) -> Float[Array, "B *V"]:
    """`work(given)`, left out where no row can want it, or, on a CPU, where none is found to."""
    if not possible:
        return jnp.asarray(given)
    if not on_cpu():
        return work(given)
    return lax.cond(wanted.any(), work, lambda unchanged: unchanged, given)


def _penalised(
    logits: Float[HostOrDevice, "B V"],
    params: SamplingParams,
    prompt_mask: Bool[HostOrDevice, "B V"],
    counts: Int[HostOrDevice, "B V"],
) -> Float[Array, "B V"]:
    generated = counts > 0
    repetition = params.repetition_penalty[:, None]
    repeated = jnp.where(logits < 0, logits * repetition, logits / repetition)
    logits = jnp.where(prompt_mask | generated, repeated, logits)
    return logits - params.presence_penalty[:, None] * generated - params.frequency_penalty[:, None] * counts


def _biased(logits: Float[Array, "B V"], params: SamplingParams) -> Float[Array, "B V"]:
    B, V = logits.shape
    # An index of -1 would wrap around to the last token; V is out of range and so dropped.
    ids = jnp.where(params.bias_ids < 0, V, params.bias_ids)
    return logits.at[jnp.arange(B)[:, None], ids].add(params.bias_values, mode="drop")


def _finite(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """NaN as -inf, and +inf as the largest number, so that differences of logits are never NaN."""
    return jnp.minimum(jnp.where(jnp.isnan(logits), -jnp.inf, logits), jnp.finfo(logits.dtype).max)


def _keep_top_k(logits: Float[Array, "B V"], params: SamplingParams) -> Bool[Array, "B V"]:
    """The k largest logits and all that equal the k-th (transformers' TopKLogitsWarper)."""
    V = logits.shape[-1]
    k = jnp.where(params.top_k <= 0, V, jnp.minimum(params.top_k, V))
    order = _ordered(logits)
    smallest = _select(order, jnp.ones_like(order), (V - k).astype(jnp.uint32))
    return order >= smallest[:, None]


def _keep_top_p(logits: Float[Array, "B V"], params: SamplingParams) -> Bool[Array, "B V"]:
    """All but the least likely tokens that together have a probability of at most 1 - p.

    This is transformers' TopPLogitsWarper: it sorts upwards and removes while the cumulative probability is
    at most 1 - p, never the last. Of equal logits at the border those of smaller ids go (a stable sort).
    """
    order = _ordered(logits)
    # Integers are summed without rounding in any order, so that a row's kept set depends on that row alone.
    mass = jnp.round(jax.nn.softmax(logits) * _ONE).astype(jnp.uint32)
    total = jnp.sum(mass, axis=-1, dtype=jnp.uint32)
    # The warper compares float32 numbers: a border that is exact but for their rounding counts as reached.
    share = ((1 - params.top_p) * total.astype(jnp.float32)).astype(jnp.uint32) + _ROUNDING
    budget = jnp.minimum(share, total - 1)[:, None]
    border = _select(order, mass, budget[:, 0])[:, None]
    below, tied = order < border, order == border
    spent = jnp.sum(jnp.where(below, mass, 0), axis=-1, keepdims=True, dtype=jnp.uint32)
    removed = below | (tied & (spent + jnp.cumsum(tied, axis=-1, dtype=jnp.uint32) * mass <= budget))
    return ~removed | (params.top_p >= 1)[:, None]


def _keep_min_p(logits: Float[Array, "B V"], params: SamplingParams) -> Bool[Array, "B V"]:
    """Tokens of at least `min_p` times the likeliest one's probability (transformers' MinPLogitsWarper)."""
    probabilities = jax.nn.softmax(logits)
    likeliest = jnp.max(probabilities, axis=-1, keepdims=True)
    return probabilities >= params.min_p[:, None] * likeliest


def _ordered(logits: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Unsigned integers in the order of the logits, equal where they are equal."""
    logits = jnp.where(logits == 0, 0.0, logits)  # -0.0 equals 0.0 but has other bits
    bits = lax.bitcast_convert_type(logits, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _select(
    order: UInt32[Array, "B V"], mass: UInt32[Array, "B V"], budget: UInt32[Array, " B"]
) -> UInt32[Array, " B"]:
    """The largest t such that all entries with order < t have at most `budget` mass together.

    While the whole row's mass exceeds the budget, t is the order of an entry: the one that crosses it when
    the entries are added up in ascending order. Decides a few bits of t in each of a fixed number of passes:
    no sort of the vocabulary, and no loop whose length depends on data. Two bits cost a CPU as much as one;
    a GPU pays for each pass, and for the loop.
    """
    cpu = on_cpu()
    bits = 2 if cpu else 4
    digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)

    def decide(i, t):
        shift = jnp.asarray(32 - bits * (i + 1), jnp.uint32)
        candidates = t[:, None, None] + (digits << shift)[None, :, None]
        below = jnp.where(order[:, None, :] < candidates, mass[:, None, :], jnp.uint32(0))
        fits = jnp.sum(below, axis=-1, dtype=jnp.uint32) <= budget[:, None]
        return t + (jnp.sum(fits, axis=-1, dtype=jnp.uint32) << shift)

    return lax.fori_loop(0, 32 // bits, decide, jnp.zeros_like(budget), unroll=not cpu)


def draw(
    keys: UInt32[HostOrDevice, "B words"] | Key[Array, " B"],
    processed: Float[HostOrDevice, "B V"],
    params: SamplingParams,
) -> Int32[Array, " B"]:
    """One token per row, by the Gumbel-max trick with the row's own key: the same alone and in a batch.

    Rows of temperature 0 take the largest logit, the smallest id where several are equal.

    Args:
        keys: one per row, old-style (raw words) or new-style (typed).
        processed: from `process_logits`.
        params: the same as there.
    """

    # "high": with the default's 23 random bits the largest Gumbel numbers of a large vocabulary collide.
    def noisy(scores: Float[Array, "B V"]) -> Float[Array, "B V"]:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[-1:], scores.dtype, mode="high"))(
            keys
        )
        return jnp.where(drawing[:, None], scores + noise, scores)

    drawing = params.temperature > 0
    scores = _where_wanted(drawing, noisy, processed, possible=params.wanted.noise)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def log_probabilities(
    logits: Float[HostOrDevice, "B V"],
    processed: Float[HostOrDevice, "B V"],
    tokens: Int[HostOrDevice, " B"],
    params: SamplingParams,
    top_n: int = 0,
) -> LogProbabilities:
    """Log-softmax of the raw or the processed logits, as each row asks: of its token and of its best `top_n`.

    Args:
        logits: raw, as the model gave them.
        processed: from `process_logits`.
        tokens: the drawn ones.
        params: the same as there.
        top_n: static; ties go to the smaller id.
    """
    chosen = logits
    if params.wanted.processed:
        chosen = jnp.where(params.processed_logprobs[:, None], processed, logits)
    chosen = jax.nn.log_softmax(chosen)
    token = _at(chosen, tokens)
    raw = _where_wanted(
        params.processed_logprobs,
        lambda _: _at(jax.nn.log_softmax(logits), tokens),
        token,
        possible=params.wanted.processed,
    )
    top, top_ids = lax.top_k(chosen, top_n)
    return LogProbabilities(token, raw, top_ids, top)


def _at(values: Float[Array, "B V"], tokens: Int[HostOrDevice, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]
