"""Making one drawn shape look as if many hands had written it."""

import numpy as np
from numpy.typing import NDArray

from bilevel_data.dataset import Images
from bilevel_data.episodes.counter_random import uniform, words

__all__ = ["SIDE", "handwrite"]

SIDE = 28
_KNOTS = 5  # random values along each side of a field that bends the picture
_NUMBERS = 8  # of the affine part
Floats = NDArray[np.float32]


def handwrite(shape: Floats, count: int, key: str) -> Images:
    """Different drawings of one shape: turned, sheared, scaled, moved, bent, thin or thick.

    Only sums, products and comparisons, in a fixed order: the same bits on every machine.

    Args:
        shape: `(S, S)` in [0, 1], a blurred picture of the shape: where it is cut decides how
            thick the strokes are.
        count: how many drawings.
        key: another text gives other drawings.

    Returns:
        `(count, 28, 28, 1)` uint8, ink 255.
    """
    need = _NUMBERS + 3 * 3 * _KNOTS**2
    numbers = uniform(words(key, count * need)).reshape(count, need).astype(np.float32)
    affine, rest = 2 * numbers[:, :_NUMBERS] - 1, numbers[:, _NUMBERS:]
    # A sum of three uniform numbers is close to normal, here with standard deviation 1/2.
    bends = _smooth(rest.reshape(count, 3, _KNOTS**2, 3).sum(axis=-1) - np.float32(1.5))
    y, x = _coordinates(affine)
    y, x = y + np.float32(0.11) * bends[:, 0], x + np.float32(0.11) * bends[:, 1]
    cut = np.float32(0.32) + np.float32(0.12) * affine[:, 7, None, None]
    cut = cut + np.float32(0.06) * bends[:, 2]
    ink = (_sample(shape, y, x) - cut) / np.float32(0.28) + np.float32(0.5)
    return np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8)[..., None]


def _coordinates(affine: Floats) -> tuple[Floats, Floats]:
    """Where each pixel of each drawing comes from, in [-1, 1] of the shape."""
    turn, shear, taller, wider, down, right = (affine[:, k, None, None] for k in range(6))
    half = np.float32(0.11) * turn  # tangent of half the angle: up to 12.6 degrees
    norm = 1 + half * half
    cosine, sine = (1 - half * half) / norm, 2 * half / norm
    ticks = (np.arange(SIDE, dtype=np.float32) - np.float32(SIDE / 2 - 0.5)) / np.float32(SIDE / 2)
    y, x = ticks[:, None] - np.float32(0.12) * down, ticks[None, :] - np.float32(0.12) * right
    y, x = cosine * y + sine * x, cosine * x - sine * y
    y, x = y * (1 + np.float32(0.16) * taller), x * (1 + np.float32(0.16) * wider)
    return y, x + np.float32(0.25) * shear * y


def _smooth(knots: Floats) -> Floats:
    """Fields that pass smoothly by their knots, `(…, 25)` to `(…, 28, 28)`."""
    place = np.linspace(0, _KNOTS - 1, SIDE, dtype=np.float32)[:, None]
    near = np.clip(1 - np.abs(place - np.arange(_KNOTS, dtype=np.float32)) / np.float32(1.5), 0, 1)
    weights = near * near * (3 - 2 * near)
    weights = weights / weights.sum(axis=1, keepdims=True)
    grid = knots.reshape(*knots.shape[:-1], _KNOTS, _KNOTS)
    field = sum(grid[..., k, None, :] * weights[:, k, None] for k in range(_KNOTS))
    rows: Floats = np.asarray(field)
    columns = sum(rows[..., k, None] * weights[:, k] for k in range(_KNOTS))
    return np.asarray(columns, dtype=np.float32)


def _sample(shape: Floats, y: Floats, x: Floats) -> Floats:
    """Bilinear look-up at coordinates in [-1, 1]; beyond the edge there is paper."""
    side = shape.shape[0]
    padded = np.pad(shape, 1)
    y, x = (np.clip((t + 1) * np.float32(side / 2) + np.float32(0.5), 0, side) for t in (y, x))
    top, left = y.astype(np.int64), x.astype(np.int64)
    dy, dx = y - top, x - left
    flat, corner = padded.reshape(-1), top * (side + 2) + left
    upper = flat[corner] * (1 - dx) + flat[corner + 1] * dx
    corner += side + 2
    lower = flat[corner] * (1 - dx) + flat[corner + 1] * dx
    return np.asarray(upper * (1 - dy) + lower * dy, dtype=np.float32)
