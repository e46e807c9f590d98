"""Shared fixtures. Shapes in signatures are checked while tests run (jaxtyping with beartype)."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from tests.programs import PROGRAMS, THRESHOLDS, XLA_FLAGS

for name, value in PROGRAMS.items():
    os.environ.setdefault(f"JAX_COMPILATION_CACHE_{name}", value)
for name, value in THRESHOLDS.items():
    os.environ.setdefault(f"JAX_PERSISTENT_CACHE_{name}", value)
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

# All modules with arrays in their signatures, but not those that refuse wrong types themselves.
CHECKED = {
    "models": [
        "attention",
        "blocks",
        "cache",
        "decoder",
        "fuse",
        "images",
        "kernels.attention",
        "kernels.choice",
        "kernels.launch",
        "kernels.layer",
        "kernels.products",
        "kernels.sums",
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
if find_spec("beartype"):  # the checks are left out where it is missing
    install_import_hook(
        [f"{room}.{name}" for room, names in CHECKED.items() for name in names], "beartype.beartype"
    )

from models import LoadedModel, load_model  # noqa: E402
from tests.tiny import tiny_checkpoint  # noqa: E402


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import Together

    return Together(config, log)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_directory(variant, dialect)`: a checkpoint's folder, written once."""
    made: dict[tuple[str, str], Path] = {}

    def make(variant: str = "small", dialect: str = "hub") -> Path:
        key = (variant, dialect)
        if key not in made:
            made[key] = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "-".join(key), *key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny(tiny_directory: Callable[..., Path]) -> Callable[..., LoadedModel]:
    """`tiny(variant)`: (model, params, processor), loaded once in float32."""
    loaded: dict[str, LoadedModel] = {}

    def load(variant: str = "small") -> LoadedModel:
        if variant not in loaded:
            loaded[variant] = load_model(tiny_directory(variant), dtype="float32")
        return loaded[variant]

    return load


@pytest.fixture(scope="session")
def env(pytestconfig: pytest.Config) -> dict[str, str]:
    """Of processes that share what they compile with one another, with the tests, and with later runs."""
    from tests.servers import warm_environment

    return warm_environment(pytestconfig.cache.mkdir("commands"))


@pytest.fixture(scope="session")
def engine(tiny: Callable[..., LoadedModel]) -> Iterator:
    """An engine for all tests that need no other."""
    from serve.engine import Engine
    from tests.engines import SIZES

    engine = Engine(tiny(), SIZES)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server(tiny_directory: Callable[..., Path], env: dict[str, str]) -> Iterator:
    """The real server with a tiny model, one for all tests that need no other."""
    from tests.servers import FLOW, SMALL, running

    with running(tiny_directory(), env, *SMALL, *FLOW) as server:
        yield server
