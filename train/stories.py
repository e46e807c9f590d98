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
_SETTINGS = {
    "sky": ("Soft clouds drifted by, and far below the world looked very small.",
            "The air was clear, and the wind hummed an old tune."),
    "grass": ("The air smelled of summer, and small beetles hurried from blade to blade.",
              "Far and wide there was nothing but green, warm in the light."),
    "sea": ("The waves told long stories to the shore, and the air tasted of salt.",
            "Now and then a wave came close, looked around and went back."),
    "desk": ("The wood was old and full of scratches, and each scratch had a story.",
             "A beam of light fell on the wood, and dust danced in it."),
    "night": ("It was so quiet that one could almost hear the stars shine.",
              "The dark was not frightening at all: it was soft, like a blanket."),
    "snow": ("Everything was white and silent, and the cold made the air glitter.",
             "Flakes fell one by one, and not a sound could be heard."),
    "city": ("Behind every window somebody was busy, and nobody looked up.",
             "The streets were full of noise, and the lights never went out."),
    "room": ("It was warm in there, and the walls had heard many secrets.",
             "The floor creaked now and then, as if it wanted to say something."),
    "forest": ("The leaves whispered to one another, and the light was green and gold.",
               "It smelled of moss and rain, and nobody had walked there for a long time."),
    "runway": ("The wide gray ground seemed to have no end, and the wind was strong.",
               "It was a place for those who wanted to go far away."),
    "beach": ("The sand was soft and warm, and the waves came and went.",
              "It was the kind of place where one forgets the time."),
    "hills": ("The hills lay in the haze, one behind the other, like sleeping giants.",
              "Whoever looked at the hills for long enough wanted to know what was behind them."),
}  # fmt: skip
_SETTING_ANYWHERE = (
    "There was not much to see there, and so every little thing mattered.",
    "It was a place so simple that one could hear one's own thoughts.",
    "Everything there had the same color, and nobody knew why.",
)
_THOUGHTS = (
    "{name} thought about it for a long time and could not sleep.",
    '"There must be more than this," {name} used to say.',
    "Nobody else knew of it, and {name} kept it like a treasure.",
    '"One day," thought {name}, "one day it will happen."',
    "It was not easy to explain, but {name} felt it every day.",
    "The others would have laughed, so {name} told nobody.",
    "{name} counted the days and waited for a sign.",
)
_TOGETHER = (
    "They talked until it was late, and each told the best story.",
    "From then on they went side by side.",
    '"Come with me," said {name}, and that was all it took.',
    "It felt as if they had known one another for years.",
    "They did not need many words to become friends.",
    "They laughed so loudly that the whole place could hear it.",
)
_ALONE_MORE = (
    "Being alone was not so bad, {name} found: there was so much to think about.",
    '"Then I will be my own friend," said {name}, and went on.',
    "The way went on and on, and {name} began to sing softly.",
    "Step by step {name} came closer to something new.",
)
_TURNS = (
    "For a moment nobody dared to move.",
    "It seemed that all was lost.",
    "The wind grew stronger and stronger.",
    "{name} wanted to turn back, but it was too late.",
    '"What shall we do now?" asked a small voice.',
    "Time seemed to stand still.",
)
_RELIEF = (
    "Slowly the trouble passed, and the light came back.",
    "After a while it was over, as quickly as it had come.",
    "Then everything was calm again, calmer than before.",
    "When it was done, everybody cheered.",
    "And just like that, the worst was over.",
)
_LESSONS = (
    '"It was not luck," {name} said later, "it was patience."',
    "On the way back everything looked different, brighter and a little bigger.",
    "{name} had learned that courage is often very quiet.",
    "There was a feast with music, and it lasted until the morning.",
    "The secret, it turned out, had been there all the time.",
    "{name} wrote it all down, so that nobody would forget it.",
    "Never again did {name} complain about a boring day.",
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def story(rng: random.Random, background: str, groups: Sequence[tuple[Thing, int]]) -> str:
    """About 150 words that mention every group and the place.

    Args:
        background: a key of `train.scenes.BACKGROUNDS`.
        groups: things and how many of each there are.
    """
    order = sorted(groups, key=lambda g: (not _alive(g[0]), rng.random()))
    (thing, count), others = order[0], order[1:]
    words = {"name": rng.choice(_NAMES), "hero": _phrase(thing, count), "the_hero": _the(thing, 1)}
    beginnings = _PAIRS if count > 1 else _ALIVE if _alive(thing) else _STILL
    sentences = [
        f"{rng.choice(_TIMES)}, {rng.choice(_PLACES.get(background, _ANYWHERE))}, {rng.choice(beginnings)}",
        rng.choice(_SETTINGS.get(background, _SETTING_ANYWHERE)),
        rng.choice(_WISHES),
        rng.choice(_THOUGHTS),
        rng.choice(_STARTS),
        *_middle(rng, others, words["name"]),
        rng.choice(_TROUBLES),
        rng.choice(_TURNS),
        *_rescue(rng, others),
        rng.choice(_RELIEF),
    ]
    if len(others) < 4:  # more things have told enough
        sentences.append(rng.choice(_LESSONS))
    sentences.append(rng.choice(_ENDS))
    return " ".join(sentences).format(**words)


def _middle(rng: random.Random, others: Sequence[tuple[Thing, int]], name: str) -> list[str]:
    """The hero meets every other thing, or nobody."""
    if not others:
        return [*rng.sample(_ALONE, 2), *rng.sample(_ALONE_MORE, 2)]
    meetings = rng.sample(_MEETINGS, len(others))
    told = [m.format(other=_phrase(t, n), name=name) for m, (t, n) in zip(meetings, others, strict=True)]
    return told if len(others) > 3 else [*told, *rng.sample(_TOGETHER, 2 if len(others) == 1 else 1)]


def _rescue(rng: random.Random, others: Sequence[tuple[Thing, int]]) -> list[str]:
    if others and rng.random() < 0.7:
        friend, number = rng.choice(others)
        return [rng.choice(_HELP_OTHER).replace("{the_other}", _the(friend, number))]
    return [rng.choice(_HELP)]


def _alive(thing: Thing) -> bool:
    return "animal" in thing.kinds or thing.kind in ("mythical creature", "person")


def _phrase(thing: Thing, count: int) -> str:
    return thing.phrase if count == 1 else f"{_NUMBERS[count]} {thing.plural}"


def _the(thing: Thing, count: int) -> str:
    if not thing.article:
        return thing.name
    return f"the {thing.name}" if count == 1 else f"one of the {thing.plural}"
