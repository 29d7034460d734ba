"""Where on the canonical head the pixels of a view lie.

The discriminator compares a picture with this map (facts 2.8, 4.5).
"""

import torch
from torch import Tensor

from model.head.flame import Flame
from model.head.rasterise import rasterise
from pipeline.geometry.label import head_vertices

EXTENT = 0.6  # world units that count as 1
EYE_DEPTH = 0.5  # by which eyes are moved back, in units of EXTENT


@torch.no_grad()
def position_map(flame: Flame, label_BL: Tensor, camera_B25: Tensor, side: int) -> Tensor:
    """Canonical positions of the visible surface of labelled heads, (B, 3, side, side) in [-1, 1].

    The necks are at rest. The positions are zero where there is no surface.
    """
    values = flame.canonical() / EXTENT
    eyes = torch.as_tensor(flame.head.regions["eyes"], device=values.device)
    # Their own depth tells eyes from the lids before them.
    values[eyes, 2] -= EYE_DEPTH
    seen = rasterise(
        head_vertices(flame, label_BL),
        flame.faces,
        camera_B25,
        side,
    )
    corners = values[flame.faces[seen.face.clamp_min(0)]]
    drawn = (corners * seen.weights[..., None]).sum(-2)
    positions = torch.where(seen.face[..., None] < 0, 0.0, drawn)
    return positions.clamp(-1, 1).permute(0, 3, 1, 2)
