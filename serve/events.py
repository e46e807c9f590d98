"""What a stream tells: `start`, `delta`, `heartbeat`, `error` and `end`, the same on every transport.

Of `error` and `end` there is exactly one, and nothing behind it.
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

from msgspec import Struct

EndReason = Literal["stop", "length", "cancelled", "content_filter", "repetition"]
Phase = Literal["queued", "prefill", "decode", "reseed", "paused"]


class Usage(Struct, frozen=True):
    """Counts of tokens."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


class Timings(Struct, frozen=True):
    """Seconds on the server's clock; None for what did not happen."""

    queued: float | None  # until the prompt was begun
    first_token: float | None  # from the request
    total: float
    tokens_per_second: float | None  # behind the first token


class Start(Struct, frozen=True, tag="start", tag_field="event"):
    """The stream is queued. `stream` names it for resume and cancel."""

    stream: str
    model: str
    created: int  # seconds since 1970
    prompt_tokens: int
    image_tokens: int


class TokenLogprob(Struct, frozen=True):
    """A token's log-probability in nats, and the likeliest (id, logprob) in its place."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Delta(Struct, frozen=True, tag="delta", tag_field="event", omit_defaults=True):
    """More of the answer. `index` counts its tokens; a token may have no text, as of half a character."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class Heartbeat(Struct, frozen=True, tag="heartbeat", tag_field="event"):
    """Nothing to tell, but alive."""

    phase: Phase


class Error(Struct, frozen=True, tag="error", tag_field="event"):
    """The stream has failed; `message` shows no internals."""

    code: str
    message: str
    usage: Usage
    timings: Timings


class End(Struct, frozen=True, tag="end", tag_field="event"):
    """The stream has ended. `cause` says who cancelled: "client", "disconnect", "ack_timeout", "deadline"."""

    finish_reason: EndReason
    usage: Usage
    timings: Timings
    cause: str | None


Payload: TypeAlias = Start | Delta | Heartbeat | Error | End
KINDS: dict[type, str] = {payload: payload.__name__.lower() for payload in get_args(Payload)}


class Event(NamedTuple):
    """Numbered 1, 2, 3, ... in its stream; a heartbeat has no number, as nothing is lost with it."""

    id: int | None
    data: Payload

    @property
    def kind(self) -> str:
        """start, delta, heartbeat, error or end."""
        return KINDS[type(self.data)]

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return isinstance(self.data, End | Error)
