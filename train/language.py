"""Prompts and answers made by a grammar from what was placed, so that every answer is true.

Answers name things by their own names, left to right. `without_background` takes out the words that only
say what stands behind them, so that the names left over can be compared with what was placed.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from train.scenes import Placed, Scene
from train.stories import story
from train.things import Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

# Noun phrase, and the phrase that puts things there.
BACKGROUND_PHRASES = {
    "sky": ("a blue sky", "in a blue sky"),
    "grass": ("green grass", "on green grass"),
    "sea": ("the sea", "by the sea"),
    "desk": ("a wooden desk", "on a wooden desk"),
    "night": ("a dark night sky with stars", "under a dark night sky with stars"),
    "snow": ("white snow", "in the white snow"),
    "city": ("the houses of a city", "in front of the houses of a city"),
    "room": ("a room", "in a room"),
    "forest": ("a green forest", "in a green forest"),
    "runway": ("a runway", "on a runway"),
    "beach": ("a sandy beach", "on a sandy beach"),
    "hills": ("distant hills", "in front of distant hills"),
}
_MAIN_COLOR = {
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


class Group(NamedTuple):
    """All things of one name in a scene."""

    thing: Thing
    count: int
    places: tuple[Placed, ...]

    @property
    def phrase(self) -> str:
        return self.thing.phrase if self.count == 1 else f"{NUMBERS[self.count]} {self.thing.plural}"

    @property
    def the(self) -> str:
        """Taken up again: "the panda"."""
        named = self.thing.article == ""
        return (
            self.thing.name if named else f"the {self.thing.name if self.count == 1 else self.thing.plural}"
        )

    @property
    def x(self) -> float:
        return sum(p.x for p in self.places) / self.count

    @property
    def y(self) -> float:
        return sum(p.y for p in self.places) / self.count


def groups(scene: Scene, things: Sequence[Thing]) -> list[Group]:
    """What a scene holds, one group a name, left to right."""
    by_name: dict[str, list[Placed]] = {}
    for placed in sorted(scene.placed, key=lambda p: p.x):
        by_name.setdefault(things[placed.thing].name, []).append(placed)
    return [Group(things[places[0].thing], len(places), tuple(places)) for places in by_name.values()]


def joined(phrases: Sequence[str]) -> str:
    """ "a panda, a tree and an apple"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def background_noun(scene: Scene) -> str:
    first, second = scene.colors
    if scene.background == "plain":
        return f"a plain {first} background"
    if scene.background == "gradient":
        return f"a gradient from {first} to {second}"
    return BACKGROUND_PHRASES[scene.background][0]


def background_sentence(scene: Scene) -> str:
    plain = scene.background == "plain"
    return f"The background is {f'plain {scene.colors[0]}' if plain else background_noun(scene)}."


def background_place(scene: Scene) -> str:
    if scene.background in BACKGROUND_PHRASES:
        return BACKGROUND_PHRASES[scene.background][1]
    return f"on {background_noun(scene)}"


_BACKGROUND_WORDS = re.compile(
    "|".join(sorted((n for n, _ in BACKGROUND_PHRASES.values()), key=len, reverse=True)),
    re.IGNORECASE,
)


def without_background(text: str) -> str:
    """The text without the phrases that name a drawn background ("the houses of a city" places no house)."""
    return _BACKGROUND_WORDS.sub(" . ", text.replace("the white snow", "white snow"))


# ---------------------------------------------------------------- describing

