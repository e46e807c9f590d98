"""Vision-language models in JAX: a file per family, shared blocks beside them, and strict loading."""

from models.errors import CheckpointError, InputError, SaccadeError, SettingsError
from models.load import LoadedModel, load_model
from models.processor import Processor
from models.qwen3_vl import VisionEmbeddings
from models.vision import encode_vision

__all__ = [
    "CheckpointError",
    "InputError",
    "LoadedModel",
    "Processor",
    "SaccadeError",
    "SettingsError",
    "VisionEmbeddings",
    "encode_vision",
    "load_model",
]
