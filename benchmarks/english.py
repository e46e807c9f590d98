"""Real English to measure with: the prose of Debian's package `debian-reference-en`."""

import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from models.errors import InputError

PACKAGE = "debian-reference-en"


class _Prose(HTMLParser):
    """Paragraphs, headings and list items, with blanks as a browser shows them."""

    BLOCKS = frozenset({"p", "li", *(f"h{level}" for level in range(1, 7))})
    LEFT_OUT = frozenset({"table", "pre", "dl", "script", "style"})

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self._inside: list[str] = []  # blocks, and what is left out

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.BLOCKS | self.LEFT_OUT:
            self._inside.append(tag)
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if self._inside and not self.LEFT_OUT & set(self._inside):
            self.blocks[-1] += data


def prose(html: str) -> str:
    """What is written in sentences, a blank line between two blocks."""
    parser = _Prose()
    parser.feed(html)
    blocks = (" ".join(block.split()) for block in parser.blocks)
    return "\n\n".join(block for block in blocks if block)


def debian_reference() -> str:
    """Its chapters, from the package."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
        try:
            subprocess.run(fetch, cwd=folder, check=True)
            (package,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise InputError(f"{PACKAGE}: {error}; --text FILE takes another text") from None
        chapters = sorted(Path(folder).rglob("ch[0-9][0-9].en.html"))
        return "\n\n".join(prose(chapter.read_text(encoding="utf-8")) for chapter in chapters)
