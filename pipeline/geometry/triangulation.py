"""Points in space from where several cameras see them."""

import torch
from torch import Tensor

from pipeline.geometry.camera import rotation


def triangulate(seen_VN2: Tensor, cameras_V25: Tensor) -> Tensor:
    """(N, 3) float32, world units: the points nearest to the rays through their places in V >= 2 pictures.

    Places are fractions of the picture, and cameras have no skew. The sum of squared distances is least.
    """
    # Rays of cameras that stand near each other cross at narrow angles, which takes digits.
    cameras = cameras_V25.double()
    places_V3, turns_V33 = cameras[:, 3:12:4], rotation(cameras)
    fx, cx, fy, cy = cameras[:, [16, 18, 20, 21], None].unbind(1)
    right, down = seen_VN2.double().unbind(-1)
    local_VN3 = torch.stack([(right - cx) / fx, (cy - down) / fy, -torch.ones_like(right)], -1)
    ray_VN3 = torch.nn.functional.normalize(local_VN3 @ turns_V33.mT, dim=-1)
    # What is left of a vector across a ray; its square is that of the distance.
    across_VN33 = torch.eye(3) - ray_VN3[..., :, None] * ray_VN3[..., None, :]
    wanted_VN31 = across_VN33 @ places_V3[:, None, :, None]
    return torch.linalg.solve(across_VN33.sum(0), wanted_VN31.sum(0))[..., 0].float()
