"""Psi, the one-shot 4D head synthesizer (paper sections 3 and 4, facts 1 and 2).

Psi_3d is the same network with motion scale 0.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.head.deform import NeckField
from model.psi import projection
from model.psi.background import Background
from model.psi.canonical import CanonicalEncoder
from model.psi.encoders import DetailEncoder, GlobalEncoder, shrunk
from model.psi.portrait_detail import PortraitDetail
from model.psi.projection import PortraitFeatures, motion_change, moves
from model.psi.triplane_decoder import TriplaneDecoder
from model.sizes import Sizes
from model.volume.colour_decoder import ColourDecoder
from model.volume.planes import Planes, camera_places, sample_planes, sample_portrait
from model.volume.renderer import Deform, Rendering, compose, render_rays
from model.volume.superresolution import SuperResolution

# The parts whose weights are scaled when they are used (model/layers/stylegan.py).
EQUALISED = ("superresolution.", "decoder.")
MOTION_PARTS = ("maps", "maps_neutral", "proj_y", "proj_y_neutral", "norm2", "attn2")


class Psi(nn.Module):
    """A portrait, its motion and a driving motion to tri-planes, and these to pictures of any camera."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        psi = sizes.psi
        self.sizes = sizes
        # The one style of super-resolution, which no training changes: zero, or that of the weights that are
        # imported or taken over.
        self.register_buffer("w_avg", torch.zeros(sizes.w_dim))
        self.encoder_global = GlobalEncoder(
            sizes.encoded,
            psi.encoder_width,
            psi.encoder_blocks,
            psi.global_channels,
        )
        self.encoder_detail = DetailEncoder(psi.detail_stem, psi.detail_channels)
        self.encoder_canonical = CanonicalEncoder(sizes)
        self.generator_triplane = TriplaneDecoder(sizes)
        self.background = Background(psi.background_width, sizes.feature_channels)
        self.superresolution = SuperResolution(sizes)
        self.decoder = ColourDecoder(sizes.plane_channels, sizes.decoder_hidden, sizes.feature_channels)
        # Last, so that the other networks draw the random numbers that they draw without it.
        self.projection = PortraitFeatures(sizes) if psi.projected else None
        self.portrait_detail = PortraitDetail(sizes) if psi.projected and psi.portrait_detail else None

    def forward(
        self,
        source_B3SS: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        cameras_BV25: Tensor,
        motion_scale: float | Tensor = 1.0,
        deform: Deform | None = None,
        generator: torch.Generator | None = None,
        camera_source_B25: Tensor | None = None,
        posing_source: NeckField | None = None,
    ) -> Rendering:
        """`planes`, `background_feature` and `render` in one call."""
        motions = (motion_source_BM, motion_driving_BM)
        planes = self.planes(source_B3SS, *motions, motion_scale, camera_source_B25, posing_source)
        background = self.background_feature(source_B3SS)
        return self.render(planes, background, cameras_BV25, deform, generator)

    def planes(
        self,
        source_B3SS: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        motion_scale: float | Tensor = 1.0,
        camera_source_B25: Tensor | None = None,
        posing_source: NeckField | None = None,
    ) -> Planes:
        """What source portraits in [-1, 1] with the driving motion are rendered from.

        `motion_scale` 0 is Psi_3d: neither motion matters and both may be None. It may be a tensor (B, 1, 1).
        The camera of the source counts where source features are projected, and may be None elsewhere. So
        does `posing_source`, which takes points of the un-posed head to the head that this camera saw; with
        None the camera holds all of the head's turn.
        """
        encoded_B3EE = shrunk(source_B3SS, self.sizes.encoded)
        appearance = self.encoder_global(encoded_B3EE)
        canonical = self.encoder_canonical(appearance, motion_source_BM, motion_driving_BM, motion_scale)
        detail = self.encoder_detail(encoded_B3EE)
        triplanes = self.generator_triplane(canonical, detail)
        if self.projection is None:
            return Planes(triplanes)
        seen = self.projection.seen(source_B3SS, camera_source_B25, moves(motion_scale))
        change = motion_change(motion_source_BM, motion_driving_BM, motion_scale)
        changed = self.projection.changed(seen, canonical, change)
        portrait, detail = self.projection(changed), None
        if self.portrait_detail is not None:
            detail = self.portrait_detail.map(changed)
        return Planes(triplanes, portrait, camera_source_B25, posing_source, detail, changed.flow_B2SS)

    def background_feature(self, source_B3SS: Tensor) -> Tensor:
        """What stands behind the head, (B, F, n, n) in [0, 1]."""
        encoded_B3EE = shrunk(source_B3SS, self.sizes.encoded)
        colour = torch.sigmoid(self.background(encoded_B3EE))
        size = (self.sizes.rays, self.sizes.rays)
        return F.interpolate(colour, size, mode="bilinear", align_corners=False)

    def render(
        self,
        planes: Planes,
        background_BFnn: Tensor,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Pictures of B tri-planes from V cameras each.

        `deform` takes points of the posed head to where the planes hold them (neck field); `generator`
        jitters the samples along the rays, without one they are fixed.
        """
        rendering = self.volume(planes, background_BFnn, cameras_BV25, deform, generator)
        rendering.image = self.superresolution(rendering.feature, rendering.raw, self.w_avg[None])
        if self.portrait_detail is not None:
            rendering.image = self.portrait_detail(rendering, planes, cameras_BV25, deform)
        return rendering

    def volume(
        self,
        planes: Planes,
        background_BFnn: Tensor,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """`render` without super-resolution: `image` is still `raw`. The background says the size."""

        def field(points_BVRS3: Tensor) -> tuple[Tensor, Tensor]:
            points = points_BVRS3.flatten(1, 3)
            # A neck field is a constant of its sample: gradients reach the planes, not the places of points.
            if deform is not None:
                with torch.no_grad():
                    points = deform(points)
            features = self.features(planes, points)
            colour, sigma = self.decoder(features)
            shape = points_BVRS3.shape[1:4]
            return colour.unflatten(1, shape), sigma.unflatten(1, shape)

        own = self.sizes
        side = background_BFnn.shape[-1]
        rays = render_rays(field, cameras_BV25, side, own.samples, own.samples_fine, own.box, generator)
        return compose(rays, background_BFnn)

    def features(self, planes: Planes, points_BN3: Tensor) -> Tensor:
        """(B, N, C) what the colour decoder is given at points of the canonical space, world units."""
        features = self.plane_features(planes, points_BN3)
        if self.projection is None:
            return features
        seen_BN3 = planes.in_portrait(points_BN3)
        found = sample_portrait(planes.portrait_BCSS, planes.camera_B25, seen_BN3)
        cosine = projection.facing(seen_BN3, camera_places(planes.camera_B25)[:, None])
        return self.projection.mix(features, found, cosine)

    def plane_features(self, planes: Planes, points_BN3: Tensor) -> Tensor:
        """(B, N, C) plane-averaged features, those of the tri-planes alone."""
        return sample_planes(planes.triplanes_B3CRR, points_BN3, self.sizes.box)

    def density(self, planes: Planes, points_BN3: Tensor) -> Tensor:
        """(B, N) raw density sigma, before the softplus of integration, at points of the canonical space."""
        features = self.features(planes, points_BN3)
        _, sigma_BN = self.decoder(features)
        return sigma_BN

    def motion_parameters(self) -> Iterator[nn.Parameter]:
        """The motion related layers, which stage v2 trains faster (facts 1.8)."""
        return (p for name, p in self.named_parameters() if is_motion(name))

    def base_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        return (p for name, p in self.named_parameters() if not is_motion(name))


def is_motion(name: str) -> bool:
    """Whether a parameter belongs to the motion related layers (facts 1.8)."""
    if name.startswith(projection.MOTION_PARTS):
        return True
    # Names like `norm2` also stand elsewhere, where they mean something else.
    first, *others = name.split(".")
    return first == "encoder_canonical" and any(part in MOTION_PARTS for part in others)
