"""Incremental detokenisation: the joined stream is the whole decode, for any ids and any stop strings."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.errors import InputError
from sample.text import TextStream, decode

quick = settings(derandomize=True, deadline=None, max_examples=300)

# GPT-2's byte alphabet: printable bytes stand for themselves, the others for what follows 255.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_CHARS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
# Tokens that cut characters in all ways: from the middle of one to that of the next, broken, whole words.
PIECES = [
    b" the",
    "你好".encode(),
    "你".encode()[:2],
    "你".encode()[1:] + "好".encode()[:1],
    b"\xff\xe4",
    b"\x80\x80",
]
PIECES += ["👩\u200d".encode(), "\u200d👧".encode()[1:], "\N{REPLACEMENT CHARACTER}".encode()]
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def wrapped(tokenizer: Tokenizer, decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens(["<think>", "日本"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    tokens = [bytes([byte]) for byte in range(256)] + PIECES
    vocab = {"".join(BYTE_CHARS[byte] for byte in token): i for i, token in enumerate(tokens)}
    return wrapped(Tokenizer(models.BPE(vocab=vocab, merges=[])), decoders.ByteLevel())


def sentencepiece(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + [
        "<unk>",
        "▁",
        "▁a",
        "a",
        "▁▁b",
        "▁the",
        "你",
        ".",
        "\ufffd",
    ]
    vocab = {token: i for i, token in enumerate(tokens)}
    return wrapped(
        Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)), decoder
    )


TOKENIZERS = {
    "byte-level": byte_level(),
    "metaspace": sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
    "llama": sentencepiece(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    ),
}
# In all three the ids below 256 are the bytes, and two ids past the end are unknown.
texts = st.text(alphabet="aé ▁你好👩\u200d👧\U0001f1e9", max_size=6).map(lambda text: list(text.encode()))
any_ids = st.lists(
    st.one_of(st.integers(256, 270).map(lambda i: [i]), st.integers(0, 255).map(lambda i: [i]), texts),
    max_size=30,
).map(lambda parts: list(itertools.chain(*parts)))
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def whole(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


@each_tokenizer
@quick
@given(ids=any_ids)
def test_the_joined_stream_is_the_whole_decode(tokenizer, ids):
    assert decode(tokenizer, ids) == whole(tokenizer, ids)


@each_tokenizer
@quick
@given(ids=any_ids)
def test_what_was_shown_is_never_taken_back(tokenizer, ids):
    stream, shown = TextStream(tokenizer), ""
    for i, token in enumerate(ids):
        shown += stream.push(token)
        assert whole(tokenizer, ids[: i + 1]).startswith(shown)
    assert shown + stream.close() == whole(tokenizer, ids)


@quick
@given(text=st.text(alphabet="aé 你好👩\u200d👧", max_size=20))
def test_whole_text_comes_as_soon_as_from_decode_stream(text):
    tokenizer = TOKENIZERS["byte-level"]
    stream, theirs = TextStream(tokenizer), DecodeStream(skip_special_tokens=True)
    for byte in text.encode():
        assert stream.push(byte) == (theirs.step(tokenizer.backend_tokenizer, byte) or "")


@pytest.mark.parametrize(
    "text", ["你好，世界", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "naïve café", "한국어 \u0301e", "a\r\n\tb"]
)
@each_tokenizer
def test_text_by_bytes(tokenizer, text):
    assert decode(tokenizer, text.encode()) == whole(tokenizer, list(text.encode())) == text


def split(stream: TextStream, ids) -> list[str]:
    return [*map(stream.push, ids), stream.close()]


def test_an_incomplete_character_waits_and_is_delivered_at_the_end():
    tokenizer = TOKENIZERS["byte-level"]
    assert split(TextStream(tokenizer), [97, *"你".encode()]) == ["a", "", "", "你", ""]
    assert split(TextStream(tokenizer), [97, *"你".encode()[:2]]) == ["a", "", "", "\ufffd"]


def test_one_bad_byte_spoils_a_run_of_byte_tokens():
    tokenizer = TOKENIZERS["metaspace"]
    run = [*"你".encode(), 0xFF]
    assert split(TextStream(tokenizer), [*"你".encode(), 258]) == ["", "", "", "你 a", ""]
    assert "".join(split(TextStream(tokenizer), [*run, 258])) == "\ufffd" * 4 + " a"


@pytest.mark.parametrize(
    ("name", "ids"), [("byte-level", [0xFF]), ("byte-level", [259]), ("metaspace", [0xFF])]
)
def test_broken_bytes_without_end_keep_little_and_show_all_but_the_last(name, ids):
    tokenizer = TOKENIZERS[name]
    stream = TextStream(tokenizer)
    shown = "".join(stream.push(token) for token in ids * 2000)
    assert len(stream._text._window) <= 20
    assert len(whole(tokenizer, ids * 2000)) - len(shown) <= 1


def test_tokens_without_text():
    tokenizer = TOKENIZERS["byte-level"]
    special = tokenizer.convert_tokens_to_ids(SPECIAL)
    unknown = len(tokenizer) + 5
    assert split(TextStream(tokenizer), [97, *special, unknown, 98]) == ["a", "", "", "", "b", ""]
    assert decode(tokenizer, [97, 98, 99], eos_ids=[98]) == "ac"


def first_completed(text: str, stop: list[str]) -> str | None:
    """What is before the stop string that is completed first, found character by character."""
    for end in range(len(text) + 1):
        ended = [string for string in stop if text[:end].endswith(string)]
        if ended:
            return text[: end - max(map(len, ended))]
    return None


stops = st.lists(st.text(alphabet="ab你", min_size=1, max_size=4), min_size=1, max_size=3)


@quick
@given(text=st.text(alphabet="ab你", max_size=12), stop=stops, cuts=st.lists(st.booleans(), max_size=12))
def test_stop_strings_split_in_any_way(text, stop, cuts):
    # Each character as its bytes, or as one token with its neighbour where there is one.
    ids, data = [], text
    for whole_word in cuts:
        if whole_word and data.startswith("你"):
            data, ids = data[1:], [*ids, 262]  # "你" of the llama vocabulary
        elif data:
            ids, data = [*ids, *data[0].encode()], data[1:]
    tokenizer = TOKENIZERS["llama"]
    stream = TextStream(tokenizer, stop)
    shown = "".join(split(stream, ids))
    text = whole(tokenizer, ids)
    before = first_completed(text, stop)
    assert stream.stopped == (before is not None)
    assert shown == (text if before is None else before)


@each_tokenizer
@quick
@given(
    ids=any_ids, stop=st.lists(st.sampled_from(["a", "你好", "\ufffd", " a", "\ufffda", "👩"]), max_size=3)
)
def test_stop_strings_in_any_ids(tokenizer, ids, stop):
    text = whole(tokenizer, ids)
    before = first_completed(text, stop)
    assert decode(tokenizer, ids, stop) == (text if before is None else before)


def test_held_text_is_only_what_could_begin_a_stop_string():
    tokenizer = TOKENIZERS["byte-level"]
    stream = TextStream(tokenizer, ["</end>", "<b"])
    assert [stream.push(token) for token in b"1<</a</en"] == ["1", "", "<", "", "</a", "", "", "", ""]
    assert not stream.stopped
    assert stream.close() == "</en"


def test_nothing_comes_after_a_stop_string():
    tokenizer = TOKENIZERS["byte-level"]
    stream = TextStream(tokenizer, ["bc"])
    assert [stream.push(token) for token in b"abcd"] == ["a", "", "", ""]
    assert stream.stopped
    assert stream.close() == ""


def test_a_stop_string_may_be_completed_by_the_end():
    tokenizer = TOKENIZERS["byte-level"]
    stream = TextStream(tokenizer, ["\ufffd"])
    assert split(stream, [97, 0xE4]) == ["a", "", ""]
    assert stream.stopped


def test_close_is_the_end():
    stream = TextStream(TOKENIZERS["byte-level"])
    stream.push(0xE4)
    assert [stream.close(), stream.close(), stream.push(97)] == ["\ufffd", "", ""]


def test_a_tokenizer_that_is_not_fast_is_refused():
    slow = object.__new__(PreTrainedTokenizerBase)
    with pytest.raises(InputError, match="tokenizer: got PreTrainedTokenizerBase; allowed: a fast"):
        TextStream(slow)
