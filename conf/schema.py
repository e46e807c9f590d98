"""The settings of `run.py` and `run_streaming.py`.

Each dataclass is a Hydra group. A field's metadata says what it means (`help`) and what it accepts
(`allowed`, `limits`); the commands' `--help` and their error lines are made from it. `typed_by_user` marks
text and paths: their values are taken as they were typed and never pass through Hydra's grammar.
"""
# ruff: noqa: RUF009  (the functions called in the dataclasses return fields)

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both inside.

    `above` leaves `low` out; `or_zero` lets 0 in, too.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    or_zero: bool = False

    def __contains__(self, number: float) -> bool:
        if self.or_zero and number == 0:
            return True
        inside = math.isfinite(number) and self.low <= number <= self.high
        return inside and not (self.above and number == self.low)

    def __str__(self) -> str:
        bounds = [] if self.low == -math.inf else [f"{'>' if self.above else '>='} {self.low:.10g}"]
        if self.high != math.inf:
            bounds.append(f"<= {self.high:.10g}")
        return ("0 or " if self.or_zero else "") + " and ".join(bounds)


TOKEN_IDS = Range(0, 2**31 - 1)


def _field(default: Any, **metadata: Any) -> Any:
    """A dataclass field; a list or dictionary as `default` stands for a fresh copy of it."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def setting(default: Any, meaning: str, allowed: str) -> Any:
    return _field(default, help=meaning, allowed=allowed, limits=None, typed_by_user=False)


def typed(default: Any, meaning: str, allowed: str) -> Any:
    return _field(default, help=meaning, allowed=allowed, limits=None, typed_by_user=True)


def number(default: Any, meaning: str, kind: str, limits: Range, note: str = "") -> Any:
    null = "or null" if default is None and "null" not in note else ""
    allowed = " ".join(filter(None, [kind, str(limits), note, null]))
    return _field(default, help=meaning, allowed=allowed, limits=limits, typed_by_user=False)


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Logprobs(Enum):
    raw = "raw"
    processed = "processed"


class Format(Enum):
    text = "text"
    jsonl = "jsonl"


class Policy(Enum):
    stop = "stop"
    reseed = "reseed"
    shift = "shift"
    window = "window"


class SummaryFormat(Enum):
    auto = "auto"
    chat = "chat"
    slim = "slim"


@dataclass
class ModelSettings:
    name: str = typed(
        "embedded",
        "the checkpoint",
        "'embedded' (ships with Saccade), a directory in Hugging Face format, or a hub id",
    )
    dtype: Dtype | None = setting(
        None, "type of weights and computation", "float32, bfloat16, float16, or null: what suits the device"
    )


@dataclass
class SamplingSettings:
    """null: what the checkpoint's generation_config.json says, else `sample.SamplingConfig`'s own default."""

    temperature: float | None = number(
        None, "spread of the distribution", "a number", Range(1e-6, 1e6, or_zero=True), "(0: greedy)"
    )
    top_k: int | None = number(
        None, "keep the k likeliest tokens", "an integer", Range(0, 2**31 - 1), "(0: off)"
    )
    top_p: float | None = number(
        None,
        "keep the likeliest tokens that together reach this probability",
        "a number",
        Range(0, 1, above=True),
    )
    min_p: float | None = number(
        None, "drop tokens below this share of the likeliest one's probability", "a number", Range(0, 1)
    )
    repetition_penalty: float | None = number(
        None, "weaken tokens that prompt or answer holds", "a number", Range(0.01, 100), "(1: off)"
    )
    presence_penalty: float | None = number(
        None, "taken off the logit of each token in the answer", "a number", Range(-2, 2), "(0: off)"
    )
    frequency_penalty: float | None = number(
        None,
        "taken off it for each time that the answer holds the token",
        "a number",
        Range(-2, 2),
        "(0: off)",
    )
    logit_bias: dict[int, float] = number(
        {},
        "added to the logits of single tokens",
        f"{{token_id:bias,...}}, each id {TOKEN_IDS}, each bias",
        Range(-100, 100),
    )
    no_repeat_ngram_size: int | None = number(
        None,
        "block what would complete a sequence of so many tokens that prompt and answer hold already",
        "an integer",
        Range(2, 32, or_zero=True),
        "(0: off), or null: 6 in an endless stream, else 0",
    )
    no_repeat_ngram_threshold: int | None = number(
        None, "how often they hold it before it is blocked; null: 2", "an integer", Range(1, 1000)
    )
    no_repeat_ngram_window: int | None = number(
        None,
        "in how many of the latest tokens that is looked for; null: 4096",
        "an integer",
        Range(64, 65536),
    )
    no_repeat_ngram_exempt: list[int] | None = number(
        None, "tokens that are never blocked", "a list [id,...] of integers", TOKEN_IDS
    )
    max_pattern_repeats: int | None = number(
        None,
        "end with reason repetition behind so many repeats in a row of the same 1 to 64 tokens",
        "an integer",
        Range(2, 1000, or_zero=True),
        "(0: off)",
    )
    max_new_tokens: int | None = number(
        None,
        "the longest answer, in tokens",
        "an integer",
        Range(1, 2**31 - 1),
        "or null: no limit in an endless stream",
    )
    eos_id: list[int] | None = number(
        None, "tokens that end the answer", "a list [id,...] of integers", TOKEN_IDS
    )
    ignore_eos: bool | None = setting(
        None, "tokens that end the answer are never drawn", "true, false, or null: true in an endless stream"
    )
    pad_id: int | None = number(None, "stands after the end of a shorter row", "an integer", TOKEN_IDS)
    stop: list[str] = typed(
        [], "texts that end the answer and are not shown", "one text, a list [a,b], or null"
    )
    logprobs: Logprobs = setting(
        Logprobs.raw, "log-probabilities before or after temperature and filters", "raw or processed"
    )
    top_logprobs: int = number(
        0, "alternatives listed beside each token by output=jsonl", "an integer", Range(0, 20)
    )
    seed: int = number(42, "same seed, same answer", "an integer", Range(0, 2**32 - 1))


@dataclass
class InferenceSettings:
    image: list[str] = typed(
        [],
        "the picture; without it, text only",
        "a path, a list [a.png,b.png] of pictures for one prompt, null, or (run.py) a directory: a batch",
    )
    prompt: str = typed("Describe this image", "what to ask", "any text, as typed")
    prompts: list[str] = typed([], "several prompts (run.py): a batch", "a list [a,b]")
    prompts_file: str | None = typed(None, "the same, a prompt on each line", "a path")
    system: str | None = typed(None, "a system message before the prompt", "any text, as typed")
    max_image_pixels: int | None = number(
        None, "refuse a picture of more pixels, before decoding it", "an integer", Range(1)
    )


@dataclass
class SummarySettings:
    enabled: bool | None = setting(
        None,
        "what leaves the cache is summarised beside the stream, and the summary stands behind the sinks",
        "true, false, or null: true with stream.policy=reseed; which one is ready when depends on "
        "time, so the seed alone does not repeat such a stream",
    )
    model: str | None = typed(
        None, "the checkpoint that summarises; without one, the model itself", "as for model.name"
    )
    format: SummaryFormat = setting(
        SummaryFormat.auto,
        "how it is asked",
        "chat (by the chat template), slim (the prompt of slim-summarize, answered with a list), or auto: "
        "chat where there is a template",
    )
    sink_ratio: float = number(
        0.4, "the share of the context for sinks and summary together", "a number", Range(0.01, 0.99)
    )
    max_tokens: int = number(
        200,
        "the longest answer, in tokens, before it is cut to its budget",
        "an integer",
        Range(1, 2**31 - 1),
    )
    timeout: float = number(60.0, "seconds that a summary may take", "a number", Range(0.001, 1e6))


@dataclass
class StreamSettings:
    policy: Policy = setting(
        Policy.stop,
        "what happens when the context is full: end (stream.context set: with reason length; else an answer "
        "has to fit the model's own); or go on, with sinks and tail computed anew (reseed), with the tail "
        "moved behind the sinks (shift), or with all that fits computed anew for every token (window: slow)",
        "stop, reseed, shift or window",
    )
    context: int | None = number(
        None,
        "tokens that the cache holds",
        "an integer",
        Range(2, 2**31 - 1),
        "and the model's own context, or null: 2048, or the model's own if that is smaller",
    )
    sinks: int | None = number(
        None,
        "how many of the prompt's first tokens stay for good",
        "an integer",
        Range(0, 2**31 - 1),
        "or null: the whole prompt with its pictures",
    )
    tail: int = number(256, "the latest tokens that stay", "an integer", Range(0, 2**31 - 1))
    summary: SummarySettings = field(default_factory=SummarySettings)


@dataclass
class OutputSettings:
    format: Format = setting(
        Format.text, "what standard output gets", "text, or jsonl: a JSON object for each token and event"
    )
    plot: str | None = typed(
        None,
        "draw the perplexity along the stream, with its reseeds (run_streaming.py)",
        "a path that ends in .png, .svg or .pdf; needs matplotlib (uv sync --extra plot)",
    )


@dataclass
class Settings:
    defaults: list[Any] = field(
        default_factory=lambda: [
            "_self_",
            {"sampling": "checkpoint"},
            {"stream": "stop"},
            {"output": "text"},
        ]
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    output: OutputSettings = field(default_factory=OutputSettings)


# Options of a group, chosen with `sampling=greedy`; single settings override them.
GROUP_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sampling": {"checkpoint": {}, "greedy": {"temperature": 0.0}},
    "stream": {"stop": {}, "endless": {"policy": "reseed"}},
    "output": {"text": {}, "jsonl": {"format": "jsonl"}},
}


class Schema(NamedTuple, Generic[T]):
    """What a command can be told: its settings, and the options of their groups.

    `whole` names the groups whose options may set anything, and not only what stands in the group. `without`
    says of settings that others have why there is no such one here.
    """

    name: str
    root: type[T]
    options: dict[str, dict[str, dict[str, Any]]]
    whole: tuple[str, ...] = ()
    without: Mapping[str, str] = MappingProxyType({})


GENERATION = Schema("settings", Settings, GROUP_OPTIONS)


def register(schema: Schema = GENERATION) -> None:
    """Make the schema and the options of the groups known to Hydra; harmless to repeat."""
    from hydra.core.config_store import ConfigStore  # noqa: PLC0415  (only a parsed command line needs Hydra)

    store = ConfigStore.instance()
    store.store(name=schema.name, node=schema.root)
    for group, options in schema.options.items():
        package = "_global_" if group in schema.whole else None
        for name, values in options.items():
            store.store(group=group, name=name, node=values, package=package)


def default_of(entry: Field) -> Any:
    return entry.default if entry.default is not MISSING else entry.default_factory()  # pyright: ignore[reportCallIssue]
