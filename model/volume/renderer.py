"""Volume rendering: rays of cameras, two-pass sampling, integration (paper section 3.1, facts 2.1 to 2.4).

Everything is in world units. Depths are distances from the camera along the normalised ray. B heads are each
seen by V cameras; R = n*n rays of a camera go row by row from the upper left; S samples a ray.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

# Points (B, V, R, S, 3) -> colour (B, V, R, S, F) and raw density sigma (B, V, R, S).
Field = Callable[[Tensor], tuple[Tensor, Tensor]]
Deform = Callable[[Tensor], Tensor]  # posed points (B, N, 3) -> canonical points (B, N, 3)


@dataclass
class Rendering:
    """What heads look like, (B*V, channels, n, n), the views of a head next to each other.

    Values are in [-1, 1] where not said otherwise.
    """

    image: Tensor  # (B*V, 3, S, S), after super-resolution
    raw: Tensor  # 3 channels, before super-resolution
    foreground: Tensor  # 3, rendered colour alone: raw without the background
    background: Tensor  # 3, the background alone
    opacity: Tensor  # 1, in [0, 1]
    depth: Tensor  # 1, distance along the ray
    thickness: Tensor  # 1, mean distance from it of what the ray meets, times the opacity
    feature: Tensor  # F, what super-resolution sees; the first three are raw

    def __getitem__(self, rows: Tensor) -> "Rendering":
        """Some of the pictures, chosen by indices or a mask over B*V."""
        some = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        return Rendering(**some)


@dataclass
class Rays:
    """Integrated rays, (B, V, R, ...)."""

    colour: Tensor  # F, not divided by opacity
    opacity: Tensor  # in [0, 1]
    depth: Tensor
    thickness: Tensor  # mean distance from the depth of what is met, times the opacity
    depths: Tensor  # (..., S), every sample, near to far
    weights: Tensor  # (..., S - 1), of the intervals between the samples


def camera_rays(cameras_BV25: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Origins (B, V, 3) and unit directions (B, V, R, 3) through the pixel centres of side * side pixels.

    The cameras may have any intrinsics.
    """
    cam2world_BV44 = _cam2world(cameras_BV25)
    intrinsics_BV61 = cameras_BV25[..., 16:22, None]
    fx, skew, cx, _, fy, cy = intrinsics_BV61.unbind(-2)
    index = torch.arange(side, dtype=cameras_BV25.dtype, device=cameras_BV25.device)
    centres = (index + 0.5) / side
    grids = torch.meshgrid(centres, centres, indexing="ij")
    v, u = (grid.flatten() for grid in grids)
    down = (v - cy) / fy
    sheared = u - cx - skew * down
    right = sheared / fx
    ones = torch.ones_like(down)
    local_BVR4 = torch.stack([right, -down, -ones, ones], -1)
    origins_BV3 = cam2world_BV44[..., :3, 3]
    # A point on the ray less the origin, rather than a rotated direction: the last bits are then those of the
    # published renderer, and importance sampling in a rough field makes visible differences of them.
    ahead_BVR4 = (cam2world_BV44 @ local_BVR4.mT).mT
    ahead_BVR3 = ahead_BVR4[..., :3]
    rays_BVR3 = ahead_BVR3 - origins_BV3[..., None, :]
    return origins_BV3, F.normalize(rays_BVR3, dim=-1)


def _cam2world(cameras_BV25: Tensor) -> Tensor:
    """Matrices (B, V, 4, 4) of cameras."""
    return cameras_BV25[..., :16].unflatten(-1, (4, 4))


def coarse_depths(
    cameras_BV25: Tensor,
    samples: int,
    box: float,
    generator: torch.Generator | None,
) -> Tensor:
    """(B, V, samples) depths, equally spaced over the side of the box around that of the world origin.

    With a generator they are jittered; a camera's rays share the jitter.
    """
    cam2world_BV44 = _cam2world(cameras_BV25)
    forward_BV3 = cam2world_BV44[..., :3, 2]
    place_BV3 = cam2world_BV44[..., :3, 3]
    # The box lies around the origin, whose distance along the view is its middle.
    along_BV1 = (forward_BV3 * place_BV3).sum(-1, keepdim=True)
    middle_BV1 = along_BV1.abs()
    near = middle_BV1 - box / 2
    far = middle_BV1 + box / 2
    steps_S = torch.arange(samples, dtype=near.dtype, device=near.device)
    shares_S = steps_S / (samples - 1)
    depths_BVS = near + shares_S * (far - near)
    if generator is None:
        return depths_BVS
    # The jitter is uniform in one bin.
    jitter_BVS = _uniform(depths_BVS.shape, generator, depths_BVS)
    return depths_BVS + jitter_BVS * (box / (samples - 1))


