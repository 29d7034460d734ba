"""The 437 numbers that describe a head in an image (facts 5.4), as tensors, and where they put its landmarks."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.head.flame import Flame

MOVING = [*range(17, 27), *range(36, 70)]  # landmarks: brows, eyes, lips, pupils
REACH = 0.03  # of the image's width: the deviation of a landmark's neighbourhood
FIVE_POINTS = (
    68,
    69,
    30,
    48,
    54,
)  # pupils, nose tip, mouth corners: what the identity crop is aligned to (facts 4.2)


class Label(NamedTuple):
    """A batch of labels, split: camera (B, 25), shape (B, 300), expression (B, 100), neck, jaw (B, 3) and eyes (B, 6) in radians, axis-angle."""

    camera: Tensor
    shape: Tensor
    expression: Tensor
    neck: Tensor
    jaw: Tensor
    eyes: Tensor


def split(label_BL: Tensor) -> Label:
    """The parts of labels (B, 437)."""
    return Label(*torch.split(label_BL, [25, 300, 100, 3, 3, 6], dim=1))


def motion_numbers(label_BL: Tensor) -> Tensor:
    """The 109 numbers that drive Psi when `train.motion` is `flame` (facts 1, `use_flame_mot`): expression 100, jaw 3, eyes 6; no head pose."""
    return torch.cat([label_BL[:, 325:425], label_BL[:, 428:437]], dim=1)


def project_batch(points_BN3: Tensor, camera_B25: Tensor) -> Tensor:
    """World points to image fractions (u right, v down), shape (B, N, 2); `pipeline.geometry.camera.project` for batches."""
    cam2world, intrinsics = camera_B25[:, :16].reshape(-1, 4, 4), camera_B25[:, 16:].reshape(-1, 3, 3)
    local = (points_BN3 - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]
    image = (local * local.new_tensor([1.0, -1.0, -1.0])) @ intrinsics.transpose(1, 2)
    return image[..., :2] / image[..., 2:]


def head_vertices(flame: Flame, label_BL: Tensor) -> Tensor:
    """The vertices of labelled heads in their own frame (neck at rest: the camera holds the rotation), (B, V, 3) in world units."""
    parts = split(label_BL)
    pose = torch.cat([torch.zeros_like(parts.neck), parts.jaw], dim=1)
    return flame.vertices(parts.shape, parts.expression, pose, parts.eyes)


def landmarks(flame: Flame, label_BL: Tensor, camera_BV25: Tensor) -> Tensor:
    """The 70 landmarks of labelled heads seen by each camera, image fractions, (B, V, 70, 2)."""
    points = flame.landmarks(head_vertices(flame, label_BL))
    views = camera_BV25.shape[1]
    flat = project_batch(points.repeat_interleave(views, 0), camera_BV25.reshape(-1, 25))
    return flat.reshape(len(points), views, *flat.shape[1:])


def moving_parts(points_B702: Tensor, size: int) -> Tensor:
    """Where a face moves, (B, 1, size, size) in [0, 1]: about the landmarks (fractions) of brows, eyes, mouth and pupils."""
    centres = (torch.arange(size, device=points_B702.device) + 0.5) / size
    moving = points_B702[:, MOVING]
    across, down = (-0.5 * ((centres - moving[..., axis, None]) / REACH).square() for axis in (0, 1))
    return (down[..., :, None] + across[..., None, :]).amax(1, keepdim=True).exp()
