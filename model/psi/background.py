"""The background network: from the source image to a 2D feature that stands behind the head (facts 1.6).

It does not follow the camera.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.transformer import initialise
from model.psi.encoders import with_coordinates

# Channels into and out of each block on the way up, as multiples of the width. The input holds the result
# of the block before and, as many again, that of the same size on the way down.
UP_CHANNELS = ((16, 4), (8, 2), (4, 1), (2, 1))


class Down(nn.Module):
    """3x3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def conv_leaky(
    inputs: int,
    outputs: int,
    stride: int = 1,
) -> list[nn.Module]:
    """A 3x3 convolution and a leaky ReLU of 0.01."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return [convolution, nn.LeakyReLU(inplace=True)]


class Background(nn.Module):
    """A U-Net: source image (B, 3, S, S) in [-1, 1] -> logits (B, features, S, S).

    Their sigmoid is the background's colour and feature.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.input_conv = nn.Sequential(*conv_leaky(5, width, 2))
        for i in (1, 2, 3):
            channels = width * 2 ** (i - 1)
            layers = [*conv_leaky(channels, channels), Down(channels, 2 * channels)]
            self.add_module(f"down_conv_{i}", nn.Sequential(*layers))
        self.middle = nn.Sequential(*conv_leaky(8 * width, 8 * width))
        for i, (ins, outs) in enumerate(UP_CHANNELS, start=1):
            outputs = outs * width
            layers = [*conv_leaky(ins * width, outputs), Up(outputs)]
            self.add_module(f"up_conv_{i}", nn.Sequential(*layers))
        self.out_conv = nn.Conv2d(width, features, 3, padding=1)
        initialise(self)

    def forward(self, source_B3SS: Tensor) -> Tensor:
        x = self.input_conv(with_coordinates(source_B3SS))
        skips = [x]
        for down in (self.down_conv_1, self.down_conv_2, self.down_conv_3):
            x = down(x)
            skips.append(x)
        x = self.middle(x)
        for up in (self.up_conv_1, self.up_conv_2, self.up_conv_3, self.up_conv_4):
            both = torch.cat([x, skips.pop()], 1)
            x = up(both)
        return self.out_conv(x)
