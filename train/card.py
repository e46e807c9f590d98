"""What an evaluation leaves in a checkpoint's folder: a table in its model card, and a sheet of pictures."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BEGIN, END = "<!-- measured: written by train.evaluate -->", "<!-- /measured -->"
_SIDE, _TEXT, _COLUMNS = 240, 92, 4


def write_table(card: Path, rows: Mapping[str, str]) -> None:
    """Put the table between its marks in the card; a card without them gets them at its end."""
    text = card.read_text(encoding="utf-8") if card.exists() else "# A checkpoint of train.recipe\n"
    if BEGIN not in text:
        text = f"{text}\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    table = "\n".join(["| measure | result |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    card.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


def write_sheet(path: Path, shown: Sequence[tuple[bytes, str, str]]) -> None:
    """Pictures in rows of four, each above its prompt and the answer."""
    rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE + 8), rows * (_SIDE + _TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (picture, prompt, answer) in enumerate(shown):
        x, y = i % _COLUMNS * (_SIDE + 8) + 4, i // _COLUMNS * (_SIDE + _TEXT) + 4
        small = Image.open(io.BytesIO(picture)).convert("RGB")
        small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (x + (_SIDE - small.width) // 2, y + (_SIDE - small.height) // 2))
        lines = [*textwrap.wrap(prompt, 40), *textwrap.wrap(answer, 40)][:6]
        for k, line in enumerate(lines):
            color = "gray" if k < len(textwrap.wrap(prompt, 40)) else "black"
            draw.text((x, y + _SIDE + 2 + 14 * k), line, fill=color, font=font)
    sheet.save(path)
