"""Image encoders of Psi: the global appearance feature at 1/8 and the detail feature at 1/2 of the image.

Source: paper section 4.1, facts 1.2 and 1.3. Both see the RGB image in [-1, 1] with two coordinate channels;
neither has a normalisation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)  # of the four layers of the ResNet


def with_coordinates(image_B3HW: Tensor) -> Tensor:
    """(B, 5, H, W): the image, then x and y from -1 to 1 inclusive."""
    batch, _, height, width = image_B3HW.shape
    dtype, device = image_B3HW.dtype, image_B3HW.device
    down = torch.linspace(-1, 1, height, dtype=dtype, device=device)
    right = torch.linspace(-1, 1, width, dtype=dtype, device=device)
    y, x = torch.meshgrid(down, right, indexing="ij")
    coordinates_B2HW = torch.stack([x, y]).expand(batch, -1, -1, -1)
    return torch.cat([image_B3HW, coordinates_B2HW], 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, ReLU after both. Torchvision's block cannot be dilated."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        spread = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, **spread)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, **spread)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            # A shortcut in a list of one: the published layout has a norm behind it, an identity here.
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """(B, 5, S, S) -> (B, 8 * width, S/8, S/8).

    ResNet-34 by default, layers 3 and 4 dilated by 2 and 4 instead of strided.
    """

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(5, width, 7, stride=2, padding=3, bias=False)
        inputs = width
        for i, (count, stride, dilation) in enumerate(zip(blocks, STRIDES, DILATIONS, strict=True)):
            outputs = width * 2**i
            layer = [ResidualBlock(inputs, outputs, stride, dilation)]
            layer += [ResidualBlock(outputs, outputs, 1, dilation) for _ in range(1, count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
            inputs = outputs
        self._initialise(sum(blocks))

    def _initialise(self, blocks: int) -> None:
        """Random weights; the published network starts from those of ImageNet.

        Without norms each residual branch would double the variance; scaled down by the number of blocks, the
        branches together do it about once.
        """
        for name, weight in self.named_parameters():
            nn.init.kaiming_normal_(weight, nonlinearity="linear" if "downsample" in name else "relu")
            if name.endswith("conv2.weight"):
                fan_in = weight[0].numel()
                nn.init.normal_(weight, std=math.sqrt(2.0 / (fan_in * blocks)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def conv_relu(
    inputs: int,
    outputs: int,
    kernel: int,
    dilation: int = 1,
) -> list[nn.Module]:
    """A convolution that keeps the size, without bias, and a ReLU."""
    pad = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=pad, dilation=dilation, bias=False)
    return [convolution, nn.ReLU(inplace=True)]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLab v3).

    A 1x1 convolution, three dilated 3x3 ones and the mean of the image, brought together.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dilations: tuple[int, ...],
    ) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_relu(inputs, outputs, 1))]
        # Dilation widens what a convolution sees, from the eyes to the whole head, at no more cost.
        for dilation in dilations:
            branches.append(nn.Sequential(*conv_relu(inputs, outputs, 3, dilation)))
        branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_relu(inputs, outputs, 1)))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*conv_relu(len(branches) * outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.convs]
        # The mean is one value a channel, which interpolation would only repeat.
        parts[-1] = parts[-1].expand_as(parts[0])
        return self.project(torch.cat(parts, 1))


class GlobalEncoder(nn.Module):
    """Image (B, 3, S, S) in [-1, 1] -> appearance feature (B, channels, S/8, S/8)."""

    def __init__(
        self,
        image: int,
        width: int,
        blocks: tuple[int, ...],
        channels: int,
    ) -> None:
        super().__init__()
        self.encoder = ResNet(width, blocks)
        # 12, 24 and 36 on the published 64x64 feature, the same fractions of a smaller one.
        dilations = tuple(max(1, image // 8 * k * 3 // 16) for k in (1, 2, 3))
        pyramid = ASPP(8 * width, channels, dilations)
        self.decoder = nn.Sequential(pyramid, *conv_relu(channels, channels, 3))

    def forward(self, image_B3SS: Tensor) -> Tensor:
        return self.decoder(self.encoder(with_coordinates(image_B3SS)))


class DetailEncoder(nn.Module):
    """Image (B, 3, S, S) in [-1, 1] -> detail feature (B, channels, S/2, S/2)."""

    def __init__(self, stem: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(5, stem, 7, stride=2, padding=3), nn.LeakyReLU(inplace=True)]
        for inputs in (stem, channels, channels, channels):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.LeakyReLU(inplace=True)]
        self.encoder = nn.Sequential(*layers)
        for layer in self.encoder[::2]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_B3SS: Tensor) -> Tensor:
        return self.encoder(with_coordinates(image_B3SS))
