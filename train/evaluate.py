"""How well the checkpoint does on scenes that it has never seen:

    uv run --extra train python -m train.evaluate [--cases 500]

Scenes come from seeds that training never uses, are painted at twice the model's resolution without any of
training's variations, stored as JPEG, and go the way of a user's picture: `prepare_inputs`, then `sample`.

A thing counts as named if the answer has its name or a listed synonym (`train.things`), once the phrase for
the background is taken out. A scene is right if every thing is named and nothing else is.
"""

import argparse
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from models import load_model
from sample import SamplingConfig, prepare_inputs, sample
from train.art import TEST_STYLES, TRAINING_STYLES, Pack, load_pack
from train.batches import lay_out
from train.compose import Layout, Variation, compose, premultiplied
from train.language import NUMBERS, Group, Turn, World, count, groups, where, without_background, yes_no
from train.scenes import SLOTS, Catalogue, Scene, scene
from train.things import Names, Thing

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
LARGEST = 2 / 3
_SCALE = 2  # painted at twice the grid's resolution


class Case(NamedTuple):
    """A picture, a question and what was placed."""

    picture: bytes  # JPEG
    turn: Turn
    things: tuple[Thing, ...]  # each name once


class Score(NamedTuple):
    """Right answers of all."""

    right: int
    cases: int

    def __str__(self) -> str:
        low, high = wilson(self.right, self.cases)
        share = 100 * self.right / max(self.cases, 1)
        return f"{share:.1f} % ({100 * low:.1f} to {100 * high:.1f}; {self.right}/{self.cases})"


