"""The mean of checkpoints that began as one: better than each of them, most of all on unseen styles.

    uv run --extra train python -m train.average train/out/1 train/out/2 --export models/embedded

Source: model soups (Wortsman et al., 2022, arXiv:2203.05482), the uniform one.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from models import load_model
from models.errors import SaccadeError
from models.weights import save_checkpoint

_COPIED = (
    "config.json", "generation_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def average(folders: Sequence[Path], target: Path) -> None:
    """Write the mean of the weights, in bfloat16, with the first checkpoint's other files.

    Raises:
        SaccadeError: the checkpoints differ in their configuration or their tokenizer, or `target` is one
            of them.
    """
    if target in folders:
        raise SaccadeError(f"{target} is one of the checkpoints: write the mean to a folder of its own")
    for folder in folders[1:]:
        for name in ("config.json", "tokenizer.json"):
            if (folder / name).read_bytes() != (folders[0] / name).read_bytes():
                raise SaccadeError(f"{folder} and {folders[0]} differ in their {name}: they have no mean")
    loaded = [load_model(folder, dtype=jnp.float32) for folder in folders]
    mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *(one.params for one in loaded))
    save_checkpoint(target, loaded[0].model.config, mean, jnp.bfloat16)
    for name in _COPIED:
        shutil.copyfile(folders[0] / name, target / name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the mean of checkpoints.")
    parser.add_argument("folders", nargs="+", type=Path, help="checkpoints of the same start")
    parser.add_argument("--export", type=Path, required=True, help="folder of the result")
    given = parser.parse_args()
    average(given.folders, given.export)


if __name__ == "__main__":
    main()