def render_rays(
    field: Field,
    cameras_BV25: Tensor,
    side: int,
    samples: int,
    samples_fine: int,
    box: float,
    generator: torch.Generator | None = None,
) -> Rays:
    """Integrates `field` along side*side rays of each camera.

    Equally spaced samples come first, then more where these found something; the field is asked once for each
    sample of both passes. `generator` jitters both; without one the samples are fixed.
    """
    origins_BV3, directions_BVR3 = camera_rays(cameras_BV25, side)

    def ask(depths_BVRS: Tensor) -> tuple[Tensor, Tensor]:
        along_BVRS3 = depths_BVRS[..., None] * directions_BVR3[..., None, :]
        points_BVRS3 = origins_BV3[:, :, None, None] + along_BVRS3
        return field(points_BVRS3)

    # The rays of a camera share their depths.
    depths_BVS = coarse_depths(cameras_BV25, samples, box, generator)
    depths_BV1S = depths_BVS[:, :, None]
    coarse = depths_BV1S.expand(-1, -1, side * side, -1)
    colour_coarse, sigma_coarse = ask(coarse)
    with torch.no_grad():
        weights_coarse = interval_weights(coarse, sigma_coarse)
        fine = importance_depths(coarse, weights_coarse, samples_fine, generator)
    colour_fine, sigma_fine = ask(fine)

    both = torch.cat([coarse, fine], -1)
    depths, order = both.sort(dim=-1, stable=True)
    sigma = torch.cat([sigma_coarse, sigma_fine], -1)
    weights = interval_weights(depths, sigma.gather(-1, order))
    shares = sample_shares(weights, order)
    share_coarse, share_fine = shares.split([samples, samples_fine], -1)
    from_coarse = (share_coarse[..., None] * colour_coarse).sum(-2)
    from_fine = (share_fine[..., None] * colour_fine).sum(-2)
    opacity = weights.sum(-1)
    depth = _expected_depth(depths, weights, opacity)
    return Rays(
        colour=from_coarse + from_fine,
        opacity=opacity,
        depth=depth,
        thickness=thickness(depths, weights, depth),
        depths=depths,
        weights=weights,
    )


def middles(values: Tensor) -> Tensor:
    """The means (..., S - 1) of neighbours."""
    before = values[..., :-1]
    behind = values[..., 1:]
    return (before + behind) / 2


def sample_shares(weights: Tensor, order: Tensor) -> Tensor:
    """How much each sample adds to its ray's colour, (..., S), in the order in which samples were asked for.

    `weights` (..., S - 1) are those of the intervals between sorted samples, `order` (..., S) what sorted
    them. An interval has the mean colour of its ends, so a sample counts with half the weight of either
    neighbour. Putting these numbers back into the order of asking spares sorting the colours.
    """
    before = F.pad(weights, (1, 0))
    behind = F.pad(weights, (0, 1))
    sorted_shares = (before + behind) / 2
    return torch.zeros_like(sorted_shares).scatter(-1, order, sorted_shares)


def compose(rays: Rays, background_BFnn: Tensor) -> Rendering:
    """The pictures of integrated rays before the background (B, F, n, n) in [0, 1] of each head (facts 2.4).

    `image`, what super-resolution is to make of `feature`, is still `raw`.
    """
    side = background_BFnn.shape[-1]
    views = rays.opacity.shape[1]

    def picture(values_BVRC: Tensor) -> Tensor:
        values_NCR = values_BVRC.flatten(0, 1).mT
        return values_NCR.unflatten(2, (side, side))

    opacity = picture(rays.opacity[..., None])
    colour = picture(rays.colour)
    background = background_BFnn.repeat_interleave(views, 0)
    # What is behind shows as far as light passes the head.
    composed = colour + (1 - opacity) * background
    feature = 2 * composed - 1
    raw = feature[:, :3]
    return Rendering(
        image=raw,
        raw=raw,
        foreground=2 * colour[:, :3] - 1,
        background=2 * background[:, :3] - 1,
        opacity=opacity,
        depth=picture(rays.depth[..., None]),
        thickness=picture(rays.thickness[..., None]),
        feature=feature,
    )


