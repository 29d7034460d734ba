"""The vectors of numbers that describe a head (facts 5.4), and where they put its landmarks.

`Label` has 437 numbers; its layout is in `model/head/label.py`, as GenHead needs it, too. Three vectors are
made of its parts: `Motion` (109) drives Psi, `FaceParameters` (106) are what moves a face in its own frame,
and `Estimate` (109) is what the regressor reads from a picture. Two of them have 109 numbers and differ in
the last six.
"""

from dataclasses import dataclass
from typing import ClassVar, Generic

import numpy as np
import torch
from torch import Tensor

from model.head.flame import Flame
from model.head.label import Array, Label, join
from pipeline.geometry import camera
from pipeline.geometry.rotations import rotation_vectors

MOVING = [*range(17, 27), *range(36, 70)]  # landmarks: brows, eyes, lips, pupils
REACH = 0.03  # of the image's width: the deviation of a landmark's neighbourhood
# Pupils, nose tip and mouth corners are what the identity crop is aligned to (facts 4.2).
FIVE_POINTS = (68, 69, 30, 48, 54)


@dataclass(frozen=True)
class Motion(Generic[Array]):
    """What drives Psi when `train.motion` is `flame`: 109 numbers without a head pose (facts 1)."""

    SIZE: ClassVar[int] = 109

    expression: Array  # (..., 100)
    jaw: Array  # (..., 3), axis-angle in radians, as the eyes
    eyes: Array  # (..., 6): left, right

    @classmethod
    def of(cls, label: Array) -> "Motion[Array]":
        """Of labels (..., 437)."""
        parts = Label.split(label)
        return cls(parts.expression, parts.jaw, parts.eyes)

    def pack(self) -> Array:
        """(..., 109)."""
        return join(self.expression, self.jaw, self.eyes)


@dataclass(frozen=True)
class FaceParameters(Generic[Array]):
    """What moves a face in its own frame, 106 numbers.

    The eyes turn alike, as in the paper's 9 pose numbers.
    """

    SIZE: ClassVar[int] = 106
    EXPRESSION: ClassVar[slice] = slice(0, 100)
    JAW: ClassVar[slice] = slice(100, 103)
    EYE: ClassVar[slice] = slice(103, 106)

    expression: Array  # (..., 100)
    jaw: Array  # (..., 3), axis-angle in radians, as the eye
    eye: Array  # (..., 3)

    @classmethod
    def of(cls, label: Array) -> "FaceParameters[Array]":
        """Of labels (..., 437): the eye is their left one, which the fit turns as the right one."""
        parts = Label.split(label)
        return cls(parts.expression, parts.jaw, parts.eyes[..., :3])

    @classmethod
    def split(cls, parameters: Array) -> "FaceParameters[Array]":
        """The parts of (..., 106)."""
        return cls(
            expression=parameters[..., cls.EXPRESSION],
            jaw=parameters[..., cls.JAW],
            eye=parameters[..., cls.EYE],
        )

    def pack(self) -> Array:
        """(..., 106)."""
        return join(self.expression, self.jaw, self.eye)


@dataclass(frozen=True)
class Estimate(Generic[Array]):
    """What `Regressor` reads from a picture, 109 numbers."""

    SIZE: ClassVar[int] = 109
    FACE: ClassVar[slice] = slice(0, FaceParameters.SIZE)
    EXPRESSION: ClassVar[slice] = FaceParameters.EXPRESSION
    JAW: ClassVar[slice] = FaceParameters.JAW
    EYE: ClassVar[slice] = FaceParameters.EYE
    ROTATION: ClassVar[slice] = slice(106, 109)

    face: FaceParameters[Array]
    rotation: Array  # (..., 3): of the head, that of the world-to-camera matrix, axis-angle in radians

    @classmethod
    def of(cls, label_N437: np.ndarray) -> "Estimate[np.ndarray]":
        """Of labels (N, 437)."""
        face = FaceParameters.of(label_N437)
        # The transpose of a rotation is its inverse.
        world2cam = camera.rotation(label_N437).transpose(0, 2, 1)
        return Estimate(face, rotation_vectors(world2cam))

    def pack(self) -> Array:
        """(..., 109)."""
        return join(self.face.pack(), self.rotation)


def project_batch(points_BN3: Tensor, camera_B25: Tensor) -> Tensor:
    """World points to image fractions (u right, v down), shape (B, N, 2); `camera.project` for batches."""
    cam2world = camera_B25[:, :16].reshape(-1, 4, 4)
    intrinsics = camera_B25[:, 16:].reshape(-1, 3, 3)
    centre = cam2world[:, None, :3, 3]
    local = (points_BN3 - centre) @ cam2world[:, :3, :3]
    # The camera looks along -z with y up, an image has v down: both change sign.
    flipped = local * local.new_tensor([1.0, -1.0, -1.0])
    image = flipped @ intrinsics.transpose(1, 2)
    return image[..., :2] / image[..., 2:]


def head_vertices(flame: Flame, label_BL: Tensor) -> Tensor:
    """The vertices of labelled heads in their own frame, (B, V, 3) in world units.

    The neck is at rest, as the camera holds the rotation of the head.
    """
    parts = Label.split(label_BL)
    neck = torch.zeros_like(parts.neck)
    pose = torch.cat([neck, parts.jaw], dim=1)
    return flame.vertices(parts.shape, parts.expression, pose, parts.eyes)


def landmarks(flame: Flame, label_BL: Tensor, camera_BV25: Tensor) -> Tensor:
    """The 70 landmarks of labelled heads seen by each camera, image fractions, (B, V, 70, 2)."""
    vertices = head_vertices(flame, label_BL)
    points = flame.landmarks(vertices)
    heads, views = camera_BV25.shape[:2]
    of_each_view = points.repeat_interleave(views, 0)
    cameras = camera_BV25.reshape(-1, 25)
    flat = project_batch(of_each_view, cameras)
    return flat.reshape(heads, views, *flat.shape[1:])


def moving_parts(points_B702: Tensor, size: int) -> Tensor:
    """Where a face moves, (B, 1, size, size) in [0, 1].

    That is about the landmarks (fractions) of brows, eyes, mouth and pupils.
    """
    pixels = torch.arange(size, device=points_B702.device)
    centres = (pixels + 0.5) / size
    moving = points_B702[:, MOVING]
    # Axis by axis, (B, 44, 2, size): the exponent of a pixel is the sum of those of its column and its row.
    offset = (centres - moving[..., None]) / REACH
    across, down = (-0.5 * offset.square()).unbind(2)
    # The largest exponent first, so that there is one exponential a pixel.
    exponents = down[..., :, None] + across[..., None, :]
    return exponents.amax(1, keepdim=True).exp()
