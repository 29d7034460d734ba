"""The compensation for blinks in pseudo targets (facts 4.3, `g_fix_reg_img_aug`).

Where the driving frame closes its eyes, the published target is a smaller head: Psi_3d's volume is looked up
in a box of s times its side, s = 0.97 + 0.1 r with r the opening of the lids over the width of an eye. A head
that is s times as large, seen from o, looks like the head itself seen from o / s. The cache has heads as they
are. So Psi draws from s times the camera's place what the cache shows from the place itself: the same pairs
of pictures, without a second rendering of the views.
"""

import torch
from torch import Tensor

from model.head.flame import Flame
from pipeline.geometry import camera_path
from pipeline.geometry.label import landmarks
from pipeline.geometry.motion_targets import EYES

CLOSED, PER_OPENING, WIDEST = 0.97, 0.1, 0.3
PLACE = [3, 7, 11]  # of the origin in a camera's 25 numbers


class BlinkCompensation:
    """Moves cameras of pseudo targets by the opening of the lids."""

    def __init__(self, flame: Flame) -> None:
        """`flame` is on the CPU, where batches are put together."""
        self.flame = flame
        self.front = torch.from_numpy(camera_path.front(1))

    def nearer(self, camera_25: Tensor, label_437: Tensor) -> Tensor:
        """The camera (25,) from which Psi draws a head with this label for a target that `camera_25` sees."""
        moved = camera_25.clone()
        moved[PLACE] *= head_scale(self.opening(label_437))
        return moved

    @torch.no_grad()
    def opening(self, label_437: Tensor) -> float:
        """The mean opening of the lids over the mean width of the eyes, seen from the front."""
        points = landmarks(self.flame, label_437[None], self.front[None])[0, 0]
        gaps, widths = [], []
        for outer, inner, upper, lower, _ in EYES:
            gap = points[list(upper)] - points[list(lower)]
            gaps.append(gap.norm(dim=1).mean())
            widths.append((points[outer] - points[inner]).norm())
        return float(sum(gaps) / sum(widths))


def head_scale(opening: float) -> float:
    """The published size of a pseudo target's head, 0.97 with closed eyes to 1 with open ones."""
    return CLOSED + PER_OPENING * min(max(opening, 0.0), WIDEST)
