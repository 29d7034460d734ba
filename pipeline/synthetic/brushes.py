"""What the painters share: points to paint and their coats, and soft shapes on the surface."""

from dataclasses import dataclass

import numpy as np

from pipeline.geometry.curves import smoothstep

Array = np.ndarray


@dataclass
class Surfel:
    """Visible points of one material."""

    paint: Array  # (N, 3) float32
    normal: Array  # (N, 3)
    lip: Array  # (N,)
    lid: Array
    pixel: float  # size of one in world units


@dataclass
class Coat:
    """Albedo (N, 3), occlusion (N,) in [0, 1], strength and sharpness of the highlight."""

    albedo: Array
    occlusion: Array
    gloss: Array | float
    sharpness: float


def smooth(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high` (or the other way round), smooth between."""
    # One product a point: a division takes longer, and there are dozens of steps for each visible point.
    steepness = 1.0 / (high - low)
    return smoothstep((x - low) * steepness)


def ridge(x: Array, middle: Array | float, width: float) -> Array:
    """1 where x is `middle`, falling to both sides."""
    offset = (x - middle) / width
    return np.exp(-(offset**2))


def blob(
    x: Array,
    y: Array,
    cx: float,
    cy: float,
    wx: float,
    wy: float,
) -> Array:
    """1 at (cx, cy), falling around it."""
    across = (x - cx) / wx
    along = (y - cy) / wy
    return np.exp(-(across**2) - along**2)


def tint(colour: Array, amount: Array) -> Array:
    """A `colour` (3,) in the amounts (N,): (N, 3)."""
    return colour.astype(np.float32) * amount[:, None]


def mix(colour: Array, other: Array | tuple, amount: Array) -> Array:
    """`colour` (N, 3) with an `amount` (N,) of another colour."""
    missing = np.asarray(other, np.float32) - colour
    return colour + amount[:, None] * missing


def absorb(colour: Array, taken: Array | tuple, amount: Array) -> Array:
    """`colour` (N, 3) less an `amount` (N,) of the shares of red, green and blue that are `taken`."""
    shares = amount[:, None] * np.asarray(taken, np.float32)
    return colour * (1 - shares)


def noise(x: Array, y: Array, phase: Array) -> Array:
    """Cheap smooth noise in about [-1, 1]: two waves that bend each other."""
    # Without the bends the two waves would be seen as a grid.
    bend_x = np.sin(0.7 * y + phase[0])
    bend_y = np.sin(0.8 * x + phase[2])
    first = np.sin(x + 1.7 * bend_x + phase[1])
    second = np.sin(1.1 * y + 1.3 * bend_y + phase[3])
    return first * second
