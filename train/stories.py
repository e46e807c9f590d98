"""Short stories about what is in a scene: sentences of a fixed plot, drawn anew each time.

The first group of things is the hero and bears a name; each other group gets its own episode.
"""

import random
from collections.abc import Sequence

from train.things import Thing

_NAMES = (
    "Mina",
    "Tom",
    "Lulu",
    "Oskar",
    "Pip",
    "Ada",
    "Bruno",
    "Nell",
    "Toto",
    "Ruby",
    "Finn",
    "Momo",
    "Ivy",
    "Hugo",
    "Kiki",
    "Otto",
    "Zoe",
    "Milo",
    "Juno",
    "Remy",
)

_TIMES = (
    "Once upon a time",
    "One quiet morning",
    "Long ago",
    "On a bright day",
    "One evening",
    "Not so long ago",
    "Early one day",
    "One summer",
    "On the first day of spring",
    "Late one afternoon",
)

_PLACES = {
    "sky": ("high up in a blue sky", "in the wide blue sky", "up where the wind blows"),
    "grass": ("on a wide green meadow", "in the green grass", "where the grass is soft and green"),
    "sea": ("by the wide blue sea", "at the edge of the sea", "where the waves roll in"),
    "desk": ("on an old wooden desk", "on a desk full of dreams", "on a tidy wooden desk"),
    "night": ("under a dark sky full of stars", "in the middle of a starry night", "when the stars were out"),
    "snow": ("in the white snow", "in a land of snow and ice", "where snow covered everything"),
    "city": (
        "in the middle of a busy city",
        "in a city that never slept",
        "between the tall houses of a city",
    ),
    "room": ("in a small cosy room", "in a quiet room", "in a room with a warm light"),
    "forest": (
        "deep in a green forest",
        "in a forest full of whispers",
        "where the forest is thick and green",
    ),
    "runway": ("on a long gray runway", "at the end of a runway", "on a runway far from home"),
    "beach": ("on a warm sandy beach", "on a beach at the end of the world", "where the sand is warm"),
    "hills": (
        "in front of the distant hills",
        "in the land of the soft hills",
        "where the hills meet the sky",
    ),
}
_ANYWHERE = (
    "in a place without a name",
    "in a simple, bright world",
    "somewhere far away",
    "in a land of one color",
)

_ALIVE = (
    "lived {hero} named {name}.",
    "was {hero}. Everybody called it {name}.",
    "there lived {hero} called {name}.",
)
_STILL = (
    "stood {hero} that had a name: {name}.",
    "was {hero}. A child had named it {name}.",
    "there was {hero} called {name}.",
)
_PAIRS = ("were {hero}. The smallest was called {name}.", "there were {hero}. The bravest one was {name}.")

