"""Scenes painted on the accelerator, from art in its memory, with the art itself varied in drawing style.

Straight-alpha art is premultiplied once (`premultiplied`); all after that is arithmetic on whole batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

from models.kernels.choice import on_cpu
from train.backgrounds import paint_backgrounds
from train.scenes import FEW, SLOTS

CELL = 32  # pixels a side of what becomes one picture token
PATCH, MERGE, FRAMES = 16, 2, 2
_LUMA = (0.299, 0.587, 0.114)


class Layout(NamedTuple):
    """What stands where in a batch. Only the first rows (`crowded` of them) may fill slots beyond `FEW`."""

    art: Int[np.ndarray | Array, "B K"]  # row of the art; -1: nothing
    x: Float[np.ndarray | Array, "B K"]  # centre over the width
    y: Float[np.ndarray | Array, "B K"]  # centre over the height
    size: Float[np.ndarray | Array, "B K"]  # side over the shorter side
    background: Int[np.ndarray | Array, " B"]  # index into BACKGROUNDS
    rgb: Float[np.ndarray | Array, "B 2 3"]


class Variation(NamedTuple):
    """How much drawings and pictures are varied: shares of all, from 0 (as they are) to 1."""

    art: float = 0.6  # things that are redrawn strongly
    outlines: float = 1.0  # how often, of the usual, with outlines
    palette: float = 1.0  # in other colours
    shape: float = 1.0  # bent, sheared, stretched and tapered
    picture: float = 1.0  # pictures with blur, noise, JPEG damage and stray shapes


def premultiplied(art: UInt8[np.ndarray, "N S S 4"]) -> UInt32[Array, "N S S"]:
    """Colour times alpha, so that art can be interpolated; on the device, a pixel in a word (red lowest)."""
    return _premultiply(jnp.asarray(np.ascontiguousarray(art).view("<u4")[..., 0]))


@jax.jit
def _premultiply(words: UInt32[Array, "N S S"]) -> UInt32[Array, "N S S"]:
    alpha = words >> 24
    red, green, blue = (((words >> shift & 255) * alpha + 127) // 255 << shift for shift in (0, 8, 16))
    return red | green | blue | alpha << 24


def compose(
    art: UInt32[Array, "N S S"],
    layout: Layout,
    key: PRNGKeyArray,
    grid: tuple[int, int],
    crowded: int,
    variation: Variation,
) -> tuple[Float[Array, "B H W 3"], Float[Array, "B M K"]]:
    """Paint a batch.

    Args:
        grid: rows and columns of 32 x 32 pixel cells.
        crowded: how many of the first rows may hold more than `FEW` things.

    Returns:
        pictures (RGB from 0 to 1) and the share of each cell that each slot's thing covers.
    """
    height, width = grid[0] * CELL, grid[1] * CELL
    keys = jax.random.split(key, 5)
    picture = paint_backgrounds(
        keys[0], jnp.asarray(layout.background), jnp.asarray(layout.rgb), height, width
    )
    if variation.picture:
        picture = _stray_shapes(keys[1], picture, variation.picture)
        picture = _figures(jax.random.fold_in(keys[1], 1), picture, variation.picture)
    picture, covered = _paste(keys[2], art, layout, slice(0, FEW), picture, grid, variation)
    shares = jnp.zeros((SLOTS, *covered.shape[1:])).at[:FEW].set(covered)
    if crowded:
        first = Layout(*(jnp.asarray(x)[:crowded] for x in layout))
        more, covered = _paste(keys[3], art, first, slice(FEW, SLOTS), picture[:crowded], grid, variation)
        picture = picture.at[:crowded].set(more)
        shares = shares.at[FEW:, :crowded].set(covered)
    uncovered = jnp.cumprod(1 - shares[::-1], 0)[::-1]  # by this slot and the later ones
    seen = shares * jnp.concatenate([uncovered[1:], jnp.ones_like(shares[:1])])
    if variation.picture:
        picture = _damage(keys[4], picture, variation.picture)
    return jnp.clip(picture, 0, 1), jnp.moveaxis(seen, 0, -1)


def _paste(
    key: PRNGKeyArray,
    art: Array,
    layout: Layout,
    slots: slice,
    picture: Array,
    grid: tuple[int, int],
    variation: Variation,
) -> tuple[Float[Array, "B H W 3"], Float[Array, "S B M"]]:
    """Lay the things of some slots over the picture, slot after slot; and how they cover the cells."""
    B, height, width, _ = picture.shape
    columns = [jnp.asarray(x)[:, slots].T for x in (layout.art, layout.x, layout.y, layout.size)]

    def paste(below: Array, slot: tuple[Array, ...]) -> tuple[Array, Array]:
        key, row, x, y, size = slot
        layer = _layer(key, art, row, x, y, size, height, width, variation)
        alpha = layer[..., 3:]
        share = alpha.reshape(B, grid[0], CELL, grid[1], CELL).mean((2, 4)).reshape(B, -1)
        below = below * (1 - _shadow(key, row, x, y, size, height, width, variation.art))
        return below * (1 - alpha) + layer[..., :3], share

    return jax.lax.scan(paste, picture, (jax.random.split(key, len(columns[0])), *columns))


def patches(picture: Float[Array, "B H W 3"]) -> Float[Array, "B P patch_dim"]:
    """Normalised flat patches in merge-block order, the frame doubled: what the tower reads."""
    B, height, width, _ = picture.shape
    blocks = (B, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    x = (picture * 2 - 1).reshape(blocks).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    x = x.reshape(B, -1, 3, 1, PATCH * PATCH)
    return jnp.broadcast_to(x, (*x.shape[:3], FRAMES, PATCH * PATCH)).reshape(B, x.shape[1], -1)


# ---------------------------------------------------------------- one thing a row


def _layer(
    key: PRNGKeyArray,
    art: UInt32[Array, "N S S"],
    row: Int[Array, " B"],
    x: Float[Array, " B"],
    y: Float[Array, " B"],
    size: Float[Array, " B"],
    height: int,
    width: int,
    variation: Variation,
) -> Float[Array, "B H W 4"]:
    """One thing of each row, premultiplied, where the layout wants it."""
    keys = jax.random.split(key, 4)
    strong = jax.random.uniform(keys[0], row.shape) < variation.art
    fine = _lattice(art.shape[1], min(height, width))
    turned = _warp(keys[1], art, jnp.maximum(row, 0), strong, variation.shape, fine)
    drawn = _redraw(keys[2], turned, strong, variation) * (row >= 0)[:, None, None, None]
    stretch = jnp.exp(
        jax.random.uniform(keys[3], row.shape, minval=-1, maxval=1)
        * jnp.where(strong, 0.04 + 0.28 * variation.shape, 0.04)
    )
    side = size * min(height, width) / fine
    crisp = jnp.maximum(jax.random.uniform(jax.random.fold_in(keys[3], 1), row.shape, minval=-1), 0)
    crisp *= variation.art > 0
    down = _resample(y * height, side / jnp.maximum(stretch, 1.0), crisp, height, fine)
    across = _resample(x * width, side * jnp.minimum(stretch, 1.0), crisp, width, fine)
    fast = jnp.float32 if on_cpu() else jnp.bfloat16
    layer = jnp.einsum("byi,bijc->byjc", down.astype(fast), drawn.astype(fast))
    return jnp.einsum("bxj,byjc->byxc", across.astype(fast), layer).astype(jnp.float32)


def _lattice(art: int, shorter: int) -> int:
    """Points a side at which art is taken; few things are larger than 3/4 of the picture's shorter side.

    Half of the art's pixels at least, as lines between two points would be lost.
    """
    return min(art, max(art // 2, 3 * shorter // 4))


def _shadow(
    key: PRNGKeyArray, row: Array, x: Array, y: Array, size: Array, height: int, width: int, strength: float
) -> Float[Array, "B H W 1"]:
    """How dark the ground is below a thing: a soft flat ellipse, in some scenes."""
    u = jax.random.uniform(jax.random.fold_in(key, 1), (4, row.shape[0], 1, 1))
    x, y, side = (v[:, None, None] for v in (x * width, y * height, size * min(height, width)))
    dx = (jnp.arange(width) - x) / (side * (0.25 + 0.25 * u[0]))
    dy = (jnp.arange(height)[:, None] - y - side * (0.4 + 0.1 * u[1])) / (side * (0.04 + 0.08 * u[2]))
    dark = jnp.where((u[3] < 0.5 * strength) & (row >= 0)[:, None, None], 0.15 + 0.5 * u[0], 0.0)
    return (dark * jnp.clip(1.3 - dx * dx - dy * dy, 0, 1))[..., None]


def _resample(
    centre: Float[Array, " B"], scale: Float[Array, " B"], crisp: Float[Array, " B"], length: int, side: int
) -> Array:
    """Weights [B, length, side] of a triangle filter as wide as a pixel of the coarser side.

    Art that is enlarged looks blurred, as no picture of a user is: `crisp`, from 0 to 1, makes its edges
    narrower, down to a pixel of the picture.
    """
    at = jnp.arange(length) + 0.5
    source = (at - centre[:, None]) / scale[:, None] + side / 2 - 0.5
    reach = jnp.maximum(1, 1 / scale)[:, None, None]
    beyond = 8  # pixels around the art count as nothing, and must count for the sum to be even
    weights = jnp.maximum(0, 1 - jnp.abs(source[..., None] - jnp.arange(-beyond, side + beyond)) / reach)
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 0.5)
    steeper = (1 + crisp * jnp.maximum(scale - 1, 0))[:, None, None]
    weights = jnp.clip((weights - 0.5) * steeper + 0.5, 0, 1)
    return weights[..., beyond:-beyond]


def _warp(
    key: PRNGKeyArray, art: Array, row: Int[Array, " B"], strong: Array, shape: float, side: int
) -> Float[Array, "B s s 4"]:
    """Flip, rotate, shear, taper and bend, inside the art's own square; `side` pixels a side."""
    u = jax.random.uniform(key, (16, row.shape[0]), minval=-1, maxval=1)
    angle = jnp.where(strong, 0.15 + 0.35 * shape, 0.15) * u[0] ** 3 * 1.5
    shear = jnp.where(strong, 0.25 * shape, 0.0) * u[1]
    taper = jnp.where(strong, 0.25 * shape, 0.0) * u[10] ** 3
    flip = jnp.where(u[2] > 0.3, -1.0, 1.0)
    bend = jnp.where(strong, 0.06 * shape, 0.0) * jnp.abs(u[3])
    zoom = 1 + 0.5 * (jnp.abs(jnp.cos(angle)) + jnp.abs(jnp.sin(angle)) - 1) + 0.5 * jnp.abs(shear) + bend
    line = (2 * jnp.arange(side) + 1) / side - 1  # the middles of pixels
    gy, gx = (g * zoom[:, None, None] for g in (line[None, :, None], line[None, None, :]))
    cos, sin, lean, narrow = (v[:, None, None] for v in (jnp.cos(angle), jnp.sin(angle), shear, taper))
    sx, sy = cos * gx + sin * gy, cos * gy - sin * gx
    sx = (sx * (1 + jnp.abs(narrow) + narrow * sy) + lean * sy) * flip[:, None, None]

    def wave(i: int) -> Array:
        phase = (
            3 * (u[i, :, None, None] * gx + u[i + 1, :, None, None] * gy) + 3.1416 * u[i + 2, :, None, None]
        )
        return bend[:, None, None] * jnp.sin(phase)

    px, py = ((s + w + 1) / 2 * art.shape[1] - 0.5 for s, w in ((sx, wave(4)), (sy, wave(7))))
    return _bilinear(art, row, px, py)


