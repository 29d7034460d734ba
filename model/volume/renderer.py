"""Volume rendering: rays of cameras, two-pass sampling, integration (paper section 3.1, facts 2.1 to 2.4).

Everything is in world units. Depths are distances from the camera along the normalised ray. B heads are each seen by V cameras; a camera's
n*n rays go row by row from the upper left; S samples a ray.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

Field = Callable[
    [Tensor], tuple[Tensor, Tensor]
]  # points (B, V, n*n, S, 3) -> colour (B, V, n*n, S, F), sigma (B, V, n*n, S)
Deform = Callable[[Tensor], Tensor]  # posed points (B, N, 3) -> canonical points (B, N, 3)


@dataclass
class Rendering:
    """What heads look like, (B*V, channels, n, n), the views of a head next to each other; in [-1, 1] where not said otherwise."""

    image: Tensor  # (B*V, 3, S, S), after super-resolution
    raw: Tensor  # 3 channels, before super-resolution
    foreground: Tensor  # 3, rendered colour alone: raw without the background
    background: Tensor  # 3, the background alone
    opacity: Tensor  # 1, in [0, 1]
    depth: Tensor  # 1, distance along the ray
    feature: Tensor  # F, what super-resolution sees; the first three are raw

    def __getitem__(self, rows: Tensor) -> "Rendering":
        """Some of the pictures, chosen by indices or a mask over B*V."""
        return Rendering(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass
class Rays:
    """Integrated rays, (B, V, n*n, ...)."""

    colour: Tensor  # F, not divided by opacity
    opacity: Tensor  # in [0, 1]
    depth: Tensor
    depths: Tensor  # (..., S), every sample, near to far
    weights: Tensor  # (..., S - 1), of the intervals between the samples


def camera_rays(cameras_BV25: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Origins (B, V, 3) and unit directions (B, V, side*side, 3) through the pixel centres of cameras with any intrinsics."""
    cam2world = cameras_BV25[..., :16].unflatten(-1, (4, 4))
    fx, skew, cx, _, fy, cy = cameras_BV25[..., 16:22, None].unbind(-2)
    centres = (torch.arange(side, dtype=cameras_BV25.dtype, device=cameras_BV25.device) + 0.5) / side
    v, u = (grid.flatten() for grid in torch.meshgrid(centres, centres, indexing="ij"))
    down = (v - cy) / fy
    ones = torch.ones_like(down)
    local = torch.stack([(u - cx - skew * down) / fx, -down, -ones, ones], -1)
    origins = cam2world[..., :3, 3]
    # A point on the ray less the origin, rather than a rotated direction: the last bits are then those of the published renderer, and
    # importance sampling in a rough field makes visible differences of them.
    ahead = (cam2world @ local.mT).mT[..., :3]
    return origins, F.normalize(ahead - origins[..., None, :], dim=-1)


def coarse_depths(
    cameras_BV25: Tensor, samples: int, box: float, generator: torch.Generator | None
) -> Tensor:
    """(B, V, samples): equally spaced over the side of the box around the depth of the world origin; a camera's rays share the jitter."""
    cam2world = cameras_BV25[..., :16].unflatten(-1, (4, 4))
    middle = (cam2world[..., :3, 2] * cam2world[..., :3, 3]).sum(-1, keepdim=True).abs()
    near, far = middle - box / 2, middle + box / 2
    depths = near + torch.arange(samples, dtype=near.dtype, device=near.device) / (samples - 1) * (far - near)
    if generator is None:
        return depths
    return depths + _uniform(depths.shape, generator, depths) * (box / (samples - 1))


