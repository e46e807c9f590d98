"""The art that scenes are composed of: fetched by package name, drawn once, packed for the training machine.

    uv run --extra train python -m train.art

makes the pack in `train/art_cache/pack256`: `things.json` and, for each style, `{style}.npz` with WebP
pictures of 256x256 pixels. `load_pack` reads it back and needs numpy and Pillow only.

`train/art_sets.py` lists the sets and their licences.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from train.art_sets import (
    FXEMOJI_NAMES,
    STYLES,
    UNFIT,
    UNFIT_ANYWHERE,
    UNFIT_ICONS,
)
from train.coloring import color_in
from train.things import Naming, Thing, normalise, pluralise, read_namings

CACHE = Path(__file__).parent / "art_cache"
SIZE = 256  # pixels a side
PACK = CACHE / f"pack{SIZE}"
_EMOJI_DATA = "emojibase-data@17.0.0"  # MIT; labels, code points and groups
_QUALITY = 80


@dataclass(frozen=True)
class Pack:
    """The things and their art.

    `art[rows[style][i]]` is the picture of `things[i]` in a style: RGBA, SIZE pixels a side, straight alpha,
    colour 0 where alpha is 0. Where the style has none, the row is -1.
    """

    things: tuple[Thing, ...]
    art: np.ndarray  # uint8 [n_pictures, SIZE, SIZE, 4]
    rows: dict[str, np.ndarray]  # int [n_things]


def code_points(emoji: str) -> str:
    """The code points in upper case, joined by "-", without variation selectors: "1F43C"."""
    return "-".join(f"{ord(character):04X}" for character in emoji if character != "\ufe0f")


def package_folder(package: str, cache_folder: Path = CACHE) -> Path:
    """The unpacked npm package (`name@version`), fetched with npm if it is not there yet.

    Raises:
        subprocess.CalledProcessError: npm could not fetch it.
    """
    folder = cache_folder / "npm" / re.sub(r"[@/]+", "-", package).strip("-")
    if not (folder / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", package, "--silent", "--pack-destination", str(folder)]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(folder / name) as archive:
            members = [member for member in archive if member.name.endswith(".json")]
            for member in members:  # every file stands below one folder, named as the packer liked
                target = folder / member.name.partition("/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]
        (folder / name).unlink()
    return folder


@cache
def _icon_set(style: str) -> dict:
    return json.loads((package_folder(STYLES[style].package) / "icons.json").read_text(encoding="utf-8"))


@cache
def _icon_of_code(style: str) -> dict[str, str]:
    """Icon names by code points, for the sets that list them."""
    chars = package_folder(STYLES[style].package) / "chars.json"
    listed = json.loads(chars.read_text(encoding="utf-8"))
    return {
        "-".join(p for p in code.upper().split("-") if p != "FE0F"): icon for code, icon in listed.items()
    }


@cache
def _emoji_data() -> dict[str, dict]:
    """emojibase's records by code points."""
    folder = package_folder(_EMOJI_DATA)
    records = json.loads((folder / "en" / "data.json").read_text(encoding="utf-8"))
    return {code_points(record["emoji"]): record for record in records}


@cache
def _names_of_code(code: str) -> frozenset[str]:
    """What any of the sets calls the emoji, aliases included, and its label: "red-apple", "apple"."""
    names = {normalise(_emoji_data()[code]["label"]).replace(" ", "-")}
    for style in STYLES:
        if icon := _icon_of_code(style).get(code):
            aliases = _icon_set(style).get("aliases", {})
            parent = aliases.get(icon, {}).get("parent", icon)
            names |= {icon, parent} | {alias for alias, entry in aliases.items() if entry["parent"] == parent}
    return frozenset(names)


