"""One step of training: a batch is painted, the losses are taken, the parameters move."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from models.kernels.choice import plain_jax
from models.qwen3_vl import Qwen3VL, VisionEmbeddings
from train.compose import Layout, Variation, compose, patches
from train.scenes import room


class State(NamedTuple):
    """Everything that a checkpoint holds."""

    params: Any  # {"model": the model's float32 parameters, "seeing": the auxiliary head}
    optimizer: Any
    step: Array


class Inputs(NamedTuple):
    """A batch on the device, its pictures still to be painted."""

    layout: Layout
    label: Array
    tokens: Array
    positions: Array  # [2, 3, T]: without and with a picture
    prompts: Array
    lengths: Array
    has_picture: Array
    vision_rows: Array


@partial(jax.jit, static_argnames=("grid", "crowded", "variation", "names"))
def paint(
    art: Array,
    layout: Layout,
    label: Array,
    key: Array,
    *,
    grid: tuple[int, int],
    crowded: int,
    variation: Variation,
    names: int,
) -> tuple[Array, Array]:
    """Patches [B, 4 * room, patch_dim], and what each cell shows as shares of all names and of nothing."""
    picture, shares = compose(art, layout, key, grid, crowded, variation)
    flat = patches(picture).astype(jnp.bfloat16)
    flat = jnp.pad(flat, ((0, 0), (0, 4 * room(grid) - flat.shape[1]), (0, 0)))
    shown = shares @ jax.nn.one_hot(label, names + 1)  # label -1 is none of them
    shown = shown.at[..., -1].set(1 - shown[..., :-1].sum(-1))
    return flat, jnp.pad(shown, ((0, 0), (0, room(grid) - shown.shape[1]), (0, 0))).astype(jnp.bfloat16)


def losses(
    model: Qwen3VL,
    params: Any,
    inputs: Inputs,
    pixels: Array,
    shown: Array,
    places: Any,
    weights: Float[Array, " vocabulary"],
) -> dict[str, Array]:
    """Mean cross entropy of the answers' tokens, by weight, and of the cells; and how often each is right."""
    encode = partial(model.apply, {"params": params["model"]}, method="encode_vision")
    seen: Any = jax.vmap(lambda p: encode(p, places))(pixels)
    D = seen.embeddings.shape[-1]
    vision = VisionEmbeddings(
        seen.embeddings.reshape(-1, D)[inputs.vision_rows],
        seen.deepstack.swapaxes(0, 1).reshape(seen.deepstack.shape[1], -1, D)[:, inputs.vision_rows],
    )
    tokens = inputs.tokens
    positions = jnp.where(
        inputs.has_picture[:, None], inputs.positions[1][:, None], inputs.positions[0][:, None]
    )
    logits: Any = model.apply({"params": params["model"]}, tokens, positions, vision, method="logits")
    logits = logits[:, :-1]
    at = jnp.arange(1, tokens.shape[1])
    answer = (at >= inputs.prompts[:, None]) & (at < inputs.lengths[:, None])
    right = (logits.argmax(-1) == tokens[:, 1:]) & answer
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    weight = weights[tokens[:, 1:]] * answer
    cell_logits = seen.embeddings.astype(jnp.float32) @ params["seeing"]["kernel"] + params["seeing"]["bias"]
    cell = optax.softmax_cross_entropy(cell_logits, shown.astype(jnp.float32))
    there = shown.sum(-1) > 0.5  # not padding
    full = there & (shown[..., :-1].max(-1) > 0.6)
    hit = (cell_logits.argmax(-1) == shown.argmax(-1)) & full
    return {
        "answer": (entropy * weight).sum() / weight.sum(),
        "cells": (cell * there).sum() / there.sum(),
        "answer right": right.sum() / answer.sum(),
        "cells right": hit.sum() / jnp.maximum(full.sum(), 1),
    }


@partial(jax.jit, static_argnames=("model", "optimizer", "seeing"), donate_argnames="state")
def update(
    model: Qwen3VL,
    optimizer: Any,
    seeing: float,
    state: State,
    rate: Float[Array, ""],
    inputs: Inputs,
    pixels: Array,
    shown: Array,
    places: Any,
    weights: Array,
) -> tuple[State, dict[str, Array]]:
    def objective(params: Any) -> tuple[Array, dict[str, Array]]:
        with plain_jax():
            found = losses(model, params, inputs, pixels, shown, places, weights)
        return found["answer"] + seeing * found["cells"], found

    gradients, found = jax.grad(objective, has_aux=True)(state.params)
    found["gradient"] = optax.global_norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    updates = jax.tree.map(lambda x: rate * x, updates)
    return State(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), found


def make_optimizer(name: str, weight_decay: float) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the matrices, AdamW for tables, norms and biases; or "adamw" for all.

    Its rate is 1: the step multiplies by the schedule's, so that runs of any length share their programs.
    """

    def matrices(params: Any, yes: Any, no: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                yes if x.ndim == 2 and path[-1].key == "kernel" and path[0].key == "model" else no
            ),
            params,
        )

    if name == "adamw":
        decay = partial(matrices, yes=True, no=False)
        inner = optax.adamw(1.0, b2=0.95, weight_decay=weight_decay, mask=decay)
    else:
        dims = optax.contrib.MuonDimensionNumbers()
        inner = optax.contrib.muon(
            1.0,
            adam_b2=0.95,
            weight_decay=weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=partial(matrices, yes=dims, no=None),
        )
    return optax.chain(optax.clip_by_global_norm(1.0), inner)
