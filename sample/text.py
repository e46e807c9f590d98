"""Token ids to text, piece by piece: the pieces, joined, are the whole decode, cut at the first stop string.

Decodes a short window of the latest tokens at each step, as `tokenizers.decoders.DecodeStream` does, and
mends what keeps that class (0.23) from giving the whole decode of any ids. It has no end, so held text is
lost. On bytes that are no UTF-8 it holds all text back, and its window grows, for as long as they come. And
it shows the characters of a run of byte-fallback tokens before the run is known to be valid, then raises
where it is not.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from models.errors import InputError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how byte-fallback vocabularies write a byte
_CONTEXT = 4  # tokens: a UTF-8 sequence has at most 4 bytes, so what stands before them cannot matter
_WINDOW = 16  # tokens: beyond it the window is cut to its context


class TextStream:
    """The text of one sequence while its tokens come. Joined, `push`es and `close` are the whole decode.

    The text ends at the first stop string to be completed; of several completed by the same character, at the
    one that starts first. That depends on the text alone, not on how it is split into tokens. Special tokens,
    the eos tokens and ids that the tokenizer does not know have no text.

    Memory: a window of tokens, and what could begin a stop string. Byte-fallback tokens in a row are held
    until the run ends, since one bad byte turns all of the run's characters into replacement characters.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stop: the stop strings, none of them empty.
        eos_ids: tokens without text, also where the tokenizer does not call them special.

    Raises:
        InputError: the tokenizer is not a fast one.
    """

    stopped: bool  # a stop string was completed; there is no more text

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), eos_ids: Collection[int] = ()
    ):
        self._text = _Detokenizer(tokenizer, eos_ids)
        self._stop = tuple(stop)
        self._held = ""  # may be the beginning of a stop string
        self._closed = False
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that is now certain, of no token, one or many."""
        return "" if self.stopped or self._closed else self._release(self._text.push(token_id))

    def add_stop(self, stop: Sequence[str]) -> None:
        """More stop strings, for the text that has not been returned yet; callable from any thread."""
        self._stop = (*self._stop, *stop)

    def close(self) -> str:
        """Ends the text, and returns what was held back of it; nothing once a stop string was completed."""
        if self.stopped or self._closed:
            return ""
        self._closed = True
        text = self._release(self._text.close())
        return text if self.stopped else text + self._held

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        self._held = self._beginning(text)
        return text[: len(text) - len(self._held)]

    def _beginning(self, text: str) -> str:
        """The longest end of the text that a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        ends = (text[start:] for start in range(max(0, len(text) - longest), len(text)))
        return next((end for end in ends if any(stop.startswith(end) for stop in self._stop)), "")


def decode(
    tokenizer: PreTrainedTokenizerBase,
    ids: Iterable[int],
    stop: Sequence[str] = (),
    eos_ids: Collection[int] = (),
) -> str:
    """The text that a `TextStream` of these ids gives in all.

    Raises:
        InputError: the tokenizer is not a fast one.
    """
    stream = TextStream(tokenizer, stop, eos_ids)
    return "".join([*map(stream.push, ids), stream.close()])


class _Detokenizer:
    """Incremental detokenisation without stop strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hidden: Collection[int]):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InputError(
                f"tokenizer: got {type(tokenizer).__name__}; allowed: a fast (Rust) tokenizer of transformers"
            )
        self._backend = backend
        special = (
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self._hidden = frozenset(special) | frozenset(hidden)
        byte = backend.token_to_id("<0x41>")
        self._has_byte_tokens = byte is not None and backend.decode([byte]) == "A"
        self._run = codecs.getincrementaldecoder("utf-8")()  # checks a run of byte tokens as it comes
        self._run_is_broken = False
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text

    def push(self, token_id: int) -> str:
        piece = self._backend.id_to_token(token_id)
        if piece is None or token_id in self._hidden:
            return ""
        byte = _BYTE_PIECE.fullmatch(piece) if self._has_byte_tokens else None
        if byte and self._run_is_broken:
            return _REPLACEMENT
        self._window.append(token_id)
        if byte:
            return self._hold(int(byte[1], 16))
        if self._has_byte_tokens:
            self._run.reset()
            self._run_is_broken = False
        return self._show()

    def close(self) -> str:
        return self._backend.decode(self._window)[self._shown :]

    def _hold(self, byte: int) -> str:
        try:
            self._run.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._run_is_broken = True
            return self._show()
        return ""

    def _show(self) -> str:
        text = self._backend.decode(self._window)
        # The last replacement character may be the beginning of one whose other bytes are to come.
        pending = text.endswith(_REPLACEMENT)
        end = len(text) - pending
        fresh = text[self._shown : end]
        self._shown = end
        if len(self._window) > _WINDOW:
            self._window = self._window[-_CONTEXT:]
            self._shown = len(self._backend.decode(self._window)) - pending
        return fresh
