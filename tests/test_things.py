"""Names, plurals, articles and kinds of the things, and the rule by which a name counts."""

from __future__ import annotations

import pytest

from train.things import (
    WIDER_KIND,
    Names,
    Thing,
    article,
    names_match,
    normalise,
    pluralise,
    read_namings,
)

NAMINGS = read_namings()


def thing(name: str) -> Thing:
    naming = next(naming for naming in NAMINGS if naming.name == name)
    return Thing(name, naming.emoji, "", *naming[1:5], naming.kind, "", "")


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("panda", "pandas"),
        ("cup of coffee", "cups of coffee"),
        ("computer mouse", "computer mice"),
        ("loaf of bread", "loaves of bread"),
        ("airplane taking off", "airplanes taking off"),
        ("house with a garden", "houses with a garden"),
        ("jellyfish", "jellyfish"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("box", "boxes"),
        ("paintbrush", "paintbrushes"),
        ("on", "ons"),  # a link is no link where nothing stands before it
    ],
)
def test_pluralise(singular: str, plural: str) -> None:
    assert pluralise(singular) == plural


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owl", "an"), ("panda", "a"), ("unicorn", "a"), ("umbrella", "an"), ("hourglass", "an"),
     ("x-ray", "an"), ("house", "a"), ("onion", "an"), ("one-piece swimsuit", "a"), ("T-shirt", "a")],
)  # fmt: skip
def test_article(name: str, expected: str) -> None:
    assert article(name) == expected


@pytest.mark.parametrize(
    ("name", "phrase", "plural"),
    [
        ("SUV", "an SUV", "SUVs"),
        ("Statue of Liberty", "the Statue of Liberty", "Statues of Liberty"),
        ("Mount Fuji", "Mount Fuji", "pictures of Mount Fuji"),
        ("knife and fork", "a knife and fork", "knives and forks"),
        ("cactus", "a cactus", "cacti"),
        ("snow-capped mountain", "a snow-capped mountain", "snow-capped mountains"),
    ],
)
def test_listed_article_and_plural(name: str, phrase: str, plural: str) -> None:
    assert (thing(name).phrase, thing(name).plural) == (phrase, plural)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a cup of coffee", "cup of coffee"),
        ("Coffee", "cup of coffee"),
        ("some coffee.", "cup of coffee"),
        ("the hot beverage", "cup of coffee"),
        ("computers", "laptop"),
        ("a plane", "airplane taking off"),
        ("jets", "airplane taking off"),
        ("an arena", "stadium"),
        ("a snow capped mountain", "snow-capped mountain"),
        ("scissors", "pair of scissors"),
        ("a piñata", "pinata"),
        ("Statue of Liberty", "Statue of Liberty"),
    ],
)
def test_a_name_counts(text: str, name: str) -> None:
    assert names_match(text, thing(name))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "panda"),
        ("the", "panda"),
        ("a panda and a bear", "panda"),
        ("pandamonium", "panda"),
        ("a bear", "panda"),
        ("a computer mouse", "mouse"),
        ("a cup", "cup of bubble tea"),
    ],
)
def test_a_name_does_not_count(text: str, name: str) -> None:
    assert not names_match(text, thing(name))


def test_find_takes_the_longest_name_at_each_word() -> None:
    names = ["mouse", "computer mouse", "panda", "cup of coffee"]
    found = Names([thing(name) for name in names]).find(
        "Two pandas and a computer mouse, beside a cup of coffee; no mice, no pan."
    )
    assert [(mention.words, mention.things) for mention in found] == [
        ("pandas", (2,)),
        ("computer mouse", (1,)),
        ("cup of coffee", (3,)),
        ("mice", (0,)),
    ]
    assert (found[1].start, found[1].stop) == (4, 6)


def test_find_gives_every_thing_of_a_shared_name() -> None:
    assert Names([thing("tulip"), thing("panda"), thing("rose")]).find("A flower")[0].things == (0, 2)


def test_find_without_things() -> None:
    assert Names([]).find("a panda") == []


def test_every_thing_answers_to_its_own_names() -> None:
    for naming in NAMINGS:
        own = thing(naming.name)
        for text in (own.phrase, own.plural, *own.synonyms):
            assert names_match(text, own), (naming.emoji, text)


def test_names_are_fit_for_captions() -> None:
    assert len({naming.name for naming in NAMINGS}) > 700
    assert len({naming.emoji for naming in NAMINGS}) == len(NAMINGS)
    for naming in NAMINGS:
        assert normalise(naming.name), naming
        assert naming.name == naming.name.strip()
        assert normalise(naming.plural) != "", naming
        assert naming.kind, naming
        assert naming.article in {"a", "an", "the", ""}, naming
        assert normalise(naming.name) not in map(normalise, naming.synonyms), naming


def test_things_that_share_a_name_are_of_one_kind() -> None:
    kinds: dict[str, set[tuple[str, str]]] = {}
    for naming in NAMINGS:
        kinds.setdefault(naming.name, set()).add((naming.kind, naming.plural))
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}


def test_no_name_is_told_apart_by_the_word_for_a_plain_colour_of_a_background() -> None:
    colours = {"orange", "pink", "purple", "blue", "green", "brown", "grey", "gray", "black", "white", "red"}
    keys = {key for naming in NAMINGS for key in thing(naming.name).keys}
    assert not colours & keys


def test_kinds_go_from_narrow_to_wide() -> None:
    assert thing("owl").kinds == ("bird", "animal")
    assert thing("airplane").kinds == ("aircraft", "vehicle")
    assert thing("panda").kinds == ("animal",)
    listed = {naming.kind for naming in NAMINGS}
    assert WIDER_KIND.keys() <= listed
    assert not WIDER_KIND.keys() & set(WIDER_KIND.values())  # so that one step reaches the widest


@pytest.mark.parametrize(
    "lines",
    [
        ["🐼 panda"],  # of no kind
        ["[animal]", "🐼 panda", "🐼 bear"],  # twice
        ["[animal]", "🐼"],  # without a name
    ],
)
def test_a_broken_list_is_refused(lines: list[str], tmp_path) -> None:
    path = tmp_path / "things.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"things\.txt"):
        read_namings(path)


def test_the_list_is_read_as_its_head_explains(tmp_path) -> None:
    path = tmp_path / "things.txt"
    path.write_text("# a note\n\n[place]\n🗻 Mount X + - / peaks | hill, high hill\n", encoding="utf-8")
    (naming,) = read_namings(path)
    assert naming == ("🗻", "Mount X", "peaks", "", ("hill", "high hill"), "place")
