"""A trained model to a folder in Hugging Face format, which transformers and `models.load_model` read."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tokenizers import Tokenizer

from models.qwen3_vl import Qwen3VL
from models.weights import save_checkpoint
from train.tokenizer import ENDOFTEXT, IM_END, save_tokenizer

# Areas in pixels: small pictures come to about 224 x 224, large ones to 320 x 320, as in `train.scenes`.
SHORTEST, LONGEST = 49152, 102400

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "size": {"shortest_edge": SHORTEST, "longest_edge": LONGEST},
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
    directory: Path, model: Qwen3VL, params: Any, tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
    """Write weights in bfloat16, configurations, tokenizer and chat template."""
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
    files = {"config": config, "generation_config": generation, "preprocessor_config": PREPROCESSOR}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
