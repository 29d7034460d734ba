"""The tri-plane look-up: features of points in space (paper equation 1, facts 2.3).

Plane 0 holds (x, y), plane 1 (y, z), plane 2 (z, x); the first of each pair runs along the width. Features
are interpolated bilinearly between texel centres, are zero outside of the box, and the three planes are
averaged (the paper's equation sums them, the published networks average). Gradients reach the planes, never
the points.

A portrait is a fourth plane where source features are projected: a point lies in it where the source's camera
sees it. Where a neck field un-poses points, the source's own one has to pose them first.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from model.head.deform import NeckField

PAIRS = ((0, 1), (1, 2), (2, 0))  # coordinates along the width and the height of each plane


@dataclass(frozen=True)
class Planes:
    """What B heads are rendered from."""

    triplanes_B3CRR: Tensor
    # Features in the portrait, and the camera that took it; none as published.
    portrait_BCSS: Tensor | None = None
    camera_B25: Tensor | None = None
    # From the un-posed head to the head as the portrait has it; none where the two are one.
    posing: NeckField | None = None
    # Colours and features in the portrait that are looked up pixel by pixel; none as published.
    detail_BDSS: Tensor | None = None
    # By which the motion moves the portrait, fractions of the picture; none of Psi_3d, and as published.
    flow_B2SS: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "Planes":
        """Some of the heads."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Planes(*(None if part is None else part[rows] for part in parts))

    def in_portrait(self, points_BN3: Tensor) -> Tensor:
        """Where the portrait's camera saw points of the canonical space, (B, N, 3)."""
        return points_BN3 if self.posing is None else self.posing(points_BN3)


def camera_places(camera_B25: Tensor) -> Tensor:
    """(B, 3) where cameras are, world units."""
    return camera_B25[:, 3:12:4]


def lay_out(maps_BCRR: Tensor, layout: str) -> Tensor:
    """Tri-planes (B, 3, C, R, R) from the feature maps (B, 3 * C, R, R) of the tri-plane decoder.

    `published` takes the maps as planes. In an `upright` layout they lie like the portrait, row 0 its top and
    column 0 its left: x runs along columns, y against rows, and z takes the axis that is left, the columns of
    (y, z) and the rows of (z, x).
    """
    maps_B3CRR = maps_BCRR.unflatten(1, (3, -1))
    if layout == "published":
        return maps_B3CRR
    xy, yz, zx = maps_B3CRR.unbind(1)
    upright_yz = yz.flip(-2).mT
    return torch.stack([xy.flip(-2), upright_yz, zx.mT], 1)


