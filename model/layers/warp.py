"""Cutting aligned crops out of images, batched and differentiable (facts 4.2 and 6)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(source_BK2: Tensor, target_K2: Tensor) -> Tensor:
    """The similarity that brings K points nearest to K target points, as matrices (B, 2, 3).

    It is a rotation, a uniform scale and a translation, no reflection. Least squares, as Umeyama's method; in
    two dimensions it is one division of complex numbers, sum(conj(source) target) / sum(|source|^2).
    """
    source_mean_B2 = source_BK2.mean(1)
    target_mean_2 = target_K2.mean(0)
    source = source_BK2 - source_mean_B2[:, None]
    target = target_K2 - target_mean_2
    # Points that all lie in one place have no similarity; the bound keeps it finite.
    power = source.square().sum((1, 2)).clamp_min(1e-12)
    source_x, source_y = source.unbind(-1)
    target_x, target_y = target.unbind(-1)
    real = (source * target).sum((1, 2)) / power
    cross = source_x * target_y - source_y * target_x
    imaginary = cross.sum(1) / power
    first_row = torch.stack([real, -imaginary], -1)
    second_row = torch.stack([imaginary, real], -1)
    turn_B22 = torch.stack([first_row, second_row], dim=1)
    turned_mean_B21 = turn_B22 @ source_mean_B2[..., None]
    shift_B2 = target_mean_2 - turned_mean_B21[..., 0]
    return torch.cat([turn_B22, shift_B2[..., None]], dim=2)


def cut(
    image_BCHW: Tensor,
    matrix_B23: Tensor,
    corner: tuple[float, float],
    side: float,
    size: int,
) -> Tensor:
    """The square of `side` at `corner` (x, y) of the target plane, (B, C, size, size).

    Sampled bilinearly, zero outside the image. `matrix_B23` maps image fractions (x right, y down, in units
    of width and height) to the target plane. Target coordinates count pixels by their centres: whole
    numbers lie in the middle of a pixel, as in the official crops.
    """
    steps = torch.arange(size, device=image_BCHW.device, dtype=image_BCHW.dtype)
    places = (steps + 0.5) * (side / size) - 0.5
    y, x = torch.meshgrid(places + corner[1], places + corner[0], indexing="ij")
    target_1N2 = torch.stack([x, y], dim=-1).view(1, -1, 2)
    turn_B22 = matrix_B23[:, :, :2]
    shift_B12 = matrix_B23[:, None, :, 2]
    inverse_B22 = torch.linalg.inv(turn_B22)
    source_BN2 = (target_1N2 - shift_B12) @ inverse_B22.transpose(1, 2)
    # From fractions to grid_sample's -1 and 1, which are the edges of the image.
    grid = source_BN2.view(-1, size, size, 2) * 2 - 1
    return F.grid_sample(image_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def alignment(
    image_BCHW: Tensor,
    points_BK2: Tensor,
    template: Sequence[tuple[float, float]],
) -> Tensor:
    """The similarity that brings points, given as image fractions, to a template: (B, 2, 3) for `cut`."""
    height, width = image_BCHW.shape[2:]
    # Fractions of width and height are brought to a common measure, so that shapes are kept.
    unit_2 = points_BK2.new_tensor([width / height, 1.0])
    matrix_B23 = similarity(points_BK2 * unit_2, points_BK2.new_tensor(template))
    turn_B22 = matrix_B23[:, :, :2]
    shift_B21 = matrix_B23[:, :, 2:]
    return torch.cat([turn_B22 * unit_2, shift_B21], dim=2)