def icon_name(style: str, emoji: str) -> str | None:
    """The name of the icon that shows the thing of an emoji in a style, or None.

    In a set of emoji by its code points where listed, else by its names; in others by the thing's name.
    """
    icons = _icon_set(style)
    if STYLES[style].endings:
        return _icon_of_name(style).get(_namings()[emoji].name)
    if (style, emoji) in UNFIT:
        return None
    known = icons["icons"].keys() | icons.get("aliases", {}).keys()
    code = code_points(emoji)
    if style == "fxemoji":
        own = {code_points(key): value for key, value in FXEMOJI_NAMES.items()}
        names = [own[code]] if code in own else sorted(n.replace("-", "") for n in _names_of_code(code))
    elif listed := _icon_of_code(style):
        names = [listed.get(code, "")]
    else:
        names = sorted(_names_of_code(code))
    return next((name for name in names if name in known), None)


@cache
def _namings() -> dict[str, Naming]:
    return {naming.emoji: naming for naming in read_namings()}


@cache
def _thing_of_word() -> dict[str, str]:
    """The one thing that a word is a name of; words that several things share are left out."""
    owners: dict[str, set[str]] = {}
    for naming in _namings().values():
        for word in (naming.name, *naming.synonyms):
            for form in (word, pluralise(word)):
                owners.setdefault(normalise(form), set()).add(naming.name)
    return {word: next(iter(things)) for word, things in owners.items() if len(things) == 1}


@cache
def _icon_of_name(style: str) -> dict[str, str]:
    """Icons by the name of the thing that they show, in a set of icons of general use."""
    icons, found = _icon_set(style), {}
    # An alias that turns another icon is left out, as `icon_svg` cannot draw it.
    straight = (n for n, a in icons.get("aliases", {}).items() if not set(a) - {"parent", "hidden"})
    known = sorted({*icons["icons"], *straight})
    for ending in STYLES[style].endings:
        for icon in known:
            word = normalise(icon.removesuffix(ending).replace("-", " "))
            if icon.endswith(ending) and (thing := _thing_of_word().get(word)):
                found.setdefault(thing, icon)
    unfit = UNFIT_ANYWHERE | UNFIT_ICONS.get(style, frozenset())
    return {thing: icon for thing, icon in found.items() if thing not in unfit}


def icon_svg(style: str, name: str) -> str:
    """The SVG document of an icon.

    Raises:
        ValueError: the name is an alias that turns or flips another icon (no thing needs one).
    """
    icons = _icon_set(style)
    if alias := icons.get("aliases", {}).get(name):
        if set(alias) - {"parent", "hidden"}:
            raise ValueError(f"{style}: the icon {name!r} is a transformed {alias['parent']!r}")
        return icon_svg(style, alias["parent"])
    icon = icons["icons"][name]
    box = [icon.get(key, icons.get(key, default)) for key, default in
           (("left", 0), ("top", 0), ("width", 16), ("height", 16))]  # fmt: skip
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}">{icon["body"]}</svg>'
    )


