"""The art sets: which npm package holds each, under which licence, and how its icons are found.

Training uses MIT, Apache-2.0 and CC BY art only. OpenMoji is CC BY-SA 4.0: it tests what was learned and is
never trained on.
"""

from collections.abc import Mapping
from typing import NamedTuple


class ArtSet(NamedTuple):
    """One style."""

    package: str  # of npm, with its version
    licence: str  # SPDX
    author: str
    # What may stand behind a thing's name in an icon's: such a set has icons of general use, found by the
    # names of things. Without endings it is a set of emoji, found by code points or the emoji's names.
    endings: tuple[str, ...] = ()
    ink: bool = False  # one colour only: its icons are coloured in


def _icons(name: str, version: str) -> str:
    return f"@iconify-json/{name}@{version}"


# Whole emoji sets, in colour.
TRAINING_STYLES: Mapping[str, ArtSet] = {
    "fluent-emoji": ArtSet(_icons("fluent-emoji", "1.2.7"), "MIT", "Microsoft Corporation"),
    "fluent-emoji-flat": ArtSet(_icons("fluent-emoji-flat", "1.2.6"), "MIT", "Microsoft Corporation"),
    "noto": ArtSet(_icons("noto", "1.2.9"), "Apache-2.0", "Google LLC"),
    "noto-v1": ArtSet(_icons("noto-v1", "1.2.5"), "Apache-2.0", "Google LLC"),
    "fxemoji": ArtSet(_icons("fxemoji", "1.2.2"), "Apache-2.0", "Mozilla"),
    "twemoji": ArtSet(_icons("twemoji", "1.2.5"), "CC-BY-4.0", "Twitter, Inc. and other contributors"),
    "emojione": ArtSet(_icons("emojione", "1.2.3"), "CC-BY-4.0", "EmojiOne, Inc."),
}
# Art of some of the things: other hands' idea of them. Trained on beside the whole sets.
ICON_STYLES: Mapping[str, ArtSet] = {
    "fluent-emoji-high-contrast": ArtSet(
        _icons("fluent-emoji-high-contrast", "1.2.6"), "MIT", "Microsoft Corporation", ink=True
    ),
    "emojione-monotone": ArtSet(
        _icons("emojione-monotone", "1.2.1"), "CC-BY-4.0", "EmojiOne, Inc.", ink=True
    ),
    "streamline-emojis": ArtSet(
        _icons("streamline-emojis", "1.2.4"), "CC-BY-4.0", "Streamline", ("", "-1", "-2")
    ),
    "icon-park": ArtSet(_icons("icon-park", "1.2.4"), "Apache-2.0", "ByteDance", ("",)),
    "game-icons": ArtSet(
        _icons("game-icons", "1.2.4"), "CC-BY-3.0", "Lorc, Delapouite and others", ("", "-head", "-face"),
        ink=True,
    ),
    "mdi": ArtSet(
        _icons("mdi", "1.2.3"), "Apache-2.0", "Pictogrammers", ("", "-outline", "-variant", "-side"), ink=True
    ),
    "tabler": ArtSet(_icons("tabler", "1.2.41"), "MIT", "Paweł Kuna", ("", "-filled"), ink=True),
    "ph": ArtSet(_icons("ph", "1.2.2"), "MIT", "Phosphor Icons", ("-duotone",), ink=True),
    "hugeicons": ArtSet(_icons("hugeicons", "1.2.35"), "MIT", "Hugeicons", ("", "-01", "-02"), ink=True),
    "mingcute": ArtSet(
        _icons("mingcute", "1.2.8"), "Apache-2.0", "MingCute Design", ("-fill", "-2-fill", "-line"), ink=True
    ),
    "fa6-solid": ArtSet(_icons("fa6-solid", "1.2.4"), "CC-BY-4.0", "Dave Gandy", ("",), ink=True),
}  # fmt: skip
TEST_STYLES: Mapping[str, ArtSet] = {
    "openmoji": ArtSet(_icons("openmoji", "1.2.29"), "CC-BY-SA-4.0", "OpenMoji"),
}
STYLES: Mapping[str, ArtSet] = {**TRAINING_STYLES, **ICON_STYLES, **TEST_STYLES}

