"""What a scene holds, as people speak of it: groups of things, where they are, and what is behind them."""

from collections.abc import Sequence
from typing import NamedTuple

from train.scenes import Placed, Scene
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


class Group(NamedTuple):
    """All things of one name in a scene."""

    thing: Thing
    count: int
    places: tuple[Placed, ...]
    width: float  # of the picture, over its shorter side
    height: float

    @property
    def phrase(self) -> str:
        return self.thing.phrase if self.count == 1 else f"{NUMBERS[self.count]} {self.thing.plural}"

    @property
    def the(self) -> str:
        """Taken up again: "the panda"."""
        if self.thing.article == "":
            return self.thing.name
        return f"the {self.thing.name if self.count == 1 else self.thing.plural}"

    @property
    def be(self) -> str:
        return "is" if self.count == 1 else "are"

    @property
    def x(self) -> float:
        """The middle, over the width."""
        return sum(p.x for p in self.places) / self.count

    @property
    def y(self) -> float:
        return sum(p.y for p in self.places) / self.count


def groups(scene: Scene, things: Sequence[Thing]) -> list[Group]:
    """What a scene holds, one group a name, left to right."""
    by_name: dict[str, list[Placed]] = {}
    for placed in sorted(scene.placed, key=lambda p: p.x):
        by_name.setdefault(things[placed.thing].name, []).append(placed)
    rows, columns = scene.grid
    side = min(scene.grid)
    return [
        Group(things[places[0].thing], len(places), tuple(places), columns / side, rows / side)
        for places in by_name.values()
    ]


def joined(phrases: Sequence[str]) -> str:
    """ "a panda, a tree and an apple"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def listed(found: Sequence[Group]) -> str:
    return joined([g.phrase for g in found])


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


# ---------------------------------------------------------------- where


def position(group: Group) -> str:
    """Where a single thing stands, by thirds of the picture."""
    column = 0 if group.x < 0.36 else 2 if group.x > 0.64 else 1
    row = 0 if group.y < 0.36 else 2 if group.y > 0.64 else 1
    return (
        ("in the top left", "at the top", "in the top right"),
        ("on the left", "in the middle", "on the right"),
        ("in the bottom left", "at the bottom", "in the bottom right"),
    )[row][column]


OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
_CLEAR = 1.25  # times as far apart one way as the other


def relation(a: Group, b: Group) -> str | None:
    """How a single thing stands to another: inside, around, or by the axis on which they are further apart.

    None where either is several things, or neither axis is clearly the longer one.
    """
    if a.count > 1 or b.count > 1:
        return None
    if _inside(a, b):
        return "inside"
    if _inside(b, a):
        return "around"
    dx, dy = (a.x - b.x) * a.width, (a.y - b.y) * a.height
    if abs(dx) > _CLEAR * abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    if abs(dy) > _CLEAR * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def beside(a: Group, b: Group) -> bool:
    """Whether two single things stand next to each other: side by side, with little room between them."""
    if relation(a, b) not in ("to the left of", "to the right of"):
        return False
    dx, dy = abs(a.x - b.x) * a.width, abs(a.y - b.y) * a.height
    reach = (a.places[0].size + b.places[0].size) / 2
    return dx < 1.4 * reach and dy < 0.5 * reach


def _inside(a: Group, b: Group) -> bool:
    (small,), (large,) = a.places, b.places
    room = (large.size - small.size) / 2
    dx, dy = (a.x - b.x) * a.width, (a.y - b.y) * a.height
    return small.size <= large.size / 2 and max(abs(dx), abs(dy)) <= room
