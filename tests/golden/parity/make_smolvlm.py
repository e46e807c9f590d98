"""What transformers computes for the tiny SmolVLM checkpoints; `python -m tests.golden.parity.make_smolvlm`.

Needs torch. The tests compare with the file always, and with transformers itself where torch is installed.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.tiny_smolvlm import VARIANTS, tiny_checkpoint, token_id

FILE = Path(__file__).with_name("smolvlm.npz")
STEPS = 48
PICTURES = {"small": 1, "wide": 3, "square": 5}  # tiles: one alone, 1 by 2 and 2 by 2 with the whole picture


class Case(NamedTuple):
    """A batch: each row's token ids, and the tiles of each row."""

    rows: list[np.ndarray]
    tiles: list[np.ndarray]  # [tiles of the row, 3, height, width]


def cases(variant: str) -> dict[str, Case]:
    """Numbers are counts of random text tokens, names are pictures."""
    v, rng = VARIANTS[variant], np.random.default_rng(7)
    tile, image = v["tile"], token_id("<image>", variant)
    tile_tokens = (tile // v["vision"]["patch_size"] // v["scale_factor"]) ** 2
    batches: dict[str, list[tuple[int | str, ...]]] = {
        "text": [(23,)],
        "one_picture": [(5, "wide", 9)],
        "two_pictures": [(4, "square", 3, "small", 8)],
        "ragged": [(3, "small", 4), (40,), (2, "wide", "small", 6)],
    }

    def ids(part: int | str) -> list[int]:
        if isinstance(part, int):
            return rng.integers(0, 256, part).tolist()
        return [i for _ in range(PICTURES[part]) for i in (rng.integers(0, 256), *[image] * tile_tokens)]

    made = {}
    for name, rows in batches.items():
        tokens = [np.array([i for part in row for i in ids(part)], np.int32) for row in rows]
        counts = [sum(PICTURES[part] for part in row if isinstance(part, str)) for row in rows]
        tiles = [rng.standard_normal((count, 3, tile, tile)).astype(np.float32) for count in counts]
        made[name] = Case(tokens, tiles)
    return made


def reference(model: Any, case: Case) -> dict[str, np.ndarray]:
    """transformers' vision features, logits behind the prompts, and greedy tokens."""
    import torch

    width = max(map(len, case.rows))
    ids = torch.zeros((len(case.rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(case.rows):  # on the left, as `generate` wants it
        ids[i, width - len(row) :] = torch.from_numpy(row.astype(np.int64))
        mask[i, width - len(row) :] = 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    most = max(map(len, case.tiles))
    found = {}
    with torch.no_grad():
        if most:
            pixels = torch.zeros((len(case.rows), most, *case.tiles[0].shape[1:]))
            for i, tiles in enumerate(case.tiles):
                pixels[i, : len(tiles)] = torch.from_numpy(tiles)
            features = model.model.get_image_features(pixels).pooler_output
            found["vision"] = torch.cat(features).numpy()
            inputs["pixel_values"] = pixels
        found["logits"] = model(**inputs).logits[:, -1].numpy()
        tokens = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    found["tokens"] = tokens[:, width:].numpy().astype(np.int32)
    return found


def load_reference(directory: Path) -> Any:
    """transformers' own model of a checkpoint, in float32, with no token that ends a generation."""
    import torch
    from transformers import SmolVLMForConditionalGeneration

    model = SmolVLMForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def main() -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            model = load_reference(tiny_checkpoint(Path(folder) / variant, variant))
            for name, case in cases(variant).items():
                for what, value in reference(model, case).items():
                    arrays[f"{variant}/{name}/{what}"] = value
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
