"""Volume rendering on the fast path: work only where something is seen.

The rays are those of `model/volume/renderer.py`. Piece by piece, so that everything between a sample's
position and its density stays in a core's cache:

1. Densities of the coarse samples of all rays; no colours.
2. Rays that meet nothing, and whose eight neighbours meet nothing, end here.
3. Fine samples of the others, densities, integration.
4. Colours of the samples whose share of the ray counts.

What is left out has a bound: a ray's colour lacks at most SHARE * (samples + samples_fine) of opacity (step
4). Step 2 drops rays that the coarse pass, there and around it, found more transparent than NOTHING; what
is thinner than the distance of coarse samples and missed by all nine rays is missed. With `nothing` and
`share` 0 all samples of all rays count.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.head.deform import NeckField
from model.psi.projection import PortraitFeatures, facing
from model.volume.colour_decoder import LARGEST, SHIFT, STRETCH, ColourDecoder
from model.volume.planes import PAIRS, Planes, camera_places, picture_cells
from model.volume.renderer import (
    Deform,
    Rays,
    camera_rays,
    coarse_depths,
    importance_depths,
    interval_weights,
    mean_depth,
    sample_shares,
    thickness,
)

POINTS = 16384  # at once
NOTHING = 1e-3  # opacity
SHARE = 1e-5  # of a sample in its ray


class Texels:
    """The planes of B heads as one table of texels.

    A ring of zeros around each plane spares look-ups a condition. Of a point's twelve texels, the table's
    rows are linear in its cell, and the weights are products of two linear functions of its place within:
    three small matrix products.
    """

    def __init__(self, planes_B3CRR: Tensor, box: float) -> None:
        self.batch, _, channels, self.side, _ = planes_B3CRR.shape
        self.box = box
        # The planes of a texel lie next to each other, as the decoder's last convolution leaves them.
        texels_BRR3C = planes_B3CRR.permute(0, 3, 4, 1, 2)
        padded_BRR3C = F.pad(texels_BRR3C, (0, 0, 0, 0, 1, 1, 1, 1))
        self.table = padded_BRR3C.reshape(-1, channels)
        maps = _linear_maps(self.side + 2).to(planes_B3CRR.device)
        self.rows, self.across, self.down = maps.unbind(0)

    def features(self, points_M3: Tensor, heads_M: Tensor | None) -> Tensor:
        """(M, C) plane-averaged features; `heads_M` are int32 numbers of heads, None when there is one."""
        # In texels of the padded plane: texel centres are whole numbers, 0 is the ring before the first
        # texel.
        place = points_M3 * (self.side / self.box)
        place.add_((self.side + 1) / 2)
        place.clamp_(0.0, self.side + 1.0)
        corner = place.floor().clamp_(max=float(self.side))
        inside = place.sub_(corner)
        # Float32 holds the rows exactly, as they are below 2^24.
        rows_M12 = torch.addmm(self.rows[3], corner, self.rows[:3]).int()
        if heads_M is not None:
            rows_of_head = len(self.table) // self.batch
            first_M = heads_M * rows_of_head
            rows_M12 += first_M[:, None]
        along_width = torch.addmm(self.across[3], inside, self.across[:3])
        along_height = torch.addmm(self.down[3], inside, self.down[:3])
        weights_M12 = along_width.mul_(along_height)
        return F.embedding_bag(rows_M12, self.table, mode="sum", per_sample_weights=weights_M12)


def _linear_maps(row: int) -> Tensor:
    """(3, 4, 12): from (x, y, z, 1) to a number for each of the twelve texels of a point.

    A corner gives the rows of a table whose planes have `row` texels a side; a place within the cell gives
    the weights along the width and those along the height. The mean over three planes is part of the latter.
    """
    maps = torch.zeros(3, 4, 12)
    rows, across, down = maps.unbind(0)
    for texel in range(12):
        plane = texel // 4
        lower = texel // 2 % 2
        right = texel % 2
        along_width, along_height = PAIRS[plane]
        rows[along_width, texel] = 3
        rows[along_height, texel] = 3 * row
        rows[3, texel] = plane + 3 * right + 3 * row * lower
        # A share t of the way to the right weighs the right texel by t and the left one by 1 - t.
        across[along_width, texel] = 1 if right else -1
        across[3, texel] = 0 if right else 1
        down[along_height, texel] = 1 / 3 if lower else -1 / 3
        down[3, texel] = 0 if lower else 1 / 3
    return maps


class PortraitTexels:
    """Feature maps of B portraits as one table, looked up where the cameras that took them see a point."""

    def __init__(self, portrait_BCSS: Tensor, camera_B25: Tensor) -> None:
        self.batch, channels, self.side, _ = portrait_BCSS.shape
        padded_BSSC = F.pad(portrait_BCSS, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        self.table = padded_BSSC.reshape(-1, channels)
        self.projections_B43 = _projections(camera_B25)
        self.places_B3 = camera_places(camera_B25)
        row = self.side + 2
        self.corners = torch.tensor([0, 1, row, row + 1], dtype=torch.int32, device=portrait_BCSS.device)

    def features(self, points_M3: Tensor, heads_M: Tensor | None) -> Tensor:
        """(M, C); `heads_M` as those of `Texels.features`."""
        if heads_M is None:
            projection = self.projections_B43[0]
            place_M3 = torch.addmm(projection[3], points_M3, projection[:3])
        else:
            projection_M43 = self.projections_B43.index_select(0, heads_M)
            place_M3 = torch.einsum("mi,mij->mj", points_M3, projection_M43[:, :3]) + projection_M43[:, 3]
        place_M2 = place_M3[:, :2] / place_M3[:, 2:]
        cells_M, weights_M4 = picture_cells(place_M2, self.side)
        if heads_M is not None:
            cells_M += heads_M * (self.side + 2) ** 2
        rows_M4 = cells_M[:, None] + self.corners
        return F.embedding_bag(rows_M4, self.table, mode="sum", per_sample_weights=weights_M4)

    def facing(self, points_M3: Tensor, heads_M: Tensor | None) -> Tensor:
        """(M,) how far the head's outside faces the camera that took its portrait."""
        places = self.places_B3 if heads_M is None else self.places_B3.index_select(0, heads_M)
        return facing(points_M3, places)