def _bilinear(art: Array, row: Int[Array, " B"], px: Array, py: Array) -> Float[Array, "B s s 4"]:
    """The art at points in pixels; nothing outside it."""
    assert art.size < 2**31, "an index has 32 bits"
    side = art.shape[1]
    words = art.reshape(-1)
    x0, y0 = jnp.floor(px), jnp.floor(py)
    total = jnp.zeros((*px.shape, 4))
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = (x0 + dx).astype(jnp.int32), (y0 + dy).astype(jnp.int32)
            inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            line = row[:, None, None] * side + jnp.clip(y, 0, side - 1)
            index = line * side + jnp.clip(x, 0, side - 1)
            tap = jax.lax.bitcast_convert_type(words[index], jnp.uint8).astype(jnp.float32)
            weight = inside * (1 - jnp.abs(px - x)) * (1 - jnp.abs(py - y))
            total += tap * weight[..., None]
    return total / 255


def _redraw(
    key: PRNGKeyArray, art: Float[Array, "B s s 4"], strong: Array, variation: Variation
) -> Float[Array, "B s s 4"]:
    """Another hand's drawing of the same thing: palette, flatness, outlines, missing parts."""
    u = jax.random.uniform(key, (36, art.shape[0]), minval=-1, maxval=1)

    def one(i: int) -> Array:
        return u[i, :, None, None, None]

    def chance(i: int, share: float) -> Array:
        return (one(i) * 0.5 + 0.5 < share) & strong[:, None, None, None]

    alpha = art[..., 3:]
    color = art[..., :3] / jnp.maximum(alpha, 1e-3)
    color = _palette(color, one, chance, strong[:, None, None, None] * variation.palette)
    if not variation.art:  # none is strong
        return jnp.concatenate([color * alpha, alpha], -1)
    color = jnp.where(chance(24, 0.12 * variation.palette), _two_inks(color, u[25:32]), color)
    levels = jnp.round(3.5 + 1.5 * one(10))
    color = jnp.where(chance(11, 0.35), jnp.round(color * levels) / levels, color)

    lines = _contours(jnp.concatenate([color * alpha, alpha], -1))
    wide = _pool(lines)
    lines = jnp.where(one(12) > 0.2, lines, jnp.where(one(12) > -0.6, wide, _pool(wide)))
    lines *= chance(13, 0.55 * variation.outlines) * (0.8 + 0.2 * one(14))
    paper = jnp.where(chance(15, 0.1), 1.0, 0.0)  # line drawing: only the outlines keep their ink
    color = color + (jnp.where(one(16) > -0.5, 1.0, color) - color) * paper * (one(13) < 0.2)
    ink = 0.12 + 0.12 * u[17:20].T[:, None, None, :]
    color = color * (1 - lines) + ink * lines
    alpha = jnp.maximum(alpha, lines * _pool(_pool(alpha)))
    return jnp.concatenate([color * alpha, alpha], -1) * _cut_out(art.shape[1], one, chance)


