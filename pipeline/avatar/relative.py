"""Motion relative to a frame of the driver, or stronger or weaker than the driver's.

Relative to a frame, how the driver's face moves is taken over; how it is shaped at rest is not.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.avatar.driver import Driver
from pipeline.geometry.label import FaceParameters

REFERENCES = FIRST, NEUTRAL = "first", "neutral"


def relative_motion(own_1M: Tensor, driving_NM: Tensor, reference: int) -> Tensor:
    """The motion (N, M) of the source's picture, moved by how far the driver has left frame `reference`."""
    return own_1M + (driving_NM - driving_NM[reference : reference + 1])


def strengthened(own_1M: Tensor, driving_NM: Tensor, strength: float) -> Tensor:
    """The motion (N, M) that is `strength` times as far from the source's own as the driving motion is.

    1 is the driving motion, bit for bit, and 0 the source's own.
    """
    return torch.lerp(own_1M, driving_NM, strength)


def reference_frame(driver: Driver, which: str, head_model: str) -> int:
    """The number of the frame that counts as rest: the `first` one, or the most `neutral` one, whose fitted
    expression moves the landmarks of the head model `head_model` least. Frames that are held do not count.
    """
    # A held frame repeats another one, which is there itself.
    seen = np.flatnonzero(~driver.held_N)
    if which == FIRST:
        return int(seen[0])
    # The head model loads parts of SciPy that a film without it does not need.
    from model.head.flame import Flame
    from pipeline.geometry.expression import ExpressionOffsets
    from pipeline.geometry.head_model import load

    offsets = ExpressionOffsets(Flame(load(head_model)))
    labels = driver.labels_N437[seen]
    numbers = FaceParameters.of(labels).pack()
    distances = offsets(torch.from_numpy(numbers)).norm(dim=-1).mean(1)
    return int(seen[int(distances.argmin())])
