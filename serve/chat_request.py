"""The body of a request, as OpenAI has it, with Saccade's own sampling settings beside."""

import secrets
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from sample.stream_config import StreamConfig
from serve.chunks import ChunkConfig, Granularity
from serve.problems import Problem

T = TypeVar("T")
_NO_END = 2**31 - 1  # tokens


class ImageUrl(Struct, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # pictures have one size here


class TextPart(Struct, forbid_unknown_fields=True, tag="text", tag_field="type"):
    text: str


class ImagePart(Struct, forbid_unknown_fields=True, tag="image_url", tag_field="type"):
    image_url: ImageUrl


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart]
    name: str | None = None  # accepted and not used


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False  # accepted and not used


class ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text"]


class ChatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/chat/completions`. What it does not name is refused, never dropped silently."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None  # its older name
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None  # accepted and not used, as the next two
    metadata: dict[str, str] | None = None
    store: bool | None = None
    # Not OpenAI's: `extra_body` of its client.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    max_pattern_repeats: int | None = None

    @property
    def chunks(self) -> ChunkConfig | None:
        """Of Saccade's own streams, to which a reader can come back; None: a chat completion."""
        return None

    def goes_on(self, context: int) -> StreamConfig | None:
        """How, when so many tokens are full; None: not at all."""
        return None

    def sampling(self) -> dict[str, Any]:
        """What of it is about sampling, by the names of `SamplingConfig`; without a seed, a random one."""
        given = {
            name: getattr(self, name)
            for name in (
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
                "no_repeat_ngram_size",
                "max_pattern_repeats",
            )
        }
        given["max_new_tokens"] = self.most_tokens
        given["stop"] = self.stop or ()
        given["seed"] = secrets.randbits(32) if self.seed is None else self.seed
        given["top_logprobs"] = self.top_logprobs
        given["logit_bias"] = self._bias()
        return {name: value for name, value in given.items() if value is not None}

    @property
    def most_tokens(self) -> int | None:
        """Of the answer, as far as the request says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        """What no field can say alone.

        Raises:
            Problem: more than one choice, or alternatives without log-probabilities.
        """
        if self.n not in (None, 1):
            raise Problem(400, "invalid_value", f"n: got {self.n}; allowed: 1", param="n")
        if self.top_logprobs and not self.logprobs:
            raise Problem(
                400, "invalid_value", "top_logprobs: allowed where logprobs is true", param="top_logprobs"
            )

    def _bias(self) -> dict[int, float]:
        try:
            return {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        except ValueError:
            raise Problem(
                400, "invalid_value", "logit_bias: allowed: token ids as keys", param="logit_bias"
            ) from None


class Endless(Struct, forbid_unknown_fields=True):
    """An answer that goes on when the context is full, with sinks and tail computed anew; sizes in tokens."""

    context: int | None = None  # all that the server has
    sinks: int | None = None  # of the prompt; all of it
    tail: int = 256
    ignore_eos: bool = True  # nor does it end at an end token


class StreamRequest(ChatRequest, kw_only=True):
    """`POST /v1/stream`: the same, and how tokens are joined to deltas."""

    granularity: Granularity = "token"
    chunk_tokens: int = 8
    chunk_seconds: float = 0.1
    endless: Endless | None = None

    def sampling(self) -> dict[str, Any]:
        """An endless answer has no length but the one that is asked for."""
        given = super().sampling()
        if self.endless is None:
            return given
        return {"max_new_tokens": _NO_END} | given | {"ignore_eos": self.endless.ignore_eos}

    def goes_on(self, context: int) -> StreamConfig | None:
        """How, where an answer is endless. Raises SettingsError for values out of range."""
        asked = self.endless
        if asked is None:
            return None
        return StreamConfig(context=asked.context or context, sinks=asked.sinks, tail=asked.tail)

    @property
    def chunks(self) -> ChunkConfig:
        """Raises SettingsError for values out of range."""
        return ChunkConfig(self.granularity, self.chunk_tokens, self.chunk_seconds)


def parse(body: bytes, kind: type[T]) -> T:
    """The request in a body.

    Raises:
        Problem: it is no JSON, or not of this kind.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "invalid_json", f"body: no valid JSON ({str(error)[:200]})") from None


def converted(fields: dict[str, Any], kind: type[T]) -> T:
    """The request in what was JSON, or came as something like it. Raises Problem where it is none."""
    try:
        return msgspec.convert(fields, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: msgspec.ValidationError) -> Problem:
    what, _, where = str(error).partition(" - at ")
    path = where.strip("`").removeprefix("$").lstrip(".")
    return Problem(400, "invalid_value", f"{path or 'body'}: {what}", param=path or None)
