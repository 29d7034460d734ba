"""What expression, jaw and eyes do to a face, in a unit that means something: how far they move landmarks.

Coefficients differ wildly in how far they move a face: an error of 1 in one of them is a grimace, in another nothing. So expressions are
compared by the inner landmarks (brows to lips, and pupils) of the mean head, as offsets from its neutral face, in percent of its inter-
ocular distance.
"""

import torch
from torch import Tensor

from model.head.flame import Flame

EXPRESSION, JAW, EYES, ROTATION = (
    slice(0, 100),
    slice(100, 103),
    slice(103, 106),
    slice(106, 109),
)  # of the 109 numbers of a face
INNER = slice(17, 70)  # of the 70 landmarks: all but the contour
NUMBERS = 53 * 3  # of an offset


class ExpressionOffsets:
    """Maps expression 100, jaw 3 and one eye triple 3 (axis-angle, radians) to offsets of the 53 inner landmarks."""

    def __init__(self, flame: Flame) -> None:
        self.flame = flame
        points = self._landmarks(flame.template_V3.new_zeros(1, 106))[0]
        self.neutral, self.unit = points[INNER], (points[36:42].mean(0) - points[42:48].mean(0)).norm()

    @torch.no_grad()
    def __call__(self, parameters_B106: Tensor) -> Tensor:
        """Offsets (B, 53, 3), percent of the inter-ocular distance."""
        return 100.0 * (self._landmarks(parameters_B106)[:, INNER] - self.neutral) / self.unit

    def linear(self) -> Tensor:
        """The derivative at the neutral face, (106, 159): for small parameters, offsets are `parameters @ linear()`."""
        step = 0.02
        return self(step * torch.eye(106, device=self.neutral.device)).flatten(1) / step

    def _landmarks(self, parameters_B106: Tensor) -> Tensor:
        zeros = parameters_B106.new_zeros(len(parameters_B106), 300)
        pose = torch.cat([zeros[:, :3], parameters_B106[:, JAW]], dim=1)
        eyes = parameters_B106[:, EYES].repeat(1, 2)
        return self.flame.landmarks(self.flame.vertices(zeros, parameters_B106[:, EXPRESSION], pose, eyes))
