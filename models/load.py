"""`load_model`: a directory in Hugging Face format, a hub id, or the checkpoint that ships."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from models.config import Qwen3VLConfig
from models.errors import CheckpointError, SettingsError
from models.fuse import fuse
from models.json_file import read_json
from models.kernels.choice import on_cpu
from models.model import Model
from models.processor import Processor
from models.qwen3_vl import Qwen3VL
from models.smolvlm import SmolVLM
from models.smolvlm_config import SmolVLMConfig
from models.weights import Progress, load_params

EMBEDDED = Path(__file__).parent / "embedded"
FAMILIES = {  # model_type: (configuration, model)
    "qwen3_vl": (Qwen3VLConfig, Qwen3VL),
    "smolvlm": (SmolVLMConfig, SmolVLM),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


class LoadedModel(NamedTuple):
    """`model` is static and hashable, `params` a pytree, `processor` has the tokenizer and the defaults."""

    model: Model
    params: Any
    processor: Processor


def load_model(
    name_or_path: str | Path, *, dtype: Any = None, progress: Progress | None = None
) -> LoadedModel:
    """Load a checkpoint.

    Args:
        name_or_path: "embedded", a directory in Hugging Face format, or a hub id ("owner/name").
        dtype: of parameters and computation; by default float32 on a CPU, where it is the fast type, and
            bfloat16 elsewhere.
        progress: called with (bytes read, bytes in all) as tensors arrive.

    Raises:
        CheckpointError: not found, of an unknown architecture, or its parts do not fit.
        SettingsError: another `dtype` than float32, bfloat16 and float16.
    """
    directory = _find(name_or_path)
    content = read_json(directory / "config.json")
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type {kind!r}; allowed: {', '.join(FAMILIES)}"
        )
    config_class, model_class = FAMILIES[kind]
    config = config_class.from_dict(content)
    chosen = chosen_dtype(dtype)
    model = model_class(config, chosen)
    processor = Processor.from_directory(directory, config)
    params = load_params(directory, model, chosen, progress)
    return LoadedModel(*fuse(model, params), processor)


def chosen_dtype(dtype: Any) -> Any:
    """float32 on a CPU, bfloat16 elsewhere, or what is asked for; raises SettingsError for other types."""
    if dtype is None:
        return jnp.float32 if on_cpu() else jnp.bfloat16
    for name, known in DTYPES.items():
        if dtype in (name, known):
            return known
    raise SettingsError(f"dtype: {dtype!r}; allowed: {', '.join(DTYPES)}")


def _find(name_or_path: str | Path) -> Path:
    name = str(name_or_path)
    if name == "embedded":
        return EMBEDDED
    if name and isinstance(name_or_path, str | Path):  # an empty path would be the current directory
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        if not path.exists() and _HUB_ID.fullmatch(name):
            return _download(name)
    raise CheckpointError(f"model {name!r}: neither a directory, nor a hub id (owner/name), nor 'embedded'")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (only a hub id needs it)

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, etag_timeout=5))
    except (OSError, ValueError) as error:  # the hub's own errors are among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"model {hub_id!r}: no such directory, and the hub gave nothing ({reason})"
        ) from None
