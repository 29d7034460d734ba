"""Deep3D: the coefficients of a face, of which AED and APD are distances (Deep3DFaceRecon_pytorch, MIT).

The Basel face model is not needed for the coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50

INPUT = 224
FEATURES = 2048
# Identity, expression, texture, angles, lighting, translation to the side and up, translation away.
COUNTS = (80, 64, 80, 3, 27, 2, 1)
EXPRESSION = slice(80, 144)
ANGLES = slice(224, 227)
TRANSLATION = slice(254, 257)
# Pixels of the crop from the middle of the standard points to where they are 1 away from it.
FACE_SCALE = 102.0
# Eye, eye, tip of the nose, corner and corner of the mouth in the crop's own space: x right, y up.
STANDARD = (
    (-0.31148657, 0.29036078, 0.13377953),
    (0.30979887, 0.28972036, 0.13179526),
    (0.0032535, -0.04617932, 0.55244243),
    (-0.25216928, -0.38133916, 0.22405732),
    (0.2484662, -0.38128236, 0.22235769),
)
LOWER = 0.2  # the standard points of Portrait-4D's copy lie so much lower


class Deep3D(nn.Module):
    """Aligned faces (B, 3, 224, 224), RGB in [0, 1], to coefficients (B, 257)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet50()
        self.backbone.fc = nn.Identity()
        heads = [nn.Conv2d(FEATURES, count, 1) for count in COUNTS]
        self.final_layers = nn.ModuleList(heads)

    def forward(self, face_B3HW: Tensor) -> Tensor:
        feature = self.backbone(face_B3HW)[:, :, None, None]
        parts = [head(feature) for head in self.final_layers]
        return torch.cat(parts, 1).flatten(1)


@dataclass(frozen=True)
class Alignment:
    """How a face is brought to its place in the crop."""

    standard_53: np.ndarray
    resampling: Image.Resampling


OFFICIAL = Alignment(np.array(STANDARD, np.float32), Image.Resampling.BICUBIC)
PORTRAIT4D = Alignment(
    np.array(STANDARD) - np.array([0.0, LOWER, 0.0]),
    Image.Resampling.BILINEAR,
)


@dataclass(frozen=True)
class Placement:
    """Where a face is in a picture of width x height pixels: its middle (x, y), y up, and its scale."""

    width: int
    height: int
    scale: float
    x: float
    y: float

    @classmethod
    def of(
        cls,
        points_52: np.ndarray,
        width: int,
        height: int,
        alignment: Alignment = OFFICIAL,
    ) -> "Placement":
        """The placement of five points: eyes, nose, mouth from left to right, pixels with y down."""
        x = points_52[:, 0]
        y = height - 1 - points_52[:, 1]
        # x = a . X + x0 and y = b . X + y0 by least squares, each by itself: a head that turns shortens one.
        ones = np.ones(len(x))
        system = np.column_stack([alignment.standard_53, ones])
        wanted = np.column_stack([x, y])
        solved, *_ = np.linalg.lstsq(system.astype(np.float64), wanted.astype(np.float64))
        lengths = np.linalg.norm(solved[:3], axis=0)
        middle_x, middle_y = solved[3].tolist()
        scale = FACE_SCALE / float(lengths.mean())
        return cls(width, height, scale, middle_x, middle_y)

    def points_in_crop(self, points_52: np.ndarray) -> np.ndarray:
        """The points in pixels of the crop, y up, (5, 2)."""
        x = points_52[:, 0]
        y = self.height - 1 - points_52[:, 1]
        width, height = self._scaled()
        # Pixels from the left and the lower edge of the picture, whose middle the crop is cut around.
        across = (x - self.x + self.width / 2) * self.scale
        up = (y - self.y + self.height / 2) * self.scale
        left = (width - INPUT) / 2
        below = (height - INPUT) / 2
        return np.stack([across - left, up - below], 1)

    def crop(self, picture_HW3: np.ndarray, alignment: Alignment = OFFICIAL) -> np.ndarray:
        """The face, uint8 (224, 224, 3); what lies outside of the picture is black."""
        width, height = self._scaled()
        right_of_middle = (self.x - self.width / 2) * self.scale
        below_middle = (self.height / 2 - self.y) * self.scale
        left = int((width - INPUT) / 2 + right_of_middle)
        top = int((height - INPUT) / 2 + below_middle)
        # The whole picture is resized, and only then cut: the other order reads other pixels at the edges.
        whole = Image.fromarray(picture_HW3).resize((width, height), alignment.resampling)
        return np.asarray(whole.crop((left, top, left + INPUT, top + INPUT)))

    def _scaled(self) -> tuple[int, int]:
        return int(self.width * self.scale), int(self.height * self.scale)


def five_of_68(points_682: np.ndarray) -> np.ndarray:
    """The five points of 68 or more landmarks by iBUG's numbers, (5, 2): the eyes are means of corners."""
    left = points_682[[36, 39]].mean(0)
    right = points_682[[42, 45]].mean(0)
    return np.stack([left, right, *points_682[[30, 48, 54]]])


def network_input(crops: Sequence[np.ndarray]) -> Tensor:
    """uint8 crops (224, 224, 3) as what the network takes, (B, 3, 224, 224)."""
    stacked = torch.from_numpy(np.stack(crops))
    return stacked.permute(0, 3, 1, 2).float() / 255
