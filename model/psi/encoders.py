"""Image encoders of Psi: the global appearance feature at 1/8 and the detail feature at 1/2 of the image.

Source: paper section 4.1, facts 1.2 and 1.3. Both see the RGB image in [-1, 1] with two coordinate channels;
neither has a normalisation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)  # of the four layers of the ResNet


def shrunk(image_BCHW: Tensor, size: int) -> Tensor:
    """(B, C, size, size): the means of equal blocks of pixels; the image itself where it has that size."""
    if image_BCHW.shape[-1] == size:
        return image_BCHW
    return F.interpolate(image_BCHW, (size, size), mode="area")


def with_coordinates(image_B3HW: Tensor) -> Tensor:
    """(B, 5, H, W): the image, then x and y from -1 to 1 inclusive."""
    batch, _, height, width = image_B3HW.shape
    dtype, device = image_B3HW.dtype, image_B3HW.device
    down = torch.linspace(-1, 1, height, dtype=dtype, device=device)
    right = torch.linspace(-1, 1, width, dtype=dtype, device=device)
    y, x = torch.meshgrid(down, right, indexing="ij")
    coordinates_2HW = torch.stack([x, y])
    coordinates_B2HW = coordinates_2HW.expand(batch, -1, -1, -1)
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
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        y = self.conv2(y)
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(y + x)


class ResNet(nn.Module):
    """(B, 5, S, S) -> (B, 8 * width, S/8, S/8).

    ResNet-34 by default, layers 3 and 4 dilated by 2 and 4 instead of strided.
    """

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(5, width, 7, stride=2, padding=3, bias=False)
        inputs = width
        layers = zip(blocks, STRIDES, DILATIONS, strict=True)
        for number, (count, stride, dilation) in enumerate(layers, start=1):
            outputs = width << (number - 1)
            layer = [ResidualBlock(inputs, outputs, stride, dilation)]
            for _ in range(1, count):
                layer.append(ResidualBlock(outputs, outputs, 1, dilation))
            self.add_module(f"layer{number}", nn.Sequential(*layer))
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
                variance = 2.0 / (fan_in * blocks)
                nn.init.normal_(weight, std=math.sqrt(variance))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer2(self.layer1(x))
        return self.layer4(self.layer3(x))


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
        layers = [conv_relu(inputs, outputs, 1)]
        # Dilation widens what a convolution sees, from the eyes to the whole head, at no more cost.
        for dilation in dilations:
            layers.append(conv_relu(inputs, outputs, 3, dilation))
        of_mean = conv_relu(inputs, outputs, 1)
        layers.append([nn.AdaptiveAvgPool2d(1), *of_mean])
        self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in layers)
        together = len(layers) * outputs
        self.project = nn.Sequential(*conv_relu(together, outputs, 1))

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
        side = image // 8
        dilations = tuple(max(1, side * k // 16) for k in (3, 6, 9))
        pyramid = ASPP(8 * width, channels, dilations)
        self.decoder = nn.Sequential(pyramid, *conv_relu(channels, channels, 3))

    def forward(self, image_B3SS: Tensor) -> Tensor:
        return self.decoder(self.encoder(with_coordinates(image_B3SS)))


class DetailEncoder(nn.Module):
    """Image (B, 3, S, S) in [-1, 1] -> detail feature (B, channels, S/2, S/2)."""

    def __init__(self, stem: int, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(5, stem, 7, stride=2, padding=3)
        layers: list[nn.Module] = [first, nn.LeakyReLU(inplace=True)]
        for inputs in (stem, channels, channels, channels):
            convolution = nn.Conv2d(inputs, channels, 3, padding=1)
            layers += [convolution, nn.LeakyReLU(inplace=True)]
        self.encoder = nn.Sequential(*layers)
        # Without norms the variance has to pass through the convolutions as it is.
        for layer in self.encoder[::2]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_B3SS: Tensor) -> Tensor:
        return self.encoder(with_coordinates(image_B3SS))