def _projections(camera_B25: Tensor) -> Tensor:
    """(B, 4, 3): from (x, y, z, 1) to (u w, v w, w), u and v fractions of the picture (`picture_places`)."""
    cam2world_B44 = camera_B25[:, :16].unflatten(-1, (4, 4))
    rotation_B33, place_B13 = cam2world_B44[:, :3, :3], cam2world_B44[:, None, :3, 3]
    fx, skew, cx, _, fy, cy = camera_B25[:, 16:22].unbind(-1)
    nothing, one = torch.zeros_like(fx), torch.ones_like(fx)
    # Columns of the intrinsics for (x, y, z) of the camera, with w = -z.
    u = torch.stack([fx, -skew, -cx], -1)
    v = torch.stack([nothing, -fy, -cy], -1)
    w = torch.stack([nothing, nothing, -one], -1)
    intrinsics_B33 = torch.stack([u, v, w], -1)
    turned_B33 = rotation_B33 @ intrinsics_B33
    moved_B13 = -place_B13 @ turned_B33
    return torch.cat([turned_B33, moved_B13], 1)


class HeadFeatures:
    """What the colour decoder is given at any point of B heads, as `Psi.features`."""

    def __init__(self, planes: Planes, box: float, projection: PortraitFeatures | None) -> None:
        self.texels = Texels(planes.triplanes_B3CRR, box)
        self.batch = self.texels.batch
        self.projection, self.posing = projection, planes.posing
        if projection is not None:
            self.portraits = PortraitTexels(planes.portrait_BCSS, planes.camera_B25)

    def __call__(self, points_M3: Tensor, heads_M: Tensor | None) -> Tensor:
        """(M, C); `heads_M` are int32 numbers of heads, None when there is one."""
        features = self.texels.features(points_M3, heads_M)
        if self.projection is None:
            return features
        if self.posing is not None:
            points_M3 = self.posing.of_heads(points_M3, heads_M)
        found = self.portraits.features(points_M3, heads_M)
        return self.projection.mix(features, found, self.portraits.facing(points_M3, heads_M))


