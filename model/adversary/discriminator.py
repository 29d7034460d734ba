"""The dual discriminator: judges the final image together with the raw rendering, the head model's uv map and the opacity (facts 4.5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.stylegan import (
    DiscriminatorBlock,
    DiscriminatorEpilogue,
    MappingNetwork,
    channels_at,
    resample_filter,
)
from model.sizes import Sizes

CLAMP = 256.0
CAMERA = 25
LAYERS = 3 + 3 + 3 + 1


class Discriminator(nn.Module):
    """Images, maps and camera to one logit each: high for real."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.register_buffer("resample_filter", resample_filter())  # published with the weights
        own = sizes.discriminator
        self.resolutions = [sizes.image >> k for k in range((sizes.image // 8).bit_length())]
        for i, side in enumerate(self.resolutions):
            inputs, outputs = (channels_at(s, own.channel_base, own.channel_max) for s in (side, side // 2))
            self.add_module(
                f"b{side}", DiscriminatorBlock(inputs, outputs, LAYERS if i == 0 else 0, clamp=CLAMP)
            )
        self.mapping = MappingNetwork(0, CAMERA, outputs, None, own.mapping_layers)
        self.b4 = DiscriminatorEpilogue(outputs, outputs, own.group, clamp=CLAMP)

    def forward(
        self, image_B3SS: Tensor, raw_B3nn: Tensor, opacity_B1nn: Tensor, uv_B3SS: Tensor, camera_B25: Tensor
    ) -> Tensor:
        """Logits (B, 1). Pictures in [-1, 1], opacity in [0, 1]; raw and opacity are resized, and the opacity is brought to [-1, 1]."""
        side = image_B3SS.shape[-1]
        parts = [image_B3SS, self._resize(raw_B3nn, side), uv_B3SS, self._resize(2 * opacity_B1nn - 1, side)]
        x = torch.cat(parts, 1)
        for resolution in self.resolutions:
            x = getattr(self, f"b{resolution}")(x)
        return self.b4(x, self.mapping(None, camera_B25))

    def _resize(self, x: Tensor, side: int) -> Tensor:
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)