DESCRIBE = (
    "Describe this image",
    "Describe this picture",
    "Describe the image",
    "Describe the photo",
    "Describe it",
    "What do you see?",
    "What's in this photo?",
    "What is in this picture?",
    "What's in this image?",
    "What is shown here?",
    "What can you see?",
    "What is this?",
    "What does the picture show?",
    "What's this?",
    "Tell me about this picture",
    "Tell me what you see",
    "Explain this image",
    "Can you describe this image?",
    "What is happening here?",
    "What's going on in this picture?",
    "Describe what you see",
    "Look at this",
    "Give me a description of this photo",
    "Please describe the picture",
    "What is in the image?",
    "Describe this image in detail",
    "Describe the picture in one or two sentences",
    "Show me what you see",
    "What do you notice in this picture?",
    "Describe",
    "What is it?",
    "Go on",
    "Hello",
    "Help me understand this picture",
)
SCENERY = (
    "Describe the scenery",
    "Describe the scene",
    "What is the scenery like?",
    "Describe the landscape",
    "What kind of scene is this?",
    "Describe the setting",
    "Where was this picture taken?",
    "What place is this?",
    "What scene is this?",
    "Tell me about the scenery",
    "Describe the surroundings",
)
CAPTION = (
    "Caption this",
    "Write a caption",
    "Give me a short caption",
    "A short caption, please",
    "Caption this image",
    "Write a short caption for this picture",
    "Give this image a title",
    "Summarize this picture",
    "Describe this image briefly",
    "In a few words, what is this?",
    "Short description",
)
LIST = (
    "List the things in this picture",
    "List everything you see",
    "What things are in the image?",
    "List the objects",
    "Name the things in this photo",
    "Which objects are there?",
    "What objects do you see?",
    "Make a list of what you see",
    "Name everything in the picture",
    "Enumerate the objects in this image",
    "What items are shown?",
)


