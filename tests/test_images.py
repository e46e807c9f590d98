"""Preprocessing equals transformers' PIL backend to the last bit, and says what it cannot do."""

import gc
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from models import vision as vision_module
from models.buckets import bucket
from models.errors import CheckpointError, InputError
from models.images import ImageSettings, levels, picture_grid, preprocess, smart_resize
from models.levels import cut, normalised, values
from models.pixels import stored_pixels
from models.vision import _ends_of_turns, encode_vision
from tests.golden.images.make import QWEN2, QWEN3, SETTINGS, SIZES, digest, picture
from tests.patches import device_patches

GOLDEN = json.loads((Path(__file__).parent / "golden/images/pixels.json").read_text())


def settings(name: str = "qwen3", **changes) -> ImageSettings:
    return ImageSettings.from_dict(SETTINGS[name] | changes, "preprocessor_config.json")


@pytest.fixture(scope="module", params=SETTINGS)
def reference(request):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return request.param, Qwen2VLImageProcessorPil(**SETTINGS[request.param])


def test_golden_covers_every_case():
    assert [(name, (width, height)) for name, width, height, _, _ in GOLDEN] == [
        (name, size) for name in SETTINGS for size in SIZES
    ]
    assert len(SIZES) == 20


@pytest.mark.parametrize(
    ("name", "width", "height", "grid", "expected"), GOLDEN, ids=[f"{c[0]}-{c[1]}x{c[2]}" for c in GOLDEN]
)
def test_patches_equal_the_golden_ones(name, width, height, grid, expected):
    pixel_values, grid_thw = preprocess([picture(width, height)], settings(name))
    assert grid_thw.tolist() == [grid]
    assert pixel_values.dtype == np.float32
    assert digest(pixel_values) == expected


@pytest.mark.parametrize("size", [(1, 1), (7, 1400), (257, 255), (640, 480), (1600, 1200)], ids=str)
def test_patches_equal_transformers_bit_for_bit(reference, size):
    name, processor = reference
    expected = processor(picture(*size), return_tensors="np")
    pixel_values, grid_thw = preprocess([picture(*size)], settings(name))
    np.testing.assert_array_equal(grid_thw, expected["image_grid_thw"])
    np.testing.assert_array_equal(pixel_values.view(np.uint32), expected["pixel_values"].view(np.uint32))


def test_several_pictures_stand_one_after_another(reference):
    name, processor = reference
    pictures = [picture(300, 200), picture(64, 64), picture(90, 410)]
    expected = processor(pictures, return_tensors="np")
    pixel_values, grid_thw = preprocess(pictures, settings(name))
    np.testing.assert_array_equal(grid_thw, expected["image_grid_thw"])
    np.testing.assert_array_equal(pixel_values, expected["pixel_values"])


def test_no_picture_gives_no_patches():
    pixel_values, grid_thw = preprocess([], settings())
    assert pixel_values.shape == (0, 3 * 2 * 16 * 16)
    assert grid_thw.shape == (0, 3)


def test_every_level_is_exact_for_other_means_and_stds():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    changes = {"image_mean": [0.1, 0.33333, 0.9], "image_std": [0.2, 1.7, 0.01], "temporal_patch_size": 3}
    ramp = Image.fromarray(np.arange(256 * 256 * 3, dtype=np.uint32).reshape(256, 256, 3).astype(np.uint8))
    expected = Qwen2VLImageProcessorPil(**QWEN3 | changes)(ramp, return_tensors="np")["pixel_values"]
    pixel_values, _ = preprocess([ramp], settings(**changes))
    np.testing.assert_array_equal(pixel_values.view(np.uint32), expected.view(np.uint32))


def test_smart_resize_equals_transformers_over_many_sizes():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

    bounds = {"factor": 32, "min_pixels": 65536, "max_pixels": 1048576}
    sides = [1, 15, 16, 17, 47, 48, 49, 80, 112, 500, 512, 1000, 1024, 1040, 2001, 3200, 9999]
    compared = 0
    for height in sides:
        for width in sides:
            if max(height, width) <= 200 * min(height, width):
                assert smart_resize(height, width, **bounds) == reference_resize(height, width, **bounds)
                compared += 1
    assert compared > 200


def test_halves_round_to_even():
    bounds = {"factor": 32, "min_pixels": 1, "max_pixels": 1 << 30}
    assert smart_resize(48, 80, **bounds) == (64, 64)


def test_aspect_ratio_of_200_is_allowed_and_more_is_not():
    assert picture_grid(Image.new("RGB", (1400, 7)), settings()) == (1, 2, 228)
    with pytest.raises(
        InputError, match=r"1401x7 pixels has an aspect ratio of 200\.143, at most 200"
    ) as caught:
        preprocess([Image.new("RGB", (1401, 7))], settings())
    assert "\n" not in str(caught.value)


def test_settings_read_both_dialects():
    new = settings("qwen3")
    assert (new.min_pixels, new.max_pixels, new.patch_size, new.merge_size) == (65536, 1048576, 16, 2)
    old = settings("qwen2")
    assert (old.min_pixels, old.max_pixels, old.temporal_patch_size) == (3136, 602112, 2)
    assert old.mean == tuple(QWEN2["image_mean"])
    assert old.std == tuple(QWEN2["image_std"])


