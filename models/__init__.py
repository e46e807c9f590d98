"""Vision-language models in JAX: a file per family, shared blocks beside them, and strict loading."""

from models.decoder import VisionEmbeddings
from models.errors import CheckpointError, InputError, SaccadeError, SettingsError
from models.load import LoadedModel, load_model
from models.model import Model
from models.processor import Processor
from models.vision import encode_vision

__all__ = [
    "CheckpointError",
    "InputError",
    "LoadedModel",
    "Model",
    "Processor",
    "SaccadeError",
    "SettingsError",
    "VisionEmbeddings",
    "encode_vision",
    "load_model",
]
