"""The checkpoint that ships: its size, and the bar that it has to pass."""

import json
from pathlib import Path

import pytest

pytest.importorskip("optax", reason="the evaluation needs the recipe's packages (extra: train)")

from models import load_model
from models.load import EMBEDDED
from tests.training import named_things
from train.card import write_table
from train.evaluate import answers, examples
from train.scoring import Score, Scorer, wilson

ROOT = Path(__file__).parents[1]
THINGS = named_things()


def test_it_is_small() -> None:
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) <= 24_000_000


def test_a_name_counts_once_and_a_wrong_one_counts_against() -> None:
    scorer = Scorer(THINGS)
    assert scorer.named("I see a panda and two pandas by the sea.", [["panda"]]) == (1, 0)
    assert scorer.named("A laptop computer and a skull.", [["laptop"], ["panda"]]) == (1, 1)
    assert scorer.named("A dog in front of the houses of a city.", [["dog"]]) == (1, 0)


def test_a_listed_synonym_counts_and_can_be_told_apart() -> None:
    assert Scorer(THINGS).named("A coffee.", [["cup of coffee"]]) == (1, 0)
    assert Scorer(THINGS, synonyms=False).named("A coffee.", [["cup of coffee"]])[0] == 0
    assert Scorer(THINGS, synonyms=False).named("Two cups of coffee.", [["cup of coffee"]]) == (1, 0)


def test_the_table_replaces_the_one_in_the_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(
        "# Card\n\nbefore\n\n<!-- measured: written by train.evaluate -->\nold\n<!-- /measured -->\nafter\n"
    )
    for share in ("50 %", "60 %"):
        write_table(card, {"counts": share})
    text = card.read_text()
    assert text.count("| counts | 60 % |") == 1
    assert "old" not in text
    assert "50 %" not in text
    assert text.startswith("# Card")
    assert text.endswith("after\n")


def test_the_interval_is_wilsons() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)


@pytest.mark.slow
def test_95_of_100_fresh_scenes_are_named_right() -> None:
    folder = ROOT / "tests" / "data" / "scenes"
    cases = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert len(cases) == 100
    said = answers(
        load_model("embedded"), [folder / c["picture"] for c in cases], [c["prompt"] for c in cases]
    )
    scorer, right = Scorer(THINGS), 0
    for case, answer in zip(cases, said, strict=True):
        hits, strays = scorer.named(answer.text, [[t] for t in case["things"]])
        right += hits == len(case["things"]) and not strays
    assert right >= 95, Score(right, len(cases))


@pytest.mark.slow
def test_the_example_pictures_are_described_right() -> None:
    shown = examples(load_model("embedded"), ROOT / "examples" / "imgs", THINGS, seeds=1)
    assert [s for s in shown if not s.right] == []
