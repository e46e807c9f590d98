"""Long texts with and without what keeps them from repeating themselves: what it costs in words and in sense.

    uv run python -m benchmarks.loops MODEL [--new-tokens 1000] [--temperature 1] [--top-p 0.9] [--show]

MODEL is a checkpoint with real text weights (`benchmarks/real_text.py` writes one). Each setting continues
the same openings with the same keys; end tokens are never drawn, so all texts have the same length. The texts
of one setting are measured one by one, and the table holds their median (lowest..highest):

- distinct words: how many different ones a text holds.
- repeated 6-grams: the share of its sequences of six tokens that it held before.
- perplexity: exp of the mean surprisal of its tokens under the raw model, before any penalty or filter.
  A loop is easy to foresee and has a low one; words that only avoid others have a high one.
"""

import argparse
import re

import jax
import numpy as np

from benchmarks.measure import Spread
from models import load_model
from sample import SamplingConfig, VLMInputs, sample

SETTINGS = {
    "nothing": {},
    "repetition_penalty 1.1": {"repetition_penalty": 1.1},
    "repetition_penalty 1.3": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size 6": {"no_repeat_ngram_size": 6},
}
OPENINGS = (
    "Chapter One\n\nThe keeper of the lighthouse had spoken to nobody for eleven days when the boat came.",
    "The history of bread is long. Ten thousand years ago, people began to grind grain between stones, and",
    "My grandmother kept a garden behind the station. Every morning she walked there, and I went along.",
    "How does a river shape the land? The water that falls on the mountains runs to the sea, and on its way",
)
_N = 6


def inputs_of(model, tokenizer) -> VLMInputs:
    """The openings as they are, without a chat template: a batch, padded on the right."""
    rows = [tokenizer(opening)["input_ids"] for opening in OPENINGS]
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    return VLMInputs(tokens, None, np.zeros((0, 3), np.int32), model.image_pad_id, mask)


def distinct_words(text: str) -> int:
    return len(set(re.findall(r"[^\W\d_]+", text.lower())))


def repeated_ngrams(tokens: np.ndarray, n: int = _N) -> float:
    """The share of the sequences of `n` tokens that stood in `tokens` before."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, n)
    return 1 - len(np.unique(windows, axis=0)) / len(windows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--new-tokens", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--show", action="store_true", help="print the end of each text")
    args = parser.parse_args()

    model, params, processor = load_model(args.model)
    inputs = inputs_of(model, processor.tokenizer)
    drawn = f"temperature {args.temperature:g}, top-p {args.top_p:g}"
    print(f"{len(OPENINGS)} texts of {args.new_tokens} tokens, {drawn}")
    print("median (lowest..highest) of the texts\n")
    print(f"| | distinct words | repeated {_N}-grams, % | perplexity |\n|---|---|---|---|")
    ends = []
    for name, chosen in SETTINGS.items():
        config = SamplingConfig(
            temperature=args.temperature,
            top_p=args.top_p,
            max_new_tokens=args.new_tokens,
            eos_id=processor.eos_ids,
            ignore_eos=True,
            **chosen,
        )
        result = sample(model, params, inputs, config, jax.random.key(0), tokenizer=processor.tokenizer)
        rows = list(zip(result.tokens, result.lengths.tolist(), strict=True))
        words = Spread.of(np.array([distinct_words(text) for text in result.texts], float))
        repeated = Spread.of(100 * np.array([repeated_ngrams(row[:length]) for row, length in rows]))
        perplexity = Spread.of(
            np.exp([-row[:n].mean() for row, n in zip(result.logprobs, result.lengths, strict=True)])
        )
        print(f"| {name} | {words} | {repeated} | {perplexity} |", flush=True)
        ends += [f"\n== {name}\n...{text[-600:]}" for text in result.texts]
    if args.show:
        print("\n".join(ends))


if __name__ == "__main__":
    main()
