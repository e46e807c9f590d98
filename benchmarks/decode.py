"""Tokens per second on one checkpoint: streaming, `sample` and, where torch is installed, transformers.

    uv run python -m benchmarks.decode [--model embedded] [--new-tokens 128] [--repeats 7]

All three answer the same picture and prompt greedily, in float32 on a CPU, and none may end early.
Each repeat answers with one token, which gives the time to first token (picture and prompt), and with
all of them; the speed is that of the tokens behind the first. Ratios are taken repeat by repeat.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measure import Spread, interleaved
from models import load_model
from models.load import EMBEDDED
from sample import SamplingConfig, VLMInputs, prepare_inputs, sample, sample_streaming
from sample.pictures import open_picture

PICTURE = Path(__file__).parents[1] / "examples/imgs/panda_climbing.png"


def transformers_run(
    directory: Path, inputs: VLMInputs, pixels: np.ndarray, threads: int
) -> Callable[[int], Any]:
    """transformers' `generate`, greedy, from the same patches and token ids."""
    import torch  # noqa: PLC0415  (optional peer)
    from transformers import Qwen3VLForConditionalGeneration  # noqa: PLC0415

    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(np.asarray(inputs.prompt_tokens, np.int64))
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == inputs.image_pad_id).long(),
        "pixel_values": torch.from_numpy(pixels),
        "image_grid_thw": torch.from_numpy(np.asarray(inputs.grid_thw, np.int64)),
    }

    def run(new_tokens: int) -> Any:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return model.generate(
                **arguments,
                max_new_tokens=new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    model, params, processor = load_model(args.model)
    inputs = prepare_inputs(model, params, processor, images=[PICTURE], prompt="Describe this image")
    key = jax.random.key(0)

    def config(new_tokens: int) -> SamplingConfig:
        return SamplingConfig(temperature=0, max_new_tokens=new_tokens)

    contestants: dict[str, Callable[[int], Any]] = {
        "streaming": lambda n: list(
            sample_streaming(model, params, inputs, config(n), key, tokenizer=processor.tokenizer)
        ),
        "sample": lambda n: sample(model, params, inputs, config(n), key, tokenizer=processor.tokenizer),
    }
    if importlib.util.find_spec("torch"):
        pixels, _ = processor.images.preprocess([open_picture(PICTURE)])
        directory = EMBEDDED if args.model == "embedded" else Path(args.model)
        for threads in sorted({1, os.cpu_count() or 1}):  # where other work runs, one may be the faster
            contestants[f"transformers, {threads} threads"] = transformers_run(
                directory, inputs, pixels, threads
            )
    lengths = (1, args.new_tokens)
    runs = {(name, n): partial(run, n) for name, run in contestants.items() for n in lengths}
    seconds = interleaved(runs, args.repeats)
    first = {name: seconds[name, 1] for name in contestants}
    per_token = {
        name: (seconds[name, args.new_tokens] - first[name]) / (args.new_tokens - 1) for name in contestants
    }
    prompt = int(np.asarray(inputs.prompt_tokens).shape[1])
    device = jax.devices()[0].device_kind
    print(f"{device}, {args.model}: {prompt} prompt + {args.new_tokens} new tokens, greedy")
    print(f"median (lowest..highest) of {args.repeats} repeats\n")
    print("| | tokens/s behind the first | ms per token | one-token answer, ms |\n|---|---|---|---|")
    for name in contestants:
        speed, cost = Spread.of(1 / per_token[name]), Spread.of(per_token[name] * 1e3)
        print(f"| {name} | {speed} | {cost} | {Spread.of(first[name] * 1e3)} |")
    print(f"\nstreaming / sample: {Spread.of(per_token['sample'] / per_token['streaming'])}")
    peers = [name for name in contestants if name.startswith("transformers")]
    if peers:
        best = min(peers, key=lambda name: float(np.median(per_token[name])))
        print(f"streaming / {best} (the faster): {Spread.of(per_token[best] / per_token['streaming'])}")
    else:
        print("transformers: torch is not installed, so the peer was not measured")


if __name__ == "__main__":
    main()
