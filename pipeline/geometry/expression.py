"""What expression, jaw and eyes do to a face, in a unit that means something: how far they move landmarks.

Coefficients differ wildly in how far they move a face: an error of 1 in one of them is a grimace, in another
nothing. So expressions are compared by the inner landmarks (brows to lips, and pupils) of the mean head, as
offsets from its neutral face, in percent of its interocular distance.
"""

import torch
from torch import Tensor

from model.head.flame import Flame
from pipeline.geometry.label import FaceParameters
from pipeline.geometry.landmarks import LEFT_EYE, RIGHT_EYE

INNER = slice(17, 70)  # of the 70 landmarks: all but the contour
NUMBERS = 53 * 3  # of an offset


class ExpressionOffsets:
    """Maps `FaceParameters` to offsets of the 53 inner landmarks."""

    def __init__(self, flame: Flame) -> None:
        self.flame = flame
        neutral = flame.template_V3.new_zeros(1, FaceParameters.SIZE)
        (points,) = self._landmarks(neutral)
        self.neutral = points[INNER]
        right = points[RIGHT_EYE].mean(0)
        left = points[LEFT_EYE].mean(0)
        self.unit = (right - left).norm()

    @torch.no_grad()
    def __call__(self, parameters_B106: Tensor) -> Tensor:
        """Offsets (B, 53, 3), percent of the interocular distance."""
        inner = self._landmarks(parameters_B106)[:, INNER]
        return 100.0 * (inner - self.neutral) / self.unit

    def linear(self) -> Tensor:
        """The derivative at the neutral face, (106, 159).

        Offsets of small parameters are `parameters @ linear()`.
        """
        # Small enough to be straight, large enough for float32.
        step = 0.02
        one_by_one = step * torch.eye(FaceParameters.SIZE, device=self.neutral.device)
        return self(one_by_one).flatten(1) / step

    def _landmarks(self, parameters_B106: Tensor) -> Tensor:
        face = FaceParameters.split(parameters_B106)
        shape = parameters_B106.new_zeros(len(parameters_B106), 300)
        neck = torch.zeros_like(face.jaw)
        pose = torch.cat([neck, face.jaw], dim=1)
        eyes = face.eye.repeat(1, 2)
        vertices = self.flame.vertices(shape, face.expression, pose, eyes)
        return self.flame.landmarks(vertices)
