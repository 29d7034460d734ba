"""Perceptual distance: a small trunk that this project trains, and LPIPS as published."""

import warnings

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRUNK_SIZE = 64  # the smallest image the trunk sees: its first convolution has stride 4
PUBLISHED_TRUNK = "lpips-vgg trunk"  # what the JSON of such a trunk says it is


class Trunk(nn.Module):
    """The AlexNet trunk of the `lpips` package without linear layers on top, and what is learnt with it.

    `scale` brings the mean distance of photos of two people to 0.5, about where the published LPIPS has it, so that loss weights keep their
    meaning. `embed` turns the last feature map into the 64 numbers of `fid_perception`.
    """

    num_features = 64  # the name that torchmetrics looks for

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by an old signature
            torch.manual_seed(seed)  # the package draws the trunk from the global generator
            self.lpips = lpips.LPIPS(net="alex", pnet_rand=True, lpips=False, verbose=False)
            for layer in self.lpips.net.modules():
                if isinstance(
                    layer, nn.Conv2d
                ):  # PyTorch's own start shrinks the signal from layer to layer, and a short training never recovers
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
            self.embed = nn.Linear(256 * 9, self.num_features)
        self.register_buffer("scale", torch.ones(()))

    def layers(self, image_BCHW: Tensor) -> list[Tensor]:
        """The five feature maps of images in [-1, 1] of any size; smaller ones than 64 are doubled first."""
        if image_BCHW.shape[-1] < TRUNK_SIZE:
            image_BCHW = F.interpolate(image_BCHW, scale_factor=2, mode="bilinear", align_corners=False)
        return list(self.lpips.net(self.lpips.scaling_layer(image_BCHW)))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Features (B, 64) for FID."""
        return self.embed(F.adaptive_avg_pool2d(self.layers(image_BCHW)[-1], 3).flatten(1))

    def distance(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """LPIPS of each pair, (B,): squared differences of channel-normalised features, averaged over positions, summed over layers.

        The same value as the package's own forward, which has no finite gradient where a layer is zero in all channels.
        """
        pairs = zip(self.layers(a_BCHW), self.layers(b_BCHW), strict=True)
        return self.scale * sum((_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs)


class PublishedTrunk(Trunk):
    """LPIPS as published, version 0.1: VGG16 with linear layers. Those come with the `lpips` package; VGG16's weights have to be imported.

    FID sees the means of the last feature map.
    """

    num_features = 512

    def __init__(self) -> None:
        nn.Module.__init__(self)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by an old signature
            self.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        del self.lpips.lins  # the linear layers under a second name, which no weights file should hold twice

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Features (B, 512) for FID."""
        return self.layers(image_BCHW)[-1].mean((2, 3))

    def distance(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """LPIPS of each pair, (B,): as `Trunk.distance`, with the channels weighted by the linear layers."""
        pairs = zip(self.layers(a_BCHW), self.layers(b_BCHW), strict=True)
        return sum(
            getattr(self.lpips, f"lin{k}")((_unit(a) - _unit(b)).square()).mean((1, 2, 3))
            for k, (a, b) in enumerate(pairs)
        )


def _unit(feature_BCHW: Tensor) -> Tensor:
    return feature_BCHW / (feature_BCHW.square().sum(1, keepdim=True) + 1e-12).sqrt()
