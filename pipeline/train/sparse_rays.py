"""Sparse steps of training: a quarter of the rays, on a grid that is drawn for the step.

On small machines they teach nearly as much as whole steps in half of the time. What looks at whole pictures
(super-resolution, LPIPS, identity, the adversary) learns in the whole steps between.
"""

from dataclasses import dataclass

from torch import Tensor

from pipeline.core.seeds import rng

STRIDE = 2  # every second ray of every second row


@dataclass(frozen=True)
class SparseRays:
    """The rays of a step: those at (row, column) and every STRIDE pixels on."""

    row: int
    column: int

    def __call__(self, picture_HW: Tensor) -> Tensor:
        """The pixels (..., H / STRIDE, W / STRIDE) of a picture (..., H, W) that these rays meet."""
        return picture_HW[..., self.row :: STRIDE, self.column :: STRIDE]

    def cameras(self, cameras_25: Tensor, rays: int) -> Tensor:
        """Cameras (..., 25) whose rays / STRIDE pixels a side are centred on those pixels of rays x rays."""
        cameras_25 = cameras_25.clone()
        # The principal point's x and y move, in fractions of the picture.
        for entry, first in ((18, self.column), (21, self.row)):
            cameras_25[..., entry] -= (first + 0.5 - STRIDE / 2) / rays
        return cameras_25


def rays_of_step(
    seed: int, label: str, step: int, whole_every: int, whole_from: int = 0
) -> SparseRays | None:
    """The rays of `step`, drawn from (seed, label, step); None where all are rendered.

    That is in every `whole_every`-th step from the step `whole_from` on.
    """
    if step >= whole_from and step % whole_every == 0:
        return None
    # The place is drawn, so that in time every pixel is looked at.
    row, column = rng(seed, label, step).integers(STRIDE, size=2)
    return SparseRays(int(row), int(column))
