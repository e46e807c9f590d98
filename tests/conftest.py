"""Shared fixtures. Shapes in signatures are checked while tests run (jaxtyping with beartype)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Each program is compiled once, for all workers and for later runs; with a limit, JAX locks the files.
PROGRAMS = {
    "DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "MAX_SIZE": str(2**30),
}
THRESHOLDS = {"MIN_COMPILE_TIME_SECS": "0", "MIN_ENTRY_SIZE_BYTES": "0"}
for name, value in PROGRAMS.items():
    os.environ.setdefault(f"JAX_COMPILATION_CACHE_{name}", value)
for name, value in THRESHOLDS.items():
    os.environ.setdefault(f"JAX_PERSISTENT_CACHE_{name}", value)

# All modules with arrays in their signatures, but not those that refuse wrong types themselves.
CHECKED = {
    "models": [
        "attention",
        "blocks",
        "cache",
        "decoder",
        "images",
        "model",
        "qwen3_vl",
        "qwen3_vl_layout",
        "rope",
        "smolvlm",
        "smolvlm_images",
        "vision",
        "weights",
    ],
    "sample": ["logits", "loops", "reseed", "stats", "step"],
    "serve": ["batch", "endless", "prefill", "prefixes", "prompt", "rows"],
}
install_import_hook(
    [f"{room}.{name}" for room, names in CHECKED.items() for name in names], "beartype.beartype"
)

from models import LoadedModel, load_model  # noqa: E402
from tests.tiny import tiny_checkpoint  # noqa: E402


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_directory(variant, dialect)`: a checkpoint's folder, written once."""
    made: dict[tuple[str, str], Path] = {}

    def make(variant: str = "tied", dialect: str = "hub") -> Path:
        key = (variant, dialect)
        if key not in made:
            made[key] = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "-".join(key), *key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny(tiny_directory: Callable[..., Path]) -> Callable[..., LoadedModel]:
    """`tiny(variant)`: (model, params, processor), loaded once in float32."""
    loaded: dict[str, LoadedModel] = {}

    def load(variant: str = "tied") -> LoadedModel:
        if variant not in loaded:
            loaded[variant] = load_model(tiny_directory(variant), dtype="float32")
        return loaded[variant]

    return load