def draw(style: str, emoji: str, size: int = SIZE) -> Image.Image | None:
    """The picture of an emoji in a style, `size` x `size` RGBA with straight alpha; None if it has none."""
    import resvg_py  # noqa: PLC0415  (only those who draw need it, not those who load the pack)

    name = icon_name(style, emoji)
    if name is None:
        return None
    png = resvg_py.svg_to_bytes(svg_string=icon_svg(style, name), width=size, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if STYLES[style].ink:
        picture = color_in(picture, random.Random(f"{style} {name}"))
    if picture.size == (size, size):
        return picture
    square = Image.new("RGBA", (size, size))
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square


def collect_things() -> list[Thing]:
    """The named things with their code points, groups and ids, in the order of `things.txt`."""
    meta = json.loads((package_folder(_EMOJI_DATA) / "meta" / "groups.json").read_text(encoding="utf-8"))
    things = []
    for naming in read_namings():
        code = code_points(naming.emoji)
        record = _emoji_data()[code]
        things.append(
            Thing(
                id=normalise(record["label"]).replace(" ", "-"),
                emoji=naming.emoji,
                hexcode=code,
                name=naming.name,
                plural=naming.plural,
                article=naming.article,
                synonyms=naming.synonyms,
                kind=naming.kind,
                group=meta["groups"][str(record["group"])],
                subgroup=meta["subgroups"][str(record["subgroup"])],
            )
        )
    return things


def encode(picture: Image.Image) -> bytes:
    """WebP with alpha; the colour under full transparency is not kept."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, alpha_quality=100, method=4)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """uint8 [height, width, 4], straight alpha, colour 0 where alpha is 0."""
    with Image.open(io.BytesIO(data)) as picture:
        array = np.array(picture.convert("RGBA"))
    array[..., :3] *= array[..., 3:] > 0  # else resizing would mix in whatever the encoder left there
    return array


def save_pack(folder: Path, things: Iterable[Thing], pictures: Mapping[str, list[bytes]]) -> None:
    """Write `things.json` and one `{style}.npz` for each style, with an encoded picture for each thing.

    It is empty where the style has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style, coded in pictures.items():
        np.savez(
            folder / f"{style}.npz",
            data=np.frombuffer(b"".join(coded), np.uint8),
            ends=np.cumsum([len(item) for item in coded]),
        )
    records = json.dumps([asdict(thing) for thing in things], ensure_ascii=False, indent=1)
    (folder / "things.json").write_text(records, encoding="utf-8")  # last: a pack that has it is whole


def load_pack(folder: Path | str = PACK, styles: Iterable[str] | None = None) -> Pack:
    """Read a pack: all its styles, or the named ones.

    Raises:
        FileNotFoundError: there is no pack, or it lacks a named style.
    """
    folder = Path(folder)
    records = json.loads((folder / "things.json").read_text(encoding="utf-8"))
    things = tuple(Thing(**{**record, "synonyms": tuple(record["synonyms"])}) for record in records)
    names = [path.stem for path in sorted(folder.glob("*.npz"))] if styles is None else list(styles)
    coded, rows = [], {}
    for name in names:
        pictures = _coded(folder / f"{name}.npz")
        there = np.array([len(picture) > 0 for picture in pictures])
        rows[name] = np.where(there, len(coded) + np.cumsum(there) - 1, -1)
        coded += [picture for picture in pictures if picture]
    art = np.empty((len(coded), *decode(coded[0]).shape), np.uint8)

    def put(i: int) -> None:
        art[i] = decode(coded[i])

    with ThreadPoolExecutor() as pool:
        list(pool.map(put, range(len(coded))))
    return Pack(things, art, rows)


def _coded(path: Path) -> list[bytes]:
    """A style's pictures as they are stored; empty where it has none."""
    with np.load(path) as archive:
        data, ends = archive["data"].tobytes(), archive["ends"].tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def make_pack(folder: Path = PACK) -> None:
    """Fetch the art if need be, draw every thing in every style, on all cores, and write the pack."""
    things = collect_things()
    for art in STYLES.values():
        package_folder(art.package)  # here, as the processes would fetch it side by side
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        drawn = pool.map(_draw_all, STYLES, [[thing.emoji for thing in things]] * len(STYLES))
        pictures = dict(zip(STYLES, drawn, strict=True))
    save_pack(folder, things, pictures)
    for style, art in STYLES.items():
        count = sum(map(bool, pictures[style]))
        print(f"{style}: {count} of {len(things)} things ({art.licence}, {art.author})")


def _draw_all(style: str, emojis: list[str]) -> list[bytes]:
    """A style's pictures, encoded; empty where it has none."""
    pictures = (draw(style, emoji) for emoji in emojis)
    return [encode(picture) if picture else b"" for picture in pictures]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch, draw and pack the art.")
    parser.add_argument("--out", type=Path, default=PACK, help="folder to write (default: %(default)s)")
    make_pack(parser.parse_args().out)