def describe(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    return Turn("describe", rng.choice(DESCRIBE), _description(rng, scene, found))


def _description(rng: random.Random, scene: Scene, found: list[Group]) -> str:
    listed = joined([g.phrase for g in found])
    noun, place = background_noun(scene), background_place(scene)
    be = "is" if found[0].count == 1 else "are"
    first = rng.choice(
        (
            f"This image shows {listed} {place}.",
            f"{capital(listed)} {place}.",
            f"I see {listed} {place}.",
            f"The image shows {listed}. {background_sentence(scene)}",
            f"There {be} {listed} {place}.",
            f"I see {listed}. Behind, there is {noun}.",
            f"This is an image of {listed}, {place}.",
        )
    )
    more = [s for s in _remarks(rng, scene, found) if rng.random() < 0.4]
    return " ".join([first, *more[:2]])


def _remarks(rng: random.Random, scene: Scene, found: list[Group]) -> list[str]:
    remarks = []
    if len(found) > 1:
        a, b = rng.sample(found, 2)
        remarks.append(f"{capital(a.the)} {_be(a)} {relation(a, b)} {b.the}.")
    group = rng.choice(found)
    if group.count == 1:
        remarks.append(f"{capital(group.the)} is {position(group)}.")
        size = group.places[0].size
        if size > 0.5 or size < 0.2:
            remarks.append(f"{capital(group.the)} is {'large' if size > 0.5 else 'small'}.")
    return remarks


def scenery(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    listed = joined([g.phrase for g in found])
    noun, place = background_noun(scene), background_place(scene)
    be = "is" if found[0].count == 1 else "are"
    answer = rng.choice(
        (
            f"The scenery: {noun}. There {be} {listed}.",
            f"The scene shows {listed} {place}.",
            f"{background_sentence(scene)} In front, there {be} {listed}.",
            f"It is a scene with {listed} {place}.",
            f"{capital(noun)}, with {listed}.",
        )
    )
    return Turn("scenery", rng.choice(SCENERY), answer)


def caption(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    listed = joined([g.phrase for g in found])
    answer = rng.choice((f"{capital(listed)}.", f"{capital(listed)} {background_place(scene)}."))
    return Turn("caption", rng.choice(CAPTION), answer)


def listing(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    phrases = [g.phrase for g in found]
    answer = rng.choice(
        (f"{capital(joined(phrases))}.", f"I see {joined(phrases)}.", "\n".join(f"- {p}" for p in phrases))
    )
    return Turn("list", rng.choice(LIST), answer)


# ---------------------------------------------------------------- questions about one thing


def count(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    total = sum(g.count for g in found)
    if rng.random() < 0.2:
        prompt = rng.choice(
            ("How many things are there?", "How many objects are in the picture?", "Count the objects")
        )
        listed = joined([g.phrase for g in found])
        be = "is" if total == 1 else "are"
        noun = "thing" if total == 1 else "things"
        return Turn(
            "count",
            prompt,
            rng.choice(
                (f"There {be} {NUMBERS[total]} {noun}: {listed}.", f"{capital(NUMBERS[total])}: {listed}.")
            ),
        )
    repeated = [g for g in found if g.count > 1]
    group = rng.choice(repeated or found)
    number, thing = group.count, group.thing
    if rng.random() < 0.1:
        number, thing = 0, _absent(rng, found, world.things)
    prompt = rng.choice(
        (
            "How many {} are there?",
            "How many {} do you see?",
            "How many {} are in the picture?",
            "Count the {}",
            "How many {} can you count?",
            "What is the number of {}?",
        )
    ).format(thing.plural)
    noun = thing.name if number == 1 else thing.plural
    be = "is" if number == 1 else "are"
    return Turn(
        "count",
        prompt,
        rng.choice(
            (
                f"There {be} {NUMBERS[number]} {noun}.",
                f"{capital(NUMBERS[number])} {noun}.",
                f"{capital(NUMBERS[number])}.",
            )
        ),
    )


def yes_no(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    present = rng.random() < 0.5
    thing = rng.choice(found).thing if present else _absent(rng, found, world.things)
    kind = rng.random() < 0.2
    if kind:
        kinds = {k for g in found for k in g.thing.kinds}
        present_kind = rng.choice(sorted(kinds))
        absent = [k for k in world.kinds if k not in kinds]
        word = present_kind if present else rng.choice(absent)
        phrase = _a(word)
    else:
        phrase = thing.phrase
    prompt = rng.choice(
        (
            "Is there {} in the picture?",
            "Is there {}?",
            "Do you see {}?",
            "Can you see {}?",
            "Does the image show {}?",
            "Is {} in this photo?",
            "Is there {} here?",
        )
    ).format(phrase)
    listed = joined([g.phrase for g in found])
    if present and kind:
        shown = next(g for g in found if word in g.thing.kinds)
        answer = rng.choice(
            (
                f"Yes, there is {shown.phrase}." if shown.count == 1 else f"Yes, there are {shown.phrase}.",
                "Yes.",
            )
        )
    elif present:
        answer = rng.choice((f"Yes, there is {phrase}.", "Yes.", f"Yes. I see {listed}."))
    else:
        answer = rng.choice((f"No, I do not see {phrase}.", "No.", f"No. I see {listed}."))
    return Turn("yes/no", prompt, answer)


def where(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    group = rng.choice(found)
    if len(found) > 1 and rng.random() < 0.35:
        other = rng.choice([g for g in found if g is not group])
        prompt = rng.choice(("Where is {a} relative to {b}?", "Where is {a} compared with {b}?")).format(
            a=group.the, b=other.the
        )
        if group.count > 1:
            prompt = prompt.replace("Where is", "Where are")
        return Turn(
            "relation", prompt, f"{capital(group.the)} {_be(group)} {relation(group, other)} {other.the}."
        )
    if group.count > 1:
        return Turn(
            "where", f"Where are {group.the}?", f"{capital(group.the)} are {background_place(scene)}."
        )
    prompt = rng.choice(
        (
            "Where is {}?",
            "Where in the picture is {}?",
            "In which part of the image is {}?",
            "Where do you see {}?",
        )
    )
    spot = position(group)
    return Turn(
        "where",
        prompt.format(group.the),
        rng.choice((f"{capital(group.the)} is {spot}.", f"{capital(spot)}.")),
    )


def background(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    noun = background_noun(scene)
    color = scene.colors[0] if scene.background == "plain" else _MAIN_COLOR.get(scene.background)
    if color and rng.random() < 0.4:
        prompt = rng.choice(
            (
                "What color is the background?",
                "What colour is the background?",
                "Which color is behind the things?",
            )
        )
        answer = rng.choice((f"The background is {color}.", f"{capital(color)}."))
        return Turn("background", prompt, answer)
    prompt = rng.choice(
        (
            "What is in the background?",
            "Describe the background",
            "What is the background?",
            "What is behind the things?",
        )
    )
    return Turn("background", prompt, rng.choice((background_sentence(scene), f"{capital(noun)}.")))


def kind(rng: random.Random, scene: Scene, found: list[Group], world: World) -> Turn:
    """ "What aircraft is this?", also where there is none."""
    group = rng.choice(found)
    if rng.random() < 0.15:
        word = rng.choice([k for k in world.kinds if all(k not in g.thing.kinds for g in found)])
        prompt = rng.choice(_KIND_QUESTIONS).format(word)
        return Turn("kind", prompt, f"I see no {word}. I see {joined([g.phrase for g in found])}.")
    word = rng.choice(group.thing.kinds)
    shown = joined([g.phrase for g in found if word in g.thing.kinds])
    if rng.random() < 0.25:
        the = group.the if group.count == 1 else f"one of {group.the}"
        prompt = rng.choice(("What kind of thing is {}?", "What is {}?")).format(the)
        return Turn("kind", prompt, f"{capital(group.thing.phrase)} is {_a(group.thing.kind)}.")
    prompt = rng.choice(_KIND_QUESTIONS).format(word)
    alone = len(found) == 1 and found[0].count == 1
    answers = [
        f"I see {shown}.",
        f"It is {shown}." if alone else f"{capital(shown)}.",
        f"This is {shown}." if alone else f"The image shows {shown}.",
    ]
    return Turn("kind", prompt, rng.choice(answers))


_KIND_QUESTIONS = (
    "What {} is this?",
    "Which {} is this?",
    "What {} do you see?",
    "What kind of {} is this?",
    "Which {} is shown?",
    "What {} is in the picture?",
    "What {} is that?",
    "What type of {} is this?",
    "Name the {}",
)

# ---------------------------------------------------------------- without a picture

HELLO = (
    ("Hello", "Hello! Show me an image and I will tell you what I see."),
    ("Hi", "Hi! Give me an image, and I will describe it."),
    ("Who are you?", "I am a small model that describes simple drawn scenes. Show me an image."),
    ("What are you?", "I am Saccade's small vision-language model. I describe images made of drawings."),
    (
        "What can you do?",
        "I can name, count and place the things in an image, and tell a short story about it.",
    ),
    ("What is your name?", "I am the small model that comes with Saccade. I describe images."),
    ("Help", "Give me an image and ask what is in it, how many there are, or where they are."),
    ("Thank you", "You are welcome. Show me another image."),
    ("How are you?", "I am well. Show me an image and I will describe it."),
)
NO_PICTURE = (
    "I do not see an image. Please give me one, and I will tell you what is in it.",
    "There is no image here. Please show me one.",
    "I need an image to answer that. Please add one.",
    "No image came with this question, so I cannot tell.",
)
CANNOT = (
    "I am a small model that describes images. I cannot help with that.",
    "That is more than I know. I can describe an image, if you show me one.",
    "I only describe images. Please show me one.",
)
OTHER = (
    "What is the capital of France?",
    "Write a poem",
    "Tell me a joke",
    "What is 2 + 2?",
    "Translate this to German",
    "Write a function that sorts a list",
    "What is the weather today?",
    "Who won the match?",
    "null",
    "42",
    "test",
    "Tell me about history",
    "What is love?",
    "How do I cook rice?",
    "Why is the sky blue?",
    "Explain gravity",
    "Write an email to my boss",
    "What time is it?",
    "Can you sing?",
    "Say something",
    "Once upon a time",
)


def without_picture(rng: random.Random, things: Sequence[Thing]) -> Turn:
    draw = rng.random()
    if draw < 0.35:
        prompt, answer = rng.choice(HELLO)
    elif draw < 0.7:
        thing = rng.choice(things)
        about = (
            f"Is there {thing.phrase}?",
            f"How many {thing.plural} are there?",
            f"Where is the {thing.name}?",
            "Write a story about this image",
            "What color is the background?",
            "What aircraft is this?",
        )
        prompt = rng.choice((*DESCRIBE, *SCENERY, *CAPTION, *LIST, *about))
        answer = rng.choice(HELLO)[1] if prompt == "Hello" else rng.choice(NO_PICTURE)
    else:
        prompt, answer = rng.choice(OTHER), rng.choice(CANNOT)
    return Turn("no picture", _typed(rng, prompt), answer)


# ---------------------------------------------------------------- all together

STORY = (
    "Write a story about this image",
    "Write a story about this picture",
    "Tell me a story",
    "Write a short story",
    "Tell a story about this photo",
    "Make up a story about what you see",
    "Write a story",
    "Invent a story about this",
    "Tell me a story about this picture",
    "A story, please",
    "Write a tale about this scene",
)

_SHORT: tuple[tuple[float, Callable[[random.Random, Scene, list[Group], World], Turn]], ...] = (
    (0.36, describe),
    (0.10, scenery),
    (0.06, caption),
    (0.10, listing),
    (0.08, count),
    (0.09, yes_no),
    (0.07, where),
    (0.04, background),
    (0.10, kind),
)


def turn(rng: random.Random, scene: Scene, world: World, *, long: bool = False) -> Turn:
    """A prompt and its answer; `long` asks for a story."""
    found = groups(scene, world.things)
    if long:
        return Turn(
            "story",
            _typed(rng, rng.choice(STORY)),
            story(rng, scene.background, [(g.thing, g.count) for g in found]),
        )
    if sum(g.count for g in found) > 2 and any(g.count > 1 for g in found) and rng.random() < 0.3:
        made = count(rng, scene, found, world)
    else:
        made = rng.choices(_SHORT, [w for w, _ in _SHORT])[0][1](rng, scene, found, world)
    return made._replace(prompt=_typed(rng, made.prompt))


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


def position(group: Group) -> str:
    """Where a single thing stands, by thirds of the picture."""
    column = 0 if group.x < 0.36 else 2 if group.x > 0.64 else 1
    row = 0 if group.y < 0.36 else 2 if group.y > 0.64 else 1
    return (
        ("in the top left", "at the top", "in the top right"),
        ("on the left", "in the middle", "on the right"),
        ("in the bottom left", "at the bottom", "in the bottom right"),
    )[row][column]


def relation(a: Group, b: Group) -> str:
    """How a stands to b, along the axis on which they are further apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 0.1:
        return "next to"
    if abs(dx) >= abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def _be(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _a(word: str) -> str:
    if word in (
        "food",
        "clothing",
        "footwear",
        "tableware",
        "furniture",
        "money",
        "weather",
        "sports equipment",
    ):
        return word if word != "furniture" else "a piece of furniture"
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _absent(rng: random.Random, found: list[Group], things: Sequence[Thing]) -> Thing:
    """A thing that is not there; often of a kind that is, so that the question is not easy."""
    near = rng.random() < 0.4
    kinds = {g.thing.kind for g in found}
    keys = {key for g in found for key in g.thing.keys}
    for _ in range(200):
        thing = rng.choice(things)
        if not thing.keys & keys and (not near or thing.kind in kinds):
            return thing
    return next(t for t in things if not t.keys & keys)
