"""Cutting aligned crops out of images, batched and differentiable (facts 4.2 and 6)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(source_BK2: Tensor, target_K2: Tensor) -> Tensor:
    """The rotation, uniform scale and translation (no reflection) that bring K points nearest to K target points: matrices (B, 2, 3).

    Least squares, as Umeyama's method; in two dimensions it is one division of complex numbers.
    """
    source_mean, target_mean = source_BK2.mean(1), target_K2.mean(0)
    source, target = source_BK2 - source_mean[:, None], target_K2 - target_mean
    power = source.square().sum((1, 2)).clamp_min(1e-12)
    real = (source * target).sum((1, 2)) / power
    imaginary = (source[..., 0] * target[..., 1] - source[..., 1] * target[..., 0]).sum(1) / power
    turn = torch.stack([torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)], dim=1)
    return torch.cat([turn, (target_mean - (turn @ source_mean[..., None])[..., 0])[..., None]], dim=2)


def cut(
    image_BCHW: Tensor, matrix_B23: Tensor, corner: tuple[float, float], side: float, size: int
) -> Tensor:
    """The square of `side` at `corner` (x, y) of the target plane, sampled bilinearly at size x size, zero outside the image.

    `matrix_B23` maps image fractions (x right, y down, in units of width and height) to the target plane. Target coordinates count
    pixels by their centres: whole numbers lie in the middle of a pixel, as in the official crops.
    """
    step = (torch.arange(size, device=image_BCHW.device, dtype=image_BCHW.dtype) + 0.5) * (side / size) - 0.5
    y, x = torch.meshgrid(step + corner[1], step + corner[0], indexing="ij")
    target = torch.stack([x, y], dim=-1).view(1, -1, 2)
    inverse = torch.linalg.inv(matrix_B23[:, :, :2])
    source = (target - matrix_B23[:, None, :, 2]) @ inverse.transpose(1, 2)
    return F.grid_sample(
        image_BCHW,
        source.view(-1, size, size, 2) * 2 - 1,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )


def alignment(image_BCHW: Tensor, points_BK2: Tensor, template: Sequence[tuple[float, float]]) -> Tensor:
    """The similarity that brings points, given as image fractions, to a template, as matrices (B, 2, 3) for `cut`."""
    height, width = image_BCHW.shape[2:]
    unit = points_BK2.new_tensor(
        [width / height, 1.0]
    )  # of width and height in a common measure, so that shapes are kept
    matrix = similarity(points_BK2 * unit, points_BK2.new_tensor(template))
    return torch.cat([matrix[:, :, :2] * unit, matrix[:, :, 2:]], dim=2)