def _two_inks(color: Float[Array, "B s s 3"], u: Float[Array, "7 B"]) -> Float[Array, "B s s 3"]:
    """Dark parts in one colour and light ones in another; now and then both alike: a silhouette."""
    dark, light = (0.5 + 0.5 * u[i : i + 3].T[:, None, None, :] for i in (0, 3))
    light = jnp.where(u[6, :, None, None, None] < -0.7, dark, light)
    grey = (color * jnp.array(_LUMA)).sum(-1, keepdims=True)
    return dark + (light - dark) * grey


def _palette(color: Array, one, chance, strong: Array) -> Array:
    """Turn the hue, then saturation, contrast and brightness; sometimes gray."""
    turn = (0.12 + 0.58 * strong) * one(0) + chance(1, 0.08) * 3.1416 * one(2) * strong
    grey = (color * jnp.array(_LUMA)).sum(-1, keepdims=True)
    to_yiq = jnp.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    y, i, q = jnp.moveaxis(color @ to_yiq.T, -1, 0)
    cos, sin = jnp.cos(turn[..., 0]), jnp.sin(turn[..., 0])
    color = jnp.stack([y, cos * i - sin * q, sin * i + cos * q], -1) @ jnp.linalg.inv(to_yiq).T
    saturation = jnp.where(chance(3, 0.12) & (strong > 0), 0.0, 1 + (0.15 + 0.55 * strong) * one(4))
    color = grey + (color - grey) * saturation
    contrast = 1 + (0.1 + 0.35 * strong) * one(5)
    color = (color - 0.5) * contrast + 0.5 + (0.05 + 0.15 * strong) * one(6)
    return jnp.clip(color, 0, 1)


