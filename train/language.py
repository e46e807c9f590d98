"""Prompts and answers made by a grammar from what was placed, so that every answer is true.

Answers name things by their own names, left to right. `without_background` takes out the words that only
say what stands behind them, so that the names left over can be compared with what was placed.
"""

import random
import re
from collections.abc import Callable, Sequence

from train import wordings
from train.groups import (
    BACKGROUND_PHRASES,
    Group,
    background_noun,
    background_place,
    background_sentence,
    beside,
    capital,
    groups,
    joined,
    listed,
    position,
    relation,
)
from train.questions import (
    Turn,
    World,
    background,
    count,
    is_related,
    kind,
    related,
    what_is,
    where,
    yes_no,
)
from train.scenes import FEW, Scene
from train.stories import story
from train.things import Thing

_BACKGROUND_WORDS = re.compile(
    "|".join(sorted((n for n, _ in BACKGROUND_PHRASES.values()), key=len, reverse=True)),
    re.IGNORECASE,
)


def without_background(text: str) -> str:
    """The text without the phrases that name a drawn background ("the houses of a city" places no house)."""
    return _BACKGROUND_WORDS.sub(" . ", text.replace("the white snow", "white snow"))


# ---------------------------------------------------------------- describing


def describe(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    things, noun, place = listed(found), background_noun(scene), background_place(scene)
    first = rng.choice(
        (
            f"This image shows {things} {place}.",
            f"{capital(things)} {place}.",
            f"I see {things} {place}.",
            f"The image shows {things}. {background_sentence(scene)}",
            f"There {found[0].be} {things} {place}.",
            f"I see {things}. Behind, there is {noun}.",
            f"This is an image of {things}, {place}.",
        )
    )
    more = [s for s in _remarks(rng, found) if rng.random() < 0.4]
    return Turn("describe", rng.choice(wordings.DESCRIBE), " ".join([first, *more[:2]]))


def _remarks(rng: random.Random, found: list[Group]) -> list[str]:
    remarks = []
    if len(found) > 1:
        a, b = rng.sample(found, 2)
        if how := "next to" if beside(a, b) and rng.random() < 0.3 else relation(a, b):
            remarks.append(f"{capital(a.the)} is {how} {b.the}.")
    group = rng.choice(found)
    if group.count == 1:
        remarks.append(f"{capital(group.the)} is {position(group)}.")
        size = group.places[0].size
        if size > 0.5 or size < 0.2:
            remarks.append(f"{capital(group.the)} is {'large' if size > 0.5 else 'small'}.")
    return remarks


def scenery(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    things, noun, place = listed(found), background_noun(scene), background_place(scene)
    answer = rng.choice(
        (
            f"The scenery: {noun}. There {found[0].be} {things}.",
            f"The scene shows {things} {place}.",
            f"{background_sentence(scene)} In front, there {found[0].be} {things}.",
            f"It is a scene with {things} {place}.",
            f"{capital(noun)}, with {things}.",
        )
    )
    return Turn("scenery", rng.choice(wordings.SCENERY), answer)


def caption(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    things = capital(listed(found))
    answer = rng.choice((f"{things}.", f"{things} {background_place(scene)}."))
    return Turn("caption", rng.choice(wordings.CAPTION), answer)


def listing(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    phrases = [g.phrase for g in found]
    answer = rng.choice(
        (f"{capital(joined(phrases))}.", f"I see {joined(phrases)}.", "\n".join(f"- {p}" for p in phrases))
    )
    return Turn("list", rng.choice(wordings.LIST), answer)


def tell(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    text = story(rng, scene.background, [(g.thing, g.count) for g in found])
    return Turn("story", rng.choice(wordings.STORY), text)


# ---------------------------------------------------------------- all together

Ask = Callable[[random.Random, Scene, list[Group], World], Turn | None]

_SHARES: tuple[tuple[float, Ask], ...] = (
    (0.30, describe),
    (0.09, scenery),
    (0.05, caption),
    (0.09, listing),
    (0.07, count),
    (0.09, yes_no),
    (0.07, where),
    (0.06, related),
    (0.03, is_related),
    (0.02, what_is),
    (0.04, background),
    (0.09, kind),
)


def turn(rng: random.Random, scene: Scene, world: World, *, long: bool = False) -> Turn:
    """A prompt and its answer; `long` asks for a story."""
    found = groups(scene, world.things)
    asks = [ask for _, ask in _SHARES]
    made = tell(rng, scene, found, world) if long else None
    if not long and rng.random() < _counted(found):
        made = count(rng, scene, found, world)
    # Where two things stand to each other is learned slowest: many scenes of two or three ask it.
    elif not long and len(found) in (2, 3) and rng.random() < 0.25:
        made = rng.choice((related, related, is_related, what_is))(rng, scene, found, world)
    while made is None:
        made = rng.choices(asks, [share for share, _ in _SHARES])[0](rng, scene, found, world)
    return made._replace(prompt=_typed(rng, made.prompt))


def _counted(found: list[Group]) -> float:
    """How often it is asked how many: also where there is one of each, or "two" would be a safe guess."""
    if any(g.count > 1 for g in found):
        return 0.5
    return 0.15 if len(found) <= FEW else 0.4


def without_picture(rng: random.Random, things: Sequence[Thing]) -> Turn:
    """What is said where there is no picture."""
    draw = rng.random()
    if draw < 0.35:
        prompt, answer = rng.choice(wordings.HELLO)
    elif draw < 0.7:
        prompt = _about_a_picture(rng, rng.choice(things))
        greeting = prompt == "Hello"
        answer = wordings.HELLO[0][1] if greeting else rng.choice(wordings.NO_PICTURE)
    else:
        prompt, answer = rng.choice(wordings.OTHER), rng.choice(wordings.CANNOT)
    return Turn("no picture", _typed(rng, prompt), answer)


def _about_a_picture(rng: random.Random, thing: Thing) -> str:
    about = (
        rng.choice(wordings.IS_THERE).format(thing.phrase),
        rng.choice(wordings.COUNT).format(thing.plural),
        rng.choice(wordings.WHERE).format(f"the {thing.name}"),
        rng.choice(wordings.KIND).format(thing.kind),
        rng.choice((*wordings.STORY, *wordings.COLOR, *wordings.BACKGROUND)),
    )
    whole = (*wordings.DESCRIBE, *wordings.SCENERY, *wordings.CAPTION, *wordings.LIST)
    return rng.choice(about) if rng.random() < 0.4 else rng.choice(whole)


def _typed(rng: random.Random, prompt: str) -> str:
    """As people type: case, end mark, politeness; most prompts stay as they are."""
    draw = rng.random()
    if draw < 0.55:
        return prompt
    end = prompt[-1]
    if rng.random() < 0.5:
        prompt = prompt.rstrip("?") if end == "?" else prompt + rng.choice((".", "!", ":", "..."))
    if rng.random() < 0.15:
        prompt = (
            rng.choice(("Please, ", "please ", "Hey, ", "Now ", "OK. ")) + prompt[:1].lower() + prompt[1:]
        )
    if rng.random() < 0.1:
        prompt = prompt.rstrip(".") + rng.choice((" please", ", please", " Thanks.", " in this picture"))
    if draw < 0.7:
        prompt = prompt.lower()
    elif draw < 0.74:
        prompt = prompt.upper()
    return prompt.replace("'", "’") if rng.random() < 0.2 else prompt
