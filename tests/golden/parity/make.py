"""What transformers computes for the tiny checkpoints; `python -m tests.golden.parity.make` writes it down.

Needs torch. The tests compare with the file always, and with transformers itself where torch is installed.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.tiny import VARIANTS, tiny_checkpoint
from tests.tokenizer_fixture import IMAGE_PAD_ID, VISION_END_ID, VISION_START_ID

FILE = Path(__file__).with_name("qwen3_vl.npz")
STEPS = 64
PATCH_DIM = 3 * 2 * 16 * 16
GRIDS = {"wide": (1, 4, 10), "tall": (1, 12, 6)}  # in patches: 10 and 18 tokens


class Case(NamedTuple):
    """A batch: each row's token ids, and the pictures of all rows in order."""

    rows: list[np.ndarray]
    pixel_values: np.ndarray
    grid_thw: np.ndarray


def _row(rng: np.random.Generator, *parts: int | str) -> np.ndarray:
    """Numbers are counts of random text tokens, names are pictures."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, 400, part).tolist()
        else:
            ids += [VISION_START_ID, *[IMAGE_PAD_ID] * (int(np.prod(GRIDS[part])) // 4), VISION_END_ID]
    return np.array(ids, np.int32)


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(7)
    batches: dict[str, list[tuple[int | str, ...]]] = {
        "text": [(23,)],
        "one_picture": [(5, "wide", 9)],
        "two_pictures": [(4, "tall", 3, "wide", 8)],
        "ragged": [(3, "wide", 4), (40,), (2, "tall", "wide", 6)],
    }
    made = {}
    for name, rows in batches.items():
        grids = [GRIDS[p] for row in rows for p in row if isinstance(p, str)]
        grid = np.array(grids, np.int64).reshape(-1, 3)
        pixels = rng.standard_normal((int(grid.prod(1).sum()), PATCH_DIM)).astype(np.float32)
        made[name] = Case([_row(rng, *row) for row in rows], pixels, grid)
    return made


def reference(model: Any, case: Case) -> dict[str, np.ndarray]:
    """transformers' vision and DeepStack features, logits behind the prompts, and greedy tokens."""
    import torch

    width = max(map(len, case.rows))
    ids = torch.zeros((len(case.rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(case.rows):  # on the left, as `generate` wants it
        ids[i, width - len(row) :] = torch.from_numpy(row.astype(np.int64))
        mask[i, width - len(row) :] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE_PAD_ID).long()}
    found = {}
    with torch.no_grad():
        if len(case.grid_thw):
            pixels, grid = torch.from_numpy(case.pixel_values), torch.from_numpy(case.grid_thw)
            seen = model.model.visual(pixels, grid_thw=grid)
            found["vision"] = seen.pooler_output.numpy()
            found["deepstack"] = np.stack([d.numpy() for d in seen.deepstack_features])
            inputs |= {"pixel_values": pixels, "image_grid_thw": grid}
        found["logits"] = model(**inputs).logits[:, -1].numpy()
        tokens = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    found["tokens"] = tokens[:, width:].numpy().astype(np.int32)
    return found


def load_reference(directory: Path) -> Any:
    """transformers' own model of a checkpoint, in float32, with no token that ends a generation."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def main() -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            model = load_reference(tiny_checkpoint(Path(folder) / variant, variant))
            for name, case in cases().items():
                for what, value in reference(model, case).items():
                    arrays[f"{variant}/{name}/{what}"] = value
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
