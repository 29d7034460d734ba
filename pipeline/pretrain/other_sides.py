"""Photos of faces as another camera would see them, drawn from the photo and the head that was fitted to it.

People who turn their heads go on looking at something, so that the turn of a head says most of where its eyes
look. An encoder that has met frames alone reads the gaze of a pseudo view from the turn of its camera. From
another side a face has the same motion, and the turn says nothing of it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.head.flame import Flame
from model.head.rasterise import rasterise
from pipeline.geometry.label import Label, head_vertices, project_batch


@torch.no_grad()
def from_another_side(
    flame: Flame,
    image_B3SS: Tensor,
    label_BL: Tensor,
    camera_B25: Tensor,
) -> Tensor:
    """Photos (B, 3, S, S) of labelled heads, looked at from `camera_B25`.

    The photo lies on the fitted head like a slide that the photo's own camera projects; the neck is at rest.
    What the photo hides shows what lies before it, and beside the head the photo stays as it is.
    """
    vertices_BV3 = head_vertices(flame, label_BL)
    seen = rasterise(vertices_BV3, flame.faces, camera_B25, image_B3SS.shape[-1])
    images = torch.arange(len(vertices_BV3))[:, None, None, None]
    corners_BSS33 = vertices_BV3[images, flame.faces[seen.face.clamp_min(0)]]
    points_BSS3 = (corners_BSS33 * seen.weights[..., None]).sum(-2)
    places_BP2 = project_batch(points_BSS3.flatten(1, 2), label_BL[:, Label.CAMERA])
    places_BSS2 = places_BP2.unflatten(1, seen.face.shape[1:])
    drawn = F.grid_sample(image_B3SS, 2 * places_BSS2 - 1, padding_mode="border", align_corners=False)
    return torch.where(seen.face[:, None] < 0, image_B3SS, drawn)
