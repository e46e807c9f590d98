"""A conversation to token ids, by the checkpoint's chat template; what the user wrote stays text."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from models.errors import CheckpointError, InputError

_TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError)


class Turn(NamedTuple):
    """What one side said: texts, and None where a picture stands."""

    role: str  # "system", "user" or "assistant"; never a stranger's choice, as templates print it
    parts: tuple[str | None, ...]


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    *,
    image_pad_id: int,
    pictures: int = 0,
    system: str | None = None,
) -> list[int]:
    """Token ids of one user turn, pictures before the text, up to where the assistant begins.

    Raises and returns what `encode_turns` does.
    """
    for name, text in (("prompt", prompt), ("system", system or "")):
        _check_text(name, text)
    turns = [Turn("user", (*[None] * pictures, prompt))]
    if system is not None:
        turns = [Turn("system", (system,)), *turns]
    return encode_turns(tokenizer, turns, image_pad_id=image_pad_id)


def encode_turns(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], *, image_pad_id: int
) -> list[int]:
    """Token ids of a conversation, up to where the assistant begins.

    Each picture is a single `image_pad_id`. The ids are those of transformers' `apply_chat_template`, but
    text that spells a special token is encoded as the plain text it is.

    Raises InputError for what is no Unicode text; CheckpointError where there is no chat template, or one
    that fails.
    """
    texts = [part for turn in turns for part in turn.parts if part is not None]
    for text in texts:
        _check_text("prompt", text)
    special_ids = special_token_ids(tokenizer, image_pad_id)
    special = re.compile("|".join(re.escape(token) for token in sorted(special_ids, key=len, reverse=True)))
    if not special_ids or not special.search("\n".join(texts)):
        rendered = _render(tokenizer, turns)
        return tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]

    # The template must not see the user's special tokens: it renders marks, undone in its plain parts.
    mark = _unused_character("".join(texts) + str(tokenizer.chat_template))
    tokens = list(special_ids)

    def hide(text: str | None) -> str | None:
        return text and special.sub(lambda found: f"{mark}{tokens.index(found[0])}{mark}", text)

    def restore(text: str) -> str:
        return re.sub(f"{mark}(\\d+){mark}", lambda found: tokens[int(found[1])], text)

    hidden = [Turn(turn.role, tuple(map(hide, turn.parts))) for turn in turns]
    rendered = _render(tokenizer, hidden)
    ids, end = [], 0
    for found in special.finditer(rendered):
        ids += plain_ids(tokenizer, restore(rendered[end : found.start()]))
        ids.append(special_ids[found[0]])
        end = found.end()
    return ids + plain_ids(tokenizer, restore(rendered[end:]))


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"{name}: {type(text).__name__}; allowed: text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: not Unicode text, character {error.start} is {text[error.start]!r}"
        ) from None


def special_token_ids(tokenizer: PreTrainedTokenizerFast, image_pad_id: int) -> dict[str, int]:
    """What no text may become: the special tokens and the picture's, by how they are spelled."""
    return {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or token_id == image_pad_id
    }


def _unused_character(text: str) -> str:
    """A character of a private use area that `text` has not. Raises InputError where it has them all."""
    used = set(text)
    for character in map(chr, range(0xF0000, 0x10FFFE)):
        if character not in used:
            return character
    raise InputError("prompt: has every character of the private use areas; allowed: all but one")


def _render(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> str:
    if not tokenizer.chat_template:
        raise CheckpointError(
            "the checkpoint has no chat template; allowed: chat_template.jinja,"
            " or chat_template in tokenizer_config.json"
        )
    as_text = _takes_text(tokenizer)

    def content(parts: Sequence[str | None]) -> str | list[dict]:
        texts = [part for part in parts if part is not None]
        if as_text and len(texts) == len(parts):
            return "".join(texts)
        return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]

    try:
        return _apply(tokenizer, [{"role": turn.role, "content": content(turn.parts)} for turn in turns])
    except _TEMPLATE_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"the checkpoint's chat template fails: {reason}") from None


def _takes_text(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Templates for text alone read a turn's content as a string; some for pictures read parts alone."""
    mark = _unused_character(str(tokenizer.chat_template))
    try:
        return mark in _apply(tokenizer, [{"role": "user", "content": mark}])
    except _TEMPLATE_ERRORS:
        return False


def _apply(tokenizer: PreTrainedTokenizerFast, messages: list[dict]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text that has no special tokens, whatever it spells.

    Not transformers' `split_special_tokens`: it changes the tokenizer, which threads may share.
    """
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pieces = [text]
    if backend.pre_tokenizer is not None:
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for piece in pieces for token in backend.model.tokenize(piece)]
