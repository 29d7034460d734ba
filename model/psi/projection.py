"""Projected source features: what is seen in the portrait, at the points that are seen there.

An addition to the published network (`psi.projected` of model/sizes.py; 0 leaves it out). Tri-planes carry
detail only after millions of images. A feature map of the portrait carries it from the first ones on: a point
is projected by the source's camera into the portrait, as pixelNeRF does, and the feature found there is added
to that of the tri-planes.

The portrait shows the source's own expression, and nothing of what it hides. What of it stands, and what is
drawn in its place, is decided pixel by pixel: by the canonical feature, and by shapes that are blended like
those of a face model, linear in the difference of the driving motion and the source's own. The canonical
feature hears the same motion by its cross-attention, but needs more images to do so. How much of it all
counts is decided point by point: by the tri-plane feature, and by how far the outside of the head faces the
source's camera there. What faces away lies behind what the portrait shows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.sizes import Sizes

LEAK = 0.2
FACING = 4.0  # the start: with a cosine of 1 a gate lets 0.98 through, with -0.5 an eighth
SCALE = 10.0  # about the deviation of tri-plane features, which the found ones are added to


# The parts that the motion alone concerns.
MOTION_PARTS = ("projection.shapes.", "projection.amounts.", "projection.blend.")


def motion_change(
    motion_source_BM: Tensor | None,
    motion_driving_BM: Tensor | None,
    scale: float | Tensor,
) -> Tensor | None:
    """`scale` times what the driving motion (B, M) differs from the source's; None of Psi_3d, a plain 0.

    A scale may also be a tensor (B, 1, 1).
    """
    if isinstance(scale, Tensor):
        return scale.flatten(1) * (motion_driving_BM - motion_source_BM)
    return scale * (motion_driving_BM - motion_source_BM) if scale else None


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
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.gate = nn.Linear(channels, 1)
        self.facing = nn.Linear(1, 1, bias=False)
        for layer in (self.portrait, self.hidden):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
        # At the start half of the portrait stands, nothing is drawn, and gates hear how the head faces alone.
        for layer in (self.motion, self.blend, self.gate):
            nn.init.zeros_(layer.weight)
        nn.init.constant_(self.facing.weight, FACING)
        for layer in (self.portrait, self.motion, self.amounts, self.hidden, self.last, self.gate):
            nn.init.zeros_(layer.bias)

    def seen(self, portrait_B3SS: Tensor, camera_B25: Tensor | None) -> Tensor:
        """(B, width, S, S): all that depends on the portrait in [-1, 1] alone.

        Raises ValueError where the camera that took it is None: nothing could be looked up in the result.
        """
        if camera_B25 is None:
            raise ValueError("the source's camera is needed where source features are projected")
        return F.leaky_relu(self.portrait(portrait_B3SS), LEAK)

    def changed(
        self,
        seen_BWSS: Tensor,
        canonical_BDRR: Tensor,
        motion_change_BM: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(B, width, S, S) what `seen` made of the portrait, as the motion leaves it; and where it has moved.

        The latter (B, 1, S, S) is by how much less or more of the portrait stands because of the motion, 0 to
        1; nothing of Psi_3d. `motion_change_BM` is that of `motion_change`.
        """
        changes = self.motion(canonical_BDRR)
        moved = torch.zeros_like(changes[:, :1])
        if motion_change_BM is not None:
            amounts_BW11 = self.amounts(motion_change_BM)[..., None, None]
            blended = changes + self.blend(amounts_BW11 * self.shapes(canonical_BDRR))
            stand, stood = (torch.sigmoid(part.chunk(2, 1)[0]) for part in (blended, changes))
            moved = (stand - stood).abs().mean(1, keepdim=True)
            changes = blended
        changes, moved = (
            F.interpolate(part, size=seen_BWSS.shape[-2:], mode="bilinear", align_corners=False)
            for part in (changes, moved)
        )
        stands, drawn = changes.chunk(2, 1)
        x = seen_BWSS * torch.sigmoid(stands) + drawn
        return F.leaky_relu(self.hidden(x), LEAK), moved

    def forward(self, changed_BWSS: Tensor) -> Tensor:
        """The feature map (B, plane_channels, S, S), of what `changed` made."""
        return SCALE * self.last(changed_BWSS)

    def mix(self, plane_feature: Tensor, found: Tensor, cosine: Tensor) -> Tensor:
        """Tri-plane features (..., C) with those that were found in the portrait at the same points.

        `cosine` (...) is that of `facing` there.
        """
        heard = self.gate(plane_feature / SCALE) + self.facing(cosine[..., None])
        return plane_feature + torch.sigmoid(heard) * found
