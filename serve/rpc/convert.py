"""Between the messages of gRPC and what the server speaks."""

from typing import Any

from google.protobuf.json_format import MessageToDict

from serve import events
from serve.chat_request import StreamRequest, converted
from serve.commands import Ack, AddStop, Cancel, Command, Pause, Resume
from serve.conversation import Attach, Open, Opening
from serve.problems import Problem
from serve.rpc import messages


def request_of(given: Any) -> StreamRequest:
    """Of a `GenerateRequest`. Raises Problem for values of which the server knows nothing."""
    fields = MessageToDict(given, preserving_proto_field_name=True)
    for message in fields.get("messages", []):
        message["content"] = [_part(part) for part in message.get("content", [])]
    return converted(fields, StreamRequest)


def opening_of(word: Any) -> Opening:
    """A client's first word. Raises Problem for another."""
    match word.WhichOneof("word"):
        case "open":
            return Open(request_of(word.open))
        case "attach":
            return Attach(word.attach.stream, word.attach.after)
    raise Problem(400, "invalid_value", "word: allowed as the first one: open, attach")


def command_of(word: Any) -> Command:
    """A client's later word. Raises Problem for another."""
    match word.WhichOneof("word"):
        case "ack":
            return Ack(word.ack.id)
        case "stop":
            return AddStop(list(word.stop.stop))
        case "cancel":
            return Cancel()
        case "pause":
            return Pause()
        case "resume":
            return Resume()
    raise Problem(
        400, "invalid_value", "word: allowed behind the first one: ack, cancel, stop, pause, resume"
    )


def message_of(event: events.Event) -> Any:
    """An `Event`."""
    data = event.data
    match data:
        case events.Delta():
            told = {"index": data.index, "text": data.text, "token_ids": data.token_ids}
            told["logprobs"] = [_logprob(p) for p in data.logprobs or []]
        case events.Start():
            told = {name: getattr(data, name) for name in data.__struct_fields__}
        case events.Heartbeat():
            told = {"phase": data.phase}
        case events.Error():
            told = {"code": data.code, "message": data.message} | _account(data)
        case events.End():
            told = {"finish_reason": data.finish_reason, "cause": data.cause} | _account(data)
    return messages.Event(id=event.id, **{event.kind: told})


def problem_of(problem: Problem) -> Any:
    """An `Event` that tells of a word that was none."""
    return messages.Event(problem={"code": problem.code, "message": problem.message})


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if "image" in part:  # base64, as everywhere in JSON
        return {"type": "image_url", "image_url": {"url": f"data:image/file;base64,{part['image']}"}}
    return {"type": "text"} | part


def _logprob(given: events.TokenLogprob) -> dict[str, Any]:
    top = [{"token_id": token, "logprob": logprob} for token, logprob in given.top]
    return {"token_id": given.token_id, "logprob": given.logprob, "top": top}


def _account(end: events.End | events.Error) -> dict[str, Any]:
    return {
        name: {field: getattr(part, field) for field in part.__struct_fields__}
        for name, part in (("usage", end.usage), ("timings", end.timings))
    }
