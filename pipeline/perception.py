"""The frozen networks that judge images: perceptual distance, face recognition, an estimator of expression and head pose.

The paper takes them ready-made (LPIPS, ArcFace, Deep3D); at generated scale `pretrain perception` trains small ones of the same kind.
All are in eval mode and without trainable weights, but differentiable in their input.
"""

import warnings
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.identity import IdentityNet, identity_crop
from model.sizes import IdentitySizes
from model.weights import load_weights
from pipeline.errors import UserError

TRUNK_SIZE = 64  # the smallest image the trunk sees: its first convolution has stride 4
REGRESSOR_SIZE = 64
PUBLISHED_TRUNK = "lpips-vgg trunk"  # what the JSON of such a trunk says it is
FACE = (0.25, 0.85, 0.2, 0.8)  # top, bottom, left, right of the part of an aligned image that the regressor looks at: brows to chin


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
                if isinstance(layer, nn.Conv2d):  # PyTorch's own start shrinks the signal from layer to layer, and a short training never recovers
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
        return sum(getattr(self.lpips, f"lin{k}")((_unit(a) - _unit(b)).square()).mean((1, 2, 3)) for k, (a, b) in enumerate(pairs))


def _unit(feature_BCHW: Tensor) -> Tensor:
    return feature_BCHW / (feature_BCHW.square().sum(1, keepdim=True) + 1e-12).sqrt()


class Regressor(nn.Module):
    """A small ResNet from an aligned image (B, 3, H, W) in [-1, 1] to 109 numbers: expression 100, jaw 3, eyes 3, head rotation 3 (axis-
    angle).

    The head rotation is that of the world-to-camera matrix; the eyes are one triple, as in the paper's 9 pose numbers.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*[_Residual(width * a, width * b) for a, b in ((1, 2), (2, 3), (3, 4))])
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(width * 4 * 16, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 109))
        self.register_buffer("mean", torch.zeros(109))
        self.register_buffer("spread", torch.ones(109))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        top, bottom, left, right = (round(edge * image_BCHW.shape[-1]) for edge in FACE)
        face = F.interpolate(
            image_BCHW[:, :, top:bottom, left:right], (REGRESSOR_SIZE, REGRESSOR_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
        return self.mean + self.spread * self.head(self.blocks(self.stem(face)))


class _Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, halving the image, beside an average-pooled 1x1 shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(inside, outside, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inside, outside, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convs(x) + self.shortcut(x))


class Perception(nn.Module):
    """The three frozen networks behind one door."""

    def __init__(self, identity: IdentityNet, trunk: Trunk, regressor: Regressor) -> None:
        super().__init__()
        self.identity_net, self.trunk, self.regressor = identity, trunk, regressor
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Perception":
        """Read what `pretrain perception` wrote. Raises UserError when a file is missing or does not fit."""
        folder = Path(folder)
        try:
            weights, facts = load_weights(folder / "identity.safetensors")
            networks = {"identity": IdentityNet(IdentitySizes(**facts["sizes"]))}
            networks["identity"].load_state_dict(weights)
            weights, facts = load_weights(folder / "trunk.safetensors")
            networks["trunk"] = PublishedTrunk() if facts.get("network") == PUBLISHED_TRUNK else Trunk()
            networks["trunk"].load_state_dict(weights)
            networks["regressor"] = Regressor()
            networks["regressor"].load_state_dict(load_weights(folder / "regressor.safetensors")[0])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the perception networks in {folder} cannot be read ({error}). Run `dvc repro pretrain@perception`.") from error
        return cls(**networks).to(device)  # pyrefly: ignore[missing-argument]

    def train(self, mode: bool = True) -> "Perception":
        """Stays in eval mode: BatchNorm must not move when the network that contains this one trains."""
        return super().train(False)

    def lpips(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Perceptual distance of images in [-1, 1], (B,); 0 for equal images, about 0.5 for two people. Differentiable in both."""
        return self.trunk.distance(a_BCHW, b_BCHW)

    def identity(self, image_BCHW: Tensor, five_points_B52: Tensor) -> Tensor:
        """Unit face recognition features (B, E) of the face at `five_points` (fractions: pupils, nose tip, mouth corners; facts 4.2).
        Differentiable.
        """
        return F.normalize(self.identity_net(identity_crop(image_BCHW, five_points_B52)), dim=1)

    def expression_pose(self, image_BCHW: Tensor) -> Tensor:
        """Estimated expression, jaw, eyes and head rotation (B, 109), as `Regressor`. Differentiable."""
        return self.regressor(image_BCHW)