class FastDecoder:
    """The MLP, its two halves apart: features to density, and the hidden layer of some of them to colours."""

    def __init__(self, decoder: ColourDecoder) -> None:
        self.hidden_weight, self.hidden_bias = _detached(decoder.net[0].scaled())
        self.sigma_weight, self.sigma_bias = _detached(decoder.out_sigma.scaled())
        self.colour_weight, self.colour_bias = _detached(decoder.out_rgb.scaled())

    def hidden(self, feature_MC: Tensor) -> Tensor:
        """(M, H) of plane features."""
        hidden = F.linear(feature_MC, self.hidden_weight, self.hidden_bias)
        if not len(hidden) or hidden.amax() > LARGEST:
            return F.softplus(hidden)
        # This is within 1e-7 of the library's log1p, at a third of its time.
        return hidden.exp_().add_(1.0).log_()

    def sigma(self, hidden_MH: Tensor) -> Tensor:
        """Raw densities (M,)."""
        return torch.addmv(self.sigma_bias, hidden_MH, self.sigma_weight[0])

    def colour(self, hidden_MH: Tensor) -> Tensor:
        """Colours (M, F)."""
        logits = F.linear(hidden_MH, self.colour_weight, self.colour_bias)
        return logits.sigmoid_().mul_(STRETCH).sub_(SHIFT)


