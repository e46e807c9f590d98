"""The composer puts things where it is told; the recipe learns, stops, goes on and exports."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optax", reason="the recipe needs optax (extra: train)")

import jax
import jax.numpy as jnp
from PIL import Image
from tokenizers import Tokenizer

from models import load_model
from models.fuse import unfused
from models.images import preprocess
from models.load import EMBEDDED
from tests.training import synthetic_pack
from train.art import SIZE
from train.batches import Maker, lay_out
from train.compose import CELL, Layout, Variation, _lattice, _resample, _warp, compose, patches, premultiplied
from train.export import export
from train.painter import Painter
from train.recipe import ABLATIONS, SMOKE, make
from train.run import Run, token_weights, train
from train.scenes import BACKGROUNDS, SMALL, Catalogue, Placed, Scene, scene
from train.step import State, losses

PLAIN = Variation(art=0.0, picture=0.0)


@pytest.fixture(scope="module")
def run() -> Run:
    sizes = {"width": 64, "vision_depth": 1, "vision_mlp": 64, "layers": 1, "mlp": 64}
    return Run(
        replace(
            SMOKE, sizes=sizes, vocabulary=600, batch=4, steps=12, grids={(3, 4): 1}, large_grids={(3, 4): 1}
        ),
        synthetic_pack(),
    )


@pytest.mark.slow
def test_things_are_where_the_layout_says() -> None:
    pack = synthetic_pack()
    art = premultiplied(pack.art)
    white = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    placed = (Placed(0, 0, 0.25, 0.25, 0.5), Placed(1, 0, 0.75, 0.75, 0.3))
    made = Scene(placed, "plain", ("white", "red"), white, (4, 4))
    layout = Layout(*lay_out([made], np.arange(len(art))[None]))
    picture, shares = compose(art, layout, jax.random.key(0, impl="rbg"), (4, 4), 0, PLAIN)
    assert picture.shape == (1, 4 * CELL, 4 * CELL, 3)
    share = np.asarray(shares)[0].reshape(4, 4, -1)
    assert share[:2, :2, 0].min() > 0.4
    assert np.ptp(share[:2, :2, 0]) < 0.2  # all of it, not a corner
    assert share[2:, 2:, 1].min() > 0.15
    assert share[:2, 2:].sum() < 0.05
    assert share[2:, :2].sum() < 0.05
    seen = np.asarray(picture)[0]
    color = pack.art[0, 64, 64, :3] / 255
    np.testing.assert_allclose(seen[32, 32], color, atol=0.15)  # the palette still moves a little
    np.testing.assert_allclose(seen[32, 96], 1, atol=0.01)


def test_a_thing_that_a_style_lacks_is_never_drawn_in_it() -> None:
    pack = synthetic_pack()
    pack.rows["game-icons"] = np.where(np.arange(len(pack.things)) == 0, -1, pack.rows["game-icons"])
    assert 1 not in Run(SMOKE, pack).source.catalogue.styles[0]
    painter = Painter(pack)
    styles = painter.catalogue(painter.styles).styles
    assert painter.styles.index("game-icons") not in styles[0]
    assert painter.styles.index("game-icons") in styles[1]


@pytest.mark.slow
def test_the_painter_paints_all_six_things() -> None:
    white = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    placed = tuple(Placed(i, 0, 0.2 + 0.3 * (i % 3), 0.25 + 0.5 * (i // 3), 0.2) for i in range(6))
    scenes = [Scene(placed[:n], "plain", ("white", "red"), white, (4, 4)) for n in (6, 3)]
    for made in scenes:
        picture = np.asarray(Painter(synthetic_pack()).paint([made], 0)[0])
        shown = [picture[round(p.y * 128), round(p.x * 128)].min() < 250 for p in placed]
        assert shown == [i < len(made.placed) for i in range(6)]


@pytest.mark.slow
def test_what_a_plain_picture_leaves_out_has_no_effect() -> None:
    pack, rng = synthetic_pack(), random.Random(0)
    catalogue = Catalogue([t.name for t in pack.things], [[0]] * len(pack.things), [1.0])
    made = [scene(rng, catalogue, (4, 4), 3, largest=0.6) for _ in range(4)]
    layout = Layout(*lay_out(made, pack.rows["noto"][None]))
    painted = [
        compose(premultiplied(pack.art), layout, jax.random.key(3, impl="rbg"), (4, 4), 0, variation)
        for variation in (PLAIN, Variation(art=1e-9, picture=1e-9))
    ]
    np.testing.assert_allclose(painted[0][0], painted[1][0], atol=0.02)


def test_no_line_of_the_art_is_lost_where_it_is_made_smaller() -> None:
    art = np.zeros((6, SIZE, SIZE, 4), np.uint8)
    for i in range(6):
        art[i, :, SIZE // 2 + i] = 255  # a line, one pixel wide
    still = jnp.zeros(6, bool)
    drawn = _warp(jax.random.key(0), premultiplied(art), jnp.arange(6), still, 0.0, _lattice(SIZE, 32))
    assert drawn[..., 3].sum((1, 2)).min() > SIZE // 8


@pytest.mark.slow
def test_every_background_is_a_picture() -> None:
    n = len(BACKGROUNDS)
    empty = np.full((n, 6), -1, np.int32), *[np.full((n, 6), 0.5, np.float32)] * 3
    layout = Layout(*empty, np.arange(n, dtype=np.int32), np.full((n, 2, 3), 0.5, np.float32))
    art = jnp.zeros((1, 128, 128), jnp.uint32)
    picture, shares = compose(art, layout, jax.random.key(1, impl="rbg"), (2, 3), n, Variation())
    assert np.isfinite(picture).all()
    assert 0 <= picture.min() <= picture.max() <= 1
    assert not shares.any()


@pytest.mark.slow
def test_patches_are_the_processors(run: Run, tmp_path: Path) -> None:
    export(tmp_path, run.model, run.start().params["model"], run.tokenizer, run.config, 64)
    processor = load_model(tmp_path).processor
    pixels = np.random.default_rng(0).integers(0, 256, (6 * 32, 9 * 32, 3), dtype=np.uint8)
    expected, grid = preprocess([Image.fromarray(pixels)], processor.images)
    assert grid.tolist() == [[1, 12, 18]]
    np.testing.assert_allclose(
        patches(jnp.asarray(pixels[None] / 255.0, jnp.float32))[0], expected, atol=1e-6
    )


def test_a_batch_does_not_depend_on_who_makes_it(run: Run) -> None:
    first, again = Maker(run.source).make(5), Maker(run.source).make(5)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.lengths > first.prompts).all()


@pytest.mark.slow
def test_a_run_learns_goes_on_where_it_stopped_and_exports(run: Run, tmp_path: Path) -> None:
    def loss(state: State) -> float:
        batch = Maker(run.source).make(0)
        inputs, places = run.inputs(batch)
        painted = run.paint(batch, inputs, 0)
        return float(losses(run.model, state.params, inputs, *painted, places, run.weights)["answer"])

    before = loss(run.start())
    out, folder, pack = tmp_path / "out", tmp_path / "model", synthetic_pack()
    make(run, pack, out, folder, minutes=0.0, cases=1, seeds=1)
    assert not folder.exists()  # stopped after its first step
    make(run, pack, out, folder, cases=1, seeds=1)
    state = train(run, out)  # nothing is left to do
    assert int(state.step) == run.settings.steps
    assert loss(state) < before - 0.3
    loaded = load_model(folder, dtype=jnp.bfloat16)
    stored = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), state.params["model"])
    plain = unfused(loaded.model.config.text, loaded.params)
    jax.tree.map(np.testing.assert_array_equal, plain, stored)
    card = (folder / "README.md").read_text()
    assert "| 1 to 3 things, openmoji (never trained on): things named |" in card
    assert "| left, right, above, below |" in card
    for name in ("scenes.png", "loss.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100


def test_a_part_can_be_left_out(run: Run) -> None:
    for name, change in ABLATIONS.items():
        settings = replace(run.settings, **change)
        assert (settings == run.settings) == (name == "nothing")
    alone = Run(replace(run.settings, **ABLATIONS["icons"]), synthetic_pack())
    assert len(alone.source.art_rows) < len(run.source.art_rows)


def test_telling_words_weigh_more() -> None:
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    weights = token_weights(tokenizer, 3.0)
    text = "Yes, three pandas are to the left of the bus, below it."
    encoded = tokenizer.encode(text, add_special_tokens=False)
    heavy = [
        text[a:b].strip() for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True) if weights[i] > 1
    ]
    assert heavy == ["Yes", "three", "left", "below"]
    assert set(weights.tolist()) == {1.0, 3.0}


def test_larger_pictures_come_last(run: Run) -> None:
    source = replace(run.source, large_grids={(9, 10): 1}, large_from=5)
    batches = map(Maker(source).make, range(25))
    made = [(batch.grid, len(batch.tokens)) for batch in batches]
    small, large = ((3, 4), 4), ((9, 10), 1)  # fewer of them
    assert set(made[:5]) == {small}
    assert set(made[5:]) == {small, large}


def test_some_things_are_small() -> None:
    catalogue = Catalogue(["cat", "dog"], [[0], [0]], [1.0])

    def smallest(small: float) -> float:
        rng = random.Random(0)
        drawn = [scene(rng, catalogue, (8, 8), 1, small=small).placed[0].size for _ in range(300)]
        return sum(size <= SMALL for size in drawn) / len(drawn)

    assert smallest(0.0) + 0.2 < smallest(0.4)


def test_some_things_fill_the_picture() -> None:
    catalogue = Catalogue(["cat", "dog", "hen", "pig"], [[0]] * 4, [1.0])

    def filling(close: float) -> float:
        rng = random.Random(0)
        scenes = [scene(rng, catalogue, (8, 8), 3, least=3, close=close) for _ in range(300)]
        return sum(max(p.size for p in s.placed) > 0.6 for s in scenes) / len(scenes)

    assert filling(0.0) + 0.2 < filling(0.4)


def test_enlarged_art_has_edges_from_soft_to_sharp() -> None:
    centre, scale = jnp.full(3, 150.0), jnp.array([2.5, 2.5, 0.5])
    soft = np.asarray(_resample(centre, scale, jnp.zeros(3), 300, 128), np.float32)
    sharp = np.asarray(_resample(centre, scale, jnp.ones(3), 300, 128), np.float32)
    step = (np.arange(128) >= 64).astype(np.float32)  # an edge of the art

    def between(weights: np.ndarray) -> list[int]:
        """Pixels that are on neither side of the edge."""
        shown = weights @ step
        return ((shown > 0.02) & (shown < 0.98)).sum(1).tolist()

    assert between(soft)[0] >= 2
    assert between(sharp)[1] <= 1
    np.testing.assert_array_equal(sharp[2], soft[2])  # what is made smaller stays as it is
    np.testing.assert_allclose(sharp[0, 100:200].sum(-1), 1, atol=0.01)


@pytest.mark.slow
def test_a_run_that_is_cut_leaves_what_it_has(run: Run, tmp_path: Path) -> None:
    make(run, synthetic_pack(), tmp_path / "out", tmp_path / "whole", minutes=0.0, cases=0, seeds=0)
    assert not (tmp_path / "whole").exists()
    assert load_model(tmp_path / "out" / "unfinished").model.config.text.hidden_size == 64
