"""A decoder in plain torch whose one-token step is compiled into one CUDA graph: a peer without a framework.

What gpt-fast does (github.com/meta-pytorch/gpt-fast), written anew for the text decoder of Qwen3-VL: products
of one input joined, a static cache, attention over all of it behind a mask, `torch.compile` of the step.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.shapes import Subject
from models.config_parts import DecoderConfig

# mode="reduce-overhead" is the first of the options; the second makes a product with one row a tuned kernel.
HOW: dict[str, Any] = {
    "fullgraph": True,
    "dynamic": False,
    "options": {"triton.cudagraphs": True, "coordinate_descent_tuning": True},
}
_PIECE = 512  # tokens of a prompt, fed at once and not compiled


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads `[B, T, H, D]` with their pairs (i, i + D/2) rotated, in float32."""
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class _Attention(nn.Module):
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, c: DecoderConfig, made: dict[str, Any]) -> None:
        super().__init__()
        self.counts = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
        self.head_dim, self.made = c.head_dim, made
        self.qkv_proj = nn.Linear(c.hidden_size, sum(self.counts) * c.head_dim, bias=False, **made)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False, **made)
        self.q_norm = nn.RMSNorm(c.head_dim, c.rms_norm_eps, **made)
        self.k_norm = nn.RMSNorm(c.head_dim, c.rms_norm_eps, **made)

    def allocate(self, batch: int, slots: int) -> None:
        for name in ("keys", "values"):  # buffers of a module stay where they are, as a CUDA graph needs them
            empty = torch.zeros(batch, self.counts[1], slots, self.head_dim, **self.made)
            self.register_buffer(name, empty, persistent=False)

    def forward(
        self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], at: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim)).split(self.counts, 2)
        q, k = _turned(self.q_norm(q), *turn), _turned(self.k_norm(k), *turn)
        self.keys[:, :, at] = k.transpose(1, 2)
        self.values[:, :, at] = v.transpose(1, 2)
        # The queries of one key head side by side, so that its keys are not repeated for each.
        group = self.counts[0] // self.counts[1]
        q = q.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen.repeat(group, 1))
        return self.o_proj(mixed.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2))


class _Layer(nn.Module):
    def __init__(self, c: DecoderConfig, made: dict[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, **made)
        self.self_attn = _Attention(c, made)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, **made)
        self.mlp = nn.ModuleDict(
            {
                "gate_up_proj": nn.Linear(c.hidden_size, 2 * c.intermediate_size, bias=False, **made),
                "down_proj": nn.Linear(c.intermediate_size, c.hidden_size, bias=False, **made),
            }
        )

    def forward(self, x: torch.Tensor, *where: Any) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *where)
        gate, up = self.mlp["gate_up_proj"](self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.mlp["down_proj"](F.silu(gate) * up)


class Decoder(nn.Module):
    """Tokens `[B, T]` at the slots `at` `[T]` to the token behind them, `[B, 1]`. With random weights."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, c: DecoderConfig, *, tied: bool, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config, self.device = c, device
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size, **made)
        self.layers = nn.ModuleList(_Layer(c, made) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps, **made)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False, **made)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def allocate(self, batch: int, slots: int) -> None:
        """New buffers for keys and values, and the rotations of all positions."""
        half = torch.arange(0, self.config.head_dim, 2, device=self.device) / self.config.head_dim
        angles = torch.arange(slots, device=self.device)[:, None] / self.config.rope_theta**half
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        for layer in self.layers:
            layer.self_attn.allocate(batch, slots)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    def forward(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        seen = torch.arange(len(self.cos), device=x.device) <= at[:, None]
        for layer in self.layers:
            x = layer(x, (self.cos[at], self.sin[at]), at, seen)
        return self.lm_head(self.norm(x[:, -1:])).argmax(-1)


class CompiledTorch:
    """Greedy decoding of rows of equal length, one step ahead of the host."""

    def __init__(self, subject: Subject) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        config: Any = subject.model.config
        dtype = getattr(torch, np.dtype(subject.model.dtype).name)
        self.model = Decoder(config.text, tied=config.tie_word_embeddings, device=self.device, dtype=dtype)

    def decode(self, tokens: np.ndarray, steps: int) -> Callable[[], float]:
        """Seconds per step behind the first token, as tokens reach the host. One case at a time."""

        def run() -> float:
            times = [time.perf_counter() for _ in self.stream(tokens, steps)]
            return (times[-1] - times[0]) / steps

        batch, filled = tokens.shape
        self.prepare(batch, filled, steps)
        return run

    def prepare(self, batch: int, filled: int, steps: int) -> None:
        """A cache for such prompts, and a step that is compiled for it when it is first taken."""
        torch.compiler.reset()  # else the programs of other cases count against the most that a step may have
        self.model.allocate(batch, filled + steps)
        self._step: Any = torch.compile(self.model, **HOW)

    @torch.no_grad()
    def stream(self, tokens: np.ndarray, steps: int) -> Iterator[np.ndarray]:
        """The prompts' first tokens, and those of so many steps: `[B]` each, as they arrive."""
        at = torch.arange(tokens.shape[1], device=self.device)
        fed = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        for piece, slots in zip(fed.split(_PIECE, 1), at.split(_PIECE), strict=True):
            token = self.model(piece, slots)
        yield self._sent(token)()
        ahead, at = None, at[-1:] + 1
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            with sdpa_kernel(SDPBackend.MATH):  # which the compiler takes into its own kernels
                token = self._step(token, at).clone()  # the next step overwrites it
            at = at + 1
            waited, ahead = ahead, self._sent(token)
            if waited is not None:
                yield waited()
        if ahead is not None:
            yield ahead()

    def _sent(self, token: torch.Tensor) -> Callable[[], np.ndarray]:
        """Begins the copy to the host; what it returns waits for it."""
        copy = token[:, 0].to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if self.device == "cuda" else None
        if arrived is not None:
            arrived.record()

        def wait() -> np.ndarray:
            if arrived is not None:
                arrived.synchronize()
            return copy.numpy()

        return wait
