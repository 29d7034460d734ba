"""Projected source features: what is seen in the portrait, at the points that are seen there.

An addition to the published network (`psi.projected` of model/sizes.py; 0 leaves it out). Tri-planes carry
detail only after millions of images. A feature map of the portrait carries it from the first ones on: a point
is projected by the source's camera into the portrait, as pixelNeRF does, and the feature found there is added
to that of the tri-planes.

The portrait shows the source's own expression, and nothing of what it hides. Where a pixel of it comes from
(a flow), what of it stands, and what is drawn in its place, is decided pixel by pixel: by the canonical
feature, and by shapes that are blended like those of a face model, linear in the difference of the driving
motion and the source's own. The canonical feature hears the same motion by its cross-attention, but needs
more images to do so. How much of it all counts is decided point by point: by the tri-plane feature, and by
how far the outside of the head faces the source's camera there. What faces away lies behind what the
portrait shows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.sizes import Sizes

LEAK = 0.2
FACING = 4.0  # the start: with a cosine of 1 a gate lets 0.98 through, with -0.5 an eighth
FLOW = 1 / 64  # of the picture's side: what is moved by a flow of one
SCALE = 10.0  # about the deviation of tri-plane features, which the found ones are added to


# The parts that the motion alone concerns.
MOTION_PARTS = tuple(f"projection.{name}." for name in ("shapes", "amounts", "blend", "near", "flow"))


@dataclass(frozen=True)
class Seen:
    """All that depends on portraits alone."""

    portrait_B3SS: Tensor  # in [-1, 1]
    features_BWSS: Tensor
    # What the surroundings of a pixel add to the shapes of its flow; none of Psi_3d.
    shapes_BWSS: Tensor | None


@dataclass(frozen=True)
class Changed:
    """Portraits as the motion leaves them."""

    portrait_B3SS: Tensor  # their colours where the flow takes them, in [-1, 1]
    features_BWSS: Tensor
    # By how much less or more of the portrait stands because of the motion, 0 to 1; nothing of Psi_3d.
    moved_B1SS: Tensor
    # Where what a pixel shows lies in the portrait: so far right and down, fractions of the picture. None of
    # Psi_3d.
    flow_B2SS: Tensor | None = None

    def float(self) -> "Changed":
        """The same in float32."""
        parts = (self.portrait_B3SS, self.features_BWSS, self.moved_B1SS, self.flow_B2SS)
        return Changed(*(None if part is None else part.float() for part in parts))


def moves(scale: float | Tensor) -> bool:
    """Whether there is a motion: none of Psi_3d, whose scale is a plain 0."""
    return isinstance(scale, Tensor) or scale != 0


def motion_change(
    motion_source_BM: Tensor | None,
    motion_driving_BM: Tensor | None,
    scale: float | Tensor,
) -> Tensor | None:
    """`scale` times what the driving motion (B, M) differs from the source's; None of Psi_3d, a plain 0.

    A scale may also be a tensor (B, 1, 1).
    """
    if not moves(scale):
        return None
    if isinstance(scale, Tensor):
        scale = scale.flatten(1)
    return scale * (motion_driving_BM - motion_source_BM)


def follow(flow_B2SS: Tensor, pictures_BCSS: Tensor) -> Tensor:
    """(B, C, S, S), in float32: each pixel is what lies where its flow points to, bilinear.

    The flow is to the right and down, in fractions of the picture. Beyond an edge lies what lies on it.
    """
    side = pictures_BCSS.shape[-1]
    # Pixels lie where their centres are; the edges of the picture are -1 and 1.
    centres_S = (torch.arange(side, device=flow_B2SS.device) + 0.5) * (2 / side) - 1
    down_SS, right_SS = torch.meshgrid(centres_S, centres_S, indexing="ij")
    # Eight bits, as bfloat16 has, would round places to a pixel.
    moves_BSS2 = flow_B2SS.float().permute(0, 2, 3, 1) * 2
    places_BSS2 = torch.stack([right_SS, down_SS], -1) + moves_BSS2
    return F.grid_sample(pictures_BCSS.float(), places_BSS2, padding_mode="border", align_corners=False)


def facing(points_3: Tensor, places_3: Tensor) -> Tensor:
    """How far the outside of a head at points (..., 3) faces cameras at places (..., 3): cosines (...).

    In world units. A head is round: its outside looks away from the origin, which lies in its middle.
    """
    outwards_3 = F.normalize(points_3, dim=-1)
    towards_3 = F.normalize(places_3 - points_3, dim=-1)
    return (outwards_3 * towards_3).sum(-1)


class PortraitFeatures(nn.Module):
    """A portrait and its canonical feature to a feature map in the portrait's own picture."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        psi = sizes.psi
        width, channels = psi.projected, sizes.plane_channels
        self.portrait = nn.Conv2d(3, width, 3, padding=1)
        self.motion = nn.Conv2d(psi.detail_channels, 2 * width, 1)
        self.shapes = nn.Conv2d(psi.detail_channels, width, 1)
        self.amounts = nn.Linear(sizes.motion.dims, width)
        self.blend = nn.Conv2d(width, 2 * width, 1, bias=False)
        # Zero at the start, without a random number, so that the other parts begin as they do without them.
        self.near = nn.utils.skip_init(nn.Conv2d, width, width, 3, padding=1, bias=False)
        self.flow = nn.utils.skip_init(nn.Conv2d, width, 2, 1, bias=False)
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.gate = nn.Linear(channels, 1)
        self.facing = nn.Linear(1, 1, bias=False)
        for layer in (self.portrait, self.hidden):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
        # At the start half of the portrait stands, nothing moves, nothing is drawn, and gates hear how the
        # head faces alone.
        for layer in (self.motion, self.blend, self.near, self.flow, self.gate):
            nn.init.zeros_(layer.weight)
        nn.init.constant_(self.facing.weight, FACING)
        for layer in (self.portrait, self.motion, self.amounts, self.hidden, self.last, self.gate):
            nn.init.zeros_(layer.bias)

    def seen(self, portrait_B3SS: Tensor, camera_B25: Tensor | None, moving: bool = True) -> Seen:
        """What is known of portraits in [-1, 1] before the motion is, if there is to be one.

        Raises ValueError where the camera that took it is None: nothing could be looked up in the result.
        """
        if camera_B25 is None:
            raise ValueError("the source's camera is needed where source features are projected")
        features = F.leaky_relu(self.portrait(portrait_B3SS), LEAK)
        return Seen(portrait_B3SS, features, self.near(features) if moving else None)

    def changed(
        self,
        seen: Seen,
        canonical_BDRR: Tensor,
        motion_change_BM: Tensor | None,
    ) -> Changed:
        """What is seen as the motion leaves it. `motion_change_BM` is that of `motion_change`."""
        portrait, features = seen.portrait_B3SS, seen.features_BWSS
        size = features.shape[-2:]

        def enlarged(values_BCRR: Tensor) -> Tensor:
            return F.interpolate(values_BCRR, size=size, mode="bilinear", align_corners=False)

        changes = self.motion(canonical_BDRR)
        moved, flow = torch.zeros_like(changes[:, :1]), None
        if motion_change_BM is not None:
            amounts_BW11 = self.amounts(motion_change_BM)[..., None, None]
            shapes = self.shapes(canonical_BDRR)
            # An eye is as high as three pixels, which the canonical feature has half of.
            flow = FLOW * self.flow(amounts_BW11 * (enlarged(shapes) + seen.shapes_BWSS))
            portrait = follow(flow, portrait)
            features = follow(flow, features).to(features.dtype)
            blended = changes + self.blend(amounts_BW11 * shapes)
            stand, stood = (torch.sigmoid(part.chunk(2, 1)[0]) for part in (blended, changes))
            moved = (stand - stood).abs().mean(1, keepdim=True)
            changes = blended
        stands, drawn = enlarged(changes).chunk(2, 1)
        x = features * torch.sigmoid(stands) + drawn
        return Changed(portrait, F.leaky_relu(self.hidden(x), LEAK), enlarged(moved), flow)

    def forward(self, changed: Changed) -> Tensor:
        """The feature map (B, plane_channels, S, S) that points are looked up in."""
        return SCALE * self.last(changed.features_BWSS)

    def mix(self, plane_feature: Tensor, found: Tensor, cosine: Tensor) -> Tensor:
        """Tri-plane features (..., C) with those that were found in the portrait at the same points.

        `cosine` (...) is that of `facing` there.
        """
        heard = self.gate(plane_feature / SCALE) + self.facing(cosine[..., None])
        return plane_feature + torch.sigmoid(heard) * found
