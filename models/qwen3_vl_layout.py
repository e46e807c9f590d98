"""Where Qwen3-VL's patches and tokens stand; computed on the host, so that programs depend on lengths alone.

Source: transformers 5.23, `vision_utils.py` and `Qwen3VLModel.get_rope_index`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from models.buckets import bucket
from models.config import Qwen3VLConfig, VisionConfig
from models.errors import InputError


class VisionLayout(NamedTuple):
    """Where each patch stands; made on the host, so that the tower's program depends on lengths alone."""

    taps: Int[Array | np.ndarray, "P 4"]  # rows of the learned position table, and how they mix
    tap_weights: Float[Array | np.ndarray, "P 4"]
    coordinates: Int[Array | np.ndarray, "P 2"]  # (row, column)
    ends: Int[Array | np.ndarray, "F"]  # the number behind each frame's last patch; the last one repeated
    columns: Int[Array | np.ndarray, "F"]  # of each frame


def vision_layout(config: VisionConfig, grid_thw: np.ndarray, padded_to: int | None = None) -> VisionLayout:
    """The layout of pictures packed one behind the other, in merge-block order.

    Args:
        grid_thw: `[pictures, 3]`, frames, rows and columns of patches.
        padded_to: total number of patches after padding.
    """
    parts, ends, columns = [], [0], []
    side = int(config.num_position_embeddings**0.5)
    for t, h, w in np.asarray(grid_thw).reshape(-1, 3).tolist():
        parts += [_frame(h, w, config.spatial_merge_size, side)] * t  # frames of a clip share their positions
        ends += [ends[-1] + h * w * (frame + 1) for frame in range(t)]
        columns += [w] * t
    size = ends[-1] if padded_to is None else padded_to

    def joined(frames: tuple[np.ndarray, ...]) -> np.ndarray:
        whole = np.zeros((size, frames[0].shape[1]), frames[0].dtype)
        np.concatenate(frames, out=whole[: ends[-1]])
        return whole

    def repeated(frames: list[int]) -> np.ndarray:
        return np.array(frames + frames[-1:] * (bucket(len(frames), 1) - len(frames)), np.int32)

    taps, weights, coordinates = map(joined, zip(*parts, strict=True))
    return VisionLayout(taps, weights, coordinates, repeated(ends[1:]), repeated(columns))


@lru_cache(maxsize=16)
def _frame(h: int, w: int, merge: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Taps, their weights and the coordinates of one frame; pictures of few sizes come again and again."""
    rows, columns = _block_order(h, w, merge)
    return *_bilinear_taps(rows, columns, h, w, side), np.stack([rows, columns], 1).astype(np.int32)


def _block_order(h: int, w: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = (h // merge, merge, w // merge, merge)
    rows, columns = np.indices((h, w)).reshape(2, *blocks).transpose(0, 1, 3, 2, 4).reshape(2, -1)
    return rows, columns


def _bilinear_taps(
    rows: np.ndarray, columns: np.ndarray, h: int, w: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the table and their weights, with the corners aligned."""
    taps, weights = [], []
    for index, size in ((rows, h), (columns, w)):
        source = index.astype(np.float32) * (side - 1) / np.float32(max(size - 1, 1))
        low = np.floor(source)
        fraction = source - low
        taps.append(np.stack([low, np.minimum(low + 1, side - 1)], 1).astype(np.int32))
        weights.append(np.stack([1 - fraction, fraction], 1))
    mixed = (taps[0][:, :, None] * side + taps[1][:, None, :]).reshape(-1, 4)
    return mixed, (weights[0][:, :, None] * weights[1][:, None, :]).reshape(-1, 4)


def prompt_positions(
    config: Qwen3VLConfig, tokens: np.ndarray, grid_thw: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """M-RoPE positions of a right-padded prompt, on the host.

    Text advances all three axes by one; a picture stands at (T, row, column) behind the text before it,
    and the text behind it goes on at the larger of its two sides.

    Args:
        tokens: `[B, T]`; a picture is a run of `image_token_id`, rows in order take pictures in order.
        grid_thw: `[pictures, 3]` in patches.
        lengths: `[B]`, tokens before the padding.

    Returns:
        positions int32 `[3, B, T]` and delta int32 `[B]`: a later token stands at its index + delta.

    Raises:
        InputError: the runs of picture tokens do not match `grid_thw`.
    """
    positions = np.zeros((3, *tokens.shape), np.int32)
    deltas = np.zeros(tokens.shape[0], np.int32)
    grids = [tuple(g) for g in np.asarray(grid_thw).reshape(-1, 3).tolist()]
    merge, taken = config.vision.spatial_merge_size, 0
    for row, length in enumerate(lengths):
        at = place = 0  # where the next token is, and where it stands
        for start, end in _runs(tokens[row, :length] == config.image_token_id):
            positions[:, row, at:start] = np.arange(place, place + start - at)
            at, place = start, place + start - at
            while at < end:  # a run may hold several pictures
                if taken == len(grids):
                    raise InputError(
                        "prompt_tokens: more runs of picture tokens than"
                        f" the {len(grids)} pictures of grid_thw"
                    )
                t, h, w = grids[taken][0], grids[taken][1] // merge, grids[taken][2] // merge
                size = t * h * w
                if not 0 < size <= end - at:
                    raise InputError(
                        f"prompt_tokens: picture {taken} of grid_thw needs {size} picture tokens in a row"
                    )
                positions[:, row, at : at + size] = np.indices((t, h, w)).reshape(3, -1) + place
                at, place, taken = at + size, place + max(h, w), taken + 1
        positions[:, row, at:length] = np.arange(place, place + length - at)
        deltas[row] = positions[:, row, :length].max(initial=-1) + 1 - length
    if taken != len(grids):
        raise InputError(
            f"prompt_tokens: {taken} runs of picture tokens for the {len(grids)} pictures of grid_thw"
        )
    return positions, deltas


def _runs(flags: np.ndarray) -> np.ndarray:
    """First and last + 1 of each run of True: `[runs, 2]`."""
    return np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
