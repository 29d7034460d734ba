"""Steps from 0 to 1."""

import numpy as np


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and 3 x^2 - 2 x^3 between: level at both ends."""
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def step_between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    return smoothstep((x - low) / (high - low))


def ramp(x: np.ndarray | float, start: float, width: float) -> np.ndarray:
    """0 below `start`, 1 above `start + width`, straight between."""
    return np.clip((x - start) / width, 0, 1)
