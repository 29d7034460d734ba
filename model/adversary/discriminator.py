"""The dual discriminator (facts 4.5).

It judges the final image together with the raw rendering, the head model's uv map and the opacity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.stylegan import (
    DiscriminatorBlock,
    DiscriminatorEpilogue,
    MappingNetwork,
    channels_at,
    deviation_groups,
    resample_filter,
)
from model.sizes import Sizes

CLAMP = 256.0
CAMERA = 25
LAYERS = 3 + 3 + 3 + 1  # channels of image, raw rendering, uv map and opacity


class Discriminator(nn.Module):
    """Images, maps and camera to one logit each: high for real."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        # The filter is published with the weights.
        self.register_buffer("resample_filter", resample_filter())
        own = sizes.discriminator
        # Blocks halve the image down to 4 x 4, where the epilogue takes over.
        self.resolutions = [sizes.image >> k for k in range((sizes.image // 8).bit_length())]
        channels = LAYERS
        for side in self.resolutions:
            inputs = channels_at(side, own.channel_base, own.channel_max)
            outputs = channels_at(side // 2, own.channel_base, own.channel_max)
            self.add_module(f"b{side}", DiscriminatorBlock(inputs, outputs, channels, clamp=CLAMP))
            channels = 0
        self.mapping = MappingNetwork(0, CAMERA, outputs, None, own.mapping_layers)
        self.b4 = DiscriminatorEpilogue(outputs, outputs, own.group, clamp=CLAMP)

    def forward(
        self,
        image_B3SS: Tensor,
        raw_B3nn: Tensor,
        opacity_B1nn: Tensor,
        uv_B3SS: Tensor,
        camera_B25: Tensor,
    ) -> Tensor:
        """Logits (B, 1). Pictures are in [-1, 1], the opacity in [0, 1].

        Raw rendering and opacity are resized, and the opacity is brought to [-1, 1].
        """
        side = image_B3SS.shape[-1]
        raw_B3SS = self._resize(raw_B3nn, side)
        opacity_B1SS = self._resize(2 * opacity_B1nn - 1, side)
        x = torch.cat([image_B3SS, raw_B3SS, uv_B3SS, opacity_B1SS], 1)
        for resolution in self.resolutions:
            x = getattr(self, f"b{resolution}")(x)
        return self.b4(x, self.mapping(None, camera_B25))

    def groups(self, batch: int) -> list[slice]:
        """The rows of a batch that are judged together: no other row changes what is made of them."""
        count = deviation_groups(batch, self.b4.group)
        return [slice(first, None, count) for first in range(count)]

    def _resize(self, x: Tensor, side: int) -> Tensor:
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)
