"""The estimator of expression and head pose."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REGRESSOR_SIZE = 64
FACE = (
    0.25,
    0.85,
    0.2,
    0.8,
)  # top, bottom, left, right of the part of an aligned image that the regressor looks at: brows to chin


class Regressor(nn.Module):
    """A small ResNet from an aligned image (B, 3, H, W) in [-1, 1] to 109 numbers: expression 100, jaw 3, eyes 3, head rotation 3 (axis-
    angle).

    The head rotation is that of the world-to-camera matrix; the eyes are one triple, as in the paper's 9 pose numbers.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*[_Residual(width * a, width * b) for a, b in ((1, 2), (2, 3), (3, 4))])
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(width * 4 * 16, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 109),
        )
        self.register_buffer("mean", torch.zeros(109))
        self.register_buffer("spread", torch.ones(109))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        top, bottom, left, right = (round(edge * image_BCHW.shape[-1]) for edge in FACE)
        face = F.interpolate(
            image_BCHW[:, :, top:bottom, left:right],
            (REGRESSOR_SIZE, REGRESSOR_SIZE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
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