def render_rays(
    field: Field,
    cameras_BV25: Tensor,
    side: int,
    samples: int,
    samples_fine: int,
    box: float,
    generator: torch.Generator | None = None,
) -> Rays:
    """Integrates `field` along side*side rays of each camera: equally spaced samples, then more where the first ones found something.

    `generator` jitters both; without one the samples are fixed. The field is asked once for each sample of both passes.
    """
    origins, directions = camera_rays(cameras_BV25, side)

    def ask(depths: Tensor) -> tuple[Tensor, Tensor]:
        return field(origins[:, :, None, None] + depths[..., None] * directions[..., None, :])

    coarse = coarse_depths(cameras_BV25, samples, box, generator)[:, :, None].expand(-1, -1, side * side, -1)
    colour_coarse, sigma_coarse = ask(coarse)
    with torch.no_grad():
        fine = importance_depths(coarse, interval_weights(coarse, sigma_coarse), samples_fine, generator)
    colour_fine, sigma_fine = ask(fine)

    depths, order = torch.cat([coarse, fine], -1).sort(dim=-1, stable=True)
    weights = interval_weights(depths, torch.cat([sigma_coarse, sigma_fine], -1).gather(-1, order))
    # An interval has the mean colour of its ends, so a sample counts with half the weight of either neighbour. Putting these numbers back
    # into the order of asking spares sorting the colours.
    shares = torch.zeros_like(depths).scatter(
        -1, order, (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2
    )
    share_coarse, share_fine = shares.split([samples, samples_fine], -1)
    colour = (share_coarse[..., None] * colour_coarse).sum(-2) + (share_fine[..., None] * colour_fine).sum(-2)
    opacity = weights.sum(-1)
    return Rays(colour, opacity, _expected_depth(depths, weights, opacity), depths, weights)


def compose(rays: Rays, background_BFnn: Tensor) -> Rendering:
    """The pictures of integrated rays before the background (B, F, n, n) in [0, 1] of each head (facts 2.4). What super-resolution is to make
    of `feature`, `image`, is still `raw`."""
    side, views = background_BFnn.shape[-1], rays.opacity.shape[1]

    def picture(values_BVRF: Tensor) -> Tensor:
        return values_BVRF.flatten(0, 1).mT.unflatten(2, (side, side))

    opacity, colour = picture(rays.opacity[..., None]), picture(rays.colour)
    background = background_BFnn.repeat_interleave(views, 0)
    feature = 2 * (colour + (1 - opacity) * background) - 1
    raw = feature[:, :3]
    return Rendering(
        image=raw,
        raw=raw,
        foreground=2 * colour[:, :3] - 1,
        background=2 * background[:, :3] - 1,
        opacity=opacity,
        depth=picture(rays.depth[..., None]),
        feature=feature,
    )


def interval_weights(depths: Tensor, sigma: Tensor) -> Tensor:
    """(..., S - 1): how much each interval between samples, sorted near to far, adds to the ray; raw densities `sigma` (..., S)."""
    density = F.softplus((sigma[..., :-1] + sigma[..., 1:]) / 2 - 1.0)
    thickness = density * depths.diff(dim=-1)
    passed = torch.exp(-F.pad(thickness.cumsum(-1), (1, 0)))
    return passed[..., :-1] - passed[..., 1:]


def importance_depths(
    depths: Tensor, weights: Tensor, count: int, generator: torch.Generator | None
) -> Tensor:
    """(..., count) further depths, more of them where the smoothed weights (..., S - 1) are high, by inverting their distribution."""
    widest = torch.maximum(F.pad(weights, (1, 0)), F.pad(weights, (0, 1)))
    smooth = (widest[..., :-1] + widest[..., 1:]) / 2 + 0.01
    edges = (depths[..., :-1] + depths[..., 1:]) / 2
    mass = smooth[..., 1:-1] + 1e-5
    cumulative = F.pad((mass / mass.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    shape = (*depths.shape[:-1], count)
    if generator is None:
        u = torch.linspace(0, 1, count, dtype=depths.dtype, device=depths.device).expand(shape).contiguous()
    else:
        u = _uniform(shape, generator, depths)
    found = torch.searchsorted(cumulative, u, right=True)
    below, above = (found - 1).clamp(min=0), found.clamp(max=mass.shape[-1])
    low, high = cumulative.gather(-1, below), cumulative.gather(-1, above)
    width = torch.where(high - low < 1e-5, 1.0, high - low)
    start = edges.gather(-1, below)
    return start + (u - low) / width * (edges.gather(-1, above) - start)


def _expected_depth(depths: Tensor, weights: Tensor, opacity: Tensor) -> Tensor:
    middle = (depths[..., :-1] + depths[..., 1:]) / 2
    seen = opacity > 0
    depth = torch.where(seen, (weights * middle).sum(-1) / torch.where(seen, opacity, 1.0), math.inf)
    # Rays that meet nothing get the farthest sample of their image.
    return torch.clamp(depth, depths.amin((-2, -1))[..., None], depths.amax((-2, -1))[..., None])


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
