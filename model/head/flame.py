"""The head model: FLAME, or a stand-in of the same format (paper section 3.2, facts 2.1, 2.7, 2.8).

A head is a template mesh plus linear shape and expression directions, linear pose correctives and linear blend skinning over five joints.
World units are model metres times 3; the origin is the neck joint of the canonical head (shape 0, expression 0, jaw open by 0.3 rad).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SCALE = 3.0  # world units a metre
NECK = 1  # index of the neck joint
CANONICAL_JAW = (
    0.3  # radians about x: the canonical head has its mouth open, so that the lips are two surfaces
)
REGIONS = ("face", "eyes", "left_eye", "right_eye", "lips", "eyelids", "neck")


@dataclass(frozen=True)
class HeadModel:
    """The arrays of a head model (numpy). V vertices, F faces, K = 400 directions, N and M vertices and faces of the simplified mesh.

    Raises ValueError when shapes do not fit together or an index points outside.
    """

    name: str
    template_V3: np.ndarray  # metres
    directions_V3K: np.ndarray  # metres a unit coefficient; 300 of shape, then 100 of expression
    pose_directions: (
        np.ndarray
    )  # (36, V*3): correctives, linear in (rotation - identity) of the four joints after the root
    joint_regressor: np.ndarray  # (5, V)
    skin_weights: np.ndarray  # (V, 5), rows sum to one
    parents: np.ndarray  # (5,): -1 0 1 1 1, root, neck, jaw, left eye, right eye
    faces_F3: np.ndarray
    landmark_faces: np.ndarray  # (70,): the 68 points of iBUG, then the two pupils, on the surface
    landmark_weights: np.ndarray  # (70, 3) barycentric
    regions: dict[str, np.ndarray]  # vertex indices of each of REGIONS; face = all that is not eyeball
    simple_vertices: (
        np.ndarray
    )  # (N, 3) vertex indices; with simple_weights (N, 3) the vertices of the simplified mesh
    simple_weights: np.ndarray
    simple_faces: np.ndarray  # (M, 3)
    neighbours: np.ndarray  # (V, 10) vertices of the same region close by, itself included; padded with V

    def __post_init__(self) -> None:
        count = len(self.template_V3)
        shapes = {
            "template_V3": (count, 3),
            "directions_V3K": (count, 3, 400),
            "pose_directions": (36, count * 3),
            "joint_regressor": (5, count),
            "skin_weights": (count, 5),
            "parents": (5,),
            "faces_F3": (len(self.faces_F3), 3),
            "landmark_faces": (70,),
            "landmark_weights": (70, 3),
            "simple_vertices": (len(self.simple_vertices), 3),
            "simple_weights": (len(self.simple_vertices), 3),
            "simple_faces": (len(self.simple_faces), 3),
            "neighbours": (count, 10),
        }
        for key, shape in shapes.items():
            if getattr(self, key).shape != shape:
                raise ValueError(
                    f"head model '{self.name}': {key} has shape {getattr(self, key).shape}, expected {shape}"
                )
        missing = [key for key in REGIONS if key not in self.regions]
        if missing:
            raise ValueError(
                f"head model '{self.name}': no vertices are given for the region(s) {', '.join(missing)}"
            )
        limits = {
            "faces_F3": count,
            "landmark_faces": len(self.faces_F3),
            "simple_vertices": count,
            "neighbours": count + 1,
        }
        limits["simple_faces"] = len(self.simple_vertices)
        for key, limit in limits.items():
            _check_indices(self.name, key, getattr(self, key), limit)
        for key in REGIONS:
            _check_indices(self.name, f"region '{key}'", self.regions[key], count)
        if list(self.parents) != [-1, 0, 1, 1, 1]:
            raise ValueError(
                f"head model '{self.name}': the joints must have the parents -1 0 1 1 1, not {list(self.parents)}"
            )


def _check_indices(name: str, key: str, indices: np.ndarray, limit: int) -> None:
    if indices.size == 0 or indices.min() < 0 or indices.max() >= limit:
        raise ValueError(f"head model '{name}': {key} is empty or has an index outside 0..{limit - 1}")


def rotation_matrices(axis_angle_X3: Tensor) -> Tensor:
    """Axis-angle vectors in radians (..., 3) to rotation matrices (..., 3, 3); differentiable, also at zero."""
    angle = (axis_angle_X3.square().sum(-1) + 1e-20).sqrt()[..., None, None]
    x, y, z = axis_angle_X3.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    first = torch.sinc(angle / torch.pi)  # sin(t) / t
    second = 0.5 * torch.sinc(angle / (2 * torch.pi)).square()  # (1 - cos(t)) / t^2 without the cancellation
    return torch.eye(3, dtype=cross.dtype, device=cross.device) + first * cross + second * (cross @ cross)


class Flame(nn.Module):
    """A head model as a differentiable function of its parameters. Holds no trainable weight and adds nothing to a state dict."""

    def __init__(self, head_model: HeadModel):
        super().__init__()
        self.head = head_model

        def constant(name: str, array: np.ndarray, dtype: torch.dtype) -> None:
            self.register_buffer(
                name, torch.tensor(np.ascontiguousarray(array), dtype=dtype), persistent=False
            )

        count = len(head_model.template_V3)
        directions_KV3 = np.moveaxis(head_model.directions_V3K, 2, 0)
        joints_53 = head_model.joint_regressor @ head_model.template_V3
        constant("template_V3", head_model.template_V3, torch.float32)
        constant("directions_KX", directions_KV3.reshape(400, count * 3), torch.float32)
        constant("pose_directions", head_model.pose_directions, torch.float32)
        constant("skin_weights", head_model.skin_weights, torch.float32)
        # The joints are linear in the coefficients: folding the regressor into the directions saves a product with all vertices.
        constant("joints_53", joints_53, torch.float32)
        constant(
            "joint_directions",
            np.einsum("jv,kvc->kjc", head_model.joint_regressor, directions_KV3).reshape(400, 15),
            torch.float32,
        )
        constant("origin_3", joints_53[NECK], torch.float32)
        constant("faces", head_model.faces_F3, torch.int64)
        constant("landmark_vertices", head_model.faces_F3[head_model.landmark_faces], torch.int64)
        constant("landmark_weights", head_model.landmark_weights, torch.float32)
        constant("simple_vertices", head_model.simple_vertices, torch.int64)
        constant("simple_weights", head_model.simple_weights, torch.float32)
        constant("simple_faces", head_model.simple_faces, torch.int64)

    def _transforms(
        self, coefficients_BK: Tensor, pose_B6: Tensor, eyes_B6: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotations of the joints (B, 5, 3, 3), resting joints (B, 5, 3) and posed joint-to-world transforms (B, 5, 3, 4), metres."""
        batch = len(coefficients_BK)
        resting = self.joints_53 + (coefficients_BK @ self.joint_directions).view(batch, 5, 3)
        angles = torch.cat([torch.zeros_like(pose_B6[:, :3]), pose_B6, eyes_B6], dim=1).view(batch, 5, 3)
        rotations = rotation_matrices(angles)
        turned, placed = [rotations[:, 0]], [resting[:, 0]]
        for joint, parent in enumerate([0, 1, 1, 1], start=1):
            offset = resting[:, joint] - resting[:, parent]
            placed.append(placed[parent] + (turned[parent] @ offset[..., None])[..., 0])
            turned.append(turned[parent] @ rotations[:, joint])
        return (
            rotations,
            resting,
            torch.cat([torch.stack(turned, 1), torch.stack(placed, 1)[..., None]], dim=-1),
        )

    def vertices(
        self, shape_B300: Tensor, expression_B100: Tensor, pose_B6: Tensor, eyes_B6: Tensor
    ) -> Tensor:
        """Vertices (B, V, 3) in world units. `pose_B6`: neck, jaw; `eyes_B6`: left, right; axis-angle in radians. Differentiable."""
        coefficients = torch.cat([shape_B300, expression_B100], dim=1)
        batch = len(coefficients)
        rotations, resting, transforms = self._transforms(coefficients, pose_B6, eyes_B6)
        correctives = (rotations[:, 1:] - torch.eye(3, device=rotations.device)).reshape(batch, 36)
        moved = coefficients @ self.directions_KX + correctives @ self.pose_directions
        unposed = self.template_V3 + moved.view(batch, -1, 3)
        turn, place = transforms[..., :3], transforms[..., 3]
        place = place - (turn @ resting[..., None])[..., 0]  # the skin is turned about the resting joint
        skin = self.skin_weights @ torch.cat([turn, place[..., None]], dim=-1).view(batch, 5, 12)
        skin = skin.view(batch, -1, 3, 4)
        posed = (skin[..., :3] @ unposed[..., None])[..., 0] + skin[..., 3]
        return (posed - self.origin_3) * SCALE

    def joints(self, shape_B300: Tensor, expression_B100: Tensor, pose_B6: Tensor, eyes_B6: Tensor) -> Tensor:
        """Posed joints (B, 5, 3) in world units: root, neck, jaw, left eye, right eye."""
        transforms = self._transforms(torch.cat([shape_B300, expression_B100], dim=1), pose_B6, eyes_B6)[2]
        return (transforms[..., 3] - self.origin_3) * SCALE

    def landmarks(self, vertices_BV3: Tensor) -> Tensor:
        """The 68 iBUG points and the two pupils on the surface, (B, 70, 3), in the unit of the vertices."""
        return (vertices_BV3[:, self.landmark_vertices] * self.landmark_weights[..., None]).sum(2)

    def simplified(self, vertices_BV3: Tensor) -> Tensor:
        """Vertices of the simplified mesh (B, N, 3); its faces are `simple_faces`."""
        return (vertices_BV3[:, self.simple_vertices] * self.simple_weights[..., None]).sum(2)

    def canonical(self) -> Tensor:
        """Vertices (V, 3) of the canonical head: shape 0, expression 0, jaw open by 0.3 rad, eyes straight, world units."""
        zero = self.template_V3.new_zeros
        pose = zero(1, 6)
        pose[0, 3] = CANONICAL_JAW
        return self.vertices(zero(1, 300), zero(1, 100), pose, zero(1, 6))[0]


def split_label(label_B437: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A label (facts 5.4) as camera (B, 25), shape (B, 300), expression (B, 100), pose (B, 6: neck, jaw), eyes (B, 6)."""
    return tuple(label_B437.split([25, 300, 100, 6, 6], dim=1))
