"""The checkpoint that ships: its size, and the bar that it has to pass."""

import json
from pathlib import Path

import pytest

pytest.importorskip("optax", reason="the evaluation needs the recipe's packages (extra: train)")

from models import load_model
from models.load import EMBEDDED
from tests.training import named_things
from train.evaluate import Score, answers, examples, named, wilson
from train.things import Names

ROOT = Path(__file__).parents[1]
THINGS = named_things()


def test_it_is_small() -> None:
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) <= 24_000_000


def test_a_name_counts_once_and_a_wrong_one_counts_against() -> None:
    names = Names(THINGS)
    assert named("I see a panda and two pandas by the sea.", [["panda"]], names, THINGS) == (1, 0)
    assert named("A laptop computer and a skull.", [["laptop"], ["panda"]], names, THINGS) == (1, 1)
    assert named("A dog in front of the houses of a city.", [["dog"]], names, THINGS) == (1, 0)


def test_the_interval_is_wilsons() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)


@pytest.mark.slow
def test_95_of_100_fresh_scenes_are_named_right() -> None:
    folder = ROOT / "tests" / "data" / "scenes"
    cases = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert len(cases) == 100
    texts = answers(
        load_model("embedded"), [folder / c["picture"] for c in cases], [c["prompt"] for c in cases]
    )
    names = Names(THINGS)
    right = 0
    for case, text in zip(cases, texts, strict=True):
        hits, strays = named(text, [[t] for t in case["things"]], names, THINGS)
        right += hits == len(case["things"]) and not strays
    assert right >= 95, Score(right, len(cases))


@pytest.mark.slow
def test_the_example_pictures_are_described_right() -> None:
    shown = examples(load_model("embedded"), ROOT / "examples" / "imgs", THINGS, seeds=1)
    assert [s for s in shown if not s.right] == []
