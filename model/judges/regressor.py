"""The estimator of expression and head pose."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REGRESSOR_SIZE = 64
# Top, bottom, left, right of the part of an aligned image that the regressor looks at: brows to chin.
FACE = (0.25, 0.85, 0.2, 0.8)
NUMBERS = 109
DROPOUT = 0.3


class Regressor(nn.Module):
    """A small ResNet from an aligned image (B, 3, H, W) in [-1, 1] to 109 numbers (B, 109).

    They are expression 100, jaw 3, eyes 3, head rotation 3 (axis-angle). The head rotation is that of the
    world-to-camera matrix; the eyes are one triple, as in the paper's 9 pose numbers.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            _Residual(width, 2 * width),
            _Residual(2 * width, 3 * width),
            _Residual(3 * width, 4 * width),
        )
        # Stem and blocks halve the image four times.
        side = REGRESSOR_SIZE // 16
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(DROPOUT),
            nn.Linear(4 * width * side**2, 256),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(256, NUMBERS),
        )
        self.register_buffer("mean", torch.zeros(NUMBERS))
        self.register_buffer("spread", torch.ones(NUMBERS))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        side = image_BCHW.shape[-1]
        top, bottom, left, right = (round(edge * side) for edge in FACE)
        face = F.interpolate(
            image_BCHW[:, :, top:bottom, left:right],
            (REGRESSOR_SIZE, REGRESSOR_SIZE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        feature = self.blocks(self.stem(face))
        return self.mean + self.spread * self.head(feature)


class _Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, halving the image, beside an average-pooled 1x1 shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inside, outside, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convs(x) + self.shortcut(x))
