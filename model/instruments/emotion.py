"""The emotion classifier whose feature AED_f compares: a ResNet-50 of VGGFace2 in Caffe's arrangement.

It is EMOCA's; its weights are under the Max Planck licence, for research that is not commercial.
Torchvision's ResNet-50 loads them without complaint and is 6 % off: strides and pooling sit elsewhere.
"""

import numpy as np
import torch
from skimage.transform import warp
from torch import Tensor, nn
from torchvision.models import resnet50

INPUT = 224
FEATURES = 2048
EMOTIONS = 8  # logits; valence and arousal follow
# A box of landmarks ends at the brows; a face is about this much larger, and the crop larger than that.
BOX, MARGIN = 1.1, 1.25
BILINEAR, BICUBIC = 1, 3


class EmotionNet(nn.Module):
    """Faces (B, 3, 224, 224), RGB in [0, 1], to features (B, 2048); `linear` reads emotions from them."""

    def __init__(self) -> None:
        super().__init__()
        backbone = resnet50()
        backbone.fc = nn.Identity()
        # Windows of the pooling hang over at the right and at the bottom instead of all around.
        backbone.maxpool = nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=True)
        for layer in (backbone.layer2, backbone.layer3, backbone.layer4):
            first = layer[0]
            first.conv1.stride = (2, 2)
            first.conv2.stride = (1, 1)
        self.backbone = backbone
        self.linear = nn.Linear(FEATURES, EMOTIONS + 2)

    def forward(self, face_B3HW: Tensor) -> Tensor:
        return self.backbone(face_B3HW)


def face_box(landmarks_N2: np.ndarray) -> tuple[float, float, float, int]:
    """Middle (x, y) and side of the box of a face, and the side of its crop; pixels."""
    low = landmarks_N2.min(0).astype(np.float64)
    high = landmarks_N2.max(0).astype(np.float64)
    side = float((high - low).mean()) * BOX
    x, y = ((low + high) / 2).tolist()
    return x, y, side, int(MARGIN * side)


def face_crop(
    picture_HW3: np.ndarray,
    landmarks_N2: np.ndarray,
    order: int = BILINEAR,
) -> np.ndarray:
    """The face of 68 landmarks (pixels, y down) in a uint8 picture: (3, 224, 224) float32 in [0, 1].

    What lies outside of the picture is 0.
    """
    x, y, _, size = face_box(landmarks_N2)
    # Pixel u of the crop is x - size / 2 + u size / 223 of the picture.
    step = size / (INPUT - 1)
    to_picture = np.array(
        [
            [step, 0, x - size / 2],
            [0, step, y - size / 2],
            [0, 0, 1],
        ]
    )
    face = warp(picture_HW3 / 255, to_picture, output_shape=(INPUT, INPUT), order=order)
    return face.transpose(2, 0, 1).astype(np.float32)


def emotions(linear_B10: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the eight emotions (B, 8), valence and arousal (B, 1)."""
    logits, valence, arousal = linear_B10.split([EMOTIONS, 1, 1], 1)
    return torch.log_softmax(logits, 1), valence, arousal