def _detached(parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    weight, bias = parts
    return weight.detach(), bias.detach()


@dataclass
class _CoarsePass:
    """What the first pass knows of M rays of each head, (B, M, ...); S coarse samples a ray."""

    origins: Tensor  # 3
    directions: Tensor  # 3
    depths: Tensor  # S
    points: Tensor  # S, 3
    sigma: Tensor  # S
    weights: Tensor  # S - 1

    def of(self, rays_Bm: Tensor) -> "_CoarsePass":
        """What it knows of some of the rays."""
        return _CoarsePass(
            origins=pick(self.origins, rays_Bm),
            directions=pick(self.directions, rays_Bm),
            depths=pick(self.depths, rays_Bm),
            points=pick(self.points, rays_Bm),
            sigma=pick(self.sigma, rays_Bm),
            weights=pick(self.weights, rays_Bm),
        )


class FastRenderer:
    """The rays of B tri-planes seen by V cameras each, with the samples of `render_rays` without jitter."""

    def __init__(
        self,
        decoder: ColourDecoder,
        side: int,
        samples: int,
        samples_fine: int,
        box: float,
        projection: PortraitFeatures | None = None,
    ) -> None:
        self.decoder = FastDecoder(decoder)
        self.projection = projection
        self.side = side
        self.samples = samples
        self.fine = samples_fine
        self.box = box

    def __call__(
        self,
        planes: Planes,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
        nothing: float = NOTHING,
        share: float = SHARE,
    ) -> tuple[Rays, float]:
        """The rays, with depths and weights of the coarse pass, and the share of samples that got colours."""
        head = self.features(planes)
        # A GPU needs no threads, and a deformation that a caller brings need not bear two of them; a neck
        # field does.
        shared = deform is None or isinstance(deform, NeckField)
        alone = planes.triplanes_B3CRR.device.type != "cpu" or not shared
        coarse = self._coarse(head, cameras_BV25, deform, alone)
        opacity_BM = coarse.weights.sum(-1)
        depth_BM = expected_depth(coarse.depths, coarse.weights, opacity_BM)
        thickness_BM = thickness(coarse.depths, coarse.weights, depth_BM)
        features = len(self.decoder.colour_bias)
        colour_BMF = opacity_BM.new_zeros(*opacity_BM.shape, features)
        alive_Bm = self._alive(opacity_BM, nothing)

        def finish(rays_Bm: Tensor) -> int:
            found, coloured = self._integrate(head, coarse.of(rays_Bm), deform, share)
            colour, opacity, depth, thick = found
            opacity_BM.scatter_(1, rays_Bm, opacity)
            depth_BM.scatter_(1, rays_Bm, depth)
            thickness_BM.scatter_(1, rays_Bm, thick)
            of_colours = rays_Bm[..., None].expand_as(colour)
            colour_BMF.scatter_(1, of_colours, colour)
            return coloured

        rays_at_once = max(1, POINTS // (head.batch * self.fine))
        pieces = alive_Bm.split(rays_at_once, 1) if alive_Bm.numel() else ()
        coloured = sum(side_by_side(finish, pieces, alone))
        found = (colour_BMF, opacity_BM, depth_BM, thickness_BM, coarse.depths, coarse.weights)
        shape = (cameras_BV25.shape[1], self.side**2)
        rays = Rays(*(part.unflatten(1, shape) for part in found))
        all_samples = opacity_BM.numel() * (self.samples + self.fine)
        return rays, coloured / all_samples

    def features(self, planes: Planes) -> HeadFeatures:
        """What the decoder is given of heads."""
        return HeadFeatures(planes, self.box, self.projection)

    def _coarse(
        self,
        head: HeadFeatures,
        cameras_BV25: Tensor,
        deform: Deform | None,
        alone: bool,
    ) -> _CoarsePass:
        """Densities of the coarse samples of all rays, M = V * side * side."""
        rays = self.side**2
        origins, directions = camera_rays(cameras_BV25, self.side)
        origins = origins.repeat_interleave(rays, 1)
        directions = directions.flatten(1, 2)
        depths = coarse_depths(cameras_BV25, self.samples, self.box, None)
        depths = depths.repeat_interleave(rays, 1)
        points = directions.new_empty(*depths.shape, 3)
        sigma = torch.empty_like(depths)

        def look(part: slice) -> None:
            own = points[:, part]
            own[:] = _points(origins[:, part], directions[:, part], depths[:, part], deform)
            hidden = self._hidden(head, own)
            own_sigma = sigma[:, part]
            own_sigma[:] = self.decoder.sigma(hidden).view_as(own_sigma)

        count = directions.shape[1]
        step = max(1, POINTS // (head.batch * self.samples))
        parts = [slice(begin, begin + step) for begin in range(0, count, step)]
        side_by_side(look, parts, alone)
        weights = interval_weights(depths, sigma)
        return _CoarsePass(origins, directions, depths, points, sigma, weights)

    def _alive(self, opacity_BM: Tensor, nothing: float) -> Tensor:
        """The rays of each head that meet something or have a neighbour that does, (B, m) int64.

        Heads with fewer such rays than the others get some more.
        """
        if nothing:
            pictures = opacity_BM.view(-1, 1, self.side, self.side)
            around = F.max_pool2d(pictures, 3, stride=1, padding=1)
            seen_BM = around.view(opacity_BM.shape) > nothing
        else:
            seen_BM = torch.ones_like(opacity_BM, dtype=torch.bool)
        most = int(seen_BM.sum(1).max())
        # A stable sort keeps the rays of a head in their order, so that neighbours share texels.
        seen_first = seen_BM.sort(dim=1, descending=True, stable=True)
        return seen_first.indices[:, :most]

    def _hidden(self, head: HeadFeatures, points_BMS3: Tensor) -> Tensor:
        heads = None
        if head.batch > 1:
            numbers = torch.arange(head.batch, dtype=torch.int32, device=points_BMS3.device)
            points_of_head = points_BMS3[0].numel() // 3
            heads = numbers.repeat_interleave(points_of_head)
        features = head(points_BMS3.reshape(-1, 3), heads)
        return self.decoder.hidden(features)

    def _integrate(
        self,
        head: HeadFeatures,
        coarse: _CoarsePass,
        deform: Deform | None,
        share: float,
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
        """Colour, opacity, depth and thickness of some rays (B, m, ...), and the number of colours made."""
        fine = importance_depths(coarse.depths, coarse.weights, self.fine, None)
        points_fine = _points(coarse.origins, coarse.directions, fine, deform)
        hidden_fine = self._hidden(head, points_fine)
        sigma_fine = self.decoder.sigma(hidden_fine).view_as(fine)
        depths, order = torch.cat([coarse.depths, fine], -1).sort(dim=-1, stable=True)
        sigma = torch.cat([coarse.sigma, sigma_fine], -1).gather(-1, order)
        weights = interval_weights(depths, sigma)
        opacity = weights.sum(-1)
        depth = expected_depth(depths, weights, opacity)
        shares = sample_shares(weights, order)
        shares_coarse, shares_fine = shares.split([self.samples, self.fine], -1)

        # The hidden layer of the coarse samples was not kept: it is worked out again where a colour is
        # needed.
        chosen, ends = _chosen(shares_coarse, share)
        heads = None
        if head.batch > 1:
            samples_of_head = shares_coarse[0].numel()
            heads = chosen.div(samples_of_head, rounding_mode="floor").int()
        points = coarse.points.view(-1, 3).index_select(0, chosen)
        hidden = self.decoder.hidden(head(points, heads))
        colour = 0.0 + self._colours(hidden, shares_coarse, chosen, ends)
        worked_out = len(chosen)

        chosen, ends = _chosen(shares_fine, share)
        hidden = hidden_fine.index_select(0, chosen) if share else hidden_fine
        colour = colour + self._colours(hidden, shares_fine, chosen, ends)
        worked_out += len(chosen)
        picture = colour.view(*opacity.shape, -1)
        return (picture, opacity, depth, thickness(depths, weights, depth)), worked_out

    def _colours(
        self,
        hidden_PH: Tensor,
        shares: Tensor,
        chosen_P: Tensor,
        ends_N: Tensor,
    ) -> Tensor:
        """What the chosen samples add to the colours of their N rays, (N, F)."""
        rows_P = torch.arange(len(chosen_P), device=chosen_P.device)
        weights_P = shares.reshape(-1).index_select(0, chosen_P)
        return F.embedding_bag(
            rows_P,
            self.decoder.colour(hidden_PH),
            F.pad(ends_N, (1, 0)),
            mode="sum",
            per_sample_weights=weights_P,
            include_last_offset=True,
        )


def _points(
    origins_BM3: Tensor,
    directions_BM3: Tensor,
    depths_BMS: Tensor,
    deform: Deform | None,
) -> Tensor:
    """Points of rays (B, M, S, 3)."""
    origins = origins_BM3[:, :, None]
    directions = directions_BM3[:, :, None]
    points = torch.addcmul(origins, depths_BMS[..., None], directions)
    if deform is None:
        return points
    return deform(points.flatten(1, 2)).view_as(points)


def _chosen(shares_BmS: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The samples that count more than `share`, places in B*m*S, and where each ray ends there, (B*m,)."""
    shares_NS = shares_BmS.flatten(0, 1)
    if share:
        chosen_NS = shares_NS > share
    else:
        chosen_NS = torch.ones_like(shares_NS, dtype=torch.bool)
    places = chosen_NS.view(-1).nonzero()[:, 0]
    return places, chosen_NS.sum(1).cumsum(0)


def side_by_side(
    work: Callable[[Any], Any],
    pieces: Iterable[Any],
    alone: bool,
) -> list[Any]:
    """`work` of each piece, each in a thread for itself unless `alone`.

    Pieces are too small to be shared out to threads step by step.
    """
    threads = torch.get_num_threads()
    # What counts operations sees those of its own thread only.
    if alone or threads == 1 or torch._C._len_torch_dispatch_stack():
        return [work(piece) for piece in pieces]
    # That holds for the threads that begin now.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(torch.inference_mode()(work), pieces))
    finally:
        torch.set_num_threads(threads)


def pick(values_BM: Tensor, rays_Bm: Tensor) -> Tensor:
    """(B, m, ...) of the values (B, M, ...) of all rays."""
    if len(values_BM) == 1:
        return values_BM[0].index_select(0, rays_Bm[0])[None]
    pairs = zip(values_BM, rays_Bm, strict=True)
    return torch.stack([values.index_select(0, rays) for values, rays in pairs])


def expected_depth(
    depths: Tensor,
    weights: Tensor,
    opacity: Tensor,
) -> Tensor:
    """As the plain renderer's; the samples of a camera all lie between the first and the last coarse one."""
    return mean_depth(depths, weights, opacity).clamp(depths[..., 0], depths[..., -1])
