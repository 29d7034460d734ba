"""The head model: FLAME, or a stand-in of the same format (paper section 3.2, facts 2.1, 2.7, 2.8).

A head is a template mesh plus linear shape and expression directions, linear pose correctives and linear
blend skinning over five joints. World units are model metres times 3; the origin is the neck joint of the
canonical head (shape 0, expression 0, jaw open by 0.3 rad).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.head.vectors import square_length, turned

SCALE = 3.0  # world units a metre
NECK = 1  # index of the neck joint
# Radians about x: the canonical head has its mouth open, so that the lips are two surfaces.
CANONICAL_JAW = 0.3
SHAPES, EXPRESSIONS = 300, 100  # linear directions
JOINTS = 5
PARENTS = (-1, 0, 1, 1, 1)  # of root, neck, jaw, left eye, right eye
REGIONS = ("face", "eyes", "left_eye", "right_eye", "lips", "eyelids", "neck")


@dataclass(frozen=True)
class HeadModel:
    """The arrays of a head model (numpy).

    V vertices, F faces, K = 400 directions, N and M vertices and faces of the simplified mesh. Raises
    ValueError when shapes do not fit together or an index points outside.
    """

    name: str
    template_V3: np.ndarray  # metres
    directions_V3K: np.ndarray  # metres a unit coefficient; 300 of shape, then 100 of expression
    # (36, V*3): correctives, linear in (rotation - identity) of the four joints after the root.
    pose_directions: np.ndarray
    joint_regressor: np.ndarray  # (5, V)
    skin_weights: np.ndarray  # (V, 5), rows sum to one
    parents: np.ndarray  # (5,): PARENTS
    faces_F3: np.ndarray
    landmark_faces: np.ndarray  # (70,): the 68 points of iBUG, then the two pupils, on the surface
    landmark_weights: np.ndarray  # (70, 3) barycentric
    regions: dict[str, np.ndarray]  # vertex indices of each of REGIONS; face = all that is not eyeball
    # (N, 3) each: three vertices of the mesh and their weights make one of the simplified mesh.
    simple_vertices: np.ndarray
    simple_weights: np.ndarray
    simple_faces: np.ndarray  # (M, 3)
    neighbours: np.ndarray  # (V, 10) vertices of the same region close by, itself included; padded with V

    def __post_init__(self) -> None:
        vertices = len(self.template_V3)
        faces = len(self.faces_F3)
        simple_vertices = len(self.simple_vertices)
        simple_faces = len(self.simple_faces)
        shapes = {
            "template_V3": (vertices, 3),
            "directions_V3K": (vertices, 3, SHAPES + EXPRESSIONS),
            "pose_directions": (36, vertices * 3),
            "joint_regressor": (JOINTS, vertices),
            "skin_weights": (vertices, JOINTS),
            "parents": (JOINTS,),
            "faces_F3": (faces, 3),
            "landmark_faces": (70,),
            "landmark_weights": (70, 3),
            "simple_vertices": (simple_vertices, 3),
            "simple_weights": (simple_vertices, 3),
            "simple_faces": (simple_faces, 3),
            "neighbours": (vertices, 10),
        }
        for key, shape in shapes.items():
            found = getattr(self, key).shape
            if found != shape:
                raise ValueError(f"head model '{self.name}': {key} has shape {found}, expected {shape}")
        missing = [key for key in REGIONS if key not in self.regions]
        if missing:
            regions = ", ".join(missing)
            raise ValueError(f"head model '{self.name}': no vertices are given for the region(s) {regions}")
        limits = {
            "faces_F3": vertices,
            "landmark_faces": faces,
            "simple_vertices": vertices,
            "neighbours": vertices + 1,
            "simple_faces": simple_vertices,
        }
        for key, limit in limits.items():
            self._check_indices(key, getattr(self, key), limit)
        for key in REGIONS:
            self._check_indices(f"region '{key}'", self.regions[key], vertices)
        parents = self.parents.tolist()
        if parents != list(PARENTS):
            wanted = " ".join(map(str, PARENTS))
            raise ValueError(
                f"head model '{self.name}': the joints must have the parents {wanted}, not {parents}"
            )

    def _check_indices(
        self,
        what: str,
        indices: np.ndarray,
        limit: int,
    ) -> None:
        if not within(indices, limit):
            raise ValueError(
                f"head model '{self.name}': {what} is empty or has an index outside 0..{limit - 1}"
            )


def within(indices: np.ndarray, limit: int) -> bool:
    """Whether there are indices, all from 0 to below `limit`."""
    return indices.size > 0 and indices.min() >= 0 and indices.max() < limit


def rotation_matrices(axis_angle_X3: Tensor) -> Tensor:
    """Axis-angle vectors (..., 3) in radians to rotation matrices (..., 3, 3); differentiable, also at zero.

    Rodrigues: R = 1 + sin(t) / t K + (1 - cos(t)) / t^2 K^2, K being the cross product with the vector and t
    its length. Both fractions are written as sinc, which knows its limit at 0 and cancels nothing.
    """
    angle = (square_length(axis_angle_X3) + 1e-20).sqrt()
    angle = angle[..., None, None]
    x, y, z = axis_angle_X3.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    cross = rows.unflatten(-1, (3, 3))
    first = torch.sinc(angle / torch.pi)
    # (1 - cos(t)) / t^2 = 1/2 (sin(t / 2) / (t / 2))^2
    half = torch.sinc(angle / (2 * torch.pi))
    second = 0.5 * half.square()
    identity = torch.eye(3, dtype=cross.dtype, device=cross.device)
    return identity + first * cross + second * (cross @ cross)


class Flame(nn.Module):
    """A head model as a differentiable function of its parameters.

    It holds no trainable weight and adds nothing to a state dict.
    """

    def __init__(self, head_model: HeadModel):
        super().__init__()
        self.head = head_model

        def constant(
            name: str,
            array: np.ndarray,
            dtype: torch.dtype,
        ) -> None:
            value = torch.tensor(np.ascontiguousarray(array), dtype=dtype)
            self.register_buffer(name, value, persistent=False)

        count = len(head_model.template_V3)
        directions = SHAPES + EXPRESSIONS
        directions_KV3 = np.moveaxis(head_model.directions_V3K, 2, 0)
        constant("template_V3", head_model.template_V3, torch.float32)
        constant("directions_KX", directions_KV3.reshape(directions, count * 3), torch.float32)
        constant("pose_directions", head_model.pose_directions, torch.float32)
        constant("skin_weights", head_model.skin_weights, torch.float32)
        # The joints are linear in the coefficients: folding the regressor into the directions saves a product
        # with all vertices.
        joints_53 = head_model.joint_regressor @ head_model.template_V3
        joints_KJ3 = np.einsum("jv,kvc->kjc", head_model.joint_regressor, directions_KV3)
        constant("joints_53", joints_53, torch.float32)
        constant("joint_directions", joints_KJ3.reshape(directions, JOINTS * 3), torch.float32)
        constant("origin_3", joints_53[NECK], torch.float32)
        constant("faces", head_model.faces_F3, torch.int64)
        constant("landmark_vertices", head_model.faces_F3[head_model.landmark_faces], torch.int64)
        constant("landmark_weights", head_model.landmark_weights, torch.float32)
        constant("simple_vertices", head_model.simple_vertices, torch.int64)
        constant("simple_weights", head_model.simple_weights, torch.float32)
        constant("simple_faces", head_model.simple_faces, torch.int64)

    def _transforms(
        self,
        coefficients_BK: Tensor,
        pose_B6: Tensor,
        eyes_B6: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotations of the joints (B, 5, 3, 3), resting joints (B, 5, 3), posed joint-to-world (B, 5, 3, 4).

        Lengths are metres. Each joint is turned and placed by its parent.
        """
        batch = len(coefficients_BK)
        moved_BX = coefficients_BK @ self.joint_directions
        resting_BJ3 = self.joints_53 + moved_BX.view(batch, JOINTS, 3)
        # FLAME's global rotation is always 0: the cameras hold how the head is turned (facts 2.7).
        root_B3 = torch.zeros_like(pose_B6[:, :3])
        angles_BX = torch.cat([root_B3, pose_B6, eyes_B6], dim=1)
        rotations_BJ33 = rotation_matrices(angles_BX.view(batch, JOINTS, 3))
        turns = [rotations_BJ33[:, 0]]
        places = [resting_BJ3[:, 0]]
        for joint, parent in enumerate(PARENTS[1:], start=1):
            offset_B3 = resting_BJ3[:, joint] - resting_BJ3[:, parent]
            turn_B33 = turns[parent]
            place_B3 = places[parent] + turned(turn_B33, offset_B3)
            places.append(place_B3)
            turns.append(turn_B33 @ rotations_BJ33[:, joint])
        turned_BJ33 = torch.stack(turns, 1)
        placed_BJ3 = torch.stack(places, 1)
        transforms_BJ34 = torch.cat([turned_BJ33, placed_BJ3[..., None]], dim=-1)
        return rotations_BJ33, resting_BJ3, transforms_BJ34

    def vertices(
        self,
        shape_B300: Tensor,
        expression_B100: Tensor,
        pose_B6: Tensor,
        eyes_B6: Tensor,
    ) -> Tensor:
        """Vertices (B, V, 3) in world units. Differentiable.

        `pose_B6`: neck, jaw; `eyes_B6`: left, right; axis-angle in radians.
        """
        coefficients_BK = torch.cat([shape_B300, expression_B100], dim=1)
        batch = len(coefficients_BK)
        rotations_BJ33, resting_BJ3, transforms_BJ34 = self._transforms(coefficients_BK, pose_B6, eyes_B6)

        identity_33 = torch.eye(3, device=rotations_BJ33.device)
        correctives_B36 = (rotations_BJ33[:, 1:] - identity_33).reshape(batch, 36)
        moved_BX = coefficients_BK @ self.directions_KX + correctives_B36 @ self.pose_directions
        unposed_BV3 = self.template_V3 + moved_BX.view(batch, -1, 3)

        # The skin is turned about the resting joint: x -> turn (x - rest) + place.
        turn_BJ33 = transforms_BJ34[..., :3]
        place_BJ3 = transforms_BJ34[..., 3]
        place_BJ3 = place_BJ3 - turned(turn_BJ33, resting_BJ3)
        joint_BJ34 = torch.cat([turn_BJ33, place_BJ3[..., None]], dim=-1)
        skin_BVX = self.skin_weights @ joint_BJ34.view(batch, JOINTS, 12)
        skin_BV34 = skin_BVX.view(batch, -1, 3, 4)
        turn_BV33 = skin_BV34[..., :3]
        place_BV3 = skin_BV34[..., 3]
        posed_BV3 = turned(turn_BV33, unposed_BV3) + place_BV3
        return (posed_BV3 - self.origin_3) * SCALE

    def joints(
        self,
        shape_B300: Tensor,
        expression_B100: Tensor,
        pose_B6: Tensor,
        eyes_B6: Tensor,
    ) -> Tensor:
        """Posed joints (B, 5, 3) in world units: root, neck, jaw, left eye, right eye."""
        coefficients_BK = torch.cat([shape_B300, expression_B100], dim=1)
        _, _, transforms_BJ34 = self._transforms(coefficients_BK, pose_B6, eyes_B6)
        return (transforms_BJ34[..., 3] - self.origin_3) * SCALE

    def landmarks(self, vertices_BV3: Tensor) -> Tensor:
        """The 68 iBUG points and the two pupils on the surface, (B, 70, 3), in the unit of the vertices."""
        corners_BL33 = vertices_BV3[:, self.landmark_vertices]
        return (corners_BL33 * self.landmark_weights[..., None]).sum(2)

    def simplified(self, vertices_BV3: Tensor) -> Tensor:
        """Vertices of the simplified mesh (B, N, 3); its faces are `simple_faces`."""
        corners_BN33 = vertices_BV3[:, self.simple_vertices]
        return (corners_BN33 * self.simple_weights[..., None]).sum(2)

    def canonical(self) -> Tensor:
        """Vertices (V, 3) of the canonical head, world units: shape and expression 0, jaw open by 0.3 rad."""
        zero = self.template_V3.new_zeros
        pose = zero(1, 6)
        pose[0, 3] = CANONICAL_JAW
        vertices_1V3 = self.vertices(zero(1, SHAPES), zero(1, EXPRESSIONS), pose, zero(1, 6))
        return vertices_1V3[0]
