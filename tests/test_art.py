"""The art's styles, its pack and the example pictures composed from it."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train import art
from train.art import SIZE
from train.art_sets import ICON_STYLES, TEST_STYLES, TRAINING_STYLES
from train.things import Thing

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = ("panda_climbing", "coffee_laptop", "mountain_landscape", "f35_takeoff", "stadium_aerial")


def make_thing(name: str) -> Thing:
    return Thing(name, "🐼", "1F43C", name, name + "s", "a", ("one", "two"), "animal", "group", "subgroup")


def disc(colour: tuple[int, int, int]) -> Image.Image:
    """A disc on transparent ground, with a soft edge."""
    y, x = np.mgrid[:128, :128]
    alpha = np.clip((50 - np.hypot(x - 63.5, y - 63.5)) * 40 + 128, 0, 255)
    picture = np.zeros((128, 128, 4), np.uint8)
    picture[..., :3] = colour
    picture[..., 3] = alpha
    return Image.fromarray(picture)


def coded(colour: tuple[int, int, int]) -> bytes:
    return art.encode(disc(colour))


@pytest.fixture
def tools() -> None:
    """Skips where the art cannot be fetched or drawn."""
    pytest.importorskip("resvg_py", reason="the art is drawn with resvg-py (extra: train)")
    if shutil.which("npm") is None:
        pytest.skip("the art is fetched with npm, which is not installed")


def test_only_free_styles_train_and_openmoji_does_not() -> None:
    trained = {**TRAINING_STYLES, **ICON_STYLES}
    assert "openmoji" not in trained
    assert not any("openmoji" in style.package for style in trained.values())
    assert {s.licence for s in trained.values()} == {"MIT", "Apache-2.0", "CC-BY-3.0", "CC-BY-4.0"}
    assert set(TEST_STYLES) == {"openmoji"}


def test_pack_round_trip(tmp_path: Path) -> None:
    things = [make_thing("disc"), make_thing("blank")]
    art.save_pack(tmp_path, things, {"red": [coded((220, 30, 40)), b""], "blue": [coded((0, 0, 250))] * 2})
    pack = art.load_pack(tmp_path)
    assert pack.things == tuple(things)
    assert pack.art.shape == (3, 128, 128, 4)
    assert pack.art.dtype == np.uint8
    blue, red = pack.rows["blue"].tolist(), pack.rows["red"].tolist()
    assert sorted([*blue, red[0]]) == [0, 1, 2]
    assert red[1] == -1
    assert pack.art[blue[1], 64, 64, 2] > 240
    picture = pack.art[red[0]]
    np.testing.assert_array_equal(picture[..., 3], np.asarray(disc((0, 0, 0)))[..., 3])  # alpha is lossless
    assert np.abs(picture[64, 64, :3].astype(int) - (220, 30, 40)).max() <= 8
    assert not picture[picture[..., 3] == 0].any()


def test_the_edge_keeps_its_colour(tmp_path: Path) -> None:
    art.save_pack(tmp_path, [make_thing("disc")], {"white": [coded((255, 255, 255))]})
    picture = art.load_pack(tmp_path).art[0]
    assert picture[picture[..., 3] > 0][:, :3].min() >= 240  # no dark rim from the transparent ground


def test_load_pack_can_leave_styles_out(tmp_path: Path) -> None:
    art.save_pack(
        tmp_path, [make_thing("disc")], {"red": [coded((255, 0, 0))], "openmoji": [coded((0, 0, 0))]}
    )
    assert set(art.load_pack(tmp_path, ["red"]).rows) == {"red"}


def test_load_pack_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="things"):
        art.load_pack(tmp_path)
    art.save_pack(tmp_path, [make_thing("disc")], {"red": [coded((255, 0, 0))]})
    with pytest.raises(FileNotFoundError, match="noto"):
        art.load_pack(tmp_path, ["noto"])


def test_code_points() -> None:
    assert art.code_points("☀️") == "2600"
    assert art.code_points("🐻‍❄️") == "1F43B-200D-2744"


def test_example_pictures_are_large_and_light() -> None:
    for name in PICTURES:
        path = EXAMPLES / "imgs" / f"{name}.png"
        with Image.open(path) as picture:
            assert min(picture.size) >= 512, name
            assert picture.mode == "RGB", name
            colours = np.unique(np.asarray(picture).reshape(-1, 3)[::97], axis=0)
            assert len(colours) > 200, name  # nothing blank
        assert path.stat().st_size < 400_000, name


def test_the_examples_readme_carries_the_licence_and_every_picture() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert "Copyright (c) Microsoft Corporation" in text
    assert "Permission is hereby granted, free of charge" in text
    for name in PICTURES:
        assert f"`{name}.png`" in text


@pytest.mark.network
@pytest.mark.usefixtures("tools")
def test_the_examples_are_what_the_script_composes(tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / "make_imgs.py"))["main"](tmp_path)
    for name in PICTURES:
        made, shipped = Image.open(tmp_path / f"{name}.png"), Image.open(EXAMPLES / "imgs" / f"{name}.png")
        difference = np.asarray(made, np.int16) - np.asarray(shipped, np.int16)
        assert np.abs(difference).max() <= 3, name  # rounding may differ between machines


@pytest.mark.network
@pytest.mark.usefixtures("tools")
def test_every_thing_has_art_in_the_large_styles() -> None:
    things = art.collect_things()
    assert len({thing.id for thing in things}) == len(things)
    for style in ("fluent-emoji", "fluent-emoji-flat", "noto", "twemoji", "openmoji"):
        missing = [thing.name for thing in things if art.icon_name(style, thing.emoji) is None]
        assert missing == [], style
    for style in ("noto-v1", "emojione", "fxemoji"):
        assert sum(art.icon_name(style, thing.emoji) is not None for thing in things) > 450, style
    for style in [*TRAINING_STYLES, *TEST_STYLES]:
        picture = art.draw(style, "🐼")
        assert picture is not None
        assert picture.size == (SIZE, SIZE)
        assert picture.mode == "RGBA"
    for style in ICON_STYLES:
        assert sum(art.icon_name(style, thing.emoji) is not None for thing in things) > 150, style
        assert art.draw(style, "🎸" if style != "tabler" else "🐷") is not None, style
        assert picture.getextrema()[3] == (0, 255)


@pytest.mark.network
@pytest.mark.usefixtures("tools")
def test_a_pack_is_drawn_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(art, "STYLES", {"tabler": ICON_STYLES["tabler"]})
    art.make_pack(tmp_path)
    pack = art.load_pack(tmp_path)
    assert len(pack.art) == (pack.rows["tabler"] >= 0).sum() > 150
    assert pack.art.shape[1:] == (SIZE, SIZE, 4)
