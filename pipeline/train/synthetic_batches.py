"""Batches of synthetic heads for Psi_3d, from the shards that `render_genhead` made (paper section 4.2)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.seeds import rng
from pipeline.store.samples import PHOTO, image_tensor
from pipeline.store.shards import ShardReader, decode_npy


@dataclass(frozen=True)
class HeadBatch:
    """B heads, each seen from theta_p (the input) and from theta_q (the target)."""

    source: Tensor  # (B, 3, S, S) in [-1, 1]: the image at theta_p
    target: Tensor  # (B, 3, S, S) at theta_q
    opacity: Tensor  # (B, 1, n, n) of the target, in [0, 1]
    depth: Tensor  # (B, 1, n, n) of the target, world units along the ray
    background: Tensor  # (B, 3, n, n) in [-1, 1]
    uv: Tensor  # (B, 3, S, S) of the target
    camera: Tensor  # (B, 1, 25) theta_q
    landmarks: Tensor  # (B, 70, 2) of the head seen by `camera`, fractions of the image
    points: Tensor  # (B, P, 3) world units
    features: Tensor  # (B, P, C) GenHead's tri-plane features there


class SyntheticHeads:
    """Draws batches by step number: which heads and which of their views follow from (seed, step) alone.

    p and q are two different views. Of a portrait p is the photo, as Psi_3d will be given photos and never GenHead's blurred idea of one, and
    q any view, the photo itself among them, as it alone is sharp.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.reader = ShardReader(folder)
        self.keys = self.reader.keys()
        self.seed = seed

    def batch(self, step: int, size: int) -> HeadBatch:
        """The batch of `step`. Heads are drawn without replacement within a batch where there are enough of them."""
        draw = rng(self.seed, "psi3d", step)
        chosen = draw.choice(len(self.keys), size, replace=size > len(self.keys))
        rows = [self._row(self.keys[index], draw) for index in chosen]
        return HeadBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _row(self, key: str, draw: np.random.Generator) -> tuple[Tensor, ...]:
        fields = self.reader.read(key)
        cameras = torch.from_numpy(decode_npy(fields["cameras.npy"]))
        views = len(cameras)
        p, q = (
            (0, draw.integers(views)) if key.startswith(PHOTO) else draw.choice(views, 2, replace=views < 2)
        )
        opacity = image_tensor(fields["opacity.png"]).reshape(
            1, views, -1, image_tensor(fields["background.png"]).shape[-1]
        )
        return (
            image_tensor(fields[f"view{p}.png"]),
            image_tensor(fields[f"view{q}.png"]),
            opacity[:, q],
            torch.from_numpy(decode_npy(fields["depth.npy"]))[q : q + 1].float(),
            image_tensor(fields["background.png"]),
            image_tensor(fields[f"uv{q}.png"]),
            cameras[q : q + 1],
            torch.from_numpy(decode_npy(fields["landmarks.npy"]))[q],
            torch.from_numpy(decode_npy(fields["points.npy"])).float(),
            torch.from_numpy(decode_npy(fields["features.npy"])).float(),
        )
