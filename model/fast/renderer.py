"""Volume rendering on the fast path: the rays of `model/volume/renderer.py`, with work only where something is seen.

Piece by piece, so that everything between a sample's position and its density stays in a core's cache:

1. Densities of the coarse samples of all rays; no colours.
2. Rays that meet nothing, and whose eight neighbours meet nothing, end here.
3. Fine samples of the others, densities, integration.
4. Colours of the samples whose share of the ray counts.

What is left out has a bound: a ray's colour lacks at most SHARE * (samples + samples_fine) of opacity (step 4). Step 2 drops rays that the
coarse pass, there and around it, found more transparent than NOTHING; what is thinner than the distance of coarse samples and missed by
all nine rays is missed. With `nothing` and `share` 0 all samples of all rays count.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.volume.colour_decoder import LARGEST, ColourDecoder
from model.volume.planes import PAIRS
from model.volume.renderer import (
    Deform,
    Rays,
    camera_rays,
    coarse_depths,
    importance_depths,
    interval_weights,
)

POINTS = 16384  # at once
NOTHING = 1e-3  # opacity
SHARE = 1e-5  # of a sample in its ray


class Field:
    """The planes of B heads as one table of texels, each plane in a ring of zeros, so that a look-up needs no condition.

    Of a point's twelve texels, the table's rows are linear in its cell, and the weights are products of two linear functions of its place
    within: three small matrix products.
    """

    def __init__(self, planes_B3CRR: Tensor, box: float) -> None:
        self.batch, _, channels, self.side, _ = planes_B3CRR.shape
        self.box, row = box, self.side + 2
        # The planes of a texel lie next to each other, as the decoder's last convolution leaves them.
        self.table = F.pad(planes_B3CRR.permute(0, 3, 4, 1, 2), (0, 0, 0, 0, 1, 1, 1, 1)).reshape(
            -1, channels
        )
        maps = torch.zeros(3, 4, 12)  # from (x, y, z, 1) to the twelve texels
        self.rows, self.across, self.down = maps.unbind(0)
        for texel in range(12):
            plane, down, across = texel // 4, texel // 2 % 2, texel % 2
            pair = PAIRS[plane]
            self.rows[pair[0], texel], self.rows[pair[1], texel], self.rows[3, texel] = (
                3,
                3 * row,
                plane + 3 * across + 3 * row * down,
            )
            self.across[pair[0], texel], self.across[3, texel] = (1, 0) if across else (-1, 1)
            self.down[pair[1], texel], self.down[3, texel] = (1 / 3, 0) if down else (-1 / 3, 1 / 3)
        self.rows, self.across, self.down = maps.to(planes_B3CRR.device).unbind(0)

    def features(self, points_M3: Tensor, heads_M: Tensor | None) -> Tensor:
        """(M, C) plane-averaged features; `heads_M` are int32 numbers of heads, not needed when there is one."""
        # In texels of the padded plane: texel centres are whole numbers, 0 is the ring before the first texel.
        place = (points_M3 * (self.side / self.box)).add_((self.side + 1) / 2).clamp_(0.0, self.side + 1.0)
        corner = place.floor().clamp_(max=float(self.side))
        inside = place.sub_(corner)
        rows = torch.addmm(self.rows[3], corner, self.rows[:3]).int()  # exact: below 2^24
        if heads_M is not None:
            rows += (heads_M * (len(self.table) // self.batch))[:, None]
        weights = torch.addmm(self.across[3], inside, self.across[:3]).mul_(
            torch.addmm(self.down[3], inside, self.down[:3])
        )
        return F.embedding_bag(rows, self.table, mode="sum", per_sample_weights=weights)


class FastDecoder:
    """The MLP, its two halves apart: features to density, and the hidden layer of some of them to colours."""

    def __init__(self, decoder: ColourDecoder) -> None:
        self.hidden_weight, self.hidden_bias = (part.detach() for part in decoder.net[0].scaled())
        self.sigma_weight, self.sigma_bias = (part.detach() for part in decoder.out_sigma.scaled())
        self.colour_weight, self.colour_bias = (part.detach() for part in decoder.out_rgb.scaled())

    def hidden(self, feature_MC: Tensor) -> Tensor:
        hidden = F.linear(feature_MC, self.hidden_weight, self.hidden_bias)
        if not len(hidden) or hidden.amax() > LARGEST:
            return F.softplus(hidden)
        return (
            hidden.exp_().add_(1.0).log_()
        )  # the same within 1e-7, at a third of the time of the library's log1p

    def sigma(self, hidden_MH: Tensor) -> Tensor:
        return torch.addmv(self.sigma_bias, hidden_MH, self.sigma_weight[0])

    def colour(self, hidden_MH: Tensor) -> Tensor:
        return F.linear(hidden_MH, self.colour_weight, self.colour_bias).sigmoid_().mul_(1.002).sub_(0.001)


class FastRenderer:
    """The rays of B tri-planes seen by V cameras each; the samples are where `render_rays` has them without a generator."""

    def __init__(
        self, decoder: ColourDecoder, side: int, samples: int, samples_fine: int, box: float
    ) -> None:
        self.decoder = FastDecoder(decoder)
        self.side, self.samples, self.fine, self.box = side, samples, samples_fine, box

    def __call__(
        self,
        planes_B3CRR: Tensor,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
        nothing: float = NOTHING,
        share: float = SHARE,
    ) -> tuple[Rays, float]:
        """The rays, with the depths and weights of the coarse pass, and how much of the samples' colours was worked out, 0 to 1."""
        field = Field(planes_B3CRR, self.box)
        alone = planes_B3CRR.device.type != "cpu" or deform is not None  # which need not bear two threads
        origins, directions = camera_rays(cameras_BV25, self.side)
        origins, directions = origins.repeat_interleave(self.side**2, 1), directions.flatten(1, 2)
        views, count = cameras_BV25.shape[1], directions.shape[1]
        coarse = coarse_depths(cameras_BV25, self.samples, self.box, None).repeat_interleave(self.side**2, 1)

        points = directions.new_empty(*coarse.shape, 3)
        sigma = torch.empty_like(coarse)

        def look(part: slice) -> None:
            points[:, part] = self._points(origins[:, part], directions[:, part], coarse[:, part], deform)
            sigma[:, part] = self.decoder.sigma(self._hidden(field, points[:, part])).view_as(sigma[:, part])

        step = max(1, POINTS // (field.batch * self.samples))
        side_by_side(look, (slice(begin, begin + step) for begin in range(0, count, step)), alone)
        weights = interval_weights(coarse, sigma)
        opacity = weights.sum(-1)
        depth = expected_depth(coarse, weights, opacity)
        colour = opacity.new_zeros(*opacity.shape, self.decoder.colour_bias.shape[0])
        around = F.max_pool2d(opacity.view(-1, 1, self.side, self.side), 3, stride=1, padding=1)
        seen = (
            around.view(-1, views * self.side**2) > nothing
            if nothing
            else torch.ones_like(opacity, dtype=torch.bool)
        )
        # Heads with fewer such rays than the others get some more.
        alive = seen.sort(dim=1, descending=True, stable=True).indices[:, : int(seen.sum(1).max())]

        def finish(some: Tensor) -> int:
            inputs = [pick(part, some) for part in (origins, directions, points, coarse, sigma, weights)]
            piece, chosen = self._integrate(field, *inputs, deform, share)
            for whole, part in zip((colour, opacity, depth), piece, strict=True):
                whole.scatter_(1, some.view(*some.shape, *[1] * (part.ndim - 2)).expand_as(part), part)
            return chosen

        pieces = alive.split(max(1, POINTS // (field.batch * self.fine)), 1) if alive.numel() else ()
        worked_out = sum(side_by_side(finish, pieces, alone))
        shape = (views, self.side**2)
        rays = Rays(*(part.unflatten(1, shape) for part in (colour, opacity, depth, coarse, weights)))
        return rays, worked_out / (opacity.numel() * (self.samples + self.fine))

    def _points(
        self, origins_BM3: Tensor, directions_BM3: Tensor, depths_BMS: Tensor, deform: Deform | None
    ) -> Tensor:
        points = torch.addcmul(origins_BM3[:, :, None], depths_BMS[..., None], directions_BM3[:, :, None])
        return points if deform is None else deform(points.flatten(1, 2)).view_as(points)

    def _hidden(self, field: Field, points_BMS3: Tensor) -> Tensor:
        heads = None
        if field.batch > 1:
            numbers = torch.arange(field.batch, dtype=torch.int32, device=points_BMS3.device)
            heads = numbers.repeat_interleave(points_BMS3[0].numel() // 3)
        return self.decoder.hidden(field.features(points_BMS3.reshape(-1, 3), heads))

    def _integrate(
        self,
        field: Field,
        origins: Tensor,
        directions: Tensor,
        points: Tensor,
        coarse: Tensor,
        sigma_coarse: Tensor,
        weights_coarse: Tensor,
        deform: Deform | None,
        share: float,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
        """Colour, opacity and depth of some rays (B, m, ...), and the number of colours worked out."""
        fine = importance_depths(coarse, weights_coarse, self.fine, None)
        hidden = self._hidden(field, self._points(origins, directions, fine, deform))
        sigma_fine = self.decoder.sigma(hidden).view_as(fine)
        depths, order = torch.cat([coarse, fine], -1).sort(dim=-1, stable=True)
        weights = interval_weights(depths, torch.cat([sigma_coarse, sigma_fine], -1).gather(-1, order))
        opacity = weights.sum(-1)
        shares = torch.zeros_like(depths).scatter(
            -1, order, (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2
        )

        colour, worked_out = 0.0, 0
        for part, known in zip(shares.split([self.samples, self.fine], -1), (None, hidden), strict=True):
            part = part.flatten(0, 1)
            chosen = part > share if share else torch.ones_like(part, dtype=torch.bool)
            ends = chosen.sum(1).cumsum(0)
            picked = chosen.view(-1).nonzero()[:, 0]
            if known is None:
                heads = (
                    picked.div(chosen.numel() // field.batch, rounding_mode="floor").int()
                    if field.batch > 1
                    else None
                )
                known = self.decoder.hidden(field.features(points.view(-1, 3).index_select(0, picked), heads))
            elif share:
                known = known.index_select(0, picked)
            worked_out += len(picked)
            colour = colour + F.embedding_bag(
                torch.arange(len(picked), device=picked.device),
                self.decoder.colour(known),
                F.pad(ends, (1, 0)),
                mode="sum",
                per_sample_weights=part.reshape(-1).index_select(0, picked),
                include_last_offset=True,
            )
        picture = colour.view(*opacity.shape, -1)  # pyrefly: ignore[missing-attribute]
        return (picture, opacity, expected_depth(depths, weights, opacity)), worked_out


def side_by_side(work: Callable[[Any], Any], pieces: Iterable[Any], alone: bool) -> list[Any]:
    """`work` of each piece. Pieces are too small to be shared out to threads step by step: each has a thread for itself, unless `alone`."""
    threads = torch.get_num_threads()
    # What counts operations sees those of its own thread only.
    if alone or threads == 1 or torch._C._len_torch_dispatch_stack():
        return [work(piece) for piece in pieces]
    torch.set_num_threads(1)  # of the threads that begin now
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(torch.inference_mode()(work), pieces))
    finally:
        torch.set_num_threads(threads)


def pick(values_BM: Tensor, rays_Bm: Tensor) -> Tensor:
    """(B, m, ...) of the values (B, M, ...) of all rays."""
    if len(values_BM) == 1:
        return values_BM[0].index_select(0, rays_Bm[0])[None]
    return torch.stack(
        [values.index_select(0, rays) for values, rays in zip(values_BM, rays_Bm, strict=True)]
    )


def expected_depth(depths: Tensor, weights: Tensor, opacity: Tensor) -> Tensor:
    """As the plain renderer's; the samples of a camera all lie between the first and the last of the coarse ones."""
    middle = (depths[..., :-1] + depths[..., 1:]) / 2
    depth = torch.where(
        opacity > 0, (weights * middle).sum(-1) / torch.where(opacity > 0, opacity, 1.0), math.inf
    )
    return depth.clamp(depths[..., 0], depths[..., -1])
