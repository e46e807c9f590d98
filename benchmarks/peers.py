"""Peers of the same shape, where torch is installed: transformers' `generate`, and a compiled step."""

import copy
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes import Subject
from models.errors import SettingsError

PEERS = ("none", "transformers", "torch", "all")
COMPILED = "torch, compiled step"
Prepare = Callable[[np.ndarray, int], Callable[[], float]]  # prompts and steps to a run: seconds per step


def peer_names(wanted: str, *, plain: bool) -> list[str]:
    """What `peers=` asks for, as far as this machine has it: "all" adds the compiled ones on a GPU.

    Args:
        plain: whether text is decoded greedily, which is all that "torch" does.

    Raises:
        SettingsError: of what it may not ask for.
    """
    allowed = [name for name in PEERS if plain or name != "torch"]
    if wanted not in allowed:
        why = "; vLLM takes the device for itself: measure it in a process of its own" * (wanted == "vllm")
        raise SettingsError(f"peers: {wanted!r}; allowed: {', '.join(allowed)}{why}")
    if wanted == "none" or not importlib.util.find_spec("torch"):
        return []
    if wanted == "torch":
        return [COMPILED]
    import torch  # noqa: PLC0415  (optional)

    if torch.cuda.is_available():
        compiled = ["transformers, static cache + torch.compile", *[COMPILED] * plain]
        return ["transformers", *(compiled if wanted == "all" else [])]
    threads = sorted({1, os.cpu_count() or 1})  # where other work runs, one may be the faster
    return [f"transformers, {count} thread{'s' * (count > 1)}" for count in threads]


def decoding_peers(subject: Subject, wanted: str, drawn: dict[str, Any] | None) -> dict[str, Prepare]:
    """By name, what prepares a case.

    Args:
        drawn: how tokens are drawn; None: greedily.
    """
    names = peer_names(wanted, plain=drawn is None)
    made: dict[str, Prepare] = {}
    if theirs := [name for name in names if name != COMPILED]:
        peer = Peer(subject, vision=False)
        made |= {name: partial(peer.decode, name, sampling(drawn)) for name in theirs}
    if COMPILED in names:
        from benchmarks.compiled_torch import CompiledTorch  # noqa: PLC0415  (imports torch)

        made[COMPILED] = CompiledTorch(subject).decode
    return made


class Peer:
    """A transformers model beside the subject: on the GPU, if torch has one."""

    def __init__(self, subject: Subject, *, vision: bool) -> None:
        import torch  # noqa: PLC0415  (optional)

        self._torch: Any = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, np.dtype(subject.model.dtype).name)
        self.model = self._load(subject.source, vision).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def decode(self, name: str, how: dict[str, Any], tokens: np.ndarray, steps: int) -> Callable[[], float]:
        """Seconds per step behind the first token.

        Args:
            name: one of `peer_names`.
            how: what `generate` is told of sampling.
        """
        arguments = self._text(tokens) | how
        if "static" in name:
            arguments["cache_implementation"] = "static"  # with it, generate compiles on a GPU

        def run() -> float:
            times: list[float] = []

            def tick(*_: Any, **__: Any) -> Any:
                self._wait()
                times.append(time.perf_counter())
                return self._torch.zeros(len(tokens), dtype=self._torch.bool, device=self.device)

            self._generate(name, steps + 1, arguments | {"stopping_criteria": [tick]})
            return (times[-1] - times[0]) / (len(times) - 1)

        return run

    def answer(
        self, name: str, tokens: np.ndarray, grid: np.ndarray, image_pad_id: int, pixels: np.ndarray
    ) -> None:
        """A picture's patches and a prompt to one token on the host."""
        torch = self._torch
        picture = {
            "mm_token_type_ids": torch.from_numpy((tokens == image_pad_id).astype(np.int64)).to(self.device),
            "pixel_values": torch.from_numpy(pixels).to(self.device, self.dtype),
            "image_grid_thw": torch.from_numpy(grid.astype(np.int64)).to(self.device),
        }
        self._generate(name, 1, self._text(tokens) | picture | {"do_sample": False}).cpu()

    def _text(self, tokens: np.ndarray) -> dict[str, Any]:
        ids = self._torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        return {"input_ids": ids, "attention_mask": self._torch.ones_like(ids)}

    def _generate(self, name: str, new_tokens: int, arguments: dict[str, Any]) -> Any:
        if self.device == "cpu":
            self._torch.set_num_threads(int("".join(filter(str.isdigit, name))))
        with self._torch.no_grad():
            return self.model.generate(max_new_tokens=new_tokens, **arguments)

    def _wait(self) -> None:
        if self.device == "cuda":
            self._torch.cuda.synchronize()

    def _load(self, source: dict[str, Any] | Path, vision: bool) -> Any:
        if isinstance(source, Path):
            from transformers import AutoModelForImageTextToText  # noqa: PLC0415

            auto: Any = AutoModelForImageTextToText
            return auto.from_pretrained(source, dtype=self.dtype).to(self.device)
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # noqa: PLC0415

        kind: Any = Qwen3VLForConditionalGeneration
        content = copy.deepcopy(source)
        if not vision:
            content["vision_config"] |= {"depth": 1, "deepstack_visual_indexes": []}
        with self._torch.device(self.device):
            return kind._from_config(Qwen3VLConfig(**content), dtype=self.dtype)


GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def sampling(drawn: dict[str, Any] | None) -> dict[str, Any]:
    """What `generate` is told: greedy, or how to draw."""
    return GREEDY if drawn is None else {"do_sample": True, **drawn}
