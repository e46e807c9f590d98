"""The sizes of the engine: all programs that it will ever run follow from them."""

from dataclasses import dataclass
from typing import Any, no_type_check

from models.errors import SettingsError
from models.images import MAX_ASPECT_RATIO
from models.model import Model
from sample.config import integer, number
from sample.pace import FRAME

_MOST = 2**31 - 1
_LONGEST_SIDE = 8192  # pixels; a picture of every size is made at the start
# One for each number of patches that the shipped checkpoint's pictures are padded to.
_PICTURES = (
    (384, 384), (448, 288), (448, 256), (384, 256), (320, 256), (256, 256), (256, 224), (256, 192),
)  # fmt: skip


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class EngineConfig:
    """Immutable and hashable.

    Attributes:
        rows: sizes of the batch, ascending; the last is how many streams run at once. A batch takes the
            smallest that holds the streams that may go on.
        context: prompt and answer of one stream together, in tokens; at most the model's own context.
        chunks: sizes of the pieces in which prompts are fed, ascending, in tokens. Between
            two steps of running streams comes what the largest computes, and no more.
        burst: seconds that a program takes about; of steps it has one at least, on a GPU four at most, and
            one while prompts are fed.
        waiting: streams that may wait for a row.
        pictures: widths and heights of pictures whose programs are compiled before the first stream comes;
            one of another number of patches compiles its own, and running streams wait for that.
        picture_bytes: of pictures' embeddings that are kept for later streams.
        prefix_bytes: of what prompts begin with that is kept for later ones.
        top_logprobs: the most alternatives to a token that a stream may ask for, 0 to 20.
        logit_biases: the most entries of a stream's logit bias.
        token_ids: the most end tokens, and tokens exempt from the block of n-grams.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """

    rows: tuple[int, ...] = (1, 4, 16, 32, 50)
    context: int = 2048
    chunks: tuple[int, ...] = (32, 64, 128)
    burst: float = FRAME
    waiting: int = 64
    pictures: tuple[tuple[int, int], ...] = _PICTURES
    picture_bytes: int = 256 * 2**20
    prefix_bytes: int = 256 * 2**20
    top_logprobs: int = 20
    logit_biases: int = 64
    token_ids: int = 16

    def __post_init__(self):
        for name, low, high in (
            ("context", 2, _MOST),
            ("waiting", 0, _MOST),
            ("picture_bytes", 0, 2**63 - 1),
            ("prefix_bytes", 0, 2**63 - 1),
            ("top_logprobs", 0, 20),
            ("logit_biases", 1, 4096),
            ("token_ids", 1, 4096),
        ):
            integer(name, getattr(self, name), low, high)
        number("burst", self.burst, 0.0, 10.0)
        for name in ("rows", "chunks"):
            _check_sizes(name, getattr(self, name))
        for width, height in self.pictures:
            _check_picture(width, height)

    def context_of(self, model: Model) -> int:
        """Prompt and answer of one stream together, in tokens."""
        return min(self.context, model.context_length)


def _check_sizes(name: str, sizes: Any) -> None:
    whole = isinstance(sizes, tuple) and all(type(size) is int and size > 0 for size in sizes)
    if not whole or not sizes or list(sizes) != sorted(set(sizes)):
        raise SettingsError(f"{name}: got {sizes!r}; allowed: ascending integers from 1 up, one or more")


def _check_picture(width: int, height: int) -> None:
    shorter, longer = sorted((width, height))
    if not 1 <= shorter <= longer <= min(_LONGEST_SIDE, MAX_ASPECT_RATIO * shorter):
        raise SettingsError(
            f"pictures: {width}x{height}; allowed: sides of 1 to {_LONGEST_SIDE} pixels, "
            f"one at most {MAX_ASPECT_RATIO} times the other"
        )
