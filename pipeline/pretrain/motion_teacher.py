"""The motion encoder and what teaches it: a generator that reenacts, and read-outs of landmarks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.psi.motion_encoder import MotionEncoder
from model.psi.reenact2d import Reenactor
from pipeline.pretrain.face_rows import evenly
from pipeline.pretrain.motion_faces import POSE, MotionBatch, MotionFaces

# Of Huber losses in standard deviations, against L1 of the pictures.
WEIGHTS = {"eye": 0.6, "emotion": 0.3, "mouth": 0.3, POSE: 0.2}
MAPS_WEIGHT = 10.0  # of distances in widths of the crop
# What the 68 landmark maps show: two points of the contour, which tell little, make room for the pupils.
MAPPED = [68, 69, *range(2, 68)]


class Teacher(nn.Module):
    """The encoder, the reenactor, and linear read-outs of landmarks from the parts of the embedding."""

    def __init__(self, sizes: Any, faces: MotionFaces) -> None:
        super().__init__()
        self.encoder = MotionEncoder(sizes)
        # All the encoder knows passes through one rectified map; begun at zero it would as likely as not
        # be dark everywhere and stay so.
        nn.init.ones_(self.encoder.model.conv6.bias)
        self.encoder.model.l0.register_forward_hook(self._keep_maps)
        self.reenactor = Reenactor(sizes.dims + sizes.headpose, sizes.width)
        targets = faces.targets(evenly(len(faces)))
        # In the order in which the encoder returns them.
        parts = {
            POSE: sizes.headpose,
            "eye": sizes.eye,
            "emotion": sizes.emotion,
            "mouth": sizes.feature,
        }
        self.readouts = nn.ModuleDict()
        for name, width in parts.items():
            self.readouts[name] = nn.Linear(width, targets[name].shape[1])
        # Faces whose fit was rejected have NaN. Where all have, zero and one are as good as anything.
        for name, values in targets.items():
            mean = np.nanmean(values, axis=0)
            spread = np.nanstd(values, axis=0)
            self.register_buffer(f"{name}_mean", torch.from_numpy(np.nan_to_num(mean)))
            spread = np.nan_to_num(spread).clip(1e-3)
            self.register_buffer(f"{name}_spread", torch.from_numpy(spread))

    def forward(self, batch: MotionBatch) -> dict[str, Tensor]:
        """The losses, scalars."""
        embedding = self.encoder(batch.shown)
        parts = dict(zip(self.readouts, embedding, strict=True))
        losses = {}
        for name, part in parts.items():
            error = self._readout_error(name, part, batch.targets[name])
            nothing = torch.zeros_like(error)
            loss = nn.functional.smooth_l1_loss(error, nothing)
            losses[name] = WEIGHTS[name] * loss

        # Smaller encoders than the published one have fewer maps.
        maps = self.maps.shape[1]
        mapped = batch.places[:, MAPPED[:maps]]
        distance = (_peaks(self.maps) - mapped).abs()
        losses["maps"] = MAPS_WEIGHT * distance.mean()

        # The pairs come first in the batch.
        motion = torch.cat(list(parts.values()), dim=1)
        pairs = slice(batch.reenacted)
        made, wanted = self.reenact(batch.crops[pairs], motion[pairs])
        losses["l1"] = (made - wanted).abs().mean()
        losses["gradient"] = _gradient_difference(made, wanted)
        return losses

    def _readout_error(
        self,
        name: str,
        part: Tensor,
        target: Tensor,
    ) -> Tensor:
        """By how many standard deviations a read-out is wrong, where there is something to be read."""
        mean = getattr(self, f"{name}_mean")
        spread = getattr(self, f"{name}_spread")
        wanted = (target - mean) / spread
        error = self.readouts[name](part) - wanted.nan_to_num()
        return error[~wanted.isnan()]

    def _keep_maps(
        self,
        _module: nn.Module,
        _inputs: tuple[Tensor, ...],
        maps: Tensor,
    ) -> None:
        self.maps = maps

    def reenact(self, crops: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Each frame of the pairs made from the other, and as it is."""
        swapped = torch.arange(len(crops), device=crops.device) ^ 1
        return self.reenactor(crops[swapped], motion[swapped], motion), crops


def _peaks(maps_NKhw: Tensor) -> Tensor:
    """The mean place (N, K, 2), fractions, under the softmax of each map."""
    # The place of the maximum has no gradient; this mean has one, and goes there as the map gets sharper.
    height, width = maps_NKhw.shape[2:]
    flat = maps_NKhw.flatten(2).softmax(2)
    share = flat.unflatten(2, (height, width))
    x = (torch.arange(width, device=share.device) + 0.5) / width
    y = (torch.arange(height, device=share.device) + 0.5) / height
    across = share.sum(2) @ x
    down = share.sum(3) @ y
    return torch.stack([across, down], dim=-1)


def _gradient_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the image gradients: edges must lie where they belong."""
    difference = a - b
    down = difference.diff(dim=2).abs()
    across = difference.diff(dim=3).abs()
    return down.mean() + across.mean()
