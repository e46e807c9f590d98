"""Write pixels.json beside this file: hashes of what transformers' PIL backend makes of the test pictures.

Run `python -m tests.golden.images.make` after a wanted change of the cases.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# (width, height): the smallest, the aspect limit both ways, halves of the factor 32 (which round to even),
# exact multiples, upscales, downscales, and areas above the largest.
SIZES = [
    (1, 1),
    (1, 200),
    (200, 1),
    (2, 3),
    (7, 1400),
    (1400, 7),
    (16, 3200),
    (31, 33),
    (48, 48),
    (255, 256),
    (256, 256),
    (257, 255),
    (320, 240),
    (336, 272),
    (333, 777),
    (640, 480),
    (1023, 1025),
    (1200, 6),
    (1600, 1200),
    (3000, 2000),
]
QWEN3 = {
    "size": {"shortest_edge": 65536, "longest_edge": 1048576},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
QWEN2 = {
    "min_pixels": 3136,
    "max_pixels": 602112,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
SETTINGS: dict[str, dict[str, Any]] = {"qwen3": QWEN3, "qwen2": QWEN2}


def picture(width: int, height: int) -> Image.Image:
    """An RGB picture with sharp and smooth parts in all channels, from whole-number arithmetic alone."""
    y, x, channel = np.ogrid[:height, :width, :3]
    levels = (x * 7 + y * 13 + channel * 61 + (x * y) % 31 * 5 + (x // 9 + y // 5) % 2 * 90) % 256
    return Image.fromarray(levels.astype(np.uint8))


def digest(pixel_values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixel_values, "<f4").tobytes()).hexdigest()


def main() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    golden = []
    for name, settings in SETTINGS.items():
        processor = Qwen2VLImageProcessorPil(**settings)
        for size in SIZES:
            made = processor(picture(*size), return_tensors="np")
            grid = made["image_grid_thw"][0].tolist()
            golden.append([name, *size, grid, digest(made["pixel_values"])])
    lines = ",\n".join(json.dumps(case) for case in golden)
    Path(__file__).with_name("pixels.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
