"""Prompts and answers: true, complete, and the same ids by every road."""

import random

import numpy as np
import pytest

from sample.chat import encode_chat
from tests.training import named_things
from train import questions, wordings
from train.groups import beside, groups, position, relation
from train.language import turn, without_background, without_picture
from train.questions import Turn, World
from train.scenes import DRAWN, GRIDS, LARGE_GRIDS, LARGEST, SMALLEST, Catalogue, Placed, Scene, scene
from train.scoring import STORY_WORDS, Answer, Scorer
from train.stories import story
from train.things import Names
from train.tokenizer import Coder, corpus, save_tokenizer, train_tokenizer

THINGS = named_things()
WORLD = World.of(THINGS)
NAMES = Names(THINGS)
CATALOGUE = Catalogue([t.name for t in THINGS], [[0]] * len(THINGS), [1.0])
ROW = {t.name: i for i, t in enumerate(THINGS)}


def two(left: str, right: str, background: str = "grass") -> Scene:
    placed = (Placed(ROW[left], 0, 0.2, 0.5, 0.3), Placed(ROW[right], 0, 0.8, 0.5, 0.3))
    return Scene(placed, background, ("red", "blue"), ((1, 0, 0), (0, 0, 1)), (8, 8))


def test_whole_descriptions_name_every_thing_and_nothing_else() -> None:
    rng, seen = random.Random(1), set()
    for _ in range(3000):
        made = scene(rng, CATALOGUE, rng.choice(list(GRIDS)), 6)
        said = turn(rng, made, WORLD)
        if said.kind not in ("describe", "scenery", "list", "caption"):
            continue
        seen.add(said.kind)
        placed = {THINGS[p.thing].name for p in made.placed}
        mentions = [{THINGS[i].name for i in m.things} for m in NAMES.find(without_background(said.answer))]
        assert all(any(name in m for m in mentions) for name in placed), said
        assert all(m & placed for m in mentions), said
    assert len(seen) == 4


@pytest.mark.parametrize("background", ["plain", "gradient", *DRAWN])
def test_stories_name_every_thing_and_have_some_length(background: str) -> None:
    rng = random.Random(2)
    texts = {
        story(rng, background, [(THINGS[ROW["panda"]], 1), (THINGS[ROW["laptop"]], 3)]) for _ in range(50)
    }
    assert len(texts) == 50
    low, high = STORY_WORDS
    assert all("panda" in t and "laptop" in t and low <= len(t.split()) <= high for t in texts)


def test_the_prompts_of_the_readme_are_among_those_trained_on() -> None:
    assert {"Describe this image", "What's in this photo?", "What do you see?"} <= set(wordings.DESCRIBE)
    assert "Describe the scenery" in wordings.SCENERY
    assert "Write a story about this image" in wordings.STORY
    rng = random.Random(3)
    made = two("airplane", "panda")
    assert any(turn(rng, made, WORLD).prompt == "What aircraft is this?" for _ in range(8000))


def test_every_kind_of_question_is_asked_and_its_own_answer_is_right() -> None:
    rng, scorer, seen = random.Random(7), Scorer(THINGS), set()
    for i in range(6000):
        made = scene(rng, CATALOGUE, (8, 8), 6 if i % 2 else 3)
        said = turn(rng, made, WORLD, long=i % 100 == 0)
        seen.add(said.kind)
        things = [g.thing for g in groups(made, THINGS)]
        assert scorer.right(said, things, Answer(said.answer, ended=True)), said
        assert not scorer.right(said, things, Answer(said.answer, ended=False)), said
        assert not scorer.right(said, things, Answer("Perhaps.", ended=True)), said
    assert seen == {
        "describe", "scenery", "caption", "list", "count", "count all", "yes/no", "where", "relation",
        "is related", "what is", "background", "color", "kind", "kind of", "story",
    }  # fmt: skip


def test_yes_and_no_are_balanced_and_true() -> None:
    rng, answers = random.Random(4), []
    made = two("panda", "laptop")
    for _ in range(4000):
        said = turn(rng, made, WORLD)
        if said.kind == "yes/no":
            answers.append(said.answer.startswith("Yes"))
            if "panda" in said.prompt.lower():
                assert said.answer.startswith("Yes")
    assert 0.4 < np.mean(answers) < 0.6


def test_where_and_relations_follow_the_places() -> None:
    left, right = groups(two("panda", "laptop"), THINGS)
    assert (left.thing.name, right.thing.name) == ("panda", "laptop")
    assert (position(left), position(right)) == ("on the left", "on the right")
    assert relation(left, right) == "to the left of"
    assert relation(right, left) == "to the right of"
    assert not beside(left, right)