def interval_weights(depths: Tensor, sigma: Tensor) -> Tensor:
    """How much each interval between samples adds to the ray, (..., S - 1).

    `depths` (..., S) are sorted near to far, `sigma` (..., S) are raw densities. An interval's density is
    softplus(mean of its ends - 1), and w_i = T_i - T_(i+1) with T the light that is left before an interval.
    """
    density = F.softplus(middles(sigma) - 1.0)
    thickness = density * depths.diff(dim=-1)
    # T_i = exp(-(sum of the thicknesses before interval i))
    passed_through = thickness.cumsum(-1)
    light = torch.exp(-F.pad(passed_through, (1, 0)))
    before = light[..., :-1]
    behind = light[..., 1:]
    return before - behind


def importance_depths(
    depths: Tensor,
    weights: Tensor,
    count: int,
    generator: torch.Generator | None,
) -> Tensor:
    """(..., count) further depths, more of them where the smoothed weights (..., S - 1) are high.

    Found by inverting the distribution that the weights make over the ray.
    """
    # Each interval's weight is the mean of the larger ones on either side of its ends, and never nothing.
    before = F.pad(weights, (1, 0))
    behind = F.pad(weights, (0, 1))
    widest = torch.maximum(before, behind)
    smooth = middles(widest) + 0.01
    edges = middles(depths)
    mass = smooth[..., 1:-1] + 1e-5
    share = mass / mass.sum(-1, keepdim=True)
    reached = share.cumsum(-1)
    cumulative = F.pad(reached, (1, 0))

    shape = (*depths.shape[:-1], count)
    if generator is None:
        steps = torch.linspace(0, 1, count, dtype=depths.dtype, device=depths.device)
        u = steps.expand(shape).contiguous()
    else:
        u = _uniform(shape, generator, depths)
    found = torch.searchsorted(cumulative, u, right=True)
    last = mass.shape[-1]
    below = (found - 1).clamp(min=0)
    above = found.clamp(max=last)
    low = cumulative.gather(-1, below)
    high = cumulative.gather(-1, above)
    start = edges.gather(-1, below)
    end = edges.gather(-1, above)
    # Where the distribution is flat, the start of the interval stands for all of it.
    rise = high - low
    rise = torch.where(rise < 1e-5, 1.0, rise)
    share = (u - low) / rise
    return start + share * (end - start)


def mean_depth(
    depths: Tensor,
    weights: Tensor,
    opacity: Tensor,
) -> Tensor:
    """The mean depth (...) of what rays meet, infinite where they meet nothing."""
    seen = opacity > 0
    total = (weights * middles(depths)).sum(-1)
    # A division by zero would make the gradient no number, also where its result is not taken.
    divisor = torch.where(seen, opacity, 1.0)
    return torch.where(seen, total / divisor, math.inf)


def thickness(depths: Tensor, weights: Tensor, depth: Tensor) -> Tensor:
    """How far from a ray's depth (...) lies what it meets, times its opacity, (...).

    The depth stays as it is: gradients make what is met thinner, and do not move it.
    """
    away = (middles(depths) - depth.detach()[..., None]).abs()
    return (weights * away).sum(-1)


def _expected_depth(
    depths: Tensor,
    weights: Tensor,
    opacity: Tensor,
) -> Tensor:
    depth = mean_depth(depths, weights, opacity)
    # Rays that meet nothing get the farthest sample of their image.
    nearest = depths.amin((-2, -1))[..., None]
    farthest = depths.amax((-2, -1))[..., None]
    return torch.clamp(depth, nearest, farthest)


def _uniform(
    shape: tuple[int, ...],
    generator: torch.Generator,
    like: Tensor,
) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)
