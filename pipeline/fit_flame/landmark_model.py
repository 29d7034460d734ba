"""The head model cut down to what moves its 70 landmarks, with derivatives.

It is fast enough to fit thousands of faces in seconds. Same head as `model.head.flame.Flame` with the neck at
rest (the camera holds the head rotation). In float64, since second-order steps want the digits; only the
largest array, the derivatives by the coefficients, is float32.
"""

import numpy as np
import torch
from torch import Tensor

from model.head.flame import NECK, SCALE, HeadModel, rotation_matrices
from pipeline.geometry.camera import FOCAL

SHAPES = 300  # coefficients of shape; the other 100 of a head model are expression
MOVING = (2, 3, 4)  # joints that turn: jaw, left eye, right eye
# The parts of a pose, 12 numbers.
ROTATION = slice(0, 3)
JAW = slice(3, 6)
EYES = slice(6, 9)
TRANSLATION = slice(9, 12)
POSE = 12
DIFFERENCE = 1e-5  # of a pose number, for derivatives
# Directions that move the landmarks less than this share of the strongest one tell nothing and are left at
# zero.
NEGLIGIBLE = 1e-2


class LandmarkModel:
    """Projected landmarks as a function of shape, expression and pose.

    Shape and expression are given in a shorter orthonormal basis each (those combinations of the coefficients
    that landmarks can see): coefficients = reduced @ basis.T, so that a sum of squares is the same in both. A
    pose is 12 numbers: rotation of the head (world to camera), jaw and eyes (one for both) as axis-angle in
    radians, translation of the camera in world units.
    """

    def __init__(self, head: HeadModel) -> None:
        corners = head.faces_F3[head.landmark_faces]  # (70, 3)
        corner_weights = head.landmark_weights[..., None]
        skin = corner_weights * head.skin_weights[corners]  # (70, 3, 5)
        rest, moves = _rest_and_moves(head, corners, skin)
        shape_moves = moves[..., :SHAPES]
        expression_moves = moves[..., SHAPES:]
        self.shape_basis = _visible(shape_moves)  # (300, s)
        self.expression_basis = _visible(expression_moves)  # (100, e)
        self.shapes = self.shape_basis.shape[1]
        self.expressions = self.expression_basis.shape[1]
        by_shape = shape_moves @ self.shape_basis
        by_expression = expression_moves @ self.expression_basis
        reduced = np.concatenate([by_shape, by_expression], axis=-1)
        by_landmark = np.ascontiguousarray(reduced.transpose(1, 0, 2, 3))
        flat = by_landmark.reshape(70, 12, -1)
        correctives = _correctives(head, corners, skin)
        self.rest = torch.as_tensor(rest)
        self.moves = torch.as_tensor(flat)  # (70, 4 groups x 3, s + e)
        self.correctives = torch.as_tensor(correctives)  # (4, 70, 3, 27)

    def groups(self, coefficients_FK: Tensor) -> Tensor:
        """The landmarks of each joint group before anything turns, (F, 4, 70, 3)."""
        flat = torch.einsum("lmk,fk->flm", self.moves, coefficients_FK)
        moved = flat.unflatten(2, (4, 3))
        return self.rest + moved.transpose(1, 2)

    def points(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Landmarks in the head's own frame, (F, 70, 3), world units."""
        turns = self._turns(pose_F12)
        identity = torch.eye(3, dtype=turns.dtype)
        features = (turns - identity).flatten(1)  # (F, 27)
        corrected = torch.einsum("glcp,fp->fglc", self.correctives, features)
        groups = groups_FG + corrected
        still = identity.expand(len(turns), 1, 3, 3)
        every_turn = torch.cat([still, turns], 1)
        turned = groups @ every_turn.transpose(2, 3)
        return turned.sum(1)

    def project(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Image fractions (u right, v down) of the landmarks, (F, 70, 2)."""
        seen = self._seen(groups_FG, pose_F12)
        return _perspective(seen)

    def by_coefficients(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Derivatives of the projected landmarks by shape and expression, (F, 70, 2, s + e) float32."""
        # The chain rule from the picture back to the coefficients: camera, head rotation, joints, directions.
        seen = self._seen(groups_FG, pose_F12)
        by_place = _perspective_derivative(seen)  # (F, 70, 2, 3)
        rotation = rotation_matrices(pose_F12[:, None, ROTATION])
        by_turned = by_place @ rotation
        turns = self._turns(pose_F12)
        still = by_turned[:, None]
        moving = still @ turns[:, :, None]
        by_groups = torch.cat([still, moving], 1)  # (F, 4, 70, 2, 3)
        by_landmark = by_groups.permute(2, 0, 3, 1, 4)
        rows = by_landmark.reshape(70, -1, 12).float()
        flat = rows @ self.moves.float()
        by_frame = flat.unflatten(1, (len(pose_F12), 2))
        return by_frame.transpose(0, 1)

    def by_pose(self, groups_FG: Tensor, pose_F12: Tensor) -> tuple[Tensor, Tensor]:
        """Projected landmarks (F, 70, 2) and their derivatives by the pose, (F, 70, 2, 12)."""
        # Central differences are exact to ten digits here, and unlike forward-mode differentiation they may
        # run in several threads.
        directions = torch.eye(POSE, dtype=pose_F12.dtype)
        steps = DIFFERENCE * directions
        slopes = []
        for step in steps:
            forwards = self.project(groups_FG, pose_F12 + step)
            backwards = self.project(groups_FG, pose_F12 - step)
            slopes.append(forwards - backwards)
        changes = torch.stack(slopes, dim=-1)
        derivatives = changes / (2 * DIFFERENCE)
        projected = self.project(groups_FG, pose_F12)
        return projected, derivatives

    def _turns(self, pose_F12: Tensor) -> Tensor:
        """Rotations of jaw, left and right eye, (F, 3, 3, 3)."""
        jaw = pose_F12[:, JAW]
        eyes = pose_F12[:, EYES]
        vectors = torch.stack([jaw, eyes, eyes], dim=1)
        return rotation_matrices(vectors)

    def _seen(self, groups_FG: Tensor, pose_F12: Tensor) -> Tensor:
        """Landmarks in the camera's frame, (F, 70, 3)."""
        rotation = rotation_matrices(pose_F12[:, ROTATION])
        points = self.points(groups_FG, pose_F12)
        turned = points @ rotation.transpose(1, 2)
        return turned + pose_F12[:, None, TRANSLATION]


def _rest_and_moves(
    head: HeadModel,
    corners: np.ndarray,
    skin: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of the mean head (4, 70, 3) and their directions (4, 70, 3, 400), both in joint groups."""
    template = head.template_V3
    directions = head.directions_V3K
    joints = head.joint_regressor @ template
    joint_moves = np.einsum("jv,vck->jck", head.joint_regressor, directions)
    place = np.einsum("lvj,lvc->jlc", skin, template[corners])
    landmark_moves = np.einsum("lvj,lvck->jlck", skin, directions[corners])
    rest = _about_joints(skin, place, joints)
    moves = _about_joints(skin, landmark_moves, joint_moves)
    # Group 0, which stands still, has the origin at the neck.
    still_alone = np.array([1.0, 0, 0, 0])
    origin = SCALE * joints[NECK]
    shift = origin * still_alone.reshape(4, 1, 1)
    return rest - shift, moves


def _about_joints(
    skin: np.ndarray,
    values: np.ndarray,
    at_joints: np.ndarray,
) -> np.ndarray:
    """Landmarks in groups (4, 70, ...): group 0 stands still, the others are turned about their joint.

    A turn is R (x - joint) + joint, and its last term stands still, too. `values` (5, 70, ...) are the
    landmarks as far as they follow each joint, `at_joints` (5, ...) the joints.
    """
    share = skin.sum(1).T  # (5, 70): how much of a landmark follows a joint
    turned = []
    joints = 0
    for j in MOVING:
        ones = [1] * at_joints[j].ndim
        share_j = share[j].reshape(70, *ones)
        joint = share_j * at_joints[j]
        turned.append(values[j] - joint)
        joints = joints + joint
    still = values[0] + values[1]
    still = still + joints
    return SCALE * np.stack([still, *turned])


def _correctives(
    head: HeadModel,
    corners: np.ndarray,
    skin: np.ndarray,
) -> np.ndarray:
    """Pose correctives of the landmarks in their groups, (4, 70, 3, 27)."""
    # Nine entries of each joint's rotation; the neck, which comes first, is at rest.
    by_entry = head.pose_directions.reshape(36, -1, 3)
    vertices = by_entry[9:, corners]
    correctives = np.einsum("lvj,plvc->jlcp", skin, vertices)
    still = correctives[0] + correctives[1]
    groups = [SCALE * still]
    for j in MOVING:
        groups.append(SCALE * correctives[j])
    return np.stack(groups)


def _visible(moves: np.ndarray) -> np.ndarray:
    """An orthonormal basis (K, k) of those coefficient vectors that move landmarks at all.

    `moves` is (..., K).
    """
    coefficients = moves.shape[-1]
    flat = moves.reshape(-1, coefficients)
    _, strengths, rows = np.linalg.svd(flat, full_matrices=False)
    weakest = NEGLIGIBLE * strengths[0]
    seen = strengths > weakest
    return rows[seen].T


def _perspective(seen: Tensor) -> Tensor:
    """(u, v) = 0.5 + f (x, -y) / -z."""
    down = seen.new_tensor([1.0, -1.0])
    across = seen[..., :2]
    flipped = FOCAL * across * down
    depth = -seen[..., 2:]
    return 0.5 + flipped / depth


def _perspective_derivative(seen: Tensor) -> Tensor:
    """Of `_perspective` by x, y and z, (..., 2, 3)."""
    x, y, z = seen.unbind(-1)
    zero = torch.zeros_like(x)
    # u and v by x, y and z.
    square = z**2
    u_by = [-1 / z, zero, x / square]
    v_by = [zero, 1 / z, -y / square]
    entries = torch.stack(u_by + v_by, dim=-1)
    rows = entries.unflatten(-1, (2, 3))
    return FOCAL * rows
