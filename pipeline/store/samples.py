"""What the fields of samples hold, for those who write them and those who read them."""

import numpy as np
import torch
from torch import Tensor

from pipeline.store.shards import decode_png

PHOTO = "photo"  # what the keys of heads begin with whose view 0 is a photo


def image_tensor(data: bytes) -> Tensor:
    """PNG bytes to (3, H, W) or (1, H, W): colour in [-1, 1], grey in [0, 1]."""
    array = torch.from_numpy(decode_png(data).astype(np.float32))
    return array.permute(2, 0, 1) / 127.5 - 1.0 if array.ndim == 3 else array[None] / 255.0


DEPTH_UNIT = 1e-4  # world units a step of depth.png (16 bit); 0 = nothing there
