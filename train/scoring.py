"""When an answer is right, and how sure a share of right answers is.

A thing counts as named if the answer has its name or a listed synonym (`train.things`), once the phrase for
the background is taken out. Where all things are asked for, an answer is right if every thing is named and
nothing else is. A story may use any word ("home", "star") and needs only name every thing. All answers must
end with the end token.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from train.groups import BACKGROUND_PHRASES, NUMBERS
from train.language import without_background
from train.questions import Turn
from train.scenes import COLORS
from train.things import Names, Thing
from train.wordings import CANNOT, HELLO, NO_PICTURE

STORY_WORDS = (100, 200)
_POSITIONS = (
    "in the top left|in the top right|in the bottom left|in the bottom right|at the top|at the bottom"
)
_POSITION = re.compile(f"{_POSITIONS}|on the left|on the right|in the middle", re.IGNORECASE)
_RELATION = re.compile("to the left of|to the right of|above|below|inside|around")
_COLOR = re.compile(rf"\b(?:{'|'.join(sorted(['dark blue', *COLORS], key=len, reverse=True))})\b")
_DENIAL = re.compile(r"I see no [^.]*\.")  # "I see no lock or key." names a kind, not a thing
_NOUNS = [noun for noun, _ in BACKGROUND_PHRASES.values()]


class Answer(NamedTuple):
    """What the model said, and whether it ended with the end token."""

    text: str
    ended: bool


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


class Scorer:
    """Compares answers with what was placed, by the names of all things."""

    def __init__(self, everything: Sequence[Thing], *, synonyms: bool = True) -> None:
        self._everything = everything
        self._names = Names(everything)
        self._synonyms = synonyms

    def named(self, answer: str, things: Sequence[Iterable[str]]) -> tuple[int, int]:
        """How many of `things` the answer names, and how many of its other names are of nothing there.

        Args:
            things: for each thing the names (`Thing.name`) that are right for it.
        """
        found = self._names.find(without_background(answer))
        mentions = [{self._everything[i].name for i in m.things if self._own(m.words, i)} for m in found]
        wanted = [set(t) for t in things]
        hits = sum(any(m & w for m in mentions) for w in wanted)
        return hits, len({frozenset(m) for m in mentions if not any(m & w for w in wanted)})

    def _own(self, words: str, index: int) -> bool:
        thing = self._everything[index]
        return self._synonyms or words in thing.own_keys

    def right(self, turn: Turn, things: Sequence[Thing], answer: Answer) -> bool:
        """Whether the answer is right, by the rule for its kind of question.

        Raises:
            KeyError: there is no rule for the kind.
        """
        return answer.ended and _RULES[turn.kind](self, turn.answer, [[t.name] for t in things], answer.text)

    def all_named(self, truth: str, things: list[list[str]], text: str) -> bool:
        return self.named(text, things) == (len(things), 0)

    def same_names(self, truth: str, things: list[list[str]], text: str) -> bool:
        """The names of the true answer and no others; and no where it says no."""
        wanted = [t for t in things if self.named(_DENIAL.sub("", truth), [t])[0]]
        same = bool(_DENIAL.match(truth)) == bool(_DENIAL.match(text))
        return same and self.named(_DENIAL.sub("", text), wanted) == (len(wanted), 0)

    def told(self, truth: str, things: list[list[str]], text: str) -> bool:
        low, high = STORY_WORDS
        return self.named(text, things)[0] == len(things) and low <= len(text.split()) <= high


def number(text: str) -> int | None:
    """The first number word."""
    words = re.findall(r"[a-z]+", text.lower())
    return next((NUMBERS.index(w) for w in words if w in NUMBERS), None)


def relation(text: str) -> str | None:
    found = _RELATION.search(text)
    return found[0] if found else None


def yes(text: str) -> str:
    return re.split(r"\W", text.strip())[0].lower()


def _place(text: str) -> tuple[str | None, list[str]]:
    """A part of the picture, or, of several things, what they stand on."""
    found = _POSITION.search(text)
    return (found[0].lower() if found else None), _background(text)


def _background(text: str) -> list[str]:
    lower = text.lower()
    return [*(noun for noun in _NOUNS if noun in lower), *_COLOR.findall(lower)]


def _last(text: str) -> str:
    return text.rstrip(".").split(" is ")[-1].lower()


_RULES = {
    **dict.fromkeys(("describe", "scenery", "caption", "list", "names"), Scorer.all_named),
    "count": lambda scorer, truth, things, text: number(truth) == number(text),
    "count all": lambda scorer, truth, things, text: number(truth) == number(text),
    **dict.fromkeys(("yes/no", "is related"), lambda scorer, truth, things, text: yes(truth) == yes(text)),
    "where": lambda scorer, truth, things, text: _place(truth) == _place(text),
    "relation": lambda scorer, truth, things, text: relation(truth) == relation(text),
    "what is": lambda scorer, truth, things, text: (
        scorer.same_names(truth, things, text) and relation(truth) == relation(text)
    ),
    **dict.fromkeys(
        ("color", "background"), lambda scorer, truth, things, text: _background(truth) == _background(text)
    ),
    "kind": Scorer.same_names,
    "kind of": lambda scorer, truth, things, text: _last(truth) == _last(text),
    "story": Scorer.told,
    "no picture": lambda scorer, truth, things, text: (
        text in {*NO_PICTURE, *CANNOT, *(reply for _, reply in HELLO)}
    ),
}
