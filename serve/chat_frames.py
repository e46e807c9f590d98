"""A stream in OpenAI's words: chunks of a completion, or a whole one."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from serve.events import Delta, End, Error, Event, Start, TokenLogprob, Usage
from serve.hub import Hub
from serve.live import Live
from serve.one_line import encode

_ERROR = "server_error"


class ChatWords:
    """What one stream's events are in OpenAI's contract.

    Args:
        include_usage: a last chunk tells the tokens that were used.
    """

    def __init__(self, hub: Hub, start: Start, include_usage: bool = False) -> None:
        self._start, self._include_usage = start, include_usage
        self._tokenizer = hub.loaded.processor.tokenizer

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks that tell of an event; of some there is nothing to tell."""
        data = event.data
        if isinstance(data, Start):
            yield self._chunk({"role": "assistant", "content": ""})
        elif isinstance(data, Delta) and (data.text or data.logprobs):
            yield self._chunk({"content": data.text}, self.logprobs(data.logprobs))
        elif isinstance(data, Error) or (isinstance(data, End) and data.finish_reason == "cancelled"):
            yield failure(data)
        elif isinstance(data, End):
            yield self._chunk({}, reason=data.finish_reason)
            if self._include_usage:
                yield self._frame("chat.completion.chunk") | {"choices": [], "usage": usage(data.usage)}

    def whole(self, deltas: list[Delta], end: End) -> dict[str, Any]:
        """The completion, from all deltas."""
        logprobs = [p for delta in deltas for p in delta.logprobs or []]
        message = {"role": "assistant", "content": "".join(d.text for d in deltas), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": end.finish_reason}
        choice["logprobs"] = self.logprobs(logprobs or None)
        return self._frame("chat.completion") | {"choices": [choice], "usage": usage(end.usage)}

    def logprobs(self, given: list[TokenLogprob] | None) -> dict[str, Any] | None:
        """Of tokens, with how they are written."""
        if given is None:
            return None
        content = [
            self._written(p.token_id, p.logprob) | {"top_logprobs": [self._written(*t) for t in p.top]}
            for p in given
        ]
        return {"content": content, "refusal": None}

    def _written(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.backend_tokenizer.decode([token_id], skip_special_tokens=False)
        half = "\N{REPLACEMENT CHARACTER}" in text  # of a character: its bytes cannot be told from the text
        return {"token": text, "logprob": logprob, "bytes": None if half else list(text.encode())}

    def _chunk(self, delta: dict, logprobs: dict | None = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._frame("chat.completion.chunk") | {"choices": [choice]}
        return chunk | {"usage": None} if self._include_usage else chunk

    def _frame(self, kind: str) -> dict[str, Any]:
        start = self._start
        return {"id": start.stream, "object": kind, "created": start.created, "model": start.model}


def usage(used: Usage) -> dict[str, Any]:
    """As OpenAI counts it; the pictures' tokens are among the prompt's."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


def failure(end: End | Error) -> dict[str, Any]:
    """What stands for an end that is no answer."""
    if isinstance(end, Error):
        return {"error": {"message": end.message, "type": _ERROR, "param": None, "code": end.code}}
    code = end.cause or "cancelled"
    return {"error": {"message": f"cancelled: {code}", "type": _ERROR, "param": None, "code": code}}


async def chat_frames(hub: Hub, live: Live, ticket: int, words: ChatWords) -> AsyncGenerator[bytes, None]:
    """A streamed completion. When its reader goes, the stream is cancelled: there is no way back to it."""
    try:
        async for events in hub.read(live, ticket):
            frames = [b"data: %s\n\n" % encode(chunk) for e in events for chunk in words.chunks(e)]
            if events[0].id is None:
                frames = [b": heartbeat\n\n"]
            if events[-1].terminal:
                frames.append(b"data: [DONE]\n\n")
            if frames:
                yield b"".join(frames)
            live.stream.drained(events[-1].id or 0)
    finally:
        live.stream.cancel("disconnect")
