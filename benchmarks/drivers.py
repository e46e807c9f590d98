"""Seconds that each step of a driver takes once its first token is there, as its user gets them."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from benchmarks.shapes import Subject
from sample import SamplingConfig, make_request, sample, sample_streaming
from sample.pace import Pace, decode
from sample.step import STEPS, prefill, unpack_taken
from sample.transfer import to_host

DRAWN: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
Driver = Callable[[], float]  # seconds per step


def prompt_tokens(subject: Subject, batch: int, filled: int) -> Int[np.ndarray, "B T"]:
    """Made-up ids, no picture's among them."""
    ids = np.random.default_rng(0).integers(0, subject.model.vocab_size, (batch, filled)).astype(np.int32)
    return np.where(ids == subject.model.image_pad_id, 0, ids)


def drivers(
    subject: Subject, batch: int, filled: int, slots: int | None, new_tokens: int, *, greedy: bool
) -> dict[str, Driver]:
    """By name; each run feeds the prompt and then takes at least `new_tokens` steps.

    Args:
        slots: of the cache's buffer, rounded up to a bucket; None: as many as are needed.
    """
    tokens = prompt_tokens(subject, batch, filled)
    room = (slots or slots_needed(filled, new_tokens)) - filled
    how: dict[str, Any] = {"temperature": 0} if greedy else DRAWN
    config = SamplingConfig(max_new_tokens=room, **how)
    streaming = _streaming if batch == 1 else _batch_streaming
    return {
        "streaming": lambda: streaming(subject, tokens, config, new_tokens),
        "sample": lambda: _sample(subject, tokens, config, new_tokens),
    }


def slots_needed(filled: int, new_tokens: int) -> int:
    """For a prompt, its first token, the steps that are measured, and one more that is not."""
    return filled + _programs(new_tokens) * STEPS + 2


def _programs(new_tokens: int) -> int:
    """`sample` takes its steps so many at a time."""
    return -(-new_tokens // STEPS)


def _streaming(subject: Subject, tokens: np.ndarray, config: SamplingConfig, steps: int) -> float:
    key = jax.random.key(0)
    stream = sample_streaming(subject.model, subject.params, tokens, config, key, tokenizer=subject.tokenizer)
    with stream:
        next(stream)
        begun = time.perf_counter()
        for _ in range(steps):
            next(stream)
        made = steps + len(stream._made)  # those of the last program came together
        return (time.perf_counter() - begun) / made


def _batch_streaming(subject: Subject, tokens: np.ndarray, config: SamplingConfig, steps: int) -> float:
    """The loop of `sample_streaming`, for rows that go on together: a program ahead of what the host has."""
    model, params = subject.model, subject.model.decoder_params(subject.params)
    r = make_request(model, tokens, config, jax.random.key(0))
    state, first = prefill(model, params, *r.arguments, slots=r.slots, top=r.top)
    np.asarray(first)
    pace, ahead, made = Pace(), None, 0
    begun = arrived = time.perf_counter()
    while made < steps:
        waited, quota = ahead, (pace.steps,) * len(state.token)
        state, packed = decode(model, params, state, r.sampling, quota, top=r.top)
        ahead = to_host(packed)
        if waited is not None:
            taken, arrived = len(unpack_taken(np.asarray(waited)).token), time.perf_counter()
            pace.arrived(arrived, begun, taken)
            made += taken
    return (arrived - begun) / made


def _sample(subject: Subject, tokens: np.ndarray, config: SamplingConfig, new_tokens: int) -> float:
    """`sample` asks whether it is cancelled behind the first token, and then behind each program."""
    times: list[float] = []
    programs = _programs(new_tokens)

    def cancelled() -> bool:
        times.append(time.perf_counter())
        return len(times) > programs

    sample(
        subject.model,
        subject.params,
        tokens,
        config,
        jax.random.key(0),
        tokenizer=subject.tokenizer,
        cancelled=cancelled,
    )
    return (times[-1] - times[0]) / (programs * STEPS)
