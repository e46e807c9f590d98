"""What transformers says to ten English prompts with real text weights, and how it reads the tokenizer.

`python -m tests.golden.real_text.make DIRECTORY` writes tokens.json beside this file; DIRECTORY is what
`benchmarks/real_text.py` wrote. Needs torch.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("tokens.json")
STEPS = 128
PROMPTS = (
    "What is the capital of France?",
    "Write a short story about a sailor who finds an island.",
    "Explain why the sky is blue.",
    "Give me three tips for growing tomatoes.",
    "Who wrote Hamlet, and what is it about?",
    "Describe a quiet morning in a small village.",
    "What is the difference between a virus and a bacterium?",
    "How do I make a simple vegetable soup?",
    "Summarize the plot of Little Red Riding Hood.",
    "Why do leaves change their colour in autumn?",
)


def continuations(model: Any, rows: list[list[int]]) -> list[list[int]]:
    """transformers' greedy tokens behind each row of ids, STEPS of them, whatever ends a turn."""
    import torch

    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):  # on the left, as `generate` wants it
        ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False)
    return made[:, width:].tolist()


def load_reference(directory: Path) -> Any:
    """transformers' own model in float32, with no token that ends a generation."""
    import torch
    from transformers import SmolVLMForConditionalGeneration

    model = SmolVLMForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def prompt_rows(tokenizer: Any) -> list[list[int]]:
    """The ids of each prompt's turn, by the checkpoint's chat template."""
    turns = ([{"role": "user", "content": prompt}] for prompt in PROMPTS)
    texts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def main() -> None:
    from transformers import AutoTokenizer

    directory = Path(sys.argv[1])
    rows = prompt_rows(AutoTokenizer.from_pretrained(directory))
    found = continuations(load_reference(directory), rows)
    pairs = [{"prompt": row, "tokens": np.asarray(t).tolist()} for row, t in zip(rows, found, strict=True)]
    lines = ",\n".join(map(json.dumps, pairs))
    FILE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
