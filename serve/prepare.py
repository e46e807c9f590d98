"""From a request to what the engine takes: pictures, tokens and sampling. Host only, off the event loop."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import no_type_check

from PIL import Image

from models.errors import PromptTooLongError, SaccadeError
from models.load import LoadedModel
from sample.chat import Turn, encode_turns
from sample.config import SamplingConfig, integer
from sample.pictures import open_picture
from serve.chat_request import ChatRequest, ImagePart, Message
from serve.problems import Problem
from serve.prompt import PreparedPrompt, prepare_prompt

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_ROLES = {"developer": "system"}


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold. Raises SettingsError for a value of the wrong type or out of range."""

    body_bytes: int = 32 * 2**20
    messages: int = 256
    pictures: int = 8
    picture_bytes: int = 16 * 2**20  # as a file
    picture_pixels: int = 50_000_000  # decoded
    stop_strings: int = 4
    stop_length: int = 256  # characters

    def __post_init__(self):
        for name, value in vars(self).items():
            integer(name, value, 0, 2**40)


def prepare(
    loaded: LoadedModel, request: ChatRequest, limits: RequestLimits, context: int
) -> tuple[PreparedPrompt, SamplingConfig]:
    """The prompt with its patches, and how to sample; without a length of the request's own, all that fits.

    Args:
        context: prompt and answer together, in tokens.

    Raises:
        Problem: more than the limits allow, or something that the model cannot take.
    """
    request.check()
    _check_counts(request, limits)
    try:
        prompt = _prompt(loaded, request.messages, limits)
        return prompt, _sampling(loaded, request, context - len(prompt.tokens))
    except PromptTooLongError as error:
        raise _too_long(str(error)) from None
    except SaccadeError as error:
        name = str(error).partition(":")[0]
        param = name if name in type(request).__struct_fields__ else None
        raise Problem(400, "invalid_value", str(error), param=param) from None


def _sampling(loaded: LoadedModel, request: ChatRequest, room: int) -> SamplingConfig:
    processor = loaded.processor
    given = request.sampling()
    config = SamplingConfig.from_generation(
        processor.generation, eos_id=processor.eos_ids, pad_id=processor.pad_id, **given
    )
    if room < 1:
        raise _too_long("the prompt leaves no room for an answer")
    if "max_new_tokens" in given:
        return config
    return SamplingConfig(**{**vars(config), "max_new_tokens": room})


def _too_long(message: str) -> Problem:
    return Problem(400, "context_length_exceeded", f"messages: {message}", param="messages")


def _check_counts(request: ChatRequest, limits: RequestLimits) -> None:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    pictures = [p for m in request.messages for p in _parts(m) if isinstance(p, ImagePart)]
    for param, what, given, allowed in (
        ("messages", "messages", len(request.messages), limits.messages),
        ("messages", "pictures", len(pictures), limits.pictures),
        ("stop", "stop strings", len(stops), limits.stop_strings),
        ("stop", "characters", max(map(len, stops), default=0), limits.stop_length),
    ):
        if given > allowed:
            raise Problem(
                400, "limit_exceeded", f"{param}: {given} {what}; allowed: up to {allowed}", param=param
            )


def _prompt(loaded: LoadedModel, messages: list[Message], limits: RequestLimits) -> PreparedPrompt:
    model, _, processor = loaded
    pictures: list[Image.Image] = []
    turns = []
    for message in messages:
        parts: list[str | None] = []
        for part in _parts(message):
            if isinstance(part, ImagePart):
                pictures.append(_picture(part.image_url.url, limits))
                parts.append(None)
            else:
                parts.append(part)
        turns.append(Turn(_ROLES.get(message.role, message.role), tuple(parts)))
    ids = encode_turns(processor.tokenizer, turns, image_pad_id=model.image_pad_id)
    return prepare_prompt(model, processor, ids, pictures)


def _parts(message: Message) -> list[str | ImagePart]:
    if isinstance(message.content, str):
        return [message.content]
    return [part if isinstance(part, ImagePart) else part.text for part in message.content]


def _picture(url: str, limits: RequestLimits) -> Image.Image:
    found = _DATA_URL.match(url)
    if found is None:
        scheme = url[:40].partition(":")[0]
        raise Problem(
            400,
            "invalid_image_url",
            f"image_url: a URL of the scheme {scheme!r}; allowed: data:image/...;base64,...",
            param="messages",
        )
    if (len(url) - found.end()) * 3 // 4 > limits.picture_bytes + 2:
        raise Problem(
            400,
            "limit_exceeded",
            f"image_url: a picture of more than {limits.picture_bytes} bytes",
            param="messages",
        )
    try:
        content = base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, "invalid_image_url", "image_url: no valid base64", param="messages") from None
    if len(content) > limits.picture_bytes:
        raise Problem(
            400,
            "limit_exceeded",
            f"image_url: a picture of {len(content)} bytes; allowed: up to {limits.picture_bytes}",
            param="messages",
        )
    return open_picture(content, max_pixels=limits.picture_pixels)