def _pool(x: Array) -> Array:
    """The largest value around each pixel, about as far as one of art of 128 pixels a side reaches."""
    window = 2 * max(1, round(x.shape[1] / 128)) + 1
    for shape in ((1, window, 1, 1), (1, 1, window, 1)):
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, (1, 1, 1, 1), "SAME")
    return x


def _contours(x: Float[Array, "B s s 4"]) -> Float[Array, "B s s 1"]:
    """Where colour or alpha change at once."""
    step = (_pool(x) + _pool(-x)).max(-1, keepdims=True)
    return jnp.clip((step - 0.3) / 0.3, 0, 1)


def _cut_out(side: int, one, chance) -> Array:
    """1, but 0 in a window of some things, and below a wavy line in others, as if behind a hill."""
    line = jnp.linspace(-1, 1, side)
    rows, columns = line[:, None, None], line[None, :, None]
    window = (jnp.abs(rows - one(20)) < 0.3) & (jnp.abs(columns - one(21)) < 0.3) & chance(22, 0.12)
    sunk = (rows > 0.5 + 0.35 * one(20) + 0.25 * jnp.sin(3 * columns * one(21) + 3 * one(4))) & chance(
        23, 0.2
    )
    return 1.0 - (window | sunk)


# ---------------------------------------------------------------- the whole picture


