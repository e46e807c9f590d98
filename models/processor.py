"""What a checkpoint says beside its weights: tokenizer, end tokens, picture settings, sampling defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image

# Not AutoTokenizer: it imports torch where that is installed, and takes three seconds longer.
from transformers import PreTrainedTokenizerFast

from models.config_parts import DecoderConfig
from models.errors import CheckpointError
from models.json_file import read_json, read_optional_json
from models.levels import Levels


class PictureSettings(Protocol):
    """How a family turns pictures into what its model reads."""

    def preprocess(
        self, pictures: Sequence[Image.Image]
    ) -> tuple[Float32[np.ndarray, "patches patch_dim"], Int32[np.ndarray, "grids 3"]]:
        """Patches of RGB pictures, and the grids that they form: a picture has one or several.

        Raises InputError for a picture that the family cannot take.
        """
        ...

    def levels(self, pictures: Sequence[Image.Image]) -> tuple[Levels, Int32[np.ndarray, "grids 3"]]:
        """The same, still to be normalised, for `encode_vision`; raises likewise."""
        ...

    def slot_tokens(
        self, picture: Image.Image, tokenizer: PreTrainedTokenizerFast, image_pad_id: int
    ) -> Int32[np.ndarray, " tokens"]:
        """What stands in a prompt where the chat template has one token for the picture; raises likewise."""
        ...


class FamilyConfig(Protocol):
    """What a processor asks of a family's configuration."""

    turn_end: ClassVar[str | None]  # a token that ends a turn, besides those that the checkpoint names

    @property
    def text(self) -> DecoderConfig: ...

    def image_settings(self, content: Mapping[str, Any], source: str) -> PictureSettings:
        """Read the `content` of `source`. Raises CheckpointError where it does not fit the tower."""
        ...


@dataclass(frozen=True, eq=False)
class Processor:
    """The host's side of a checkpoint.

    `eos_ids` is the whole *set* of ids that end a sequence. `generation` is the content of
    generation_config.json (temperature, top_k, top_p, ...), empty where a checkpoint has none.
    """

    tokenizer: PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    pad_id: int
    images: PictureSettings
    generation: Mapping[str, Any]

    @classmethod
    def from_directory(cls, path: str | Path, config: FamilyConfig) -> "Processor":
        """Read a directory in Hugging Face format; nothing is fetched from a network.

        The end and padding ids are those of generation_config.json, else of config.json, else the
        tokenizer's; padding falls back to the first end id. Token 0 is never taken for padding unasked.
        What ends a turn in all of the family's checkpoints is always among the end ids.

        Raises CheckpointError, naming the file, where one is missing, corrupt, or does not fit `config`.
        """
        directory = Path(path)
        generation = read_optional_json(directory / "generation_config.json")
        model = read_json(directory / "config.json")
        nested = read_optional_json(directory / "processor_config.json")
        tokenizer = _tokenizer(directory, nested)
        text = model.get("text_config") or {}
        sources = {
            "generation_config.json": generation,
            "config.json": model,
            "config.json's text_config": text,
            "tokenizer_config.json": {
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
        }
        eos_ids = _token_ids("eos_token_id", sources, config.text.vocab_size, directory)
        turn_end = tokenizer.get_vocab().get(config.turn_end or "")
        if turn_end is not None and turn_end not in eos_ids:
            eos_ids += (turn_end,)
        if not eos_ids:
            raise CheckpointError(f"{directory}: no eos_token_id in any of {', '.join(sources)}")
        pad_ids = _token_ids("pad_token_id", sources, config.text.vocab_size, directory)
        return cls(
            tokenizer=tokenizer,
            eos_ids=eos_ids,
            pad_id=(pad_ids or eos_ids)[0],
            images=_image_settings(directory, nested, config),
            generation=MappingProxyType(generation),
        )


def _tokenizer(directory: Path, nested: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; a checkpoint needs one")
    read_optional_json(directory / "tokenizer_config.json")  # transformers' message would not name the file
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower for a file that it cannot read
        raise CheckpointError(f"{file}: no usable tokenizer ({_first_line(error)})") from None
    # transformers' order: the processor's own, the older JSON file, chat_template.jinja, the tokenizer's.
    older = read_optional_json(directory / "chat_template.json").get("chat_template")
    tokenizer.chat_template = nested.get("chat_template") or older or tokenizer.chat_template
    # A prompt is encoded whole, whatever the file was trained with.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _token_ids(
    key: str, sources: Mapping[str, Mapping[str, Any]], vocab_size: int, directory: Path
) -> tuple[int, ...]:
    """The ids under `key` in the first source that has any, without repeats."""
    for name, source in sources.items():
        value = source.get(key)
        if value is None or value == []:
            continue
        ids = value if isinstance(value, list) else [value]
        for token_id in ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
                raise CheckpointError(
                    f"{directory}: {key} {value!r} in {name} is no token id, expected 0 to {vocab_size - 1}"
                )
        return tuple(dict.fromkeys(ids))
    return ()


def _image_settings(directory: Path, nested: Mapping[str, Any], config: FamilyConfig) -> PictureSettings:
    # transformers 5 saves the settings inside processor_config.json, and reads them there first.
    if isinstance(nested.get("image_processor"), Mapping):
        return config.image_settings(nested["image_processor"], str(directory / "processor_config.json"))
    file = directory / "preprocessor_config.json"
    return config.image_settings(read_json(file), str(file))
