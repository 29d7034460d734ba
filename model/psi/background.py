"""The background network: from the source image to a 2D feature that stands behind the head and does not follow the camera (facts 1.6)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.transformer import initialise
from model.psi.encoders import with_coordinates


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


class Background(nn.Module):
    """A U-Net. Source image (B, 3, S, S) in [-1, 1] -> logits (B, features, S, S); their sigmoid is the background colour and feature."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(inplace=True)]

        self.input_conv = nn.Sequential(*conv(5, width, 2))
        for i in (1, 2, 3):
            channels = width * 2 ** (i - 1)
            self.add_module(
                f"down_conv_{i}", nn.Sequential(*conv(channels, channels), Down(channels, 2 * channels))
            )
        self.middle = nn.Sequential(*conv(8 * width, 8 * width))
        for i, (inputs, outputs) in enumerate(((16, 4), (8, 2), (4, 1), (2, 1)), start=1):
            self.add_module(
                f"up_conv_{i}", nn.Sequential(*conv(inputs * width, outputs * width), Up(outputs * width))
            )
        self.out_conv = nn.Conv2d(width, features, 3, padding=1)
        initialise(self)

    def forward(self, source_B3SS: Tensor) -> Tensor:
        skips = [self.input_conv(with_coordinates(source_B3SS))]
        for down in (self.down_conv_1, self.down_conv_2, self.down_conv_3):
            skips.append(down(skips[-1]))
        x = self.middle(skips[-1])
        for up in (self.up_conv_1, self.up_conv_2, self.up_conv_3, self.up_conv_4):
            x = up(torch.cat([x, skips.pop()], 1))
        return self.out_conv(x)
