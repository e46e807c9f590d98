"""How well a checkpoint does on scenes that it has never seen:

    uv run --extra train python -m train.evaluate [--cases 500]

Scenes come from seeds that training never uses, are painted without any of training's variations, scaled to
some size, stored as JPEG, and go the way of a user's picture: `prepare_inputs`, then `sample`, greedily.
`train.scoring` says when an answer is right.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from models import load_model
from models.load import EMBEDDED
from sample import SamplingConfig, prepare_inputs, sample
from train import language, questions
from train.art import load_pack
from train.art_sets import ICON_STYLES, TEST_STYLES, TRAINING_STYLES
from train.card import write_sheet, write_table
from train.groups import Group
from train.language import Ask
from train.painter import Case, Painter
from train.questions import Turn, World
from train.scenes import SLOTS, Scene
from train.scoring import Answer, Score, Scorer, relation
from train.things import Thing

SEED_PROMPTS = (
    "Describe this image",
    "What's in this photo?",
    "Describe the scenery",
    "What do you see?",
    "What aircraft is this?",
    "Write a story about this image",
)
# All things of the five example pictures, by their names in things.txt; each with what else it may be called.
EXAMPLES = {
    "panda_climbing": (("panda",), ("leafy tree",)),
    "coffee_laptop": (("laptop",), ("cup of coffee",)),
    "mountain_landscape": (("snow-capped mountain", "mountain"), ("evergreen tree",), ("sun",)),
    "f35_takeoff": (("airplane taking off", "airplane", "small airplane"),),
    "stadium_aerial": (("stadium",),),
}
_NAMING = ("Describe this image", "What's in this photo?", "Describe the scenery", "What do you see?")
Table = dict[str, Score]


def answers(
    loaded: Any, pictures: Sequence[Any], prompts: Sequence[str], batch: int = 50, **settings: Any
) -> list[Answer]:
    """The checkpoint's answers; greedy unless `settings` say otherwise. A picture of None: none is shown."""
    model, params, processor = loaded
    settings = {"temperature": 0.0, "max_new_tokens": 128, **settings}
    config = SamplingConfig(eos_id=processor.eos_ids, pad_id=processor.pad_id, **settings)
    said: list[Answer] = []
    for start in range(0, len(pictures), batch):
        part = slice(start, start + batch)
        shown = [[] if picture is None else [picture] for picture in pictures[part]]
        inputs = prepare_inputs(model, params, processor, shown, list(prompts[part]))
        key = jax.random.key(start)
        result = sample(model, params, inputs, config, key, tokenizer=processor.tokenizer)
        ended = [reason == "stop" for reason in result.finish_reasons]
        said += map(Answer, result.texts, ended)
    return said


# ---------------------------------------------------------------- the questions


