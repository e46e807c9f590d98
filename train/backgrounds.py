"""Backgrounds painted on the accelerator: plain, gradient and twelve drawn places, never twice the same.

Coordinates run from 0 (top, left) to 1 (bottom, right); colours are RGB from 0 to 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from train.scenes import BACKGROUNDS

Picture = Float[Array, "B H W 3"]


class _Brush(NamedTuple):
    """Random textures, lines and colours for one batch."""

    draws: Float[Array, "B N"]  # uniform numbers, a fresh column for each use
    rows: Float[Array, "1 H 1"]
    columns: Float[Array, "1 1 W"]
    coarse: Float[Array, "B H W"]  # smooth noise
    fine: Float[Array, "B H W"]
    ridge: Float[Array, "B 1 W"]  # a line: soft in half of the rows, pointed in the others
    spires: Float[Array, "L B 1 W"]  # heights of rows of pointed trees, from 0 to 1
    blocks: Float[Array, "B H W"]  # noise in rectangles
    towers: Float[Array, "B 1 W"]  # a stepped line
    grain: Float[Array, "B H W"]

    def chance(self, column: int, share: float) -> Float[Array, "B 1 1"]:
        return (self.draws[:, column] < share)[:, None, None] * 1.0

    def number(self, column: int, low: float, high: float) -> Float[Array, "B 1 1"]:
        return (low + (high - low) * self.draws[:, column])[:, None, None]

    def color(
        self, column: int, dark: tuple[float, ...], light: tuple[float, ...]
    ) -> Float[Array, "B 1 1 3"]:
        """Between two colours, each channel a little on its own."""
        mix = self.draws[:, column, None] * 0.7 + self.draws[:, column + 1 : column + 4] * 0.3
        return (jnp.array(dark) + (jnp.array(light) - jnp.array(dark)) * mix)[:, None, None, :]


def paint_backgrounds(
    key: PRNGKeyArray, kind: Int[Array, " B"], rgb: Float[Array, "B 2 3"], height: int, width: int
) -> Picture:
    """Paint the background of each `kind` (an index into `BACKGROUNDS`); `rgb` is for plain and gradient."""
    brush = _brush(key, kind.shape[0], height, width)
    drawn: dict[str, Callable[[_Brush], Picture]] = {
        "sky": _sky, "grass": _grass, "sea": _sea, "desk": _desk, "night": _night, "snow": _snow,
        "city": _city, "room": _room, "forest": _forest, "runway": _runway, "beach": _beach, "hills": _hills,
    }  # fmt: skip
    picture = jnp.broadcast_to(rgb[:, 0, None, None, :], (kind.shape[0], height, width, 3))
    picture = _where(kind == BACKGROUNDS.index("gradient"), _gradient(brush, rgb), picture)
    for name, paint in drawn.items():
        picture = _where(kind == BACKGROUNDS.index(name), jnp.clip(paint(brush), 0, 1), picture)
    return picture


def _brush(key: PRNGKeyArray, batch: int, height: int, width: int) -> _Brush:
    keys = jax.random.split(key, 9)

    def noise(k: PRNGKeyArray, cells: int) -> Float[Array, "B H W"]:
        values = jax.random.uniform(k, (batch, cells, cells))
        return jnp.einsum("hi,bij,wj->bhw", _hats(height, cells), values, _hats(width, cells))

    draws = jax.random.uniform(keys[0], (batch, 80))
    heights = jax.random.uniform(keys[5], (batch, 9))
    pointed, soft = (
        jnp.einsum("bi,wi->bw", heights, hats) for hats in (_hats(width, 9), _soft_hats(width, 9))
    )
    columns = ((jnp.arange(width) + 0.5) / width)[None, None, :]
    trees = jax.random.uniform(keys[6], (3, 4, 8, batch, 1, 1))  # layers, [place, height, width, -], trees
    tops = 0.5 + 0.5 * trees[:, 1] - jnp.abs(columns - trees[:, 0]) / (0.06 + 0.12 * trees[:, 2])
    grid = jax.random.uniform(keys[7], (batch, 6, 7))
    return _Brush(
        draws=draws,
        rows=((jnp.arange(height) + 0.5) / height)[None, :, None],
        columns=columns,
        coarse=0.65 * noise(keys[1], 6) + 0.35 * noise(keys[2], 19),
        fine=noise(keys[3], 60),
        ridge=jnp.where(draws[:, 70, None] < 0.5, pointed, soft)[:, None],
        spires=jnp.clip(tops.max(1), 0, 1),
        blocks=jnp.repeat(jnp.repeat(grid, -(-height // 6), 1)[:, :height], -(-width // 7), 2)[:, :, :width],
        towers=jnp.repeat(jax.random.uniform(keys[4], (batch, 14)), -(-width // 14), axis=1)[:, None, :width],
        grain=jax.random.uniform(keys[8], (batch, height, width)),
    )


def _hats(size: int, cells: int) -> Float[Array, "size cells"]:
    """Linear interpolation of `cells` values over `size` pixels."""
    at = jnp.linspace(0, cells - 1, size)[:, None]
    return jnp.maximum(0, 1 - jnp.abs(at - jnp.arange(cells)))


def _soft_hats(size: int, cells: int) -> Float[Array, "size cells"]:
    hats = _hats(size, cells)
    return hats * hats * (3 - 2 * hats)


def _where(mask: Array, yes: Array, no: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (no.ndim - mask.ndim)), yes, no)


def _mix(below: Array, above: Array, amount: Array) -> Array:
    return below + (above - below) * amount[..., None]


def _edge(x: Array, width: float = 0.01) -> Array:
    """0 below zero, 1 above, soft in between."""
    return jnp.clip(x / width + 0.5, 0, 1)


def _gradient(b: _Brush, rgb: Float[Array, "B 2 3"]) -> Picture:
    angle = b.number(0, 0, 6.2832)
    along = (b.columns - 0.5) * jnp.cos(angle) + (b.rows - 0.5) * jnp.sin(angle)
    return _mix(rgb[:, 0, None, None], rgb[:, 1, None, None], jnp.clip(along * 1.1 + 0.5, 0, 1))


def _sky(b: _Brush) -> Picture:
    top = b.color(1, (0.1, 0.4, 0.8), (0.45, 0.75, 1.0))
    low = b.color(5, (0.55, 0.8, 0.95), (0.9, 0.97, 1.0))
    clear = _mix(top, low, jnp.broadcast_to(b.rows ** b.number(9, 0.6, 2.0), b.coarse.shape))
    clouds = _edge(b.coarse - b.number(10, 0.5, 1.0), 0.12) * b.number(11, 0.3, 1.0)
    clouds = jnp.where(b.number(71, 0, 1) < 0.35, clouds, 0.0)
    return _mix(clear, jnp.ones(3), jnp.maximum(clouds, _round_clouds(b) * b.chance(72, 0.5)))


def _round_clouds(b: _Brush) -> Float[Array, "B H W"]:
    """Three soft clouds of three ellipses each."""
    clouds = jnp.zeros_like(b.coarse)
    for i in range(3):
        x, y, size = b.number(61 + i, 0, 1), b.number(64 + i, 0, 0.5), b.number(67 + i, 0.06, 0.16)
        for dx, dy, share in ((-0.8, 0.15, 0.7), (0, -0.15, 0.9), (0.8, 0.1, 0.75)):
            far = ((b.columns - x - dx * size) / (share * size)) ** 2 + (
                (b.rows - y - dy * size) / (share * size / 2)
            ) ** 2
            clouds = jnp.maximum(clouds, jnp.clip(1.6 - 1.2 * far, 0, 0.95))
    return clouds


def _ground(b: _Brush, horizon: Array, color: Array, texture: float = 0.15) -> Picture:
    shade = (
        1 + texture * (b.fine - 0.5) + 0.25 * (b.coarse - 0.5) - 0.25 * (b.rows - 0.5) * b.number(12, -1, 1)
    )
    return _mix(_sky(b), color * shade[..., None], _edge(b.rows - horizon))


def _grass(b: _Brush) -> Picture:
    # The horizon may lie above the picture: a lawn seen from above.
    horizon = b.number(13, -0.35, 0.8) + 0.08 * (b.ridge - 0.5)
    lawn = _ground(b, horizon, b.color(14, (0.15, 0.4, 0.08), (0.6, 0.85, 0.35)))
    stripes = 0.06 * jnp.sign(jnp.sin(b.columns * b.number(18, 10, 60))) * (b.number(19, 0, 1) > 0.7)
    lawn = lawn + (stripes * _edge(b.rows - horizon))[..., None]
    return jnp.where(b.chance(73, 0.45)[..., None] > 0, _fields(b), lawn)


def _fields(b: _Brush) -> Picture:
    """Fields seen from above, some with a small house, between roads."""
    x, y = jnp.mod(b.columns * 7, 1), jnp.mod(b.rows * 6, 1)  # as wide as `blocks`
    green = b.color(14, (0.3, 0.55, 0.2), (0.65, 0.85, 0.5)) * (0.9 + 0.25 * b.blocks)[..., None]
    hedge = (x < 0.08) | (y < 0.08)
    fields = _mix(green, green * 1.12, hedge * 1.0)
    house = (jnp.abs(x - 0.5) < 0.2) & (jnp.abs(y - 0.5) < 0.2) & (b.blocks > 0.75)
    fields = _mix(fields, b.color(23, (0.6, 0.55, 0.5), (0.98, 0.95, 0.9)), house * b.chance(74, 0.6))
    road = (jnp.abs(b.columns - b.number(75, 0, 1)) < 0.012) | (jnp.abs(b.rows - b.number(76, 0, 1)) < 0.014)
    return _mix(fields, jnp.array([0.75, 0.75, 0.7]), road * b.chance(77, 0.6))


def _sea(b: _Brush) -> Picture:
    horizon = b.number(13, -0.2, 0.7)
    waves = 0.06 * jnp.sin(b.rows * b.number(20, 40, 160) + 6 * b.coarse + b.columns * b.number(21, -9, 9))
    return (
        _ground(b, horizon, b.color(22, (0.0, 0.25, 0.45), (0.2, 0.6, 0.85)), 0.05)
        + (waves * _edge(b.rows - horizon))[..., None]
    )


def _desk(b: _Brush) -> Picture:
    wall = jnp.broadcast_to(b.color(23, (0.3, 0.3, 0.35), (0.98, 0.95, 0.9)), (*b.coarse.shape, 3))
    wood = b.color(27, (0.35, 0.2, 0.1), (0.85, 0.62, 0.4))
    grain = 0.09 * jnp.sin(b.rows * b.number(31, 50, 200) + 7 * b.coarse) + 0.06 * (b.fine - 0.5)
    planks = -0.15 * (jnp.mod(b.rows * b.number(32, 3, 8), 1) < 0.04)
    top = wood * (1 + grain + planks * (b.number(33, 0, 1) > 0.4))[..., None]
    return _mix(wall * (1 - 0.15 * b.rows[..., None]), top, _edge(b.rows - b.number(34, -0.6, 0.7)))


def _night(b: _Brush) -> Picture:
    dark = _mix(
        b.color(35, (0.0, 0.0, 0.05), (0.06, 0.06, 0.25)),
        b.color(39, (0.02, 0.03, 0.15), (0.25, 0.2, 0.45)),
        jnp.broadcast_to(b.rows, b.coarse.shape),
    )
    stars = (b.grain > b.number(43, 0.99, 0.998)) * b.number(44, 0.5, 1.0)
    return _mix(dark, jnp.array([1.0, 1.0, 0.9]), stars)


def _snow(b: _Brush) -> Picture:
    horizon = b.number(13, -0.2, 0.75) + 0.15 * (b.ridge - 0.5)
    sky = b.color(45, (0.55, 0.65, 0.75), (0.85, 0.92, 0.98))
    land = 0.93 + 0.07 * b.coarse - 0.06 * (b.rows - 0.5)
    flakes = (b.grain > 0.995) * (b.number(44, 0, 1) > 0.4)
    picture = _mix(sky, jnp.array([0.97, 0.985, 1.0]) * land[..., None], _edge(b.rows - horizon))
    return _mix(picture, jnp.ones(3), flakes * 1.0)


def _city(b: _Brush) -> Picture:
    skyline = 0.25 + 0.45 * b.towers
    walls = (
        b.color(46, (0.25, 0.25, 0.3), (0.75, 0.7, 0.72)) * (0.7 + 0.6 * jnp.mod(b.towers * 7, 1))[..., None]
    )
    windows = (jnp.mod(b.rows * 22, 1) > 0.45) & (jnp.mod(b.columns * 14 * 3, 1) > 0.4)
    walls = _mix(walls, b.color(50, (0.4, 0.5, 0.6), (1.0, 0.95, 0.7)), windows * b.number(11, 0.3, 0.9))
    street = b.color(52, (0.25, 0.25, 0.27), (0.6, 0.6, 0.6))
    picture = _mix(_sky(b), jnp.broadcast_to(walls, (*b.coarse.shape, 3)), _edge(b.rows - skyline))
    return _mix(picture, street, _edge(b.rows - b.number(34, 0.7, 1.0)))


def _room(b: _Brush) -> Picture:
    corner = b.number(13, 0.6, 0.85)
    wall = b.color(23, (0.45, 0.4, 0.35), (0.98, 0.95, 0.9))
    papered = 0.04 * jnp.sign(jnp.sin(b.columns * b.number(18, 20, 90))) * (b.number(19, 0, 1) > 0.5)
    floor = b.color(27, (0.3, 0.2, 0.15), (0.75, 0.6, 0.45)) * (1 + 0.1 * (b.fine - 0.5))[..., None]
    boards = -0.08 * (jnp.mod((b.columns - 0.5) / (b.rows + 0.2) * 8, 1) < 0.06)
    picture = _mix(wall + papered[..., None], floor + boards[..., None], _edge(b.rows - corner))
    skirting = (b.rows > corner - 0.03) & (b.rows < corner)
    return _mix(picture, wall * 0.6 + 0.3, jnp.broadcast_to(skirting, b.coarse.shape) * 1.0)


def _forest(b: _Brush) -> Picture:
    return jnp.where(b.chance(73, 0.5)[..., None] > 0, _firs(b), _trunks(b))


def _firs(b: _Brush) -> Picture:
    """Rows of pointed trees, the far ones in the mist."""
    mist = b.color(50, (0.55, 0.75, 0.65), (0.9, 0.98, 0.95))
    near = b.color(53, (0.1, 0.3, 0.12), (0.5, 0.75, 0.5))
    picture = jnp.broadcast_to(mist, (*b.coarse.shape, 3))
    for i, spires in enumerate(b.spires):
        top = 0.85 - b.number(78, 0.35, 0.8) * spires
        color = mist + (near - mist) * (0.35 + 0.3 * i)
        picture = _mix(picture, color, _edge(b.rows - top, 0.03) * (b.rows < 0.9))
    ground = b.color(14, (0.2, 0.45, 0.15), (0.55, 0.8, 0.45))
    return _mix(picture, ground, _edge(b.rows - b.number(13, 0.75, 0.92) - 0.08 * (b.ridge - 0.5), 0.02))


def _trunks(b: _Brush) -> Picture:
    leaves = (
        b.color(53, (0.03, 0.2, 0.08), (0.25, 0.55, 0.2)) * (0.75 + 0.5 * b.coarse + 0.3 * b.fine)[..., None]
    )
    trunks = jnp.mod(b.columns * b.number(18, 4, 10) + 0.06 * b.ridge, 1)
    bark = b.color(57, (0.15, 0.08, 0.03), (0.45, 0.3, 0.18))
    picture = _mix(leaves, bark, (trunks < 0.16) * _edge(b.rows - b.number(34, 0.1, 0.6), 0.1))
    floor = b.color(14, (0.1, 0.25, 0.05), (0.4, 0.5, 0.2)) * (0.9 + 0.2 * b.fine)[..., None]
    picture = _mix(picture, floor, _edge(b.rows - b.number(13, 0.65, 1.0), 0.03))
    return _mix(_sky(b), picture, _edge(b.rows - 0.4 * b.ridge * b.number(21, -0.5, 1)))


def _runway(b: _Brush) -> Picture:
    horizon = b.number(13, 0.2, 0.7)
    land = _ground(b, horizon, b.color(14, (0.2, 0.4, 0.1), (0.6, 0.75, 0.4)))
    depth = jnp.clip((b.rows - horizon) / (1 - horizon), 0.001, 1)
    across = (b.columns - b.number(58, 0.3, 0.7)) / (0.06 + depth * b.number(59, 0.3, 0.9))
    tar = (jnp.abs(across) < 1) * _edge(b.rows - horizon)
    gray = b.color(52, (0.25, 0.25, 0.27), (0.55, 0.55, 0.57))
    lines = (jnp.abs(across) < 0.06) & (jnp.mod(jnp.log(depth) * b.number(60, 2, 4), 1) < 0.5)
    lines |= (jnp.abs(across) > 0.88) & (jnp.abs(across) < 0.94)
    side_on = b.chance(73, 0.45) > 0  # or it runs from left to right
    middle = horizon + b.number(58, 0.05, 0.2)
    off = jnp.abs(b.rows - middle) / b.number(59, 0.05, 0.12)
    dashes = (off < b.number(60, 0.08, 0.2)) & (jnp.mod(b.columns * b.number(18, 5, 10), 1) < 0.6)
    tar = jnp.where(side_on, _edge(1 - off, 0.05), tar)
    lines = jnp.where(side_on, dashes, lines)
    paint = b.color(75, (0.6, 0.6, 0.6), (1.0, 1.0, 0.95))
    return _mix(_mix(land, gray, tar), paint, tar * lines)


def _beach(b: _Brush) -> Picture:
    shore = b.number(34, 0.3, 0.8) + 0.1 * (b.ridge - 0.5)
    sand = b.color(54, (0.8, 0.65, 0.4), (0.98, 0.9, 0.7)) * (1 + 0.12 * (b.fine - 0.5))[..., None]
    picture = _mix(_sea(b), jnp.ones(3), (jnp.abs(b.rows - shore) < 0.015) * 0.8)
    return _mix(picture, sand, _edge(b.rows - shore))


def _hills(b: _Brush) -> Picture:
    far = b.number(13, 0.3, 0.6) + 0.35 * (b.ridge - 0.5)
    near = b.number(34, 0.6, 0.9) - 0.2 * (b.ridge[:, :, ::-1] - 0.5)
    haze = b.color(45, (0.35, 0.5, 0.55), (0.6, 0.75, 0.75))
    front = b.color(14, (0.15, 0.4, 0.1), (0.55, 0.75, 0.35)) * (0.9 + 0.2 * b.coarse)[..., None]
    middle = b.number(76, 0.5, 0.8) + 0.2 * (jnp.roll(b.ridge, b.ridge.shape[2] // 3, 2) - 0.5)
    picture = _mix(_sky(b), haze, _edge(b.rows - far))
    picture = jnp.where(
        b.chance(77, 0.6)[..., None] > 0, _mix(picture, front * 1.15, _edge(b.rows - middle)), picture
    )
    return _mix(picture, front, _edge(b.rows - near))