def test_min_pixels_beside_a_size_wins_as_in_transformers():
    both = settings("qwen3", min_pixels=1024, max_pixels=None)
    assert (both.min_pixels, both.max_pixels) == (1024, 1048576)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": None}, "min_pixels is missing"),
        ({"size": 224}, "size is 224"),
        ({"size": {"shortest_edge": 0, "longest_edge": 9}}, "min_pixels is missing"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels 10 is above max_pixels 9"),
        ({"patch_size": "16"}, "patch_size is '16'"),
        ({"patch_size": None}, "patch_size is missing"),
        ({"merge_size": True}, "merge_size is True"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std holds 0, expected a number above 0"),
        ({"image_mean": [0.5, "x", 0.5]}, "image_mean holds 'x', expected a number"),
        ({"rescale_factor": -1}, "rescale_factor holds -1"),
        ({"do_normalize": False}, "do_normalize is False, only True is supported"),
        ({"resample": 2}, "resample is 2, only 3 is supported"),
    ],
    ids=str,
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(CheckpointError, match=f"^preprocessor_config.json: {message}") as caught:
        settings("qwen3", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frames", [1, 2])
def test_the_device_makes_the_same_values_of_levels(frames):
    found, _ = levels([picture(90, 40), picture(64, 64)], settings())
    wanted = values(*found, frames)
    made = jax.jit(normalised, static_argnums=2)(*found, wanted.shape[1])
    np.testing.assert_array_equal(np.asarray(made).view(np.uint32), wanted.view(np.uint32))


def test_patches_are_the_picture_cut_up():
    given = stored_pixels(picture(96, 64))
    patches = cut(given, 16, 2)
    assert patches.shape == (24, 1024)
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]):
        patch = given[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        np.testing.assert_array_equal(patches[place].reshape(16, 16, 4), patch)


@pytest.mark.parametrize("size", [(90, 40), (3000, 1500)], ids=str)  # the second in several pieces
def test_pixels_outlive_their_picture(size):
    given = picture(*size)
    wanted = np.asarray(given)
    found = stored_pixels(given)
    del given
    gc.collect()
    np.testing.assert_array_equal(found[..., :3], wanted)


def test_pixels_are_not_copied():
    given = picture(64, 64)
    assert np.shares_memory(stored_pixels(given), stored_pixels(given))


def test_levels_are_the_pictures_as_they_lie_in_memory():
    given = picture(96, 64)
    found, grid = levels([given], settings(min_pixels=1024))
    assert grid.tolist() == [[1, 4, 6]]
    np.testing.assert_array_equal(found.pixels.reshape(64, 96, 4)[..., :3], np.asarray(given))


@pytest.mark.parametrize("sizes", [[(90, 40)], [(64, 64), (250, 33), (70, 200)]], ids=str)
def test_the_device_cuts_pictures_of_any_sizes(tiny, sizes):
    model, _, processor = tiny()
    pictures = [picture(*size) for size in sizes]
    wanted, grid = processor.images.preprocess(pictures)
    found, _ = processor.images.levels(pictures)
    np.testing.assert_array_equal(device_patches(model, found, grid), wanted)


def test_the_layout_of_a_size_is_sent_once(tiny):
    model, _, processor = tiny()
    found, grid = processor.images.levels([picture(90, 40)])
    (_, one), (_, other) = (model.pack_pictures(found.pixels, grid) for _ in range(2))
    assert all(isinstance(part, jax.Array) for part in one)
    assert all(part is again for part, again in zip(one, other, strict=True))


def test_the_tower_takes_values_and_levels(tiny):
    model, params, processor = tiny()
    pictures = [picture(90, 40), picture(64, 64)]
    flat, grid = processor.images.preprocess(pictures)
    found, same = processor.images.levels(pictures)
    np.testing.assert_array_equal(grid, same)
    assert found.pixels.nbytes * 6 == flat.nbytes
    one, other = (encode_vision(model, params, given, grid) for given in (flat, found))
    kept = int(model.picture_tokens(grid).sum())
    np.testing.assert_allclose(one.embeddings[:kept], other.embeddings[:kept], atol=1e-6)
    with pytest.raises(InputError, match="pixel_values"):
        encode_vision(model, params, found._replace(pixels=found.pixels[1:]), grid)


def test_many_pictures_go_through_the_tower_in_turns(tiny, monkeypatch):
    model, params, processor = tiny()
    pictures = [picture(*size) for size in ((90, 40), (64, 64), (200, 70), (33, 250), (96, 96))]
    given, grid = processor.images.levels(pictures)
    flat, _ = processor.images.preprocess(pictures)
    together = encode_vision(model, params, given, grid)
    most = int(grid.prod(1).max())
    monkeypatch.setattr(vision_module, "_TOGETHER", most)
    seen = []
    original = vision_module.encode_packed
    monkeypatch.setattr(vision_module, "encode_packed", lambda *a: (seen.append(len(a[2])), original(*a))[1])
    for form in (given, flat):
        seen.clear()
        apart = encode_vision(model, params, form, grid)
        assert len(seen) > 1
        assert max(seen) <= bucket(most, 64)
        kept = int(model.picture_tokens(grid).sum())
        for one, other in zip(apart, together, strict=True):
            np.testing.assert_allclose(one[..., :kept, :], other[..., :kept, :], atol=2e-5)
    with pytest.raises(InputError, match="pixel_values"):
        encode_vision(model, params, flat[1:], grid)


def test_a_turn_ends_before_it_would_be_too_large():
    assert _ends_of_turns(np.array([4096])) == [1]
    assert _ends_of_turns(np.array([9000, 1, 4095, 1, 2000, 3000])) == [1, 3, 5, 6]
