"""The head model cut down to what moves its 70 landmarks, with derivatives: fast enough to fit thousands of faces in seconds.

Same head as `model.head.flame.Flame` with the neck at rest (the camera holds the head rotation). In float64, since second-order steps want the
digits; only the largest array, the derivatives by the coefficients, is float32.
"""

import numpy as np
import torch
from torch import Tensor

from model.head.flame import NECK, SCALE, HeadModel, rotation_matrices
from pipeline.geometry.camera import FOCAL

SHAPES = 300  # coefficients of shape; the other 100 of a head model are expression
MOVING = (2, 3, 4)  # joints that turn: jaw, left eye, right eye
ROTATION, JAW, EYES, TRANSLATION = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)  # the parts of a pose
POSE = 12
DIFFERENCE = 1e-5  # of a pose number, for derivatives
NEGLIGIBLE = 1e-2  # directions that move the landmarks less than this share of the strongest one tell nothing and are left at zero


class LandmarkModel:
    """Projected landmarks as a function of shape, expression and pose.

    Shape and expression are given in a shorter orthonormal basis each (those combinations of the coefficients that landmarks can see):
    coefficients = reduced @ basis.T, so that a sum of squares is the same in both. A pose is 12 numbers: rotation of the head (world to
    camera), jaw and eyes (one for both) as axis-angle in radians, translation of the camera in world units.
    """

    def __init__(self, head: HeadModel) -> None:
        corners = head.faces_F3[head.landmark_faces]  # (70, 3)
        weights = head.landmark_weights
        skin = weights[..., None] * head.skin_weights[corners]  # (70, 3, 5)
        share = skin.sum(1).T[..., None]  # (5, 70, 1): how much of a landmark follows a joint
        place = np.einsum("lvj,lvc->jlc", skin, head.template_V3[corners])
        directions = np.einsum("lvj,lvck->jlck", skin, head.directions_V3K[corners])
        correctives = head.pose_directions.reshape(36, -1, 3)[
            9:, corners
        ]  # the neck, which comes first, is at rest
        correctives = np.einsum("lvj,plvc->jlcp", skin, correctives)
        joints = head.joint_regressor @ head.template_V3
        joint_directions = np.einsum("jv,vck->jck", head.joint_regressor, head.directions_V3K)

        def about_joints(values: np.ndarray, at_joints: np.ndarray) -> np.ndarray:
            """Group 0 stands still; the others are turned about their joint: R (x - joint) + joint, whose last term stands still too."""
            turned = [
                values[j] - share[j].reshape(70, *[1] * at_joints[j].ndim) * at_joints[j] for j in MOVING
            ]
            still = (
                values[0]
                + values[1]
                + sum(share[j].reshape(70, *[1] * at_joints[j].ndim) * at_joints[j] for j in MOVING)
            )
            return SCALE * np.stack([still, *turned])

        rest = about_joints(place, joints) - SCALE * joints[NECK] * np.array([1.0, 0, 0, 0]).reshape(4, 1, 1)
        moves = about_joints(directions, joint_directions)  # (4, 70, 3, 400)
        self.shape_basis = _visible(moves[..., :SHAPES])  # (300, s)
        self.expression_basis = _visible(moves[..., SHAPES:])  # (100, e)
        self.shapes, self.expressions = self.shape_basis.shape[1], self.expression_basis.shape[1]
        reduced = np.concatenate(
            [moves[..., :SHAPES] @ self.shape_basis, moves[..., SHAPES:] @ self.expression_basis], axis=-1
        )
        self.rest = torch.as_tensor(rest)
        self.moves = torch.as_tensor(
            np.ascontiguousarray(reduced.transpose(1, 0, 2, 3)).reshape(70, 12, -1)
        )  # (70, 4 groups x 3, s + e)
        still = SCALE * (correctives[0] + correctives[1])
        self.correctives = torch.as_tensor(
            np.stack([still, *(SCALE * correctives[j] for j in MOVING)])
        )  # (4, 70, 3, 27)

    def groups(self, coefficients_FK: Tensor) -> Tensor:
        """The landmarks of each joint group before anything turns, (F, 4, 70, 3)."""
        moved = torch.einsum("lmk,fk->flm", self.moves, coefficients_FK).unflatten(2, (4, 3))
        return self.rest + moved.transpose(1, 2)

    def points(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Landmarks in the head's own frame, (F, 70, 3), world units."""
        turns = self._turns(pose_F12)
        identity = torch.eye(3, dtype=turns.dtype)
        still = identity.expand(len(turns), 1, 3, 3)
        features = (turns - identity).flatten(1)  # (F, 27)
        groups = groups_FG + torch.einsum("glcp,fp->fglc", self.correctives, features)
        return (groups @ torch.cat([still, turns], 1).transpose(2, 3)).sum(1)

    def _turns(self, pose_F12: Tensor) -> Tensor:
        """Rotations of jaw, left and right eye, (F, 3, 3, 3)."""
        return rotation_matrices(torch.stack([pose_F12[:, JAW], pose_F12[:, EYES], pose_F12[:, EYES]], dim=1))

    def project(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Image fractions (u right, v down) of the landmarks, (F, 70, 2)."""
        return _perspective(self._seen(groups_FG, pose_F12))

    def _seen(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Landmarks in the camera's frame, (F, 70, 3)."""
        rotation = rotation_matrices(pose_F12[:, ROTATION])
        return self.points(groups_FG, pose_F12) @ rotation.transpose(1, 2) + pose_F12[:, None, TRANSLATION]

    def by_coefficients(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Derivatives of the projected landmarks by shape and expression, (F, 70, 2, s + e) float32."""
        by_place = _perspective_derivative(self._seen(groups_FG, pose_F12))  # (F, 70, 2, 3)
        by_turned = by_place @ rotation_matrices(pose_F12[:, None, ROTATION])
        turned = torch.cat(
            [by_turned[:, None], by_turned[:, None] @ self._turns(pose_F12)[:, :, None]], 1
        )  # (F, 4, 70, 2, 3)
        by_groups = turned.permute(2, 0, 3, 1, 4).reshape(70, -1, 12).float()
        return (by_groups @ self.moves.float()).unflatten(1, (len(pose_F12), 2)).transpose(0, 1)

    def by_pose(self, groups_FG: Tensor, pose_F12: Tensor) -> tuple[Tensor, Tensor]:
        """Projected landmarks (F, 70, 2) and their derivatives by the pose, (F, 70, 2, 12)."""
        # Central differences: exact to ten digits here, and unlike forward-mode differentiation they may run in several threads.
        steps = DIFFERENCE * torch.eye(POSE, dtype=pose_F12.dtype)
        slopes = [
            self.project(groups_FG, pose_F12 + step) - self.project(groups_FG, pose_F12 - step)
            for step in steps
        ]
        return self.project(groups_FG, pose_F12), torch.stack(slopes, dim=-1) / (2 * DIFFERENCE)


def _visible(moves: np.ndarray) -> np.ndarray:
    """An orthonormal basis (K, k) of those coefficient vectors that move landmarks at all; `moves` is (..., K)."""
    _, strengths, rows = np.linalg.svd(moves.reshape(-1, moves.shape[-1]), full_matrices=False)
    return rows[strengths > NEGLIGIBLE * strengths[0]].T


def _perspective(seen: Tensor) -> Tensor:
    return 0.5 + FOCAL * seen[..., :2] * seen.new_tensor([1.0, -1.0]) / -seen[..., 2:]


def _perspective_derivative(seen: Tensor) -> Tensor:
    x, y, z = seen.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([-1 / z, zero, x / z**2, zero, 1 / z, -y / z**2], dim=-1)
    return FOCAL * rows.unflatten(-1, (2, 3))
