"""Compose the example pictures from Microsoft's Fluent Emoji (MIT) on backgrounds drawn here.

    uv run --extra train python examples/make_imgs.py

The art is fetched with npm by its package name; the pictures are written to `examples/imgs`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the script stands outside the packages

from train.art import draw as draw_icon  # noqa: E402

STYLE = "fluent-emoji"
SCALE = 2  # everything is drawn at twice the size and reduced at the end, which smooths the edges
Point = tuple[float, float]


class Canvas:
    """A picture in the making; positions and sizes are in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SCALE, height * SCALE))

    def gradient(self, top: float, bottom: float, colours: Sequence[str]) -> None:
        """Fill the band between two heights with colours blending evenly from the top down."""
        height = round((bottom - top) * SCALE)
        column = Image.new("RGB", (1, len(colours)))
        for y, colour in enumerate(colours):
            column.paste(colour, (0, y, 1, y + 1))
        # Half a colour at each end is flat after resizing: stretch by one colour's height and cut it off.
        step = height / (len(colours) - 1)
        tall = column.resize((1, round(step * len(colours))), Image.Resampling.BILINEAR)
        band = tall.crop((0, round(step / 2), 1, round(step / 2) + height))
        self.image.paste(band.resize((self.image.width, height)), (0, round(top * SCALE)))

    def polygon(self, points: Sequence[Point], fill: str, alpha: float = 1, blur: float = 0) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._paint(lambda pen: pen.polygon(scaled, fill=255), fill, alpha, blur)

    def ellipse(
        self, x: float, y: float, width: float, height: float, fill: str, alpha: float = 1, blur: float = 0
    ) -> None:
        """An ellipse around (x, y)."""
        box = [(x - width / 2) * SCALE, (y - height / 2) * SCALE]
        box += [(x + width / 2) * SCALE, (y + height / 2) * SCALE]
        self._paint(lambda pen: pen.ellipse(box, fill=255), fill, alpha, blur)

    def block(
        self, box: Sequence[float], fill: str, alpha: float = 1, blur: float = 0, radius: float = 0
    ) -> None:
        """A rectangle (left, top, right, bottom) with rounded corners."""
        scaled = [value * SCALE for value in box]
        self._paint(lambda pen: pen.rounded_rectangle(scaled, radius * SCALE, fill=255), fill, alpha, blur)

    def icon(
        self, emoji: str, x: float, y: float, size: float, *, angle: float = 0, shadow: Point | None = None
    ) -> None:
        """An icon around (x, y), turned left by `angle` degrees, with a soft shadow moved by `shadow`."""
        picture = draw_icon(STYLE, emoji, round(size * SCALE))
        if picture is None:
            raise ValueError(f"{STYLE} has no {emoji}")
        picture = picture.rotate(angle, Image.Resampling.BICUBIC)
        layer = Image.new("RGBA", self.image.size)
        layer.paste(picture, (round((x - size / 2) * SCALE), round((y - size / 2) * SCALE)))
        if shadow:
            dark = layer.getchannel("A").filter(ImageFilter.GaussianBlur(size * SCALE / 40))
            dark = ImageChops.offset(dark, round(shadow[0] * SCALE), round(shadow[1] * SCALE))
            self.image.paste("#142014", (0, 0), dark.point(lambda value: value * 0.35))
        self.image.paste(layer, (0, 0), layer)

    def save(self, path: Path) -> None:
        self.image.resize(self.size, Image.Resampling.LANCZOS).save(path, optimize=True)

    def _paint(
        self, shape: Callable[[ImageDraw.ImageDraw], object], fill: str, alpha: float, blur: float
    ) -> None:
        mask = Image.new("L", self.image.size)
        shape(ImageDraw.Draw(mask))
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * SCALE))
        self.image.paste(fill, (0, 0), mask.point(lambda value: value * alpha))


def cloud(canvas: Canvas, x: float, y: float, width: float) -> None:
    for dx, dy, share in ((-0.3, 0.05, 0.5), (0, -0.06, 0.62), (0.3, 0.04, 0.52)):
        size = share * width
        canvas.ellipse(x + dx * width, y + dy * width, size, size / 2, "#ffffff", 0.9, width / 30)


def hill(canvas: Canvas, heights: Sequence[float], fill: str, blur: float = 0) -> None:
    """Ground whose upper edge runs smoothly through the heights, evenly spaced from left to right."""
    width, height = canvas.size
    edge = []
    for i in range(121):
        place = i / 120 * (len(heights) - 1)
        left = min(int(place), len(heights) - 2)
        t = (place - left) ** 2 * (3 - 2 * (place - left))
        edge.append((i / 120 * width, heights[left] * (1 - t) + heights[left + 1] * t))
    outline = [(-20, height + 20), (-20, heights[0]), *edge, (width + 20, heights[-1])]
    canvas.polygon([*outline, (width + 20, height + 20)], fill, 1, blur)


