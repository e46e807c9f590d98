"""A tiny byte-level BPE tokenizer with Qwen3-VL's pipeline, special tokens and chat format, made in a moment.

Tests need a tokenizer that behaves as the real one does (NFC, Qwen's pre-tokenisation, bytes for what it does
not know, special tokens above the vocabulary) without downloading 150,000 entries.
"""

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# As Qwen's: contractions, words with one leading sign, single digits, signs, line ends, blanks.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CORPUS = (
    "Describe this image. Describe the scenery. What do you see? What's in this photo? What is this?",
    "Write a story about this image. Write about the photo. What is in the image? How many are there?",
    "The image shows a panda climbing a tree. The photo shows a laptop and a cup of coffee on a table.",
    "The image shows a mountain landscape. There are two birds and three trees. There is one stadium.",
    "What aircraft is taking off? A jet over the runway, seen from above, with green fields and a blue sky.",
    "system\nYou are a helpful assistant.\nuser\n\nassistant\n",
    "user\nassistant\nuser\n\n\nassistant\n  indented  text\n\n  more\n",
    "<|im <|image|> _pad|> image_pad im_end <| |> <| |>",
    "été naïve café 图片 中文 你好 日本語 мир привет 👩‍👩‍👧 🐼 🙂",
)

VOCAB_SIZE = 512
"""Ids in all, the special tokens included: they are the last ones, in the order of SPECIAL_TOKENS."""

IMAGE_PAD_ID = VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|image_pad|>")
VIDEO_PAD_ID = VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|video_pad|>")
VISION_START_ID = VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|vision_start|>")
VISION_END_ID = VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|vision_end|>")
IM_END_ID = VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|im_end|>")
END_OF_TEXT_ID = VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|endoftext|>")

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""What Qwen3-VL's template renders for system, user and assistant turns: no default system prompt."""

_IMAGE_SETTINGS: dict[str, Any] = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


@functools.cache
def _backend_json() -> str:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return backend.to_str()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fresh tokenizer of VOCAB_SIZE ids with its chat template; equal in every call and every process."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend_json()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=262144,
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(directory: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as a checkpoint has them."""
    build_tokenizer().save_pretrained(directory)


def write_processor(directory: str | Path, **image_settings: Any) -> None:
    """Write the files of a `Processor`; `image_settings` are put over those of preprocessor_config.json."""
    directory = Path(directory)
    write_tokenizer(directory)
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "eos_token_id": [IM_END_ID, END_OF_TEXT_ID],
        "pad_token_id": END_OF_TEXT_ID,
    }
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "preprocessor_config.json").write_text(json.dumps(_IMAGE_SETTINGS | image_settings))
