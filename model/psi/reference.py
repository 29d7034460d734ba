"""The reference path of Psi: plain, in the official order of operations, nothing cached (facts 1 and 2).

Attention is written out, all samples of all rays are looked up and decoded, and colours are sorted with their
samples. The fast path (`model/fast/psi.py`) is compared with it, in results and in time.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.head.deform import NeckField
from model.psi.network import Psi
from model.psi.projection import facing
from model.volume.planes import (
    Planes,
    camera_places,
    sample_planes_reference,
    sample_portrait_reference,
)
from model.volume.renderer import (
    Deform,
    Rays,
    Rendering,
    camera_rays,
    coarse_depths,
    compose,
    importance_depths,
    interval_weights,
)


class ReferencePsi:
    """The inference of a network; arguments and results as those of `Psi` without a generator."""

    def __init__(self, psi: Psi) -> None:
        self.psi = psi

    @torch.inference_mode()
    def planes(
        self,
        source_B3SS: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        motion_scale: float | Tensor = 1.0,
        camera_source_B25: Tensor | None = None,
        posing_source: NeckField | None = None,
    ) -> Planes:
        """As `Psi.planes`."""
        # Attention by this backend is the scores as a whole, their softmax, their product with the values.
        with sdpa_kernel(SDPBackend.MATH):
            motions = (motion_source_BM, motion_driving_BM)
            taken_by = (camera_source_B25, posing_source)
            return self.psi.planes(source_B3SS, *motions, motion_scale, *taken_by)

    @torch.inference_mode()
    def render(
        self,
        planes: Planes,
        source_B3SS: Tensor,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
    ) -> Rendering:
        """Pictures of B tri-planes from V cameras each."""
        psi = self.psi
        rays = self.rays(planes, cameras_BV25, deform)
        rendering = compose(rays, psi.background_feature(source_B3SS))
        rendering.image = psi.superresolution(rendering.feature, rendering.raw, psi.w_avg[None])
        if psi.portrait_detail is not None:
            rendering.image = psi.portrait_detail(rendering, planes, cameras_BV25, deform)
        return rendering

    @torch.inference_mode()
    def rays(
        self,
        planes: Planes,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
    ) -> Rays:
        """Both passes of sampling and the integration."""
        own = self.psi.sizes
        origins_BV3, directions_BVR3 = camera_rays(cameras_BV25, own.rays)

        def ask(depths_BVRS: Tensor) -> tuple[Tensor, Tensor]:
            along_BVRS3 = depths_BVRS[..., None] * directions_BVR3[..., None, :]
            points_BVRS3 = origins_BV3[:, :, None, None] + along_BVRS3
            points_BN3 = points_BVRS3.flatten(1, 3)
            points_BN3 = points_BN3 if deform is None else deform(points_BN3)
            feature_BNC = self.features(planes, points_BN3)
            colour, sigma = self.psi.decoder.reference(feature_BNC)
            shape = points_BVRS3.shape[1:4]
            return colour.unflatten(1, shape), sigma.unflatten(1, shape)

        # Without a generator nothing is jittered, as on the fast path.
        depths_BVS = coarse_depths(cameras_BV25, own.samples, own.box, None)
        coarse = depths_BVS[:, :, None].expand(-1, -1, own.rays**2, -1)
        colour_coarse, sigma_coarse = ask(coarse)
        weights_coarse = interval_weights(coarse, sigma_coarse)
        fine = importance_depths(coarse, weights_coarse, own.samples_fine, None)
        colour_fine, sigma_fine = ask(fine)

        depths, order = torch.cat([coarse, fine], -1).sort(dim=-1, stable=True)
        sigma = torch.cat([sigma_coarse, sigma_fine], -1).gather(-1, order)
        colour = torch.cat([colour_coarse, colour_fine], -2)
        colour = colour.gather(-2, order[..., None].expand_as(colour))
        weights = interval_weights(depths, sigma)
        opacity = weights.sum(-1)
        # An interval has the mean colour and the mean depth of its ends.
        both_colours = colour[..., :-1, :] + colour[..., 1:, :]
        both_depths = depths[..., :-1] + depths[..., 1:]
        colour = (weights[..., None] * both_colours / 2).sum(-2)
        # Where there is nothing this divides 0 by 0: such rays get the farthest sample.
        depth = (weights * both_depths / 2).sum(-1) / opacity
        depth = depth.nan_to_num(torch.inf).clamp(depths.min(), depths.max())
        thickness = (weights * (both_depths / 2 - depth[..., None]).abs()).sum(-1)
        return Rays(colour, opacity, depth, thickness, depths, weights)

    def features(self, planes: Planes, points_BN3: Tensor) -> Tensor:
        """As `Psi.features`."""
        psi = self.psi
        feature_BNC = sample_planes_reference(planes.triplanes_B3CRR, points_BN3, psi.sizes.box)
        if psi.projection is None:
            return feature_BNC
        seen_BN3 = planes.in_portrait(points_BN3)
        found = sample_portrait_reference(planes.portrait_BCSS, planes.camera_B25, seen_BN3)
        cosine = facing(seen_BN3, camera_places(planes.camera_B25)[:, None])
        return psi.projection.mix(feature_BNC, found, cosine)

    def __call__(
        self,
        source_B3SS: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        cameras_BV25: Tensor,
        motion_scale: float | Tensor = 1.0,
        deform: Deform | None = None,
        camera_source_B25: Tensor | None = None,
        posing_source: NeckField | None = None,
    ) -> Rendering:
        """`planes` and `render` in one call."""
        motions = (motion_source_BM, motion_driving_BM)
        planes = self.planes(source_B3SS, *motions, motion_scale, camera_source_B25, posing_source)
        return self.render(planes, source_B3SS, cameras_BV25, deform)
