"""Questions about one thing in a scene, and their true answers: how many, is there, where, what, which.

Each function draws one; it gives None where the scene has nothing of the sort to ask about.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from train import wordings
from train.groups import (
    NUMBERS,
    OPPOSITE,
    Group,
    background_noun,
    background_place,
    background_sentence,
    beside,
    capital,
    listed,
    position,
    relation,
)
from train.scenes import Scene
from train.things import Thing

MAIN_COLOR = {
    "sky": "blue",
    "grass": "green",
    "sea": "blue",
    "desk": "brown",
    "night": "dark blue",
    "snow": "white",
    "forest": "green",
    "runway": "gray",
    "beach": "yellow",
    "hills": "green",
}
# Kinds that are said without an article.
_UNCOUNTED = frozenset(
    {"food", "clothing", "footwear", "tableware", "money", "weather", "sports equipment", "furniture"}
)


class Turn(NamedTuple):
    """What the user asks, what the answer is, and which kind of question it was."""

    kind: str
    prompt: str
    answer: str


class World(NamedTuple):
    """All things that a scene may hold, and the kinds of them."""

    things: Sequence[Thing]
    kinds: Sequence[str]

    @classmethod
    def of(cls, things: Sequence[Thing]) -> "World":
        return cls(things, sorted({k for t in things for k in t.kinds}))


def count(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    if rng.random() < 0.15:
        return _count_all(rng, found)
    group = rng.choice([g for g in found if g.count > 1] or found)
    number, thing = group.count, group.thing
    if rng.random() < 0.1:
        number, thing = 0, absent(rng, found, world.things)
    prompt = rng.choice(wordings.COUNT).format(thing.plural)
    noun = thing.name if number == 1 else thing.plural
    be = "is" if number == 1 else "are"
    said = capital(NUMBERS[number])
    answer = rng.choice((f"There {be} {NUMBERS[number]} {noun}.", f"{said} {noun}.", f"{said}."))
    return Turn("count", prompt, answer)


def _count_all(rng: random.Random, found: list[Group]) -> Turn:
    total = sum(g.count for g in found)
    be, noun = ("is", "thing") if total == 1 else ("are", "things")
    answers = (
        f"There {be} {NUMBERS[total]} {noun}: {listed(found)}.",
        f"{capital(NUMBERS[total])}: {listed(found)}.",
    )
    return Turn("count all", rng.choice(wordings.COUNT_ALL), rng.choice(answers))


def yes_no(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    """Is there a thing, or a kind of thing? Half of the answers are yes."""
    if rng.random() < 0.2:
        return _yes_no_kind(rng, found, world)
    there = rng.random() < 0.5
    phrase = (rng.choice(found).thing if there else absent(rng, found, world.things)).phrase
    prompt = rng.choice(wordings.IS_THERE).format(phrase)
    if there:
        answers = (f"Yes, there is {phrase}.", "Yes.", f"Yes. I see {listed(found)}.")
    else:
        answers = (f"No, I do not see {phrase}.", "No.", f"No. I see {listed(found)}.")
    return Turn("yes/no", prompt, rng.choice(answers))


def _yes_no_kind(rng: random.Random, found: list[Group], world: World) -> Turn:
    kinds = {k for g in found for k in g.thing.kinds}
    others = [k for k in world.kinds if k not in kinds]
    there = rng.random() < 0.5 or not others
    word = rng.choice(sorted(kinds) if there else others)
    asked = wordings.IS_IT if len(found) == 1 and found[0].count == 1 else wordings.IS_THERE
    prompt = rng.choice(asked).format(a_kind(word))
    if there:
        shown = next(g for g in found if word in g.thing.kinds)
        be = "it is" if asked is wordings.IS_IT else f"there {shown.be}"
        answers = (f"Yes, {be} {shown.phrase}.", "Yes.")
    else:
        answers = (f"No, I do not see {a_kind(word)}.", "No.", f"No. I see {listed(found)}.")
    return Turn("yes/no", prompt, rng.choice(answers))


def where(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    group = rng.choice(found)
    prompt = rng.choice(wordings.WHERE).format(group.the)
    if group.count > 1:
        prompt = prompt.replace("is the", "are the")
        return Turn("where", prompt, f"{capital(group.the)} are {background_place(scene)}.")
    spot = position(group)
    return Turn("where", prompt, rng.choice((f"{capital(group.the)} is {spot}.", f"{capital(spot)}.")))


# ---------------------------------------------------------------- how two things stand to each other


def related(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn | None:
    """Where is one thing relative to another?"""
    pair = _pair(rng, found)
    if pair is None:
        return None
    a, b, how = pair
    prompt = rng.choice(wordings.WHERE_TO).format(a=a.the, b=b.the)
    return Turn("relation", prompt, f"{capital(a.the)} is {how} {b.the}.")


def is_related(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn | None:
    """Is one thing to the left of another? Half of the answers are yes."""
    pair = _pair(rng, found)
    if pair is None or pair[2] not in OPPOSITE:
        return None
    a, b, how = pair
    true = rng.random() < 0.5
    asked = how if true else OPPOSITE[how]
    prompt = rng.choice(wordings.IS_RELATED).format(a=a.the, b=b.the, relation=asked)
    first = "Yes" if true else "No"
    answer = rng.choice((f"{first}.", f"{first}, {a.the} is {how} {b.the}."))
    return Turn("is related", prompt, answer)


def what_is(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn | None:
    """What is to the left of a thing? Only where one thing is, and clearly."""
    single = [g for g in found if g.count == 1]
    rng.shuffle(single)
    for b in single:
        others = [g for g in found if g is not b]
        ways = {how: [g for g in others if relation(g, b) == how] for how in (*OPPOSITE, "inside")}
        ways["next to"] = [g for g in others if g.count == 1 and beside(g, b)]
        clear = [how for how, things in ways.items() if len(things) == 1]
        if clear and all(g.count == 1 for g in others):
            how = rng.choice(clear)
            a = ways[how][0]
            prompt = rng.choice(wordings.WHAT_IS).format(how, b.the)
            return Turn("what is", prompt, f"{capital(a.thing.phrase)} is {how} {b.the}.")
    return None


def _pair(rng: random.Random, found: list[Group]) -> tuple[Group, Group, str] | None:
    pairs = [(a, b, how) for a in found for b in found if a is not b and (how := relation(a, b))]
    return rng.choice(pairs) if pairs else None


# ---------------------------------------------------------------- background and kinds


def background(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    if rng.random() < 0.5:
        return Turn("color", rng.choice(wordings.COLOR), _color(rng, scene))
    noun = capital(background_noun(scene))
    answer = rng.choice((background_sentence(scene), f"{noun}."))
    return Turn("background", rng.choice(wordings.BACKGROUND), answer)


def _color(rng: random.Random, scene: Scene) -> str:
    if scene.background == "gradient":
        first, second = scene.colors
        return f"The background goes from {first} to {second}."
    color = scene.colors[0] if scene.background == "plain" else MAIN_COLOR.get(scene.background)
    if color is None:
        return f"The background has many colors: it is {background_noun(scene)}."
    return rng.choice((f"The background is {color}.", f"{capital(color)}."))


def kind(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    """ "What aircraft is this?", also where there is none."""
    group = rng.choice(found)
    others = [k for k in world.kinds if all(k not in g.thing.kinds for g in found)]
    if others and rng.random() < 0.15:
        word = rng.choice(others)
        prompt = rng.choice(wordings.KIND).format(word)
        return Turn("kind", prompt, f"I see no {word}. I see {listed(found)}.")
    word = rng.choice(group.thing.kinds)
    shown = listed([g for g in found if word in g.thing.kinds])
    if rng.random() < 0.25:
        the = group.the if group.count == 1 else f"one of {group.the}"
        prompt = rng.choice(wordings.KIND_OF).format(the)
        return Turn("kind of", prompt, f"{capital(group.thing.phrase)} is {a_kind(group.thing.kind)}.")
    prompt = rng.choice(wordings.KIND).format(word)
    alone = len(found) == 1 and found[0].count == 1
    answers = (
        f"I see {shown}.",
        f"It is {shown}." if alone else f"{capital(shown)}.",
        f"This is {shown}." if alone else f"The image shows {shown}.",
    )
    return Turn("kind", prompt, rng.choice(answers))


def a_kind(word: str) -> str:
    """ "an animal", "food"."""
    if word in _UNCOUNTED:
        return word if word != "furniture" else "a piece of furniture"
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def absent(rng: random.Random, found: list[Group], things: Sequence[Thing]) -> Thing:
    """A thing that is not there; often of a kind that is, so that the question is not easy."""
    near = rng.random() < 0.4
    kinds = {g.thing.kind for g in found}
    keys = {key for g in found for key in g.thing.keys}
    for _ in range(200):
        thing = rng.choice(things)
        if not thing.keys & keys and (not near or thing.kind in kinds):
            return thing
    return next(t for t in things if not t.keys & keys)