def panda_climbing() -> Canvas:
    """A panda that has climbed a leafy tree in a forest."""
    canvas = Canvas(768, 768)
    canvas.gradient(0, 768, ["#d8f3ea", "#bfe6c8", "#8fcf94"])
    rng = random.Random(4)
    for shade, blur in (("#b4e0bc", 8), ("#93cda0", 5)):
        for _ in range(7):
            x, height, width = rng.uniform(0, 768), rng.uniform(330, 560), rng.uniform(130, 220)
            canvas.polygon([(x - width / 2, 680), (x, 680 - height), (x + width / 2, 680)], shade, 1, blur)
    hill(canvas, [640, 615, 645, 630, 650], "#7cc576", 2)
    hill(canvas, [705, 680, 700, 690, 680], "#5fb35a")
    canvas.ellipse(384, 694, 345, 46, "#143c14", 0.5, 10)
    canvas.icon("🌳", 384, 370, 690)
    canvas.icon("🐼", 500, 330, 260, angle=-10, shadow=(0, 10))
    return canvas


def coffee_laptop() -> Canvas:
    """A laptop and a cup of coffee on a desk."""
    canvas = Canvas(768, 576)
    canvas.gradient(0, 340, ["#f6e9d8", "#efdcc4"])
    canvas.gradient(330, 576, ["#c98f5c", "#b67a48", "#a26a3c"])
    canvas.polygon([(60, -40), (300, -40), (190, 330), (-50, 330)], "#fffaeb", 0.45, 14)
    canvas.block((-5, 326, 773, 334), "#8c5c38", 0.6, 1)
    for y in (384, 450, 524):
        canvas.block((-5, y, 773, y + 3), "#784a28", 0.35)
    canvas.ellipse(270, 440, 400, 50, "#3c1e0a", 0.6, 12)
    canvas.icon("💻", 270, 250, 400)
    canvas.ellipse(590, 494, 200, 44, "#3c1e0a", 0.6, 10)
    canvas.icon("☕", 590, 392, 236)
    return canvas


def mountain_landscape() -> Canvas:
    """A snow-capped mountain and an evergreen tree under the sun."""
    canvas = Canvas(768, 512)
    canvas.gradient(0, 400, ["#6fb9ef", "#a8d8f7", "#e6f5fc"])
    cloud(canvas, 110, 90, 150)
    canvas.icon("🏔️", 300, 262, 520)
    canvas.icon("☀️", 640, 110, 190)
    hill(canvas, [332, 332, 332, 326, 326, 326, 326], "#7ccb80")
    hill(canvas, [412, 424, 410, 430, 418, 404, 410], "#55b465")
    canvas.ellipse(650, 472, 97, 18, "#0a3c14", 0.5, 4)
    canvas.icon("🌲", 650, 366, 230)
    return canvas


def f35_takeoff() -> Canvas:
    """An airplane that takes off from a runway."""
    canvas = Canvas(768, 512)
    canvas.gradient(0, 420, ["#4f9fe6", "#93c9f4", "#dff0fb"])
    for x, y, width in ((110, 110, 170), (650, 60, 130), (670, 250, 160)):
        cloud(canvas, x, y, width)
    hill(canvas, [340, 318, 334, 314, 336, 322], "#a9d0b4", 2)
    canvas.gradient(344, 512, ["#7cc17a", "#5ba65c"])
    canvas.gradient(354, 512, ["#6a6874", "#757282"])
    canvas.icon("🛫", 384, 248, 420)
    return canvas


def stadium_aerial() -> Canvas:
    """A stadium on a green plain between roads, seen from above."""
    canvas = Canvas(768, 576)
    canvas.gradient(0, 576, ["#a9d989", "#86c76c", "#6db557"])
    rng = random.Random(11)
    for _ in range(40):
        x, y, width = rng.uniform(0, 768), rng.uniform(0, 576), rng.uniform(80, 200)
        canvas.ellipse(x, y, width, width / 2, rng.choice(["#97cf78", "#7fc165"]), 0.5, 12)
    for y in (182, 494):
        canvas.block((-5, y, 773, y + 16), "#c9c6bd")
    for x in (100, 660):
        canvas.block((x, -5, x + 16, 581), "#c9c6bd")
    canvas.ellipse(384, 440, 500, 120, "#1e461e", 0.5, 12)
    canvas.ellipse(384, 430, 490, 112, "#d8d3c8")
    canvas.icon("🏟️", 384, 262, 428)
    return canvas


PICTURES = (panda_climbing, coffee_laptop, mountain_landscape, f35_takeoff, stadium_aerial)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        picture().save(folder / f"{picture.__name__}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compose the example pictures.")
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "imgs", help="folder to write")
    main(parser.parse_args().out)
