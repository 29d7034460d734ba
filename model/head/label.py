"""A label, the 437 numbers that describe a head in an image (facts 5.4): where each part of it stands.

This is the one statement of that layout. The vectors that are made of parts of a label are in
`pipeline/geometry/label.py`.
"""

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


def join(*parts: Array) -> Array:
    """Parts (..., n) of a vector, one behind the other, of the type that they have."""
    # Labels are arrays on their way through the files and tensors in the networks.
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=-1)
    return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class Label(Generic[Array]):
    """Labels (..., 437), split. The slices say where in a label the field of the same name is."""

    SIZE: ClassVar[int] = 437
    CAMERA: ClassVar[slice] = slice(0, 25)
    SHAPE: ClassVar[slice] = slice(25, 325)
    EXPRESSION: ClassVar[slice] = slice(325, 425)
    NECK: ClassVar[slice] = slice(425, 428)
    JAW: ClassVar[slice] = slice(428, 431)
    EYES: ClassVar[slice] = slice(431, 437)
    # Camera and shape are what GenHead's mapping is told; the rest is what moves from frame to frame.
    CONDITION: ClassVar[slice] = slice(0, 325)
    MOVING: ClassVar[slice] = slice(325, 437)

    camera: Array  # (..., 25): pipeline/geometry/camera.py
    shape: Array  # (..., 300)
    expression: Array  # (..., 100)
    neck: Array  # (..., 3), this and what follows axis-angle in radians
    jaw: Array  # (..., 3)
    eyes: Array  # (..., 6): left, right

    @classmethod
    def split(cls, label: Array) -> "Label[Array]":
        """The parts of labels (..., 437), as views."""
        return cls(
            camera=label[..., cls.CAMERA],
            shape=label[..., cls.SHAPE],
            expression=label[..., cls.EXPRESSION],
            neck=label[..., cls.NECK],
            jaw=label[..., cls.JAW],
            eyes=label[..., cls.EYES],
        )

    def pack(self) -> Array:
        """The labels (..., 437) of these parts, of the widest type among them."""
        return join(self.camera, self.shape, self.expression, self.neck, self.jaw, self.eyes)
