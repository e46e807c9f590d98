"""From a request to what the engine takes: pictures, tokens and sampling. Host only, off the event loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

from PIL import Image

from models.errors import PromptTooLongError, SaccadeError
from models.load import LoadedModel
from sample.chat import Turn, encode_turns
from sample.config import SamplingConfig, integer
from serve.chat_request import ChatRequest, ImagePart, Message
from serve.problems import Problem, check_limit
from serve.prompt import PreparedPrompt, prepare_prompt

_ROLES = {"developer": "system"}


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold. Raises SettingsError for a value of the wrong type or out of range."""

    body_bytes: int = 32 * 2**20
    messages: int = 256
    pictures: int = 8
    picture_bytes: int = 16 * 2**20  # as a file
    picture_pixels: int = 50_000_000  # decoded, of all together
    picture_frames: int = 256  # of an animation
    picture_ms: int = 5000  # to decode it
    prompt_characters: int = 262_144  # of all texts
    new_tokens: int = 2**20
    stop_strings: int = 4
    stop_length: int = 256  # characters

    def __post_init__(self):
        for name, value in vars(self).items():
            integer(name, value, 0, 2**40)


def check_request(request: ChatRequest, limits: RequestLimits) -> list[str]:
    """Count what is in a request, before anything is made of it.

    Returns:
        The URLs of its pictures.

    Raises:
        Problem: more than the limits allow.
    """
    request.check()
    parts = [part for message in request.messages for part in _parts(message)]
    pictures = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    characters = sum(len(part) for part in parts if isinstance(part, str))
    check_limit("messages", "messages", len(request.messages), limits.messages)
    check_limit("messages", "pictures", len(pictures), limits.pictures)
    check_limit("messages", "characters", characters, limits.prompt_characters)
    check_limit("stop", "stop strings", len(stops), limits.stop_strings)
    check_limit("stop", "characters", max(map(len, stops), default=0), limits.stop_length)
    check_limit("max_completion_tokens", "tokens", request.most_tokens or 0, limits.new_tokens)
    return pictures


def prepare(
    loaded: LoadedModel,
    request: ChatRequest,
    pictures: Sequence[Image.Image],
    limits: RequestLimits,
    context: int,
    owner: str,
) -> tuple[PreparedPrompt, SamplingConfig]:
    """The prompt with its patches, and how to sample; without a length of the request's own, all that fits.

    Args:
        request: which `check_request` has let pass.
        pictures: of all messages in their order, as RGB.
        context: prompt and answer together, in tokens.
        owner: who asks.

    Raises:
        Problem: something that the model cannot take.
    """
    try:
        prompt = _prompt(loaded, request.messages, pictures, owner)
        room = context - len(prompt.tokens)
        return prompt, _sampling(loaded, request, room, limits.new_tokens)
    except PromptTooLongError as error:
        raise _too_long(str(error)) from None
    except SaccadeError as error:
        name = str(error).partition(":")[0]
        param = name if name in type(request).__struct_fields__ else None
        raise Problem(400, "invalid_value", str(error), param=param) from None


def _sampling(loaded: LoadedModel, request: ChatRequest, room: int, most: int) -> SamplingConfig:
    processor = loaded.processor
    given = request.sampling()
    config = SamplingConfig.from_generation(
        processor.generation, eos_id=processor.eos_ids, pad_id=processor.pad_id, **given
    )
    if room < 1:
        raise _too_long("the prompt leaves no room for an answer")
    length = min(given.get("max_new_tokens", room), most)
    return SamplingConfig(**{**vars(config), "max_new_tokens": length})


def _too_long(message: str) -> Problem:
    return Problem(400, "context_length_exceeded", f"messages: {message}", param="messages")


def _prompt(
    loaded: LoadedModel, messages: Sequence[Message], pictures: Sequence[Image.Image], owner: str
) -> PreparedPrompt:
    model, _, processor = loaded
    turns = [
        Turn(
            _ROLES.get(message.role, message.role),
            tuple(None if isinstance(part, ImagePart) else part for part in _parts(message)),
        )
        for message in messages
    ]
    ids = encode_turns(processor.tokenizer, turns, image_pad_id=model.image_pad_id)
    return prepare_prompt(model, processor, ids, pictures, owner)


def _parts(message: Message) -> list[str | ImagePart]:
    if isinstance(message.content, str):
        return [message.content]
    return [part if isinstance(part, ImagePart) else part.text for part in message.content]