# FxEmojis' own names, where they are neither the label's nor another set's with the hyphens left out.
FXEMOJI_NAMES = {
    "🐶": "dog", "🐕": "dogside", "🐱": "cat", "🐈": "catside", "🐯": "tiger", "🐅": "tigerside",
    "🐷": "pig", "🐖": "pigside", "🐭": "mouse", "🐁": "mouseside", "🐰": "bunny", "🐇": "bunnyside",
    "🐆": "leopardside", "🐉": "dragonside", "🐲": "dragonhead", "🐪": "dromedarycamel",
    "🐫": "bactriancamel", "🐹": "hampster", "🐑": "sheep", "🐥": "frontfacingchick", "🕊️": "doveofpeace",
    "🐳": "spurtingwhale", "🌊": "wave", "🌲": "evergreen", "🌾": "earofrice", "🍂": "fallingleaf",
    "🍃": "leaffluttering", "🍆": "aubergine", "🌽": "earofmaize", "🌶️": "chilipepper", "🌰": "acorn",
    "🍕": "sliceofpizza", "🍛": "curryandrice", "🍥": "fishcakeswirl", "🍶": "sakebottleandcup",
    "🍽️": "forkknife", "🔪": "hocho", "🌍": "europeafricaglobe", "🌎": "americasglobe",
    "🏔️": "snowmountains", "🏖️": "beachumbrella", "🌇": "sunsetoverbuildings", "🏠": "housebuilding",
    "🏘️": "housebuildings", "🏤": "europeanpostoffice", "🏰": "europeancastle", "🗼": "toykotower",
    "🚂": "steamlocomotive", "🚅": "highspeedtrainbulletnose", "🚙": "recreationalvehicle",
    "🏎️": "racecar", "🚨": "policecarsrevolvinglight", "⚠️": "warningsign",
    "⏳": "hourglassflowingsand", "🕰️": "manltepiececlock", "🕒": "clock3oclock", "🌧️": "raincloud",
    "🌨️": "snowcloud", "⛈️": "stormcloud", "🌦️": "sunraincloud", "🎇": "fireworksparkler",
    "🎊": "confetti", "🎁": "present", "🏮": "izakayalantern", "🏀": "basketballandhoop",
    "🎾": "tennisball", "🎱": "billiards", "🎣": "fishingpoleandfish", "🎿": "skiandskiboot",
    "🃏": "playingcardblackjoker", "💩": "poo", "🖼️": "framewithpicture", "🖌️": "lowerleftpaintbrush",
    "🖍️": "lowerleftcrayon", "👔": "tie", "👕": "mansshirt", "👚": "womansshirt", "💎": "gem",
    "👛": "pinkwallet", "👝": "makeupbag", "🎒": "schoolsatchel", "👞": "mensshoe", "👠": "heels",
    "👡": "sandals", "👢": "boot", "🔊": "rightspeaker3soundwaves", "🎶": "multiplemusicalnotes",
    "🎙️": "studiomic", "📱": "cellphone", "☎️": "blacktelephone", "📞": "telephonereceiver2",
    "💻": "personalcomputer", "🖱️": "onebuttonmouse", "💾": "floppydisk2", "💿": "opticaldisc",
    "📹": "handheldvideocamera", "📼": "videocasette", "🔦": "electrictorch",
    "📔": "notebookdecorativecover", "📤": "outbox", "📫": "closedmailboxraised",
    "🖋️": "lowerleftfountainpen", "🖊️": "lowerleftpen", "📈": "chartupwardstrend",
    "📉": "chartdownwardstrend", "✂️": "blackscissors", "💵": "banknotedollar", "🔒": "lock",
    "🔓": "openlock", "🔐": "lockandkey", "🔗": "linksymbol", "🗡️": "daggerknife",
    "🔍": "leftmagnifyingglass", "🔎": "rightmagnifyingglass", "🚬": "smokingsymbol", "🗿": "moyai",
    "🚩": "triangularflagonpost", "💬": "leftspeechbubble", "☀️": "whitesun", "⭐": "whitemediumstar",
    "🌟": "star", "🚧": "constructionsign", "🏗️": "construction", "⌨️": "wiredkeyboard", "🎹": "keyboard",
    "🕶️": "darksunglasses", "⚡": "bolt", "🌂": "umbrella",
}  # fmt: skip