def _stray_shapes(key: PRNGKeyArray, picture: Array, share: float) -> Array:
    """Up to three discs or bars of any colour behind the things."""
    B, height, width, _ = picture.shape
    u = jax.random.uniform(key, (3, 9, B, 1, 1))
    rows, columns = jnp.linspace(0, 1, height)[:, None], jnp.linspace(0, 1, width)
    for shape in u:
        dx, dy = (columns - shape[0]) / (0.04 + 0.25 * shape[2]), (rows - shape[1]) / (0.04 + 0.25 * shape[3])
        disc, bar = dx * dx + dy * dy < 1, jnp.maximum(jnp.abs(dx), jnp.abs(dy)) < 1
        strength = jnp.where(shape[4] < 0.25 * share, 0.2 + 0.8 * shape[5], 0.0)
        mask = jnp.where(shape[8] < 0.6, disc, bar) * strength
        color = jnp.moveaxis(jnp.stack([shape[6], shape[7], shape[5]]), 0, -1)
        picture = picture + (color - picture) * mask[..., None]
    return picture


def _figures(key: PRNGKeyArray, picture: Array, share: float) -> Array:
    """In some pictures a symmetrical figure of discs in two colours, which is nothing that has a name."""
    B, height, width, _ = picture.shape
    u = jax.random.uniform(key, (5, 8, B, 1, 1))
    side = min(height, width)
    x, y, size = u[0, 0] * width, u[0, 1] * height, (0.1 + 0.3 * u[0, 2]) * side
    dx, dy = jnp.abs(jnp.arange(width) - x) / size, (jnp.arange(height)[:, None] - y) / size
    there = u[0, 3] < 0.12 * share
    for i, disc in enumerate(u):
        apart = disc[4] * 0.6 * (i > 0)  # the first one stands in the middle
        wide, high = 0.12 + 0.3 * disc[5], 0.12 + 0.3 * disc[6]
        far = ((dx - apart) / wide) ** 2 + ((dy - (disc[7] - 0.5) * (i > 0)) / high) ** 2
        color = jnp.moveaxis(u[i % 2, 4:7], 0, -1)
        picture = picture + (color - picture) * (jnp.clip((1 - far) * 8, 0, 1) * there)[..., None]
    return picture


def _damage(key: PRNGKeyArray, picture: Array, share: float) -> Float[Array, "B H W 3"]:
    """What happens to pictures on their way: exposure, blur or sharpening, noise, JPEG; not clipped."""
    keys = jax.random.split(key, 2)
    u = jax.random.uniform(keys[0], (8, picture.shape[0], 1, 1, 1))
    picture = (picture - 0.5) * (1 + 0.2 * (u[0] - 0.5) * share) + 0.5 + 0.1 * (u[1] - 0.5) * share
    soft = _blur(picture)
    amount = jnp.where(u[2] < 0.3 * share, u[3] * 1.6 - 0.6, 0.0)  # below zero: sharpened
    picture = picture + (jnp.where(u[3] > 0.8, _blur(soft), soft) - picture) * amount
    sigma = jnp.where(u[4] < 0.3 * share, 0.05 * u[5], 0.0)
    picture = picture + sigma * jax.random.normal(keys[1], picture.shape)
    picture = jnp.clip(picture, 0, 1)
    return jnp.where(u[6] < 0.3 * share, _jpeg(picture, 0.01 + 0.08 * u[7]), picture)


def _blur(x: Array) -> Array:
    for axis in (1, 2):
        x = 0.5 * x + 0.25 * (jnp.roll(x, 1, axis) + jnp.roll(x, -1, axis))
    return x


def _jpeg(picture: Float[Array, "B H W 3"], step: Array) -> Float[Array, "B H W 3"]:
    """Round the 8 x 8 cosine transform, coarser at high frequencies."""
    B, height, width, _ = picture.shape
    n = np.arange(8)
    cosines = np.cos(np.pi * (n + 0.5) * n[:, None] / 8) * np.where(n[:, None] == 0, 8**-0.5, 0.5)
    blocks = picture.reshape(B, height // 8, 8, width // 8, 8, 3)
    coefficients = jnp.einsum("ui,vj,byixjc->byuxvc", cosines, cosines, blocks)
    coarse = step[..., None, None] * (1 + 0.6 * (n[:, None, None, None] + n[:, None]))
    rounded = jnp.round(coefficients / coarse) * coarse
    return jnp.einsum("ui,vj,byuxvc->byixjc", cosines, cosines, rounded).reshape(picture.shape)
