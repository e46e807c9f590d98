"""The things that a scene is made of: their names, plurals, articles and kinds, and when a name counts.

The names are written by hand in `things.txt`, which also says what is left out and why.

A name counts for a thing if it is the thing's own name or one of its listed synonyms, singular or plural
(`names_match`). In running text a mention is the longest run of words that is a name of anything
(`find_names`): "a computer mouse" mentions the computer mouse, and no mouse.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

_NAMINGS = Path(__file__).with_name("things.txt")

# What each kind is a kind of. A kind that is not a key is of no wider kind.
WIDER_KIND = {
    "bird": "animal",
    "reptile": "animal",
    "dinosaur": "animal",
    "sea animal": "animal",
    "fish": "animal",
    "insect": "animal",
    "flower": "plant",
    "tree": "plant",
    "fruit": "food",
    "vegetable": "food",
    "dessert": "food",
    "car": "vehicle",
    "train": "vehicle",
    "boat": "vehicle",
    "aircraft": "vehicle",
    "cable car": "vehicle",
    "footwear": "clothing",
    "hat": "clothing",
    "ball": "sports equipment",
}

# Plurals, by last word, that no spelling rule gives.
_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "wolf": "wolves",
    "leaf": "leaves",
    "loaf": "loaves",
    "sheaf": "sheaves",
    "knife": "knives",
    "scarf": "scarves",
    "tooth": "teeth",
    "snowman": "snowmen",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "tornado": "tornadoes",
    "mosquito": "mosquitoes",
}
_SAME_IN_PLURAL = frozenset(
    {"sheep", "deer", "moose", "elk", "bison", "buffalo", "fish", "jellyfish", "pufferfish", "blowfish"}
    | {"shrimp", "squid", "aircraft", "headphones", "sushi"}
)
# The words after which a name only says more about the thing: the plural goes before them.
_LINKS = ("of", "with", "in", "on", "over", "at", "behind", "taking", "landing")
_VOWEL_SOUND = re.compile(r"(?!uni|use|uk|euro|one\b)[aeiou]|hour|x-", re.IGNORECASE)


@dataclass(frozen=True)
class Thing:
    """One drawing of one thing, in every art style that has it.

    Things may share a `name` (a dog and a dog's head are both "dog"): they are then the same thing to whoever
    names or counts, so a scene should not hold two of them as if they differed.
    """

    id: str  # unique; emojibase's label in ASCII, with hyphens
    emoji: str
    hexcode: str  # code points in upper case joined by "-", without variation selectors
    name: str  # singular: "cup of coffee"
    plural: str  # "cups of coffee"
    article: str  # what stands before the singular: "a", "an", "the" or ""
    synonyms: tuple[str, ...]  # other names that count, singular (or plural only: "scissors")
    kind: str  # the narrowest kind: "bird"
    group: str  # Unicode's group, for example "animals-nature"
    subgroup: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind and the wider kind that it belongs to, narrowest first: `("bird", "animal")`."""
        wider = WIDER_KIND.get(self.kind)
        return (self.kind, wider) if wider else (self.kind,)

    @property
    def phrase(self) -> str:
        """The name behind its article: "an owl", "Mount Fuji"."""
        return f"{self.article} {self.name}".lstrip()

    @cached_property
    def own_keys(self) -> frozenset[str]:
        """The name alone, as `normalise` spells it, singular and plural."""
        return frozenset((normalise(self.name), normalise(self.plural)))

    @cached_property
    def keys(self) -> frozenset[str]:
        """Every name that counts, as `normalise` spells it, singular and plural."""
        words = [self.name, self.plural, *self.synonyms, *map(pluralise, self.synonyms)]
        return frozenset(map(normalise, words))


class Naming(NamedTuple):
    """What `things.txt` says about one emoji."""

    emoji: str
    name: str
    plural: str
    article: str
    synonyms: tuple[str, ...]
    kind: str


class Mention(NamedTuple):
    """A name found in a text."""

    start: int  # number of the first word
    stop: int  # number of the word after the last
    words: str  # the name as `normalise` spells it
    things: tuple[int, ...]  # indices of all things that it may name


def pluralise(name: str) -> str:
    """The plural of a singular name: "cup of coffee" gives "cups of coffee"."""
    words = name.split()
    head = next((i for i, word in enumerate(words) if i and word in _LINKS), len(words)) - 1
    words[head] = _plural_word(words[head])
    return " ".join(words)


def _plural_word(word: str) -> str:
    lower = word.lower()
    if lower in _SAME_IN_PLURAL:
        return word
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if re.search(r"(s|x|z|ch|sh)$", lower):
        return word + "es"
    if re.search(r"[^aeiou]y$", lower):
        return word[:-1] + "ies"
    return word + "s"


def article(name: str) -> str:
    """ "a" or "an", by the sound that the name begins with."""
    return "an" if _VOWEL_SOUND.match(name) else "a"


def normalise(text: str) -> str:
    """Lower case without accents, hyphens and punctuation, words one space apart: "jack o lantern"."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", plain.replace("'s", "s")))


def names_match(text: str, thing: Thing) -> bool:
    """Whether a phrase names the thing: its own name or a listed synonym, singular or plural.

    Case, accents, hyphens, punctuation and a leading article or "some" do not matter; any other word does.
    """
    words = normalise(text).split()
    if words and words[0] in {"a", "an", "the", "some"}:
        words = words[1:]
    return " ".join(words) in thing.keys


class Names:
    """All names of a list of things, to find them in running text."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self._things: dict[str, tuple[int, ...]] = {}
        for index, thing in enumerate(things):
            for key in thing.keys:
                self._things[key] = (*self._things.get(key, ()), index)
        self._longest = max((len(key.split()) for key in self._things), default=0)

    def find(self, text: str) -> list[Mention]:
        """The names in a text, from left to right: at each word the longest one, never overlapping."""
        words = normalise(text).split()
        found, start = [], 0
        while start < len(words):
            for stop in range(min(len(words), start + self._longest), start, -1):
                key = " ".join(words[start:stop])
                if key in self._things:
                    found.append(Mention(start, stop, key, self._things[key]))
                    break
            start = found[-1].stop if found and found[-1].start == start else start + 1
        return found


def read_namings(path: Path = _NAMINGS) -> list[Naming]:
    """The hand-written names, in the order of the file (whose head explains the format).

    Raises:
        ValueError: a line before any `[kind]`, without a name, or with an emoji that was there before.
    """
    return _parse(path.read_text(encoding="utf-8").splitlines())


def _parse(lines: Iterable[str]) -> list[Naming]:
    namings: dict[str, Naming] = {}
    kind = ""
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            kind = line.strip("[] \n")
            continue
        naming = _parse_line(line, kind)
        if naming.emoji in namings or not kind:
            raise ValueError(f"things.txt: {line!r} repeats an emoji or stands before the first [kind]")
        namings[naming.emoji] = naming
    return list(namings.values())


def _parse_line(line: str, kind: str) -> Naming:
    match = re.fullmatch(
        r"(?P<emoji>\S+) (?P<name>[^|/+]+?)(?: \+ (?P<article>\S+))?"
        r"(?: / (?P<plural>[^|]+?))?(?: \| (?P<synonyms>.+))?\s*",
        line,
    )
    if not match:
        raise ValueError(f"things.txt: {line!r} is not 'emoji name + article / plural | synonym, synonym'")
    name, given = match["name"], match["article"]
    return Naming(
        match["emoji"],
        name,
        match["plural"] or pluralise(name),
        article(name) if given is None else given.strip("-"),
        tuple(synonym.strip() for synonym in (match["synonyms"] or "").split(",") if synonym.strip()),
        kind,
    )
