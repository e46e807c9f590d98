"""A checkpoint as a `Summarizer`: what it is asked, and what it answers."""

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from models.errors import SettingsError
from sample.chat import encode_chat, plain_ids
from sample.config import SamplingConfig

BRIEF_TOKENS = 100  # the longest brief description
_NGRAM = 6  # tokens; a small model repeats itself without end
_SMALLEST_ROOM = 512  # tokens, of prompt and answer together
SummaryFormat = Literal["auto", "chat", "slim"]

_SLIM = "<human>: {text}\n<summarize> {what} </summarize>\n<bot>:"


class ModelSummarizer:
    """Summaries by a model, greedily, through `sample_streaming`: its steps alternate with those of a stream
    on the same device, and it can be ended between two of them.

    A text that does not fit into the model's context is summarised from its beginning, part by part, each
    part with the summary of those before it.

    Args:
        model, params: as `load_model` gives them; a stream's own will do.
        tokenizer: the model's.
        eos_ids: end the answer, beside the tokenizer's own end token.
        max_tokens: the longest answer; at most a quarter of the model's context.
        format: "slim" is the prompt of the slim-summarize models, which answer with a Python list; "chat"
            asks through the chat template; "auto" is "chat" where the tokenizer has one, else "slim".

    Raises:
        SettingsError: an unknown format.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        tokenizer: PreTrainedTokenizerFast,
        *,
        eos_ids: Collection[int] = (),
        max_tokens: int = 200,
        format: SummaryFormat = "auto",
    ) -> None:
        if format not in ("auto", "chat", "slim"):
            raise SettingsError(f"summary.format: got {format!r}; allowed: auto, chat, slim")
        if format == "auto":
            format = "chat" if tokenizer.chat_template else "slim"
        self._model, self._params, self._tokenizer = model, params, tokenizer
        own_end: Any = tokenizer.eos_token_id
        self._eos_ids = (*eos_ids, *([] if own_end is None else [own_end]))
        self._max_tokens = max(1, min(max_tokens, model.context_length // 4))
        self._ask = self._slim if format == "slim" else self._chat

    def __call__(self, text: str, budget: int) -> Iterator[str]:
        """The key points of `text`, piece by piece. A long answer may be over the budget."""
        return self._fold(text, lambda part: self._ask(part, budget, brief=False), self._max_tokens)

    def brief(self, text: str, budget: int) -> Iterator[str]:
        """A description of `text` within the budget and 100 tokens."""
        most = min(budget, BRIEF_TOKENS, self._max_tokens)
        return self._fold(text, lambda part: self._ask(part, most, brief=True), most)

    def _slim(self, text: str, budget: int, brief: bool) -> list[int]:
        what = "brief description (1)" if brief else "key points (5)"
        return plain_ids(self._tokenizer, _SLIM.format(text=text, what=what))

    def _chat(self, text: str, budget: int, brief: bool) -> list[int]:
        words = max(1, budget * 2 // 3)  # an English word is about one and a half tokens
        what = "Describe this text in one sentence" if brief else "Summarize the key points of this text"
        question = f"{what}, in at most {words} words:\n\n{text}"
        return encode_chat(self._tokenizer, question, image_pad_id=self._model.image_pad_id)

    def _fold(self, text: str, ask: Callable[[str], list[int]], most: int) -> Iterator[str]:
        while True:
            part, rest = self._split(text, ask, most)
            if not rest:
                yield from self._generate(ask(part), most)
                return
            points = ""
            for piece in self._generate(ask(part), most):
                points += piece
                yield ""  # a place to be ended at
            # An answer that is no shorter than what it stands for would go on for ever.
            text = f"{points}\n{rest}" if len(points) < len(part) // 2 else rest

    def _split(self, text: str, ask: Callable[[str], list[int]], most: int) -> tuple[str, str]:
        """The beginning of `text` that fits into the context with its answer, and what is left of it."""
        room = self._model.context_length - most
        part = text
        while (length := len(ask(part))) > room and part:
            part = part[: min(len(part) - 1, len(part) * room // length)]
        return part, text[len(part) :] if part else ""

    def _generate(self, prompt: list[int], most: int) -> Iterator[str]:
        from sample.streaming import sample_streaming  # noqa: PLC0415  (streams summarise, summaries stream)

        # Room in few sizes, whatever the lengths: each would have its own compiled step.
        power = 1 << (len(prompt) + most - 1).bit_length()
        room = min(self._model.context_length, max(_SMALLEST_ROOM, power))
        config = SamplingConfig(
            temperature=0.0,
            max_new_tokens=room - len(prompt),
            eos_id=self._eos_ids,
            no_repeat_ngram_size=_NGRAM,
        )
        tokens = np.array([prompt], np.int32)
        stream = sample_streaming(
            self._model, self._params, tokens, config, jax.random.key(0), tokenizer=self._tokenizer
        )
        with stream:
            for token in itertools.islice(stream, most):
                yield token.text
        yield stream.rest
