"""SmolVLM's tiles equal those of transformers' PIL backend to the last bit; impossible settings are named."""

import jax
import numpy as np
import pytest
from PIL import Image

from models.errors import CheckpointError
from models.levels import normalised, values
from models.smolvlm_images import TileSettings
from tests.golden.images.make import picture
from tests.tiny_smolvlm import patches_of

HALF = [0.5, 0.5, 0.5]
SETTINGS = {  # (patch size, preprocessor_config.json)
    "four tiles": (16, {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}),
    "pixels cut off": (14, {"size": {"longest_edge": 300}, "max_image_size": {"longest_edge": 111}}),
    "one tile": (16, {"size": {"longest_edge": 50}, "max_image_size": {"longest_edge": 64}}),
    "no splitting": (
        16,
        {
            "size": {"longest_edge": 128},
            "max_image_size": {"longest_edge": 64},
            "do_image_splitting": False,
        },
    ),
    "other levels": (
        16,
        {
            "size": {"longest_edge": 128},
            "max_image_size": {"longest_edge": 64},
            "image_mean": [0.1, 0.33333, 0.9],
            "image_std": [0.2, 1.7, 0.01],
            "rescale_factor": 0.01,
        },
    ),
}
SIZES = [
    (1, 1),
    (1, 200),
    (200, 1),
    (3, 2),
    (31, 33),
    (64, 64),
    (255, 256),
    (257, 255),
    (320, 240),
    (333, 777),
    (1023, 1025),
    (1600, 1200),
]


def settings(name: str = "four tiles", scale_factor: int = 1, **changes) -> TileSettings:
    patch, content = SETTINGS[name]
    content = {"image_mean": HALF, "image_std": HALF} | content | changes
    return TileSettings.from_dict(content, "preprocessor_config.json", patch, scale_factor)


@pytest.fixture(scope="module", params=SETTINGS)
def reference(request):
    """transformers' tiles `[n, 3, height, width]` of one picture, and their rows and columns."""
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    processor = SmolVLMImageProcessorPil(
        **{"image_mean": HALF, "image_std": HALF} | SETTINGS[request.param][1]
    )

    def tiles(*pictures):
        made = processor([list(pictures)], return_tensors="np", return_row_col_info=True)
        assert made["pixel_attention_mask"].all()  # a tile has no padding
        return made["pixel_values"][0], list(zip(made["rows"][0], made["cols"][0], strict=True))

    return request.param, tiles


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_equal_transformers_bit_for_bit(reference, size):
    name, theirs = reference
    tiles, [tiling] = theirs(picture(*size))
    made = settings(name)
    patches, grids = made.preprocess([picture(*size)])
    assert made.tiling(picture(*size)) == tiling
    assert grids.tolist() == [[1, made.side, made.side]] * len(tiles)
    assert patches.dtype == tiles.dtype == np.float32
    np.testing.assert_array_equal(patches.view(np.uint32), patches_of(tiles, made.patch_size).view(np.uint32))


def test_several_pictures_stand_one_after_another(reference):
    name, theirs = reference
    pictures = [picture(300, 200), picture(64, 64), picture(90, 410)]
    tiles, tilings = theirs(*pictures)
    made = settings(name)
    patches, grids = made.preprocess(pictures)
    assert [made.tiling(p) for p in pictures] == tilings
    assert len(grids) == len(tiles)
    np.testing.assert_array_equal(patches, patches_of(tiles, made.patch_size))


def test_the_tiling_of_many_sizes_equals_transformers():
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    sizes = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    processor, made = SmolVLMImageProcessorPil(**sizes), settings(**sizes)
    sides = [1, 2, 15, 255, 256, 257, 500, 511, 512, 513, 767, 1000, 1024, 1025, 2047, 2048, 2049, 4100, 9999]
    for height in sides:
        for width in sides:
            _, rows, columns = processor.get_number_of_image_patches(height, width)
            found = made.tiling(Image.new("L", (width, height)))
            # That function does not follow the ratio in its last step, so it may have a row or column more.
            assert abs(found[0] - rows) + abs(found[1] - columns) <= 1
            assert max(found) == 4


def test_the_device_makes_the_same_values_of_tiles():
    made = settings("other levels")
    found, grids = made.levels([picture(128, 64)])
    tiles = found.pixels.reshape(len(grids), made.side**2, -1)
    wanted = values(*found, 1).reshape(*tiles.shape[:2], -1)
    on_device = jax.jit(normalised, static_argnums=2)(tiles, found.table, wanted.shape[-1])
    np.testing.assert_array_equal(np.asarray(on_device).view(np.uint32), wanted.view(np.uint32))


def test_no_picture_gives_no_patches():
    patches, grids = settings().preprocess([])
    assert patches.shape == (0, 3 * 16 * 16)
    assert grids.shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": None}, "size is None, expected a longest_edge"),
        ({"size": {"height": 3, "width": 3}}, "size: longest_edge is missing"),
        ({"size": {"longest_edge": 4097}}, "size's longest_edge is 4097, at most 4096"),
        ({"max_image_size": {"longest_edge": "64"}}, "max_image_size: longest_edge is '64'"),
        ({"max_image_size": {"longest_edge": 15}}, "max_image_size's longest_edge is 15, 0 patches a side"),
        ({"max_image_size": {"longest_edge": 80}}, "max_image_size's longest_edge is 80, 5 patches a side"),
        ({"do_image_splitting": 1}, "do_image_splitting is 1, expected true or false"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std holds 0, expected a number above 0"),
        ({"rescale_factor": -1}, "rescale_factor holds -1"),
        ({"do_resize": False}, "do_resize is False, only True is supported"),
        ({"resample": 3}, "resample is 3, only 1 is supported"),
    ],
    ids=str,
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(CheckpointError, match=f"^preprocessor_config.json: {message}") as caught:
        settings(scale_factor=2, **changes)
    assert "\n" not in str(caught.value)
