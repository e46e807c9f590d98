"""A user's turn to token ids, by the checkpoint's chat template; what the user wrote stays text."""

import re

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from models.errors import CheckpointError, InputError

_TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError)


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    *,
    image_pad_id: int,
    pictures: int = 0,
    system: str | None = None,
) -> list[int]:
    """Token ids of one user turn, pictures before the text, up to where the assistant begins.

    Each picture is a single `image_pad_id`. The ids are those of transformers' `apply_chat_template`, but
    text in `prompt` or `system` that spells a special token is encoded as the plain text it is.

    Raises InputError for what is no Unicode text; CheckpointError where there is no chat template, or one
    that fails.
    """
    for name, text in (("prompt", prompt), ("system", system or "")):
        _check_text(name, text)
    special_ids = special_token_ids(tokenizer, image_pad_id)
    special = re.compile("|".join(re.escape(token) for token in sorted(special_ids, key=len, reverse=True)))
    if not special_ids or not special.search(prompt + "\n" + (system or "")):
        rendered = _render(tokenizer, prompt, pictures, system)
        return tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]

    # The template must not see the user's special tokens: it renders marks, undone in its plain parts.
    mark = _unused_character(prompt + (system or "") + str(tokenizer.chat_template))
    tokens = list(special_ids)

    def hide(text: str) -> str:
        return special.sub(lambda found: f"{mark}{tokens.index(found[0])}{mark}", text)

    def restore(text: str) -> str:
        return re.sub(f"{mark}(\\d+){mark}", lambda found: tokens[int(found[1])], text)

    rendered = _render(tokenizer, hide(prompt), pictures, None if system is None else hide(system))
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
    """A character of a private use area that `text` has not."""
    return next(character for character in map(chr, range(0xF0000, 0x10FFFE)) if character not in text)


def _render(tokenizer: PreTrainedTokenizerFast, prompt: str, pictures: int, system: str | None) -> str:
    if not tokenizer.chat_template:
        raise CheckpointError(
            "the checkpoint has no chat template; allowed: chat_template.jinja,"
            " or chat_template in tokenizer_config.json"
        )
    as_text = _takes_text(tokenizer)

    def content(text: str, pictures: int = 0) -> str | list[dict]:
        if as_text and not pictures:
            return text
        return [{"type": "image"}] * pictures + [{"type": "text", "text": text}]

    messages = [{"role": "user", "content": content(prompt, pictures)}]
    if system is not None:
        messages = [{"role": "system", "content": content(system)}, *messages]
    try:
        return _apply(tokenizer, messages)
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
