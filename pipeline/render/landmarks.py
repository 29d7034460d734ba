"""Where the landmarks of the fitted head lie in each view.

They are stored with the views, so that training needs no head model.
"""

from torch import Tensor

from model.head.flame import Flame
from pipeline.geometry.label import landmarks

ENOUGH = 4  # labels


def view_landmarks(flame: Flame, label_B437: Tensor, camera_BV25: Tensor) -> Tensor:
    """The 70 landmarks of B labelled heads in their V views, (B, V, 70, 2) float32, fractions of the image.

    The result of a label does not depend on how many others come with it.
    """
    count = len(label_B437)
    # A matrix product with one to three rows goes through another kernel, whose sums end in other last
    # bits. So a small batch is filled with copies, and every row comes from the kernel that a training
    # batch would use.
    copies = -(-ENOUGH // count)
    labels = label_B437.repeat(copies, 1)
    cameras = camera_BV25.repeat(copies, 1, 1)
    return landmarks(flame, labels, cameras)[:count]