# Icons that bear the name and show something else (a cricket bat, a window on a screen, a closed umbrella) or
# nothing that can be seen (a black box), by emoji.
UNFIT = frozenset(
    {("noto-v1", "🦗"), ("emojione", "🦗"), ("emojione-monotone", "🦗"), ("fxemoji", "🪟"), ("fxemoji", "☂️")}
    | {("fxemoji", "🚋")}
)
# The same for icons of general use, by the thing's name; first those that mislead in every such set.
UNFIT_ANYWHERE = frozenset(
    {"mouse", "cricket", "chestnut", "gem", "wave", "Tokyo Tower", "national park", "goal net", "seal"}
    | {"satellite dish", "strand of prayer beads", "film projector", "stadium", "potted plant", "compass"}
)
UNFIT_ICONS: Mapping[str, frozenset[str]] = {
    "game-icons": frozenset(
        {"palm tree", "sheet of paper", "ram", "fountain", "diving mask", "bookmark", "drop of blood"}
        | {"horse", "crab", "bell pepper", "kiwi"}
    ),
    "mdi": frozenset(
        {
            "balance scale",
            "microbe",
            "cardboard box",
            "hotel",
            "school",
            "framed picture",
            "campsite",
            "x-ray",
        }
        | {
            "group of musical notes",
            "musical score",
            "glass of whiskey",
            "placard",
            "stuffed pita",
            "satellite",
        }
        | {
            "railway car",
            "folding fan",
            "lacrosse stick",
            "chocolate bar",
            "comet",
            "bucket",
            "pair of gloves",
        }
        | {
            "string of prayer beads",
            "drop of blood",
            "boomerang",
            "hospital",
            "steam locomotive",
            "plate of spaghetti",
        }
    ),
    "tabler": frozenset(
        {
            "school",
            "group of musical notes",
            "nut and bolt",
            "joker card",
            "coat",
            "folding fan",
            "bell pepper",
        }
        | {"bicycle", "dagger", "Shinto shrine", "dumpling", "razor"}
    ),
    "ph": frozenset({"folding fan", "construction crane", "shower", "SUV", "high-heeled shoe"}),
    "hugeicons": frozenset(
        {"card file box", "clipboard", "high-heeled shoe", "folding fan", "construction crane", "joker card"}
        | {
            "drop of blood",
            "gorilla",
            "highway",
            "wing",
            "bar chart",
            "lock",
            "pan of paella",
            "rainbow",
            "log",
        }
    ),
    "mingcute": frozenset(
        {
            "mirror",
            "warning sign",
            "spider web",
            "post horn",
            "chicken",
            "folding fan",
            "glass of wine",
            "factory",
        }
    ),
    "icon-park": frozenset(
        {"rock", "log", "pie", "anchor", "brain", "heart", "fried egg", "balance scale", "seat", "trumpet"}
        | {
            "playground slide",
            "department store",
            "desktop computer",
            "turkey",
            "chicken",
            "firework",
            "magic wand",
        }
        | {"group of musical notes", "sheet of paper", "egg", "sun hat", "oil lamp", "mirror", "folder"}
        | {"telephone receiver", "telephone", "pair of scissors", "bank", "carousel horse", "kite"}
    ),
    "fa6-solid": frozenset({"folding fan", "nut and bolt", "x-ray"}),
}