_WISHES = (
    "{name} wanted to see the whole world.",
    "{name} had one wish: to find a friend.",
    "{name} dreamed of a great adventure.",
    "Every day looked the same, and {name} was bored.",
    "{name} had lost something and did not know what it was.",
    "{name} was small, but {name} was never afraid.",
    "{name} loved to ask questions that nobody could answer.",
    "{name} had heard of a secret that was hidden nearby.",
    "{name} wanted to learn how to sing.",
    "{name} was waiting for something wonderful to happen.",
)
_STARTS = (
    "So one day {name} set out.",
    "Then, one day, everything changed.",
    "That day, a soft wind began to blow.",
    '"Today is the day," said {name}.',
    "And so the adventure began.",
    "Nobody knew what would happen next.",
    '"I will not wait any longer," {name} thought.',
    "Suddenly there was a strange sound.",
)
_MEETINGS = (
    'Soon {name} came upon {other}. "How did you get here?" asked {name}.',
    "On the way {name} found {other}. It was just what {name} needed.",
    "Not far away {name} saw {other}, and could not look away.",
    "Behind a corner {name} discovered {other}. What a surprise!",
    "Then {name} noticed {other}. It seemed to hold a secret.",
    "A little later {name} met {other}, and they rested side by side.",
    'Next to the path {name} spotted {other}. "I have never seen anything like this," said {name}.',
    "With a bit of luck {name} ran into {other}. The day was getting better and better.",
)
_ALONE = (
    "There was nobody else, only the quiet and the light.",
    "{name} looked left and right, but there was no one else.",
    "{name} listened for a while and heard only the wind.",
    "{name} walked around in a circle, three times, and laughed.",
    "At first nothing moved. Then {name} heard a far voice that called its name.",
)
_TROUBLES = (
    "Then a storm came, and everything began to shake.",
    "But then it grew dark, and {name} lost the way.",
    "But the way was long, and {name} became tired.",
    "Then a loud noise made everybody jump.",
    "But something was wrong: it was much too quiet.",
    "Then it started to rain, and there was no place to hide.",
)
_HELP = (
    "{name} did not give up and tried again and again.",
    '"Do not worry," said {name}, "we will find a way."',
    "{name} took a deep breath and counted to ten.",
    "{name} remembered an old song and began to hum it.",
    "{name} had an idea, and it was a very good one.",
    "With a little courage, {name} made it through.",
)
_HELP_OTHER = (
    "Luckily {the_other} showed the way.",
    "With the help of {the_other}, {name} found an answer.",
    "It was {the_other} that saved the day.",
    "{name} stayed close to {the_other} until it was over.",
)
_ENDS = (
    "In the end {name} was happy, and so was everybody else.",
    "From that day on, {name} was never alone again.",
    "And when the stars came out, {name} fell asleep with a smile.",
    "And if you look closely, you can still see {name} there today.",
    "{name} had found what mattered most: a good story to tell.",
    '"What a day," said {name}, and that was the end of it.',
    "And that is how {name} learned that the best things are close to home.",
    "Since then, {the_hero} has told this story every year.",
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def story(rng: random.Random, background: str, groups: Sequence[tuple[Thing, int]]) -> str:
    """About 60 to 150 words that mention every group and the place.

    Args:
        background: a key of `train.scenes.BACKGROUNDS`.
        groups: things and how many of each there are.
    """
    order = sorted(groups, key=lambda g: ("animal" not in g[0].kinds, rng.random()))
    (thing, count), others = order[0], order[1:]
    words = {"name": rng.choice(_NAMES), "hero": _phrase(thing, count), "the_hero": _the(thing, 1)}
    alive = "animal" in thing.kinds or thing.kind == "mythical creature"
    beginnings = _PAIRS if count > 1 else _ALIVE if alive else _STILL
    sentences = [
        f"{rng.choice(_TIMES)}, {rng.choice(_PLACES.get(background, _ANYWHERE))}, {rng.choice(beginnings)}",
        rng.choice(_WISHES),
        rng.choice(_STARTS),
    ]
    meetings = rng.sample(_MEETINGS, len(others))
    episodes = [
        m.format(other=_phrase(t, n), name=words["name"]) for m, (t, n) in zip(meetings, others, strict=True)
    ]
    sentences += episodes or rng.sample(_ALONE, 2)
    sentences.append(rng.choice(_TROUBLES))
    if others and rng.random() < 0.7:
        friend, number = rng.choice(others)
        sentences.append(rng.choice(_HELP_OTHER).replace("{the_other}", _the(friend, number)))
    if not others or rng.random() < 0.6:
        sentences.append(rng.choice(_HELP))
    sentences.append(rng.choice(_ENDS))
    return " ".join(sentences).format(**words)


def _phrase(thing: Thing, count: int) -> str:
    return thing.phrase if count == 1 else f"{_NUMBERS[count]} {thing.plural}"


def _the(thing: Thing, count: int) -> str:
    if not thing.article:
        return thing.name
    return f"the {thing.name}" if count == 1 else f"one of the {thing.plural}"
