"""Tiny random Qwen3-VL checkpoints in Hugging Face format, made with numpy alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from models.config import Qwen3VLConfig
from models.model import Model
from models.qwen3_vl import Qwen3VL
from models.weights import checkpoint_name
from tests.tokenizer_fixture import (
    IMAGE_PAD_ID,
    VIDEO_PAD_ID,
    VISION_END_ID,
    VISION_START_ID,
    VOCAB_SIZE,
    write_processor,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True, "heads": 6, "kv_heads": 2, "head_dim": 16, "sections": (4, 2, 2)},
    "untied": {"tied": False, "heads": 4, "kv_heads": 4, "head_dim": 24, "sections": (4, 4, 4)},
    "wide_head": {"tied": False, "heads": 2, "kv_heads": 1, "head_dim": 128, "sections": (24, 20, 20)},
}
"""Between them: tied and untied heads, GQA 6:2, 4:4 and 2:1, head_dim 128 and others."""
SMALL = VARIANTS["tied"] | {"layers": 2, "seen": [0]}
"""Of half the layers, for all tests to which depth says nothing: compiled sooner, and run faster."""


def tiny_config(variant: str = "small", dialect: str = "hub") -> dict[str, Any]:
    """The content of a `config.json`, in the hub's dialect or in that of transformers 5 ("saved")."""
    v = (VARIANTS | {"small": SMALL})[variant]
    layers = v.get("layers", 4)
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(v["sections"])}
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": v["heads"],
        "num_key_value_heads": v["kv_heads"],
        "head_dim": v["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": layers,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 48,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": v.get("seen", [0, 1, 2]),
        "hidden_act": "gelu_pytorch_tanh",
    }
    if dialect == "hub":
        text |= {"rope_theta": 5e6, "rope_scaling": rope}
    else:
        text |= {"rope_parameters": {**rope, "rope_theta": 5e6}}
        vision |= {
            "model_type": "qwen3_vl_vision",
            "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
        }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": IMAGE_PAD_ID,
        "video_token_id": VIDEO_PAD_ID,
        "vision_start_token_id": VISION_START_ID,
        "vision_end_token_id": VISION_END_ID,
        "tie_word_embeddings": v["tied"],
    }


def random_params(model: Model, seed: int = 0) -> dict[str, Any]:
    """Random float32 parameters, made without compiling; large enough that logits differ clearly."""
    shapes = flatten_dict(jax.eval_shape(model.init_params, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    params = {}
    for path in sorted(shapes):
        shape = shapes[path].shape
        noise = rng.standard_normal(shape, dtype=np.float32)
        if path[-1] == "scale":
            value = 1 + 0.1 * noise
        elif path[-1] == "bias":
            value = 0.1 * noise
        else:
            value = noise / np.sqrt(shape[0]) if path[-1] == "kernel" else 0.3 * noise
        params[path] = value.astype(np.float32)
    return unflatten_dict(params)


def tensors_of(params: dict[str, Any], patches: str, patch_shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Parameters as they are on disk, where the weight named `patches` has a shape of its own."""
    tensors = {}
    for path, value in flatten_dict(params).items():
        name = checkpoint_name(path)
        stored = value.T if path[-1] == "kernel" else value
        if name.endswith(patches):
            stored = stored.reshape(-1, *patch_shape)
        tensors[name] = np.ascontiguousarray(stored)
    return tensors


def tiny_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by their names on disk."""
    params = random_params(Qwen3VL(Qwen3VLConfig.from_dict(config)), seed)
    return tensors_of(params, "patch_embed.proj.weight", (3, 2, 16, 16))


def tiny_checkpoint(
    directory: str | Path, variant: str = "small", dialect: str = "hub", seed: int = 0
) -> Path:
    """Write one: config, weights, tokenizer, chat template, generation and preprocessor configs."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(variant, dialect)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors(config, seed), directory / "model.safetensors", metadata={"format": "pt"})
    write_processor(directory)
    return directory
