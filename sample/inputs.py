"""Pictures and prompts to what the model takes: `prepare_inputs` makes `VLMInputs`, on the host, in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Int32
from PIL import Image

from models.decoder import VisionEmbeddings
from models.errors import CheckpointError, InputError, PromptTooLongError
from models.model import Model
from models.processor import Processor
from models.vision import encode_vision
from sample.chat import encode_chat
from sample.pictures import MAX_IMAGE_PIXELS, Picture, open_picture, picture_name


@dataclass(frozen=True, eq=False)
class VLMInputs:
    """The prompts of a batch and their pictures.

    Attributes:
        prompt_tokens: int [B, T], right padded; each picture token is `image_pad_id`.
        vision: embeddings of all pictures, row by row in the order of their tokens; None without pictures.
        grid_thw: int [pictures, 3], each picture's frames, rows and columns, in patches; where the model's
            family cuts pictures into tiles, each tile's.
        image_pad_id: the id that marks a picture token.
        attention_mask: bool [B, T], False at padding; None where nothing is padded.
    """

    # No shapes here: callers build these by hand, and the sampler answers a wrong one in a line of its own.
    prompt_tokens: Array | np.ndarray
    vision: VisionEmbeddings | None
    grid_thw: Array | np.ndarray
    image_pad_id: int
    attention_mask: Array | np.ndarray | None = None


def prepare_inputs(
    model: Model,
    params: Any,
    processor: Processor,
    images: Sequence[Picture] | Sequence[Sequence[Picture]] = (),
    prompt: str | Sequence[str] = "",
    *,
    system: str | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> VLMInputs:
    """Open pictures, apply the chat template, and encode the pictures of all rows at once.

    Args:
        images: the pictures of the prompt, put before its text; a picture is what `open_picture` takes. With
            several prompts, one sequence of pictures per prompt, or nothing at all.
        prompt: one prompt, or one per row of the batch. Text that spells a special token stays text.
        system: the system turn of every row; without one, what the template does.
        max_image_pixels: the most pixels that a picture may have, checked before it is decoded.

    Raises:
        InputError: a picture that cannot be used, a prompt that is not text or does not fit the model's
            context, or a number of picture sequences that is not the number of prompts.
        CheckpointError: there is no chat template, it fails, or it has no place for pictures.
    """
    prompts, sources = _rows(images, prompt)
    pictures = [[open_picture(source, max_pixels=max_image_pixels) for source in row] for row in sources]
    rows = []
    for text, row_sources, row_pictures in zip(prompts, sources, pictures, strict=True):
        ids = encode_chat(
            processor.tokenizer,
            text,
            image_pad_id=model.image_pad_id,
            pictures=len(row_pictures),
            system=system,
        )
        rows.append(with_picture_tokens(model, processor, ids, row_pictures, row_sources))
    levels, grid_thw = processor.images.levels([p for row in pictures for p in row])
    tokens, mask = _pad(rows, processor.pad_id)
    return VLMInputs(
        prompt_tokens=tokens,
        vision=encode_vision(model, params, levels, grid_thw) if len(grid_thw) else None,
        grid_thw=grid_thw,
        image_pad_id=model.image_pad_id,
        attention_mask=mask,
    )


def with_picture_tokens(
    model: Model,
    processor: Processor,
    ids: list[int],
    pictures: Sequence[Image.Image],
    sources: Sequence[Picture] | None = None,
) -> Int32[np.ndarray, " T"]:
    """A chat's ids with all the tokens that its pictures need, each in the place of one `image_pad_id`.

    Args:
        sources: what messages call the pictures.

    Raises:
        InputError: a picture that cannot be used, or more tokens than fit the model's context.
        CheckpointError: the ids have not one slot for each picture.
    """
    named = zip(pictures if sources is None else sources, pictures, strict=True)
    fillings = [_slot_tokens(source, picture, processor, model.image_pad_id) for source, picture in named]
    tokens = _fill(ids, fillings, model.image_pad_id)
    _check_length(tokens, model)
    return tokens


def _rows(images: Any, prompt: Any) -> tuple[list[str], list[list[Picture]]]:
    """The prompts, and each one's pictures."""
    if isinstance(prompt, str):
        return [prompt], [_pictures(images, "images")]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not prompt:
        given = "none" if isinstance(prompt, Sequence) and not prompt else type(prompt).__name__
        raise InputError(f"prompt: {given}; allowed: a text, or one or more texts in a list")
    rows = _pictures(images, "images")
    if not rows:
        return list(prompt), [[] for _ in prompt]
    if len(rows) != len(prompt):
        raise InputError(
            f"images: {len(rows)} lists of pictures for {len(prompt)} prompts; allowed: one each"
        )
    return list(prompt), [_pictures(row, f"images[{i}]") for i, row in enumerate(rows)]


def _pictures(images: Any, name: str) -> list:
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise InputError(f"{name}: {type(images).__name__}; allowed: a list of pictures")
    return list(images)


def _slot_tokens(
    source: Picture, picture: Image.Image, processor: Processor, image_pad_id: int
) -> Int32[np.ndarray, " tokens"]:
    try:
        return processor.images.slot_tokens(picture, processor.tokenizer, image_pad_id)
    except InputError as error:
        raise InputError(f"{picture_name(source)}: {error}") from None


def _fill(ids: list[int], fillings: list[np.ndarray], image_pad_id: int) -> Int32[np.ndarray, " T"]:
    """Put what the pictures need in the place of each one's single token."""
    tokens = np.array(ids, np.int32)
    slots = np.flatnonzero(tokens == image_pad_id)
    if len(slots) != len(fillings):
        raise CheckpointError(
            f"the checkpoint's chat template made {len(slots)} picture slots for {len(fillings)} pictures"
        )
    texts = np.split(tokens, slots)  # all but the first begin with their slot
    behind = [part for filling, text in zip(fillings, texts[1:], strict=True) for part in (filling, text[1:])]
    return np.concatenate([texts[0], *behind])


def _check_length(tokens: np.ndarray, model: Model) -> None:
    context, in_pictures = model.context_length, (tokens == model.image_pad_id).sum()
    if len(tokens) >= context:
        raise PromptTooLongError(
            f"the prompt has {len(tokens)} tokens, {in_pictures} of them for pictures;"
            f" allowed: up to {context - 1}, one less than {context}, the model's context"
        )


def _pad(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
