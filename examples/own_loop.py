"""A sampling loop of one's own over the same step: stop as soon as the model becomes unsure.

uv run python examples/own_loop.py
"""

import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models import load_model  # noqa: E402
from sample import SamplingConfig, prepare_inputs  # noqa: E402
from sample.request import make_request  # noqa: E402
from sample.step import RUNNING, decode_step, prefill, unpack  # noqa: E402

UNSURE = -3.0  # nats


def main() -> None:
    model, params, processor = load_model("embedded")
    picture = ROOT / "examples/imgs/coffee_laptop.png"
    inputs = prepare_inputs(model, params, processor, images=[picture], prompt="Describe this image")
    config = SamplingConfig(temperature=0.7, max_new_tokens=100, eos_id=processor.eos_ids)
    r = make_request(model, inputs, config, jax.random.key(0))

    state, packed = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    tokens: list[int] = []
    while True:
        step = unpack(np.asarray(packed))
        tokens.append(int(step.token[0]))
        if step.status[0] != RUNNING or step.logprob[0] < UNSURE:
            break
        state, packed = decode_step(model, params, state, r.sampling, top=r.top)  # takes `state` over
    print(processor.tokenizer.decode(tokens, skip_special_tokens=True))


if __name__ == "__main__":
    main()