def ask_names(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn:
    return Turn("names", rng.choice(_NAMING), "")


def ask_relation(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn | None:
    turn = questions.related(rng, made, found, world)
    return turn if turn and relation(turn.answer) in questions.OPPOSITE else None


def ask_where(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn | None:
    single = [group for group in found if group.count == 1]
    return questions.where(rng, made, single, world) if single else None


def ask_anything(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn:
    return language.turn(rng, made, world)


def only(kind: str, ask: Ask) -> Ask:
    """The questions of one kind, where `ask` has several."""

    def asked(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn | None:
        turn = ask(rng, made, found, world)
        return turn if turn and turn.kind == kind else None

    return asked


# Kind of question: how it is asked, and of how many things at most.
KINDS: dict[str, tuple[Ask, int]] = {
    "describe": (language.describe, 3),
    "describe the scenery": (language.scenery, 3),
    "caption": (language.caption, 3),
    "list": (language.listing, SLOTS),
    "how many things in all": (only("count all", questions.count), SLOTS),
    "is one to the left of (right of, above, below) another": (questions.is_related, 3),
    "what is to the left of (right of, above, below, inside, next to)": (questions.what_is, 3),
    "where": (ask_where, 3),
    "color of the background": (only("color", questions.background), 3),
    "background": (only("background", questions.background), 3),
    "which animal (food, ...) is this": (only("kind", questions.kind), 3),
    "what kind of thing is it": (only("kind of", questions.kind), 3),
    "story": (language.tell, 3),
}


# ---------------------------------------------------------------- the table


class Evaluation:
    """A checkpoint, the art and the table of scores that grows with each measure."""

    def __init__(self, loaded: Any, painter: Painter, number: int, show: Callable[[str], None]) -> None:
        self.loaded, self.painter, self.number, self._show = loaded, painter, number, show
        self.scorer = Scorer(painter.things)
        self.table: Table = {}

    def put(self, label: str, score: Score) -> None:
        self.table[label] = score
        self._show(f"{label}: {score}")

    def names(self, label: str, seed: str, styles: Iterable[str], least: int = 1, most: int = 3) -> None:
        """Recall and precision over things, and scenes that are right."""
        cases = self.painter.cases(seed, self.number, styles, ask_names, least, most)
        said = self._answers(cases)
        found = [self.scorer.named(a.text, _names(c)) for a, c in zip(said, cases, strict=True)]
        hits, strays = sum(f for f, _ in found), sum(s for _, s in found)
        right = sum(f == len(c.things) and not s for (f, s), c in zip(found, cases, strict=True))
        self.put(f"{label}: things named", Score(hits, sum(len(c.things) for c in cases)))
        self.put(f"{label}: names that are right", Score(hits, hits + strays))
        self.put(f"{label}: scenes right", Score(right, len(cases)))
        strict = Scorer(self.painter.things, synonyms=False)
        exact = sum(strict.named(a.text, _names(c))[0] for a, c in zip(said, cases, strict=True))
        if exact != hits:
            self.put(f"{label}: named without synonyms", Score(exact, sum(len(c.things) for c in cases)))

    def kind(self, label: str, ask: Ask, most: int) -> None:
        """Answers to one kind of question in the training styles."""
        cases = self.painter.cases(label, self.number, TRAINING_STYLES, ask, 1, most)
        room = {"max_new_tokens": 320} if cases[0].turn.kind == "story" else {}
        said = self._answers(cases, **room)
        self.put(label, Score(sum(map(self._right, cases, said)), len(cases)))
        if room:
            self.put(f"{label}: all different", Score(len({a.text for a in said}), len(said)))

    def examples(self, folder: Path, seeds: int) -> None:
        """The example pictures; wrong answers are printed."""
        rows = examples(self.loaded, folder, self.painter.things, seeds)
        for row in rows:
            if not row.right:
                self._show(f"  wrong: {row}")
        label = "the five example pictures, six prompts, two temperatures"
        self.put(label, Score(sum(r.right for r in rows), len(rows)))

    def without_picture(self) -> None:
        rng = random.Random("evaluation-no picture")
        turns = [language.without_picture(rng, self.painter.things) for _ in range(self.number)]
        said = answers(self.loaded, [None] * len(turns), [t.prompt for t in turns])
        right = sum(self.scorer.right(t, (), a) for t, a in zip(turns, said, strict=True))
        self.put("a prompt without a picture", Score(right, len(turns)))

    def _answers(self, cases: list[Case], **settings: Any) -> list[Answer]:
        return answers(self.loaded, [c.picture for c in cases], [c.turn.prompt for c in cases], **settings)

    def _right(self, case: Case, answer: Answer) -> bool:
        return self.scorer.right(case.turn, case.things, answer)


def _names(case: Case) -> list[list[str]]:
    return [[thing.name] for thing in case.things]


def measures(painter: Painter) -> list[Callable[[Evaluation], None]]:
    """All of them, the most telling first; each puts its scores into the table."""
    few, many, unseen = "1 to 3 things", "4 to 6 things", "(never trained on)"
    train, icons, test = (
        [style for style in styles if style in painter.styles]
        for styles in (TRAINING_STYLES, ICON_STYLES, TEST_STYLES)
    )

    def names(*given: Any) -> Callable[[Evaluation], None]:
        return lambda measured: measured.names(*given)

    def kind(*given: Any) -> Callable[[Evaluation], None]:
        return lambda measured: measured.kind(*given)

    return [
        names(f"{few}, training styles", "few", train),
        *(names(f"{few}, {style} {unseen}", "few", [style]) for style in test),
        names(f"{many}, training styles", "many", train, 4, SLOTS),
        *(names(f"{many}, {style} {unseen}", "many", [style], 4, SLOTS) for style in test),
        kind("counts of 1 to 6 exact", only("count", questions.count), SLOTS),
        kind("yes/no, balanced", questions.yes_no, 3),
        kind("left, right, above, below", ask_relation, 3),
        *(kind(label, ask, most) for label, (ask, most) in KINDS.items()),
        Evaluation.without_picture,
        *(names(f"{few}, {style}", "few", [style]) for style in train),
        names(f"{few}, sets of icons", "few", icons),
    ]


class Shown(NamedTuple):
    """What the checkpoint said about an example picture."""

    picture: str
    prompt: str
    temperature: float
    seed: int
    answer: str
    right: bool


def examples(loaded: Any, folder: Path, everything: Sequence[Thing], seeds: int) -> list[Shown]:
    """The five example pictures under the prompts of the README, at two temperatures."""
    scorer, shown = Scorer(everything), []
    asked = [(p, q) for p in EXAMPLES for q in SEED_PROMPTS]
    for temperature in (0.3, 0.7):
        for seed in range(seeds):
            said = answers(
                loaded, [folder / f"{p}.png" for p, _ in asked], [q for _, q in asked],
                temperature=temperature, top_p=0.9, top_k=1024, max_new_tokens=320, seed=seed,
            )  # fmt: skip
            for (picture, prompt), answer in zip(asked, said, strict=True):
                right = answer.ended and example_right(picture, prompt, answer.text, scorer)
                shown.append(Shown(picture, prompt, temperature, seed, answer.text, right))
    return shown


def example_right(picture: str, prompt: str, text: str, scorer: Scorer) -> bool:
    """Every thing is named and nothing else is; a story needs only name every thing.

    Asked for an aircraft where there is none, the answer must say so, or at least show none.
    """
    things = EXAMPLES[picture]
    hits, strays = scorer.named(text.replace("no aircraft", ""), things)
    if "story" in prompt:
        return hits == len(things)
    if "aircraft" in prompt and picture != "f35_takeoff":
        return not strays
    return hits == len(things) and not strays


def report(folder: Path, painter: Painter, table: Table) -> None:
    """The table and a sheet of test scenes with their answers, into a checkpoint's folder."""
    write_table(folder / "README.md", {label: str(Score(*score)) for label, score in table.items()})
    cases = painter.cases("sheet", 12, [*TRAINING_STYLES, *TEST_STYLES], ask_anything, 1, SLOTS)
    said = answers(load_model(folder), [c.picture for c in cases], [c.turn.prompt for c in cases])
    shown = [(c.picture, c.turn.prompt, a.text) for c, a in zip(cases, said, strict=True)]
    write_sheet(folder / "scenes.png", shown)


def measure(
    loaded: Any, painter: Painter, cases: int, seeds: int, part: slice, out: Path | None = None
) -> Table:
    """The table of some of the measures, written to `out` after each; the example pictures come last.

    Args:
        seeds: for each temperature, of the example pictures; 0: without them.
    """
    measured = Evaluation(loaded, painter, cases, lambda line: print(line, flush=True))
    todo = measures(painter)
    if seeds:
        folder = Path(__file__).parents[1] / "examples" / "imgs"
        todo.append(lambda measured: measured.examples(folder, seeds))
    for one in todo[part]:
        one(measured)
        if out:
            out.write_text(json.dumps(measured.table, indent=1))
    return measured.table


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on fresh scenes.")
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="its folder; the table goes to its card")
    parser.add_argument("--cases", type=int, default=500, help="of each measure")
    parser.add_argument("--seeds", type=int, default=10, help="of the example pictures, for each temperature")
    parser.add_argument("--part", default="0:", help="of the measures, as a slice; no card is written then")
    parser.add_argument("--out", type=Path, help="write the table as JSON, after each measure")
    parser.add_argument(
        "--from", nargs="*", type=Path, dest="tables", help="tables to join instead of measuring"
    )
    given = parser.parse_args()
    painter = Painter(load_pack())
    table: Table = {}
    for path in given.tables or ():
        table |= json.loads(path.read_text())
    if not given.tables:
        part = slice(*(int(n) if n else None for n in given.part.split(":")))
        table = measure(load_model(given.model), painter, given.cases, given.seeds, part, given.out)
    if given.part == "0:":
        report(given.model, painter, table)


if __name__ == "__main__":
    main()
