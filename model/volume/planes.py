"""The tri-plane look-up: features of points in space (paper equation 1, facts 2.3).

Plane 0 holds (x, y), plane 1 (y, z), plane 2 (z, x); the first of each pair runs along the width. Features are interpolated bilinearly
between texel centres, are zero outside of the box, and the three planes are averaged (the paper's equation sums them, the published
networks average). Gradients reach the planes, never the points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS = ((0, 1), (1, 2), (2, 0))  # coordinates along the width and the height of each plane


def lay_out(maps_BCRR: Tensor, layout: str) -> Tensor:
    """Tri-planes (B, 3, C, R, R) from the feature maps (B, 3 * C, R, R) of the tri-plane decoder.

    `published` takes the maps as planes. In an `upright` layout they lie like the portrait, row 0 its top and column 0 its left: x runs
    along columns, y against rows, and z takes the axis that is left, the columns of (y, z) and the rows of (z, x).
    """
    maps_B3CRR = maps_BCRR.unflatten(1, (3, -1))
    if layout == "published":
        return maps_B3CRR
    xy, yz, zx = maps_B3CRR.unbind(1)
    return torch.stack([xy.flip(-2), yz.flip(-2).mT, zx.mT], 1)


def sample_planes_reference(planes_BPCRR: Tensor, points_BN3: Tensor, box: float) -> Tensor:
    """(B, N, C) plane-averaged features of world points; the readable version of `sample_planes`."""
    points = points_BN3.detach() * (2.0 / box)
    total = 0.0
    for plane_BCRR, pair in zip(planes_BPCRR.unbind(1), PAIRS, strict=True):
        grid_BN12 = points[:, :, None, pair]
        total = total + F.grid_sample(
            plane_BCRR, grid_BN12, mode="bilinear", padding_mode="zeros", align_corners=False
        )
    return total[..., 0].transpose(1, 2) / len(PAIRS)


def sample_planes(planes_BPCRR: Tensor, points_BN3: Tensor, box: float) -> Tensor:
    """(B, N, C) plane-averaged features of the world points `points_BN3` in planes (B, 3, C, R, R) of a cube of side `box`.

    On the CPU this is a weighted sum of table rows, with a deterministic backward pass by sorting: two to three times faster than
    `sample_planes_reference`, whose results it repeats up to rounding. Elsewhere it is the reference.
    """
    if planes_BPCRR.device.type != "cpu":
        return sample_planes_reference(planes_BPCRR, points_BN3, box)
    batch, _, channels, side, _ = planes_BPCRR.shape
    # A ring of zeros around each plane gives what lies outside a texel to read, so that no look-up needs a condition.
    table = F.pad(planes_BPCRR, (1, 1, 1, 1)).permute(0, 1, 3, 4, 2).reshape(-1, channels)
    with torch.no_grad():
        cells, weights = _cells(points_BN3, side, box)
    return _Lookup.apply(table, cells, weights, side + 2).view(batch, -1, channels)


def _cells(points_BN3: Tensor, side: int, box: float) -> tuple[Tensor, Tensor]:
    """Upper left texel (rows of the table, int32) and the weights of its four texels for each point and plane: (B*N*3,), (B*N*3, 4)."""
    batch, count = points_BN3.shape[:2]
    # In texels of the padded plane: texel centres are whole numbers, 0 is the ring before the first texel.
    place = (points_BN3.detach() * (side / box)).add_((side + 1) / 2).clamp_(0.0, side + 1.0)
    corner = place.floor().clamp_(max=float(side))
    high = (
        place.sub_(corner)
        .index_select(2, torch.tensor([0, 1, 2, 1, 2, 0], device=place.device))
        .view(batch, count, 2, 3)
    )
    low = 1.0 - high
    weights = torch.empty(batch, count, 3, 4, dtype=high.dtype, device=high.device)
    scaled_low, scaled_high = low[:, :, 1] / 3.0, high[:, :, 1] / 3.0  # the mean over three planes
    torch.mul(low[:, :, 0], scaled_low, out=weights[..., 0])
    torch.mul(high[:, :, 0], scaled_low, out=weights[..., 1])
    torch.mul(low[:, :, 0], scaled_high, out=weights[..., 2])
    torch.mul(high[:, :, 0], scaled_high, out=weights[..., 3])
    row = side + 2
    texel = corner.int()
    cells = texel + row * texel.roll(-1, 2)  # plane p pairs coordinate p with the next one
    first = torch.arange(batch * 3, dtype=torch.int32, device=cells.device).view(batch, 1, 3) * (row * row)
    return (cells + first).view(-1), weights.view(-1, 4)


class _Lookup(torch.autograd.Function):
    """Sums 3 x 4 weighted rows of the table for each point. Backward: entries sorted by cell, summed cell by cell in a fixed order."""

    @staticmethod
    def forward(ctx, table: Tensor, cells: Tensor, weights: Tensor, row: int) -> Tensor:
        corners = torch.tensor([0, 1, row, row + 1], dtype=torch.int32)
        ctx.save_for_backward(cells, weights)
        ctx.rows, ctx.row = table.shape[0], row
        rows, weights = (cells[:, None] + corners).view(-1, 12), weights.view(-1, 12).to(table.dtype)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx, grad_MC: Tensor) -> tuple[Tensor, None, None, None]:
        cells, weights = ctx.saved_tensors
        ordered, order = torch.sort(cells, stable=True)
        ends = torch.bincount(ordered, minlength=ctx.rows).cumsum(0, dtype=torch.int32)
        offsets = F.pad(ends, (1, 0))
        points = torch.div(order.int(), 3, rounding_mode="floor")
        by_corner = weights.index_select(0, order).T.to(grad_MC.dtype).contiguous()
        grad_MC = grad_MC.contiguous()
        grad = grad_MC.new_zeros(ctx.rows, grad_MC.shape[1])
        for shift, weight in zip((0, 1, ctx.row, ctx.row + 1), by_corner, strict=True):
            part = F.embedding_bag(
                points, grad_MC, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
            )
            grad[shift:] += part[: ctx.rows - shift]
        return grad, None, None, None
