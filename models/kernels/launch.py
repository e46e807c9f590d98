"""How a kernel is started: on a GPU through Triton, elsewhere interpreted, step by step, for tests."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from models.kernels.choice import on_cuda


def interpreted() -> bool:
    """Whether kernels are run without a GPU."""
    return jax.default_backend() != "gpu" and not on_cuda()


def launch(
    kernel: Callable[..., None],
    out: Any,
    grid: tuple[int, ...],
    *operands: Array,
    warps: int,
    stages: int = 1,
    aliases: Mapping[int, int] | None = None,
) -> Any:
    """Run `kernel` on a grid of programs; each sees all of the operands and of the outputs.

    Args:
        out: the outputs' `ShapeDtypeStruct`s.
        warps: of 32 threads, for each program.
        stages: how far a loop's loads run ahead.
        aliases: outputs that are written in place of an operand, as {operand: output}.
    """
    steps = interpreted()
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid=grid,
        input_output_aliases=dict(aliases or {}),
        interpret=steps,
        compiler_params=None if steps else triton.CompilerParams(num_warps=warps, num_stages=stages),
    )(*operands)
