"""Which pictures go with which prompt."""

import itertools
from pathlib import Path
from typing import NamedTuple

from cli.typed import UsageError, shorten
from conf.schema import InferenceSettings

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


class Request(NamedTuple):
    images: tuple[str, ...]
    prompt: str

    def header(self) -> str:
        """Tells the rows of a batch apart, on one line."""
        pictures = ", ".join(Path(image).name for image in self.images)
        return " | ".join(filter(None, [pictures, " ".join(self.prompt.split())]))


def batch_requests(inference: InferenceSettings) -> list[Request]:
    """Every prompt with every picture of a directory, or with the pictures given.

    Raises:
        UsageError: a file or directory that is missing or empty.
    """
    return [
        Request(images, prompt)
        for images, prompt in itertools.product(_picture_sets(inference.image), _prompts(inference))
    ]


def single_request(inference: InferenceSettings) -> Request:
    """The one prompt of a stream, with its pictures.

    Raises:
        UsageError: a missing picture, or a batch.
    """
    if inference.prompts or inference.prompts_file is not None:
        raise UsageError("inference.prompts: run_streaming.py takes one prompt, run.py several")
    for image in inference.image:
        if Path(image).is_dir():
            raise UsageError(
                f"inference.image: {shorten(image)} is a directory; run_streaming.py takes files,"
                " run.py also a directory"
            )
    (images,) = _picture_sets(inference.image)
    return Request(images, inference.prompt)


def _prompts(inference: InferenceSettings) -> list[str]:
    if inference.prompts_file is None:
        return inference.prompts or [inference.prompt]
    if inference.prompts:
        raise UsageError("inference.prompts_file: not together with inference.prompts")
    key, path = "inference.prompts_file", inference.prompts_file
    try:
        prompts = Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{key}: cannot read {shorten(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{key}: {shorten(path)} is not UTF-8 at byte {error.start}") from None
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UsageError(f"{key}: {shorten(path)} has no prompt, a line each")
    return prompts


def _picture_sets(images: list[str]) -> list[tuple[str, ...]]:
    for image in images:
        if not image:
            raise UsageError("inference.image: got an empty path; leave the setting out for text alone")
        if not Path(image).exists():
            raise UsageError(f"inference.image: no such file: {shorten(image)}")
        if len(images) > 1 and Path(image).is_dir():
            raise UsageError(f"inference.image: {shorten(image)} is a directory; a list holds files alone")
    if len(images) != 1 or not Path(images[0]).is_dir():
        return [tuple(images)]
    pictures = sorted(
        str(path)
        for path in Path(images[0]).iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    )
    if not pictures:
        suffixes = " ".join(sorted(PICTURE_SUFFIXES))
        raise UsageError(f"inference.image: directory {shorten(images[0])} has no picture ({suffixes})")
    return [(picture,) for picture in pictures]
