"""Models of a named shape with random weights, made on the device: no download, no checkpoint.

Sizes of Qwen3-VL-2B and -8B are those of their config.json.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from models import load_model
from models.config import Qwen3VLConfig
from models.errors import SettingsError
from models.fuse import fuse
from models.images import ImageSettings
from models.load import EMBEDDED, chosen_dtype
from models.model import Model
from models.qwen3_vl import Qwen3VL

IMAGES = ImageSettings(  # the family's
    min_pixels=65536,
    max_pixels=16777216,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
)
_SMALL_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 256,
}
_VISION = {"num_position_embeddings": 2304, "patch_size": 16, "spatial_merge_size": 2}
_TEXT = {
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}
_IDS = {"image_token_id": 151655, "video_token_id": 151656}
_FRAME = {"vision_start_token_id": 151652, "vision_end_token_id": 151653}


def _config(tied: bool, text: dict[str, Any], vision: dict[str, Any], **ids: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl",
        "text_config": {"model_type": "qwen3_vl_text"} | _TEXT | text,
        "vision_config": {"model_type": "qwen3_vl"} | _VISION | vision,
        "tie_word_embeddings": tied,
        **_IDS,
        **_FRAME,
        **ids,
    }


SHAPES = {  # the content of a config.json
    "qwen3_vl_2b": _config(
        True,
        {
            "hidden_size": 2048,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "intermediate_size": 6144,
        },
        {
            "depth": 24,
            "hidden_size": 1024,
            "num_heads": 16,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    ),
    "qwen3_vl_8b": _config(
        False,
        {
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "intermediate_size": 12288,
        },
        {
            "depth": 27,
            "hidden_size": 1152,
            "num_heads": 16,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    ),
    "tiny": _config(
        False,
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]},
        },
        _SMALL_VISION,
        image_token_id=310,
        video_token_id=311,
        vision_start_token_id=308,
        vision_end_token_id=309,
    ),
}


class Subject(NamedTuple):
    """What is measured: a checkpoint, or a shape with random weights."""

    name: str
    model: Model
    params: Any  # without the tower's, where only decoding is measured
    tokenizer: Any  # None: token ids are made up
    images: Any  # PictureSettings
    source: dict[str, Any] | Path  # for peers: a config.json's content, or a checkpoint


def subject(model: str, shape: str, dtype: str, *, vision: bool) -> Subject:
    """A checkpoint by its name or path, or a shape; without either, the checkpoint that ships.

    Args:
        dtype: of weights and computation; "" is the device's usual one.
        vision: with the tower, also for a shape.

    Raises:
        SettingsError: both are given, or no shape has that name.
        CheckpointError: of a checkpoint that cannot be used.
    """
    if model and shape:
        raise SettingsError(f"model={model} shape={shape}; allowed: one of the two")
    if shape and shape not in SHAPES:
        raise SettingsError(f"shape: {shape!r}; allowed: {', '.join(SHAPES)}")
    if shape:
        made = Qwen3VL(Qwen3VLConfig.from_dict(SHAPES[shape]), chosen_dtype(dtype or None))
        made, params = fuse(made, random_params(made, vision=vision))
        return Subject(shape, made, params, None, IMAGES, SHAPES[shape])
    model = model or "embedded"
    found, params, processor = load_model(model, dtype=dtype or None)
    source = EMBEDDED if model == "embedded" else Path(model)
    return Subject(model, found, params, processor.tokenizer, processor.images, source)


def parameter_shapes(model: Model) -> dict[tuple[str, ...], Any]:
    """Of all parameters, by their path in a checkpoint, also where the model's are fused."""
    return flatten_dict(jax.eval_shape(model.clone(fused=False).init_params, jax.random.key(0)))


def random_params(model: Model, *, vision: bool, seed: int = 0) -> Any:
    """normal(0.02) weights in the model's dtype, norms at one, biases at zero.

    Without `vision`, the tower is left out. The largest are made first, so that no more
    memory is needed than they take in the end.
    """
    key = jax.random.key(seed)
    shapes = {
        path: leaf.shape
        for path, leaf in parameter_shapes(model).items()
        if vision or path[0] not in model.vision_parts
    }
    sizes = sorted(shapes, key=lambda path: -math.prod(shapes[path]))
    made = {
        path: _random(jax.random.fold_in(key, i), shapes[path], model.dtype, path[-1])
        for i, path in enumerate(sizes)
    }
    return unflatten_dict(made)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _random(key: jax.Array, shape: tuple[int, ...], dtype: Any, kind: str) -> jax.Array:
    if kind in ("scale", "bias"):
        return jnp.full(shape, kind == "scale", dtype)
    return 0.02 * jax.random.normal(key, shape, dtype)