def placed(*things: tuple[str, float, float, float], grid: tuple[int, int] = (8, 8)) -> Scene:
    rows = tuple(Placed(ROW[name], 0, x, y, size) for name, x, y, size in things)
    return Scene(rows, "grass", ("red", "blue"), ((1, 0, 0), (0, 0, 1)), grid)


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (placed(("panda", 0.3, 0.3, 0.2), ("laptop", 0.4, 0.8, 0.2)), "above"),
        (placed(("panda", 0.4, 0.8, 0.2), ("laptop", 0.5, 0.2, 0.2)), "below"),
        (placed(("panda", 0.2, 0.2, 0.2), ("laptop", 0.7, 0.7, 0.2)), None),  # as far across as down
        (placed(("panda", 0.45, 0.5, 0.2), ("laptop", 0.5, 0.5, 0.6)), "inside"),
        (placed(("panda", 0.45, 0.5, 0.6), ("laptop", 0.5, 0.5, 0.2)), "around"),
        # Three times as wide as high: a third of the width is more than half of the height.
        (placed(("panda", 0.2, 0.2, 0.3), ("laptop", 0.5, 0.7, 0.3), grid=(4, 12)), "to the left of"),
    ],
)
def test_how_two_things_stand_to_each_other(scene: Scene, expected: str | None) -> None:
    by_name = {g.thing.name: g for g in groups(scene, THINGS)}
    assert relation(by_name["panda"], by_name["laptop"]) == expected


def test_next_to_each_other_means_side_by_side_and_close() -> None:
    close = groups(placed(("panda", 0.3, 0.5, 0.3), ("laptop", 0.65, 0.52, 0.3)), THINGS)
    assert beside(*close)
    far = groups(placed(("panda", 0.1, 0.5, 0.15), ("laptop", 0.9, 0.5, 0.15)), THINGS)
    assert not beside(*far)
    rng = random.Random(8)
    made = placed(("panda", 0.3, 0.5, 0.3), ("laptop", 0.65, 0.52, 0.3))
    asked = {questions.what_is(rng, made, close, WORLD) for _ in range(200)}
    assert any(t and "next to the panda" in t.prompt and t.answer.startswith("A laptop") for t in asked)


def test_scenes_keep_to_their_limits() -> None:
    rng = random.Random(5)
    for grid in {**GRIDS, **LARGE_GRIDS}:
        for _ in range(200):
            made = scene(rng, CATALOGUE, grid, 6)
            assert 1 <= len(made.placed) <= 6
            for p in made.placed:
                assert SMALLEST <= p.size <= LARGEST
                half = p.size * min(grid) / 2
                assert half - 1e-6 <= p.x * grid[1] <= grid[1] - half + 1e-6
                assert half - 1e-6 <= p.y * grid[0] <= grid[0] - half + 1e-6


def test_it_is_asked_how_many_where_things_repeat_and_where_none_does() -> None:
    rng = random.Random(0)
    repeats: list[bool] = []
    for _ in range(1000):
        made = scene(rng, CATALOGUE, (8, 8), 6, least=4)
        if turn(rng, made, WORLD).kind == "count":
            repeats.append(any(group.count > 1 for group in groups(made, THINGS)))
    assert 0.4 < sum(repeats) / len(repeats) < 0.85


def test_training_ids_are_those_of_the_chat_template(tmp_path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer(corpus(WORLD, CATALOGUE, 300), 1500)
    save_tokenizer(tmp_path, tokenizer)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer.encode("naïve 猫 🐼\n\t?").ids) == "naïve 猫 🐼\n\t?"
    pad = tokenizer.token_to_id("<|image_pad|>")
    coder, rng = Coder.of(tokenizer), random.Random(6)
    for _ in range(50):
        said = turn(rng, scene(rng, CATALOGUE, (8, 8)), WORLD)
        ids, prompt = coder.encode(said, 1)
        assert ids[:prompt] == encode_chat(loaded, said.prompt, image_pad_id=pad, pictures=1)
        assert loaded.decode(ids[prompt:]) == f"{said.answer}<|im_end|>"
    alone, prompt = coder.encode(Turn("", "Who are you?", "I"), 0)
    assert alone[:prompt] == encode_chat(loaded, "Who are you?", image_pad_id=pad)
    assert without_picture(rng, THINGS).answer
