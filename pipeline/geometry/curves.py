"""Steps from 0 to 1, and the angles of a circle."""

import numpy as np


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and 3 x^2 - 2 x^3 between: level at both ends."""
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def step_between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    share = (x - low) / (high - low)
    return smoothstep(share)


def ramp(x: np.ndarray | float, start: float, width: float) -> np.ndarray:
    """0 below `start`, 1 above `start + width`, straight between."""
    return np.clip((x - start) / width, 0, 1)


def circle(count: int) -> np.ndarray:
    """Angles (count,), radians, evenly spread over one turn from 0."""
    return 2 * np.pi * np.arange(count) / count
