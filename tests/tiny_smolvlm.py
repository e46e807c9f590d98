"""Tiny random SmolVLM checkpoints in Hugging Face format, made with numpy alone."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.smolvlm import SmolVLM
from models.smolvlm_config import SmolVLMConfig
from tests.tiny import random_params, tensors_of

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {
        "text": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
        "vision": {"image_size": 64, "patch_size": 8, "layer_norm_eps": 1e-5},
        "scale_factor": 4,
        "tile": 64,
        "places_are_special": True,
    },
    "untied": {
        "text": {"hidden_size": 48, "num_attention_heads": 4, "head_dim": 24, "attention_bias": True},
        "vision": {"image_size": 140, "patch_size": 14},
        "scale_factor": 3,
        "tile": 131,
        "places_are_special": False,
    },
}
"""Tied: grouped queries 9:3, as many learned positions as patches, `<row_1_col_1>` is a token.

Untied: a head_dim of its own, biases, 9 patches a side on 10 learned positions, pixels that fill no patch,
and `<row_1_col_1>` is plain text.
"""

_WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PICTURE_WORDS = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
_PLACES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
VOCAB_SIZE = 384

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""What SmolVLM2's template renders: it reads parts alone, a content that is a string renders as nothing."""


def tiny_config(variant: str = "tied") -> dict[str, Any]:
    """The content of a `config.json`."""
    v = VARIANTS[variant]
    text = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "pad_token_id": 2,
    }
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "text_config": text | v["text"],
        "vision_config": vision | v["vision"],
        "image_token_id": token_id("<image>", variant),
        "scale_factor": v["scale_factor"],
        "tie_word_embeddings": variant == "tied",
    }


def image_settings(variant: str = "tied") -> dict[str, Any]:
    """The content of a `preprocessor_config.json`: pictures of up to 2 by 2 tiles."""
    tile = VARIANTS[variant]["tile"]
    return {
        "do_image_splitting": True,
        "do_pad": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": tile},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 2 * tile},
    }


@functools.cache
def _backend_json(places_are_special: bool) -> str:
    words = _WORDS + _PICTURE_WORDS + (_PLACES if places_are_special else ())
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(words),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = [
        "User: Describe this image. What do you see?\nAssistant: The image shows a panda.\n",
        "User:Describe the photo\n\n\nAssistant: a mountain\n\n",
        *_PLACES,
    ]
    backend.train_from_iterator(corpus * 2, trainer)
    missing = VOCAB_SIZE - len(words) - backend.get_vocab_size()
    words += tuple(f"<|unused_{i}|>" for i in range(missing))
    backend.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in words])
    return backend.to_str()


def build_tokenizer(variant: str = "tied") -> PreTrainedTokenizerFast:
    """As SmolLM2's: bytes, single digits, special tokens above the vocabulary."""
    backend = Tokenizer.from_str(_backend_json(VARIANTS[variant]["places_are_special"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def token_id(word: str, variant: str = "tied") -> int:
    return build_tokenizer(variant).get_vocab()[word]


def patches_of(tiles: np.ndarray, size: int) -> np.ndarray:
    """Square tiles `[n, 3, height, width]` as flat patches; pixels that fill no patch are cut off."""
    side = tiles.shape[2] // size
    cut = tiles[:, :, : side * size, : side * size].reshape(len(tiles), 3, side, size, side, size)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3, 5)).reshape(-1, 3 * size * size)


def tiny_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by their names on disk."""
    parsed = SmolVLMConfig.from_dict(config)
    params = random_params(SmolVLM(parsed), seed)
    return tensors_of(params, "patch_embedding.weight", parsed.vision.patch_shape)


def write_processor(directory: Path, variant: str = "tied") -> None:
    """Write tokenizer, chat template, generation and preprocessor configs."""
    build_tokenizer(variant).save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(image_settings(variant)))
    ends = {
        "eos_token_id": token_id("<end_of_utterance>", variant),
        "pad_token_id": token_id("<|im_end|>", variant),
    }
    (directory / "generation_config.json").write_text(json.dumps(ends))


def tiny_checkpoint(directory: str | Path, variant: str = "tied", seed: int = 0) -> Path:
    """Write one: config, weights, and what `write_processor` does."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(variant)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors(config, seed), directory / "model.safetensors", metadata={"format": "pt"})
    write_processor(directory, variant)
    return directory
