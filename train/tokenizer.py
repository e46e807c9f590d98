"""A small byte-level BPE tokenizer with Qwen's special tokens and chat template.

Any text tokenises: all 256 bytes are in the vocabulary. Normaliser, splitting and decoder are Qwen's
(transformers 5.23, `tokenization_qwen2.py`), so that every loader reads it alike.
"""

import json
import random
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from train.language import turn, without_picture
from train.questions import Turn, World
from train.scenes import GRIDS, Catalogue, scene

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (ENDOFTEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen3-VL's turns: no default system prompt, pictures where the message has them.
CHAT_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string %}{{ content }}{% else %}
{%- for part in content %}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}\
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part %}\
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part %}{{ part.text }}{% endif %}
{%- endfor %}
{%- endif %}
{%- endmacro -%}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + parts(message.content) + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens; the special tokens come last, as in Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def corpus(world: World, catalogue: Catalogue, turns: int, seed: int = 0) -> Iterator[str]:
    """What the tokenizer learns from: prompts and answers, and every name in several positions."""
    rng = random.Random(seed)
    for thing in world.things:
        for name in (thing.name, thing.plural):
            yield from [f"a {name}, the {name}", f"{name[0].upper()}{name[1:]}"] * 20
    yield from string.printable
    for i in range(turns):
        if i % 20 == 0:
            made = without_picture(rng, world.things)
        else:
            made = turn(rng, scene(rng, catalogue, rng.choice(list(GRIDS)), 6), world, long=i % 5 == 0)
        yield made.prompt
        yield made.answer


def save_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": IM_END,
        "pad_token": ENDOFTEXT,
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "additional_special_tokens": list(SPECIAL[1:]),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


class Coder(NamedTuple):
    """Turns to token ids, as the chat template writes them."""

    tokenizer: Tokenizer
    head: Sequence[int]  # before the picture's tokens
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Coder":
        head = tokenizer.encode(f"{IM_START}user\n").ids
        return cls(tokenizer, head, tokenizer.get_vocab()[ENDOFTEXT])

    def encode(self, made: Turn, picture_tokens: int) -> tuple[list[int], int]:
        """The ids of a whole exchange, and how many of them the user's part takes.

        Args:
            picture_tokens: length of the picture's run; 0 for a prompt without one.
        """
        token = self.tokenizer.token_to_id
        picture = []
        if picture_tokens:
            picture = [token(VISION_START), *[token(IMAGE_PAD)] * picture_tokens, token(VISION_END)]
        asked, answered = self.tokenizer.encode_batch(
            [f"{made.prompt}{IM_END}\n{IM_START}assistant\n", f"{made.answer}{IM_END}"]
        )
        prompt = [*self.head, *picture, *asked.ids]
        return prompt + answered.ids, len(prompt)
