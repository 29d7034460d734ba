"""The neck: how much of a head's turn is the camera's, and how much turns the head on its shoulders.

A fitted camera holds the whole rotation of the head, so that shoulders turn with it. Here the camera keeps
the mean rotation of the clip, and the rest turns the neck (facts 4.7). Rays then meet the posed head, and
FLAME's surface field takes their points to the head with its neck at rest, which the planes hold (facts 2.7).
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.head.deform import BOX, COARSE, FINE, NeckField
from model.head.flame import NECK, Flame, rotation_matrices
from model.head.label import Label
from model.head.vectors import turned
from pipeline.geometry import camera

# Fields are kept on the CPU, where making one takes 0.15 seconds and a small data set asks for the same ones
# again and again; 120 kB each.
REMEMBERED = 2048


@contextlib.contextmanager
def _whole_products() -> Iterator[None]:
    """Matrices are multiplied in float32: the short factors of tf32 would put heads a millimetre aside."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


class Posed(NamedTuple):
    """Cameras that see heads on their shoulders, and what takes points there to the head at rest, or back.

    The field is None where the camera holds all of the head's turn.
    """

    camera: Tensor  # (..., 25)
    field: NeckField | None


def clip_rotation(rotations_F33: np.ndarray) -> np.ndarray:
    """The camera's share (3, 3) of the head's rotations, world to camera, in a clip.

    It has the mean yaw and the mean roll of extrinsic x, y, z angles, and no pitch (facts 4.7).
    """
    angles = Rotation.from_matrix(rotations_F33).as_euler("xyz")
    _, yaw, roll = angles.mean(0)
    return Rotation.from_euler("xyz", [0.0, yaw, roll]).as_matrix()


def clip_necks(cameras_F25: np.ndarray) -> np.ndarray:
    """The rotations of the neck (F, 3), axis-angle in radians, float32, that the cameras of a clip leave.

    With the clip's rotation R_c a head turned by R has its neck turned by R_c^T R.
    """
    world2cam = np.swapaxes(camera.rotation(cameras_F25), -1, -2).astype(np.float64)
    necks = clip_rotation(world2cam).T @ world2cam
    return Rotation.from_matrix(necks).as_rotvec().astype(np.float32)


def with_necks(labels_F437: np.ndarray) -> np.ndarray:
    """The labels of the frames of a clip, whose necks have what the clip's rotation leaves of the head's."""
    labels = labels_F437.copy()
    labels[:, Label.NECK] = clip_necks(labels[:, Label.CAMERA])
    return labels


class Neck:
    """Necks that never turn: the cameras hold all of it."""

    def driven(self, cameras_BV25: Tensor, label_B437: Tensor) -> Posed:
        """Cameras that are given in the frame of each head, and the field from there to the head at rest."""
        return Posed(cameras_BV25, None)

    def source(self, camera_B25: Tensor, label_B437: Tensor) -> Posed:
        """The camera of each portrait, and the field from the head at rest to the one that it shows."""
        return Posed(camera_B25, None)


class TurningNeck(Neck):
    """Necks that turn as their labels say, on shoulders that stay."""

    def __init__(self, flame: Flame) -> None:
        self.flame = flame
        self.known: OrderedDict[tuple[bytes, bool], tuple[Tensor, Tensor]] = OrderedDict()

    def driven(self, cameras_BV25: Tensor, label_B437: Tensor) -> Posed:
        return Posed(self.decomposed(cameras_BV25, label_B437), self.field(label_B437))

    def source(self, camera_B25: Tensor, label_B437: Tensor) -> Posed:
        camera_B125 = self.decomposed(camera_B25[:, None], label_B437)
        return Posed(camera_B125[:, 0], self.field(label_B437, posing=True))

    @torch.no_grad()
    @_whole_products()
    def decomposed(self, cameras_BV25: Tensor, label_B437: Tensor) -> Tensor:
        """The cameras without the turn of the neck: `decompose_camera_pose` of facts 2.8.

        World to camera, R becomes R R_neck^T, and the neck joint stays where the camera sees it. That is to
        turn the camera about the joint as the neck turns the head.
        """
        parts = Label.split(label_B437)
        turn_B133 = rotation_matrices(parts.neck)[:, None]
        joint_B13 = self._joint(parts)[:, None]
        cam2world_BV44 = cameras_BV25[..., :16].unflatten(-1, (4, 4)).clone()
        place_BV3 = cam2world_BV44[..., :3, 3]
        cam2world_BV44[..., :3, 3] = joint_B13 + turned(turn_B133, place_BV3 - joint_B13)
        cam2world_BV44[..., :3, :3] = turn_B133 @ cam2world_BV44[..., :3, :3]
        return torch.cat([cam2world_BV44.flatten(-2), cameras_BV25[..., 16:]], dim=-1)

    @torch.no_grad()
    @_whole_products()
    def field(self, label_B437: Tensor, posing: bool = False) -> NeckField:
        """From the posed heads to those with the neck at rest, or, `posing`, the way back."""
        # A GPU makes the fields of a batch faster than it could be asked which ones are known.
        if label_B437.device.type != "cpu":
            return self._between(label_B437, posing)
        found = [self._remembered(label_1437, posing) for label_1437 in label_B437.split(1)]
        fine, coarse = zip(*found, strict=True)
        return NeckField.of_grids(torch.cat(fine).float(), torch.cat(coarse).float())

    def _remembered(self, label_1437: Tensor, posing: bool) -> tuple[Tensor, Tensor]:
        """The grids of the field of one head, in half precision: 0.0001 world units."""
        parts = Label.split(label_1437)
        # A neck at rest moves nothing.
        if not parts.neck.any():
            fine = torch.zeros(1, 4, FINE, FINE, FINE, dtype=torch.half)
            coarse = torch.zeros(1, 3, COARSE, COARSE, COARSE, dtype=torch.half)
            return fine, coarse
        key = (label_1437[:, Label.SHAPE.start :].numpy().tobytes(), posing)
        if key not in self.known:
            field = self._between(label_1437, posing)
            self.known[key] = field.fine.half(), field.coarse.half()
            if len(self.known) > REMEMBERED:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]

    def _between(self, label_B437: Tensor, posing: bool) -> NeckField:
        parts = Label.split(label_B437)
        posed = self._mesh(parts, parts.neck)
        resting = self._mesh(parts, torch.zeros_like(parts.neck))
        first, last = (resting, posed) if posing else (posed, resting)
        return NeckField.between(first, last, self.flame.simple_faces, BOX)

    def _mesh(self, parts: Label[Tensor], neck_B3: Tensor) -> Tensor:
        """Vertices (B, N, 3) of the simplified mesh."""
        pose = torch.cat([neck_B3, parts.jaw], dim=1)
        vertices = self.flame.vertices(parts.shape, parts.expression, pose, parts.eyes)
        return self.flame.simplified(vertices)

    def _joint(self, parts: Label[Tensor]) -> Tensor:
        """Where the joint is that the neck turns about, (B, 3), world units."""
        pose = torch.cat([parts.neck, parts.jaw], dim=1)
        joints = self.flame.joints(parts.shape, parts.expression, pose, parts.eyes)
        return joints[:, NECK]
