"""Face recognition as insightface runs it: sizes of the networks that it publishes, and their crops.

The network is `model.judges.identity.IdentityNet`; the loss has an IResNet-18. Different networks give
different similarities, so a number says which one it is of.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from model.judges.identity import TEMPLATE
from model.layers.warp import similarity
from model.sizes import IdentitySizes

INPUT = 112
WIDE = 128  # sides that are multiples of this have 8 pixels more at the left
RESNETS = {
    "iresnet34": IdentitySizes(blocks=(3, 4, 6, 3)),
    "iresnet50": IdentitySizes(blocks=(3, 4, 14, 3)),
    "iresnet100": IdentitySizes(blocks=(3, 13, 30, 3)),
}


def alignment(points_52: np.ndarray, size: int = INPUT) -> np.ndarray:
    """The similarity from five points (pixels, y down) to their places in a crop, (2, 3) float64.

    Raises ValueError for a size that is a multiple of neither 112 nor 128.
    """
    # The template is in single precision, as the package has it: its crops are then met to the last bit.
    template = torch.tensor(TEMPLATE)
    if size % INPUT == 0:
        template = template * (size / INPUT)
    elif size % WIDE == 0:
        template = (template + torch.tensor([8.0, 0.0])) * (size / WIDE)
    else:
        raise ValueError(f"a crop of {size} pixels is a multiple of neither {INPUT} nor {WIDE}")
    points = torch.from_numpy(points_52).double()
    return similarity(points[None], template.double())[0].numpy()


def face_crop(picture_HW3: np.ndarray, points_52: np.ndarray) -> np.ndarray:
    """The aligned face (112, 112, 3) of a uint8 picture, black where that ends."""
    return cv2.warpAffine(picture_HW3, alignment(points_52), (INPUT, INPUT))


def network_input(crops_BHW3: np.ndarray) -> Tensor:
    """uint8 crops, RGB, as what the network takes, (B, 3, 112, 112) in [-1, 1]."""
    faces = torch.from_numpy(crops_BHW3).permute(0, 3, 1, 2).float()
    return (faces - 127.5) / 127.5
