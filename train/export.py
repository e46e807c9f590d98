"""A trained model to a folder in Hugging Face format, which transformers and `models.load_model` read."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tokenizers import Tokenizer

from models.qwen3_vl import Qwen3VL
from models.weights import save_checkpoint
from train.tokenizer import ENDOFTEXT, IM_END, save_tokenizer

_CELL = 32 * 32  # pixels: a patch of 16 x 16, 2 x 2 merged
_SHORTEST = 48 * _CELL  # smaller pictures are enlarged to this area, about 224 x 224

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
}


def export(
    directory: Path, model: Qwen3VL, params: Any, tokenizer: Tokenizer, config: dict[str, Any], cells: int
) -> None:
    """Write weights in bfloat16, configurations, tokenizer and chat template.

    Args:
        cells: of the largest picture, the size that larger ones are reduced to.
    """
    save_checkpoint(directory, model.config, params, jnp.bfloat16)
    save_tokenizer(directory, tokenizer)
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "eos_token_id": [tokenizer.token_to_id(IM_END), tokenizer.token_to_id(ENDOFTEXT)],
        "pad_token_id": tokenizer.token_to_id(ENDOFTEXT),
    }
    areas = {"shortest_edge": _SHORTEST, "longest_edge": cells * _CELL}
    preprocessor = PREPROCESSOR | {"size": areas}
    files = {"config": config, "generation_config": generation, "preprocessor_config": preprocessor}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