def sample_planes_reference(
    planes_BPCRR: Tensor,
    points_BN3: Tensor,
    box: float,
) -> Tensor:
    """(B, N, C) plane-averaged features of world points; the readable version of `sample_planes`."""
    points_BN3 = points_BN3.detach() * (2.0 / box)
    total_BCN1 = 0.0
    for plane_BCRR, pair in zip(planes_BPCRR.unbind(1), PAIRS, strict=True):
        grid_BN12 = points_BN3[:, :, None, pair]
        feature_BCN1 = F.grid_sample(
            plane_BCRR,
            grid_BN12,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        total_BCN1 = total_BCN1 + feature_BCN1
    total_BNC = total_BCN1[..., 0].transpose(1, 2)
    return total_BNC / len(PAIRS)


def sample_planes(
    planes_BPCRR: Tensor,
    points_BN3: Tensor,
    box: float,
) -> Tensor:
    """(B, N, C) plane-averaged features of world points in planes (B, 3, C, R, R) of a cube of side `box`.

    On the CPU this is a weighted sum of table rows, with a deterministic backward pass by sorting: two to
    three times faster than `sample_planes_reference`, whose results it repeats up to rounding. Elsewhere it
    is the reference.
    """
    if planes_BPCRR.device.type != "cpu":
        return sample_planes_reference(planes_BPCRR, points_BN3, box)
    batch, _, channels, side, _ = planes_BPCRR.shape
    # A ring of zeros around each plane gives what lies outside a texel to read, so that no look-up needs a
    # condition.
    padded_BPCRR = F.pad(planes_BPCRR, (1, 1, 1, 1))
    texels_BPRRC = padded_BPCRR.permute(0, 1, 3, 4, 2)
    table_TC = texels_BPRRC.reshape(-1, channels)
    with torch.no_grad():
        cells_M, weights_M4 = _cells(points_BN3, side, box)
    feature_NC = _Lookup.apply(table_TC, cells_M, weights_M4, side + 2, 3)
    return feature_NC.view(batch, -1, channels)


def picture_places(points_BN3: Tensor, camera_B25: Tensor) -> Tensor:
    """(B, N, 2) where cameras see world points: fractions of the picture from its upper left corner."""
    cam2world_B44 = camera_B25[:, :16].unflatten(-1, (4, 4))
    rotation_B33, place_B3 = cam2world_B44[:, :3, :3], cam2world_B44[:, :3, 3]
    # The inverse of a rotation is its transpose, which a row of coordinates meets from the right as it is.
    local_BN3 = (points_BN3 - place_B3[:, None]) @ rotation_B33
    x, y, z = local_BN3.unbind(-1)
    fx, skew, cx, _, fy, cy = camera_B25[:, None, 16:22].unbind(-1)
    # The camera looks against z, and its picture's rows go down where y goes up.
    right, down = x / -z, y / z
    return torch.stack([fx * right + skew * down + cx, fy * down + cy], -1)


def sample_portrait_reference(
    portrait_BCSS: Tensor,
    camera_B25: Tensor,
    points_BN3: Tensor,
) -> Tensor:
    """(B, N, C) features of a portrait where world points are seen in it; the readable `sample_portrait`."""
    places_BN2 = picture_places(points_BN3.detach(), camera_B25)
    grid_BN12 = places_BN2[:, :, None] * 2.0 - 1.0
    feature_BCN1 = F.grid_sample(
        portrait_BCSS,
        grid_BN12,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return feature_BCN1[..., 0].transpose(1, 2)


def sample_portrait(
    portrait_BCSS: Tensor,
    camera_B25: Tensor,
    points_BN3: Tensor,
) -> Tensor:
    """(B, N, C) features of portraits (B, C, S, S) where their cameras see world points, zero outside.

    As with `sample_planes`, gradients reach the portraits alone, in a fixed order of summation on the CPU.
    """
    if portrait_BCSS.device.type != "cpu":
        return sample_portrait_reference(portrait_BCSS, camera_B25, points_BN3)
    batch, channels, side, _ = portrait_BCSS.shape
    padded_BCSS = F.pad(portrait_BCSS, (1, 1, 1, 1))
    table_TC = padded_BCSS.permute(0, 2, 3, 1).reshape(-1, channels)
    with torch.no_grad():
        places_BN2 = picture_places(points_BN3, camera_B25)
        cells_BN, weights_BN4 = picture_cells(places_BN2, side)
        pictures_B = torch.arange(batch, dtype=torch.int32)
        cells_BN += pictures_B[:, None] * (side + 2) ** 2
    cells_M, weights_M4 = cells_BN.view(-1), weights_BN4.view(-1, 4)
    feature_NC = _Lookup.apply(table_TC, cells_M, weights_M4, side + 2, 1)
    return feature_NC.view(batch, -1, channels)


def picture_cells(places_2: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where places (..., 2), fractions of a picture of `side` texels with a ring around it, fall into it.

    The row of the table of the upper left texel (...), int32, and the weights of the four texels (..., 4).
    """
    # In texels of the padded picture: texel centres are whole numbers, 0 is the ring before the first.
    place_2 = places_2 * side + 0.5
    place_2.clamp_(0.0, side + 1.0)
    corner_2 = place_2.floor().clamp_(max=float(side))
    right, lower = place_2.sub_(corner_2).unbind(-1)
    left, upper = 1.0 - right, 1.0 - lower
    weights_4 = torch.stack([left * upper, right * upper, left * lower, right * lower], -1)
    column, line = corner_2.int().unbind(-1)
    return column + (side + 2) * line, weights_4


def _cells(
    points_BN3: Tensor,
    side: int,
    box: float,
) -> tuple[Tensor, Tensor]:
    """Where each point falls into each plane, M = B*N*3.

    The row of the table of its upper left texel (M,), int32, and the weights of its four texels (M, 4).
    """
    batch, count = points_BN3.shape[:2]
    device = points_BN3.device
    # In texels of the padded plane: texel centres are whole numbers, 0 is the ring before the first texel.
    place_BN3 = points_BN3.detach() * (side / box)
    place_BN3.add_((side + 1) / 2)
    place_BN3.clamp_(0.0, side + 1.0)
    corner_BN3 = place_BN3.floor().clamp_(max=float(side))
    within_BN3 = place_BN3.sub_(corner_BN3)
    along_width, along_height = zip(*PAIRS, strict=True)
    coordinates = torch.tensor(along_width + along_height, device=device)
    high_BN6 = within_BN3.index_select(2, coordinates)
    high_BN23 = high_BN6.view(batch, count, 2, 3)
    low_BN23 = 1.0 - high_BN23

    # The mean over three planes is part of the weights.
    left, upper = low_BN23.unbind(2)
    right, lower = high_BN23.unbind(2)
    upper = upper / 3.0
    lower = lower / 3.0
    weights_BN34 = high_BN23.new_empty(batch, count, 3, 4)
    upper_left, upper_right, lower_left, lower_right = weights_BN34.unbind(-1)
    torch.mul(left, upper, out=upper_left)
    torch.mul(right, upper, out=upper_right)
    torch.mul(left, lower, out=lower_left)
    torch.mul(right, lower, out=lower_right)

    # Plane p pairs coordinate p with the next one.
    row = side + 2
    texel_BN3 = corner_BN3.int()
    next_BN3 = texel_BN3.roll(-1, 2)
    cells_BN3 = texel_BN3 + row * next_BN3
    planes = torch.arange(batch * 3, dtype=torch.int32, device=device)
    first_B13 = planes.view(batch, 1, 3) * (row * row)
    cells_M = (cells_BN3 + first_B13).view(-1)
    return cells_M, weights_BN34.view(-1, 4)


class _Lookup(torch.autograd.Function):
    """Sums 4 weighted rows of the table for each point and plane.

    Backward: entries sorted by cell, summed cell by cell in a fixed order.
    """

    @staticmethod
    def forward(
        ctx,
        table_TC: Tensor,
        cells_M: Tensor,
        weights_M4: Tensor,
        row: int,
        planes: int,
    ) -> Tensor:
        ctx.save_for_backward(cells_M, weights_M4)
        ctx.rows = table_TC.shape[0]
        ctx.row, ctx.planes = row, planes
        corners_4 = torch.tensor([0, 1, row, row + 1], dtype=torch.int32)
        rows_M4 = cells_M[:, None] + corners_4
        rows_NT = rows_M4.view(-1, 4 * planes)
        weights_NT = weights_M4.view(-1, 4 * planes).to(table_TC.dtype)
        return F.embedding_bag(rows_NT, table_TC, mode="sum", per_sample_weights=weights_NT)

    @staticmethod
    def backward(ctx, grad_NC: Tensor) -> tuple[Tensor, None, None, None, None]:
        cells_M, weights_M4 = ctx.saved_tensors
        # A stable sort fixes the order of the sums, and with it their last bits.
        ordered_M, order_M = torch.sort(cells_M, stable=True)
        counts_T = torch.bincount(ordered_M, minlength=ctx.rows)
        ends_T = counts_T.cumsum(0, dtype=torch.int32)
        offsets = F.pad(ends_T, (1, 0))
        point_M = torch.div(order_M.int(), ctx.planes, rounding_mode="floor")
        weights_4M = weights_M4.index_select(0, order_M).T
        weights_4M = weights_4M.to(grad_NC.dtype).contiguous()
        grad_NC = grad_NC.contiguous()
        grad_TC = grad_NC.new_zeros(ctx.rows, grad_NC.shape[1])
        shifts = (0, 1, ctx.row, ctx.row + 1)
        for shift, weight_M in zip(shifts, weights_4M, strict=True):
            part_TC = F.embedding_bag(
                point_M,
                grad_NC,
                offsets,
                mode="sum",
                per_sample_weights=weight_M,
                include_last_offset=True,
            )
            grad_TC[shift:] += part_TC[: ctx.rows - shift]
        return grad_TC, None, None, None, None
