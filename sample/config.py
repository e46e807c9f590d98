"""What a caller may choose for one sequence: values, ranges, and the errors when they are wrong."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, no_type_check

import numpy as np

from models.errors import SettingsError

# Wide enough for any use, narrow enough that float32 logits stay finite after they are divided or multiplied.
_FLOAT_RANGES = {
    "temperature": (1e-6, 1e6),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INT_RANGES = {
    "top_k": (0, 2**31 - 1),
    "max_new_tokens": (1, 2**31 - 1),
    "pad_id": (0, 2**31 - 1),
    "top_logprobs": (0, 20),
    "no_repeat_ngram_threshold": (1, 1000),
    "no_repeat_ngram_window": (64, 65536),
}
_OFF_OR_RANGES = {
    "no_repeat_ngram_size": (2, 32),
    "max_pattern_repeats": (2, 1000),
}
_BIAS_RANGE = (-100.0, 100.0)
_FROM_GENERATION = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class SamplingConfig:
    """How the tokens of one sequence are drawn and when it ends. Immutable and hashable.

    Filters apply in transformers' order: penalties, logit bias, temperature, top-k, top-p, min-p. Before them
    all, tokens that would repeat an n-gram once too often are removed; see `sample/loops.py`.

    Attributes:
        temperature: 0 is greedy (the filters then have no effect), else 1e-6 to 1e6.
        top_k: keep the k largest logits and all that equal the k-th; 0 is off.
        top_p: keep the smallest set of likeliest tokens whose probability reaches it; 1 is off.
        min_p: drop tokens below this fraction of the likeliest token's probability; 0 is off.
        repetition_penalty: as in transformers, over prompt and generated tokens; 1 is off.
        presence_penalty: as in OpenAI's API, once for every token generated so far; 0 is off.
        frequency_penalty: the same, times how often the token was generated.
        logit_bias: token id -> value added to its logit, -100 to 100. Kept as sorted pairs.
        max_new_tokens: at least 1.
        eos_id: one id or several; each ends the sequence. Kept as a tuple.
        pad_id: fills the rows of a batch that ended early.
        stop: one string or several; each ends the sequence and is not shown. Kept as a tuple.
        logprobs: of the "raw" logits (the model's own), or of the "processed" ones that are drawn from.
        top_logprobs: how many of the likeliest alternatives to report, at most 20.
        seed: this sequence's own, 0 to 2**32 - 1; None takes the caller's key.
        no_repeat_ngram_size: n, 2 to 32: a token cannot be drawn if the n-gram that it would complete, prompt
            included, was already there `no_repeat_ngram_threshold` times; 0 is off. Where no token is left,
            the sequence ends with reason "repetition".
        no_repeat_ngram_threshold: 1 is transformers' rule; with 2, the third occurrence is kept from coming.
        no_repeat_ngram_window: the latest tokens, in which the occurrences are counted.
        no_repeat_ngram_exempt: one id or several that are always left, as in tables. Kept as a tuple.
        max_pattern_repeats: k, 2 to 1000: the sequence ends with reason "repetition" when its last generated
            tokens are k times the same 1 to 64 tokens; 0 is off.
        ignore_eos: the end tokens cannot be drawn.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    max_new_tokens: int = 512
    eos_id: int | Sequence[int] = ()
    pad_id: int = 0
    stop: str | Sequence[str] = ()
    logprobs: Literal["raw", "processed"] = "raw"
    top_logprobs: int = 0
    seed: int | None = None
    no_repeat_ngram_size: int = 0
    no_repeat_ngram_threshold: int = 2
    no_repeat_ngram_window: int = 4096
    no_repeat_ngram_exempt: int | Sequence[int] = ()
    max_pattern_repeats: int = 0
    ignore_eos: bool = False

    def __post_init__(self):
        for name, (low, high) in _INT_RANGES.items():
            self._set(name, integer(name, getattr(self, name), low, high))
        for name, (low, high) in _OFF_OR_RANGES.items():
            self._set(name, _off_or_integer(name, getattr(self, name), low, high))
        for name, (low, high) in _FLOAT_RANGES.items():
            self._set(name, number(name, getattr(self, name), low, high, zero=name == "temperature"))
        self._set("top_p", _top_p(self.top_p))
        self._set("logit_bias", _bias(self.logit_bias))
        self._set("eos_id", _ids("eos_id", self.eos_id))
        self._set("no_repeat_ngram_exempt", _ids("no_repeat_ngram_exempt", self.no_repeat_ngram_exempt))
        self._set("stop", _strings("stop", self.stop))
        if not isinstance(self.logprobs, str) or self.logprobs not in ("raw", "processed"):
            raise refusal("logprobs", self.logprobs, "raw or processed")
        if self.seed is not None:
            self._set("seed", integer("seed", self.seed, 0, 2**32 - 1))
        if not isinstance(self.ignore_eos, bool | np.bool_):
            raise refusal("ignore_eos", self.ignore_eos, "True or False")
        self._set("ignore_eos", bool(self.ignore_eos))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the class is frozen: values are normalised once, here

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """`eos_id`, as the tuple it is kept as."""
        return self.eos_id  # pyright: ignore[reportReturnType]

    @property
    def exempt_ids(self) -> tuple[int, ...]:
        """`no_repeat_ngram_exempt`, as the tuple it is kept as."""
        return self.no_repeat_ngram_exempt  # pyright: ignore[reportReturnType]

    @classmethod
    def from_generation(cls, generation: Mapping[str, Any], **overrides: Any) -> "SamplingConfig":
        """The defaults of a checkpoint's `generation_config.json`, with the caller's own choices on top.

        `do_sample: false` there means temperature 0. Keys that are not about sampling are not read; a value
        of None, on either side, means "not given".

        Raises:
            SettingsError: an override is unknown, or a value is wrong.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in overrides:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise SettingsError(f"{name}: unknown sampling setting; {hint}allowed: {', '.join(names)}")
        values = {name: generation.get(name) for name in _FROM_GENERATION}
        if generation.get("do_sample") is False:
            values["temperature"] = 0.0
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls(**{name: value for name, value in values.items() if value is not None})


def refusal(name: str, value: object, allowed: str) -> SettingsError:
    shown = repr(value).replace("\n", " ")
    return SettingsError(
        f"{name}: got {shown if len(shown) <= 80 else shown[:77] + '...'}; allowed: {allowed}"
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def integer(name: str, value: Any, low: int, high: int) -> int:
    if not _is_integer(value) or not low <= value <= high:
        raise refusal(name, value, f"an integer from {low} to {high}")
    return int(value)


def _off_or_integer(name: str, value: Any, low: int, high: int) -> int:
    if not _is_integer(value) or not (value == 0 or low <= value <= high):
        raise refusal(name, value, f"0 (off) or an integer from {low} to {high}")
    return int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


def number(name: str, value: Any, low: float, high: float, zero: bool = False) -> float:
    if not _is_number(value) or not (low <= value <= high or (zero and value == 0)):
        raise refusal(name, value, f"{'0 (greedy) or ' if zero else ''}a number from {low:g} to {high:g}")
    return float(value)


def _top_p(value: Any) -> float:
    if not _is_number(value) or not 0 < value <= 1:
        raise refusal("top_p", value, "a number above 0, at most 1")
    return float(value)


def _is_sequence(value: object) -> bool:
    # An array without axes is an Iterable that cannot be iterated.
    iterable = isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0
    return iterable and not isinstance(value, bytes | Mapping)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    ids = (value,) if _is_integer(value) else value
    if not _is_sequence(ids) or isinstance(ids, str):
        raise refusal(name, value, "a token id or a sequence of token ids")
    return tuple(integer(name, token, 0, 2**31 - 1) for token in ids)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    allowed = "a non-empty string or a sequence of them"
    if not _is_sequence(strings):
        raise refusal(name, value, allowed)
    strings = tuple(strings)
    if not all(isinstance(string, str) and string for string in strings):
        raise refusal(name, value, allowed)
    return strings


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    allowed = "a mapping from token id to a number from -100 to 100"
    try:
        pairs = dict(value).items()
    except (TypeError, ValueError):
        raise refusal("logit_bias", value, allowed) from None
    for token, bias in pairs:
        if not _is_integer(token) or not 0 <= token < 2**31:
            raise refusal("logit_bias", token, f"{allowed} (this key is no token id)")
        number(f"logit_bias[{token}]", bias, *_BIAS_RANGE)
    return tuple(sorted((int(token), float(bias)) for token, bias in pairs))
