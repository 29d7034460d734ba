"""Perceptual distance: a small trunk that this project trains, and LPIPS as published."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRUNK_SIZE = 64  # the smallest image the trunk sees: its first convolution has stride 4
PUBLISHED_TRUNK = "lpips-vgg trunk"  # what the JSON of such a trunk says it is


@contextmanager
def _aside(seed: int | None = None) -> Iterator[None]:
    """For networks of the lpips package: it draws from the global generator and warns of torchvision."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if seed is not None:
            torch.manual_seed(seed)
        yield


class Trunk(nn.Module):
    """The AlexNet trunk of the `lpips` package without linear layers on top, and what is learnt with it.

    `scale` brings the mean distance of photos of two people to 0.5, about where the published LPIPS has it,
    so that loss weights keep their meaning. `embed` turns the last feature map into the 64 numbers of
    `fid_perception`.
    """

    num_features = 64  # the name that torchmetrics looks for

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with _aside(seed):
            self.lpips = lpips.LPIPS(net="alex", pnet_rand=True, lpips=False, verbose=False)
            # PyTorch's own start shrinks the signal from layer to layer, and a short training never recovers.
            convolutions = [layer for layer in self.lpips.net.modules() if isinstance(layer, nn.Conv2d)]
            for convolution in convolutions:
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                nn.init.zeros_(convolution.bias)
            self.embed = nn.Linear(256 * 9, self.num_features)
        self.register_buffer("scale", torch.ones(()))

    def layers(self, image_BCHW: Tensor) -> list[Tensor]:
        """The five feature maps of images in [-1, 1] of any size; smaller ones than 64 are doubled first."""
        if image_BCHW.shape[-1] < TRUNK_SIZE:
            image_BCHW = F.interpolate(image_BCHW, scale_factor=2, mode="bilinear", align_corners=False)
        # The package shifts and scales images to what its trunk was trained on.
        scaled = self.lpips.scaling_layer(image_BCHW)
        return list(self.lpips.net(scaled))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Features (B, 64) for FID."""
        last = self.layers(image_BCHW)[-1]
        pooled = F.adaptive_avg_pool2d(last, 3)
        return self.embed(pooled.flatten(1))

    def distance(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """LPIPS of each pair, (B,).

        Squared differences of channel-normalised features, averaged over positions, summed over layers. The
        same value as the package's own forward, which has no finite gradient where a layer is zero in all
        channels.
        """
        differences = _squared_differences(self.layers(a_BCHW), self.layers(b_BCHW))
        return self.scale * sum(part.sum(1).mean((1, 2)) for part in differences)


class PublishedTrunk(Trunk):
    """LPIPS as published, version 0.1: VGG16 with linear layers.

    These come with the `lpips` package; VGG16's weights have to be imported. FID sees the means of the last
    feature map.
    """

    num_features = 512

    def __init__(self) -> None:
        nn.Module.__init__(self)
        with _aside():
            self.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        # The linear layers under a second name, which no weights file should hold twice.
        del self.lpips.lins

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Features (B, 512) for FID."""
        return self.layers(image_BCHW)[-1].mean((2, 3))

    def distance(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """LPIPS of each pair, (B,): as `Trunk.distance`, with the channels weighted by the linear layers."""
        differences = _squared_differences(self.layers(a_BCHW), self.layers(b_BCHW))
        total = 0
        for index, part in enumerate(differences):
            linear = getattr(self.lpips, f"lin{index}")
            total = total + linear(part).mean((1, 2, 3))
        return total


def _squared_differences(a_layers: list[Tensor], b_layers: list[Tensor]) -> Iterator[Tensor]:
    for a, b in zip(a_layers, b_layers, strict=True):
        yield (_unit(a) - _unit(b)).square()


def _unit(feature_BCHW: Tensor) -> Tensor:
    """Features of length 1 over the channels."""
    length2 = feature_BCHW.square().sum(1, keepdim=True)
    return feature_BCHW / (length2 + 1e-12).sqrt()
