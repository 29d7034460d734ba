"""What `psi4d bench` renders.

Weights come from the number rule. Its planes are a fog without a surface, which is not what a renderer that
skips empty space meets, so plane channel 0 is replaced, for both paths, by a formula: an opaque ellipsoid
about as large in the picture as a head, coloured by what the network makes of the other channels. Nothing
of it is fitted. One case keeps the fog.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.psi.network import EQUALISED, Psi
from model.sizes import Sizes
from model.volume.planes import Planes
from pipeline.parity.numbers import NumberRule, camera

HEAD = ((0.0, 0.03, 0.05), (0.24, 0.32, 0.28))  # centre and half-axes of the ellipsoid, world units
INSIDE = 20.0  # twice its hidden unit at the centre
DENSITY = 15.0  # sigma for each unit of that
OUTSIDE = -12.0  # sigma of empty space
FAINT = 0.05  # how much of the density of the other hidden units is left
LITTLE = 0.1  # of the weights that the rule would have


@dataclass(frozen=True)
class BenchCase:
    """What is timed: everything, or all but what depends on the source alone; Psi or Psi_3d (scale 0)."""

    name: str
    batch: int = 1
    views: int = 1
    cached: bool = False
    scale: float = 1.0
    fog: bool = False

    @property
    def pictures(self) -> int:
        """How many pictures are made."""
        return self.batch * self.views

    @property
    def compared(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Head and view of the pictures that are compared: the first and the last."""
        return (0, 0), (self.batch - 1, self.views - 1)

    def count(self, part: str) -> int:
        """How often a part of the network runs."""
        if part == "source":
            return 0 if self.cached else self.batch
        return self.batch if part == "planes" else self.pictures


CASES = (
    BenchCase("full frame"),
    BenchCase("source cached", cached=True),
    BenchCase("Psi_3d, 1 view", scale=0.0),
    BenchCase("Psi_3d, 4 views", views=4, scale=0.0),
    BenchCase("Psi_3d, 8 views", views=8, scale=0.0),
    BenchCase("full frame, fog", fog=True),
    BenchCase("full frame, batch 4", batch=4),
    BenchCase("source cached, batch 4", batch=4, cached=True),
)


class Scene:
    """Inputs of a case by the number rule, and what is done to the planes."""

    def __init__(self, sizes: Sizes, rule: NumberRule) -> None:
        self.sizes, self.rule = sizes, rule
        self.fog = rule.fill(Psi(sizes), EQUALISED)
        # By the rule what the portrait shows would be many times what planes and picture have, and its pixels
        # would move far, each its own way. Trained, it is as large, and neighbours move alike.
        if self.fog.projection is not None:
            self.fog.projection.last.weight.mul_(LITTLE)
            self.fog.projection.flow.weight.mul_(LITTLE)
        if self.fog.portrait_detail is not None:
            self.fog.portrait_detail.last.weight.mul_(LITTLE)
        self.psi = replace_decoder(self.fog)
        resolution = sizes.plane_resolution
        texels = (torch.arange(resolution) + 0.5) / resolution
        side = texels * sizes.box - sizes.box / 2
        centres, half_axes = HEAD
        squares = []
        for centre, half in zip(centres, half_axes, strict=True):
            from_centre = (side - centre) / half
            squares.append(from_centre.square())
        x, y, z = squares
        # The mean of the planes is 1 - r^2 / 2, and 1/2 on the surface. Rows follow the second coordinate
        # of a plane, columns the first.
        first = 3.0 - 1.5 * (y[:, None] + x)
        second = -1.5 * z[:, None]
        second = second.expand(-1, len(z))
        third = torch.zeros_like(first)
        self.ellipsoid = torch.stack([first, second, third])

    def inputs(self, case: BenchCase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S), their own and the driving motions (B, M), cameras (B, V, 25)."""
        sizes, rule = self.sizes, self.rule
        images = torch.cat([rule.image(f"bench{i}", sizes.image) for i in range(case.batch)])
        own = rule.tensor("motion_app", (case.batch, sizes.motion.dims))
        driving = rule.tensor("motion", (case.batch, sizes.motion.dims))
        cameras = torch.cat([camera(0.3 - 0.12 * i, 0.05) for i in range(case.views)])
        return images, own, driving, cameras.expand(case.batch, -1, -1)

    def cameras_of_sources(self, case: BenchCase) -> Tensor:
        """The cameras (B, 25) that took the images."""
        return camera(0.1, 0.0).expand(case.batch, -1)

    @torch.inference_mode()
    def planes(self, planes: Planes, case: BenchCase) -> Planes:
        """The planes as they are rendered, float32."""
        triplanes_B3CRR = planes.triplanes_B3CRR.float()
        if not case.fog:
            triplanes_B3CRR[:, :, 0] = self.ellipsoid
        # What a portrait adds would be clouds in the fog, and clouds before the ellipsoid.
        if planes.portrait_BCSS is not None:
            planes.portrait_BCSS.zero_()
        return replace(planes, triplanes_B3CRR=triplanes_B3CRR)


def replace_decoder(psi: Psi) -> Psi:
    """The same network with a decoder that sees the ellipsoid.

    Its first hidden unit reads plane channel 0 and makes nearly all of the density.
    """
    # Both networks share all weights but the decoder's, as at paper size a second copy would not be small.
    with torch.device("meta"):
        other = Psi(psi.sizes)
    state = dict(psi.state_dict())
    for name in state:
        if name.startswith("decoder."):
            state[name] = state[name].clone()
    hidden_gain = psi.decoder.net[0].weight_gain
    sigma_gain = psi.decoder.out_sigma.weight_gain
    # No other hidden unit sees the ellipsoid, and the first one sees nothing else.
    state["decoder.net.0.weight"][:, 0] = 0.0
    state["decoder.net.0.weight"][0] = 0.0
    state["decoder.net.0.weight"][0, 0] = INSIDE / hidden_gain
    state["decoder.net.0.bias"][0] = -INSIDE / 2
    state["decoder.out_sigma.weight"] *= FAINT
    state["decoder.out_sigma.weight"][0, 0] = DENSITY / sigma_gain
    state["decoder.out_sigma.bias"][:] = OUTSIDE
    state["decoder.out_rgb.weight"][:, 0] = 0.0
    other.load_state_dict(state, assign=True)
    return other.eval().requires_grad_(False)