def wilson(right: int, cases: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    if not cases:
        return 0.0, 1.0
    share = right / cases
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    reach = z / (1 + z * z / cases) * (share * (1 - share) / cases + z * z / (4 * cases * cases)) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


def named(
    answer: str, things: Sequence[Iterable[str]], names: Names, everything: Sequence[Thing]
) -> tuple[int, int]:
    """How many of `things` the answer names, and how many of its other names are of nothing in the picture.

    Args:
        things: for each thing the names (`Thing.name`) that are right for it.
    """
    mentions = [{everything[i].name for i in m.things} for m in names.find(without_background(answer))]
    wanted = [set(t) for t in things]
    found = sum(any(m & w for m in mentions) for w in wanted)
    stray = {frozenset(m) for m in mentions if not any(m & w for w in wanted)}
    return found, len(stray)


class Painter:
    """Fresh scenes in given styles, as JPEG pictures."""

    def __init__(self, pack: Pack) -> None:
        self.pack, self.world = pack, World.of(pack.things)
        self.styles = list(pack.styles)
        self.art = premultiplied(np.concatenate([pack.styles[s] for s in self.styles]))
        self.art_rows = np.arange(len(self.art)).reshape(len(self.styles), -1)
        self._paint = jax.jit(compose, static_argnums=(3, 4, 5))

    def catalogue(self, styles: Iterable[str]) -> Catalogue:
        """Only the things and styles that have art."""
        kept = [i for i, s in enumerate(self.styles) if s in set(styles)]
        rows = range(len(self.pack.things))
        return Catalogue(
            [t.name for t in self.pack.things],
            [[k for k in kept if self.pack.available[self.styles[k]][i]] for i in rows],
        )

    def cases(
        self,
        seed: str,
        number: int,
        styles: Iterable[str],
        ask: Callable[[random.Random, Scene, list[Group], World], Turn | None],
        least: int = 1,
        most: int = 3,
    ) -> list[Case]:
        """Scenes of `least` to `most` things for which `ask` has a question."""
        rng = random.Random(f"evaluation-{seed}")
        catalogue = self.catalogue(styles)
        scenes, turns = [], []
        while len(scenes) < number:
            made = scene(rng, catalogue, (8, 8), most, least=least, largest=LARGEST, overlap=0.0)
            turn = ask(rng, made, groups(made, self.pack.things), self.world)
            if turn is not None:
                scenes.append(made)
                turns.append(turn)
        pictures = self.paint(scenes, rng.randrange(2**31))
        things = [tuple(g.thing for g in groups(s, self.pack.things)) for s in scenes]
        return [Case(*c) for c in zip(pictures, turns, things, strict=True)]

    def paint(self, scenes: list[Scene], seed: int) -> list[bytes]:
        size, pictures = 20, []
        for start in range(0, len(scenes), size):
            part = scenes[start : start + size]
            part += [part[-1]] * (size - len(part))
            layout = Layout(*map(jnp.asarray, lay_out(part, self.art_rows)))
            grid = (part[0].grid[0] * _SCALE, part[0].grid[1] * _SCALE)
            key = jax.random.key(seed + start, impl="rbg")
            painted, _ = self._paint(
                jnp.asarray(self.art), layout, key, grid, size, Variation(art=0.0, picture=0.0)
            )
            pictures += [_jpeg(p) for p in (np.asarray(painted) * 255).round().astype(np.uint8)]
        return pictures[: len(scenes)]


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def answers(
    loaded: Any, pictures: Sequence[Any], prompts: Sequence[str], batch: int = 50, **settings: Any
) -> list[str]:
    """The checkpoint's answers; greedy unless `settings` say otherwise."""
    model, params, processor = loaded
    settings = {"temperature": 0.0, "max_new_tokens": 128, **settings}
    config = SamplingConfig(eos_id=processor.eos_ids, pad_id=processor.pad_id, **settings)
    texts: list[str] = []
    for start in range(0, len(pictures), batch):
        part = slice(start, start + batch)
        inputs = prepare_inputs(model, params, processor, [[p] for p in pictures[part]], list(prompts[part]))
        texts += sample(
            model, params, inputs, config, jax.random.key(start), tokenizer=processor.tokenizer
        ).texts
    return texts


# ---------------------------------------------------------------- the questions


def ask_names(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn:
    return Turn("names", rng.choice(_NAMING), "")


def ask_count(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn | None:
    turn = count(rng, made, found, world)
    asked_all = "thing" in turn.prompt.lower() or "object" in turn.prompt.lower()
    return None if asked_all or number(turn.answer) == 0 else turn


def ask_yes_no(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn:
    return yes_no(rng, made, found, world)


def ask_relation(rng: random.Random, made: Scene, found: list[Group], world: World) -> Turn | None:
    turn = where(rng, made, found, world)
    return turn if turn.kind == "relation" and relation(turn.answer) else None


def number(text: str) -> int | None:
    """The first number word."""
    words = re.findall(r"[a-z]+", text.lower())
    return next((NUMBERS.index(w) for w in words if w in NUMBERS), None)


def relation(text: str) -> str | None:
    found = re.search(r"to the left of|to the right of|above|below", text)
    return found[0] if found else None


def yes(text: str) -> str:
    return re.split(r"\W", text.strip())[0].lower()


# ---------------------------------------------------------------- the table


def score_names(loaded: Any, cases: list[Case], pack: Pack) -> dict[str, Score]:
    """Recall and precision over things, and scenes that are right."""
    names = Names(pack.things)
    texts = answers(loaded, [c.picture for c in cases], [c.turn.prompt for c in cases])
    found = [
        named(text, [[t.name] for t in case.things], names, pack.things)
        for text, case in zip(texts, cases, strict=True)
    ]
    hits, strays = sum(f for f, _ in found), sum(s for _, s in found)
    right = sum(f == len(c.things) and not s for (f, s), c in zip(found, cases, strict=True))
    return {
        "recall": Score(hits, sum(len(c.things) for c in cases)),
        "precision": Score(hits, hits + strays),
        "scenes": Score(right, len(cases)),
    }


def score_same(loaded: Any, cases: list[Case], read: Callable[[str], Any]) -> Score:
    """Answers in which `read` finds what it finds in the truth."""
    texts = answers(loaded, [c.picture for c in cases], [c.turn.prompt for c in cases])
    return Score(sum(read(t) == read(c.turn.answer) for t, c in zip(texts, cases, strict=True)), len(cases))


def evaluate(loaded: Any, pack: Pack, cases: int) -> dict[str, Score]:
    """Every measure, by name."""
    painter, table = Painter(pack), {}
    train, test = list(TRAINING_STYLES), [s for s in TEST_STYLES if s in pack.styles]

    def names(label: str, seed: str, styles: list[str], least: int = 1, most: int = 3) -> None:
        made = painter.cases(seed, cases, styles, ask_names, least, most)
        for key, score in score_names(loaded, made, pack).items():
            table[f"{label}: {key}"] = score
            print(f"{label}: {key}: {score}", flush=True)

    names("1 to 3 things, training styles", "few", train)
    for style in test:
        names(f"1 to 3 things, {style} (never trained on)", "few", [style])
    names("4 to 6 things, training styles", "many", train, 4, SLOTS)
    for style in train:
        names(f"1 to 3 things, {style}", "few", [style])
    for label, ask, read, most in (
        ("counts 1 to 6", ask_count, number, SLOTS),
        ("yes/no, balanced", ask_yes_no, yes, 3),
        ("left, right, above, below", ask_relation, relation, 3),
    ):
        table[label] = score_same(loaded, painter.cases(label, cases, train, ask, 1, most), read)
        print(f"{label}: {table[label]}", flush=True)
    return table


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
    names, shown = Names(everything), []
    asked = [(p, q) for p in EXAMPLES for q in SEED_PROMPTS]
    for temperature in (0.3, 0.7):
        for seed in range(seeds):
            texts = answers(
                loaded, [folder / f"{p}.png" for p, _ in asked], [q for _, q in asked],
                temperature=temperature, top_p=0.9, top_k=1024, max_new_tokens=256, seed=seed,
            )  # fmt: skip
            for (picture, prompt), text in zip(asked, texts, strict=True):
                right = example_right(picture, prompt, text, names, everything)
                shown.append(Shown(picture, prompt, temperature, seed, text, right))
    return shown


def example_right(picture: str, prompt: str, text: str, names: Names, everything: Sequence[Thing]) -> bool:
    """Every thing is named and nothing else is.

    A story may use any word ("home", "star") and needs only name every thing. Asked for an aircraft where
    there is none, the answer must say so, or at least show none.
    """
    things = EXAMPLES[picture]
    hits, strays = named(text.replace("no aircraft", ""), things, names, everything)
    if "story" in prompt:
        return hits == len(things)
    if "aircraft" in prompt and picture != "f35_takeoff":
        return not strays
    return hits == len(things) and not strays


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on fresh scenes.")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=10, help="of the example pictures, for each temperature")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args()
    pack, loaded = load_pack(), load_model(given.model)
    rows = examples(loaded, Path(__file__).parents[1] / "examples" / "imgs", pack.things, given.seeds)
    print(f"examples: {Score(sum(r.right for r in rows), len(rows))}", flush=True)
    for row in rows:
        if not row.right:
            print("  wrong:", *row[:5])
    table = evaluate(loaded, pack, given.cases) if given.cases else {}
    if given.out:
        given.out.write_text(json.dumps({"table": table, "examples": rows}, indent=1))


if __name__ == "__main__":
    main()
