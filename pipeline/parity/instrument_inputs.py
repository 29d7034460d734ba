"""What the fixtures of the instruments are made of beside `numbers`: pictures of bytes, pairs, sound.

tests/published/instruments/README.md is the definition.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.parity.numbers import NumberRule

PHOTO = 512
ROWS = 448  # of the photo


def pair(
    rule: NumberRule,
    name: str,
    size: int,
) -> Tensor:
    """Two pictures in [0, 1] that differ in contents and contrast, (2, 3, size, size)."""
    first = 0.5 + 0.5 * rule.image(name, size)
    second = 0.3 + 0.2 * rule.image(f"{name}b", size)
    return torch.cat([first, second]).clamp(0, 1)


def picture(
    rule: NumberRule,
    name: str,
    size: int,
) -> np.ndarray:
    """A picture of bytes, uint8 RGB (size, size, 3)."""
    image = rule.image(name, size)[0].double()
    levels = (127.5 * (image + 1) + 0.5).floor().clamp(0, 255)
    return levels.byte().permute(1, 2, 0).numpy()


def photo(rule: NumberRule, name: str = "photo") -> np.ndarray:
    """A picture that is wider than high, uint8 RGB (448, 512, 3)."""
    return picture(rule, name, PHOTO)[:ROWS]


def sound(rule: NumberRule, count: int) -> np.ndarray:
    """A tone that rises, with noise: int16 (count,) at 16 kHz."""
    i = np.arange(count)
    seconds = i / 16000
    tone = np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    noise = rule.unit("input:audio", (count,)).astype(np.float64)
    return (8000 * tone + 1500 * noise).round().astype(np.int16)
