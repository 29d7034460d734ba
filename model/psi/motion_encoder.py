"""E_mot: the frozen 2D motion encoder of the paper (section 4.2), PD-FGC's layout (facts 6).

A FAN with one hourglass reads an aligned face; four heads split its feature into head pose, eyes, emotion
and mouth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.warp import alignment, cut
from model.sizes import MotionSizes

CROP = 224.0  # the template's plane; of it the rows 0..191 and the columns 16..207 are kept
KEPT = 192
EYES_AND_MOUTH = ((87.0, 59.0), (137.0, 59.0), (112.0, 120.0))
LANDMARKS = (slice(36, 42), slice(42, 48), slice(60, 68))  # of the eyes and the inner mouth among the 68


class _ConvBlock(nn.Module):
    """Three convolutions of a half and two quarters of the channels, concatenated and added to the input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        quarter = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, quarter, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(quarter)
        self.conv3 = nn.Conv2d(quarter, quarter, 3, padding=1, bias=False)
        # It is made in any case: what is made after it would otherwise start from other random numbers.
        across = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), across)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(self.bn1(x).relu())
        second = self.conv2(self.bn2(first).relu())
        third = self.conv3(self.bn3(second).relu())
        together = torch.cat([first, second, third], dim=1)
        if self.downsample is not None:
            x = self.downsample(x)
        return together + x


class _Hourglass(nn.Module):
    """Features at `depth` halvings and their own size, added up on the way back."""

    def __init__(self, depth: int, channels: int):
        super().__init__()
        self.depth = depth
        for level in range(depth, 0, -1):
            self.add_module(f"b1_{level}", _ConvBlock(channels, channels))
            self.add_module(f"b2_{level}", _ConvBlock(channels, channels))
        self.b2_plus_1 = _ConvBlock(channels, channels)
        for level in range(1, depth + 1):
            self.add_module(f"b3_{level}", _ConvBlock(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self._level(self.depth, x)

    def _level(self, level: int, x: Tensor) -> Tensor:
        beside, before, behind = (getattr(self, f"b{i}_{level}") for i in (1, 2, 3))
        low = before(F.max_pool2d(x, 2))
        if level > 1:
            low = self._level(level - 1, low)
        else:
            low = self.b2_plus_1(low)
        low = behind(low)
        # What the pooling lost comes back beside it.
        own = beside(x)
        wide = F.interpolate(low, size=x.shape[2:], mode="bilinear", align_corners=False)
        return own + wide


class _Fan(nn.Module):
    """Face alignment network whose landmark maps are summed up in one feature vector."""

    def __init__(self, sizes: MotionSizes):
        super().__init__()
        channels = sizes.channels
        half = channels // 2
        self.conv1 = nn.Conv2d(3, sizes.width, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(sizes.width)
        self.conv2 = _ConvBlock(sizes.width, half)
        self.conv3 = _ConvBlock(half, half)
        self.conv4 = _ConvBlock(half, channels)
        self.m0 = _Hourglass(sizes.depth, channels)
        self.top_m_0 = _ConvBlock(channels, channels)
        self.conv_last0 = nn.Conv2d(channels, channels, 1)
        self.l0 = nn.Conv2d(channels, sizes.landmarks, 1)
        self.bn_end0 = nn.BatchNorm2d(channels)
        self.conv6 = nn.Conv2d(sizes.landmarks, 1, 3, stride=2, padding=1)
        self.fc = nn.Linear((sizes.input // 8) ** 2, sizes.feature)
        self.bn5 = nn.BatchNorm2d(sizes.landmarks)

    def forward(self, crop_B3HW: Tensor) -> Tensor:
        x = self.bn1(self.conv1(crop_B3HW)).relu()
        x = F.max_pool2d(self.conv2(x), 2)
        x = self.conv4(self.conv3(x))
        x = self.top_m_0(self.m0(x))
        x = self.bn_end0(self.conv_last0(x)).relu()
        # A map for each landmark, at a quarter of the crop; one more convolution makes one map of them, at
        # an eighth.
        maps_BLhw = self.bn5(self.l0(x)).relu()
        summary_B1hw = self.conv6(maps_BLhw).relu()
        return self.fc(summary_B1hw.flatten(1))


class MotionEncoder(nn.Module):
    """Crops (B, 3, input, input) in [-1, 1] to motion.

    Raises ValueError when `sizes.input` is no multiple of 8 or too small for the hourglass.
    """

    def __init__(self, sizes: MotionSizes):
        super().__init__()
        if sizes.input % 8:
            raise ValueError(f"motion encoder: the input of {sizes.input} pixels must be a multiple of 8")
        least = 4 << sizes.depth
        if sizes.input < least:
            hourglass = f"an hourglass of depth {sizes.depth}"
            raise ValueError(f"motion encoder: {hourglass} needs an input of at least {least} pixels")
        self.sizes = sizes
        width = sizes.feature

        def head() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(width, width),
                nn.ReLU(),
                nn.BatchNorm1d(width),
                nn.Linear(width, width),
            )

        def embed(outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.ReLU(), nn.Linear(width, outputs))

        self.model = _Fan(sizes)
        self.to_mouth = head()
        # The embedding of the mouth is published but never used.
        self.mouth_embed = embed(sizes.mouth)
        self.to_headpose = head()
        self.headpose_embed = embed(sizes.headpose)
        self.to_eye = head()
        self.eye_embed = embed(sizes.eye)
        self.to_emo = head()
        self.emo_embed = embed(sizes.emotion)

    def forward(self, crop_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Head pose (B, headpose), eyes (B, eye), emotion (B, emotion) and the mouth feature (B, feature)."""
        feature = self.model(crop_B3HW)
        headpose = self.headpose_embed(self.to_headpose(feature))
        eyes = self.eye_embed(self.to_eye(feature))
        emotion = self.emo_embed(self.to_emo(feature))
        return headpose, eyes, emotion, self.to_mouth(feature)

    def embedding(self, crop_B3HW: Tensor) -> Tensor:
        """The motion embedding that Psi is given, (B, dims): eyes, emotion, mouth feature.

        The head pose is left out, as the cameras say it.
        """
        _, eyes, emotion, mouth = self(crop_B3HW)
        return torch.cat((eyes, emotion, mouth), dim=1)


def motion_crop(
    image_BCHW: Tensor,
    landmarks_BK2: Tensor,
    size: int,
) -> Tensor:
    """Aligned faces (B, C, size, size) for the motion encoder, clamped to [-1, 1].

    `landmarks_BK2`: at least the 68 iBUG points as fractions of the image, x right, y down (a pixel's
    centre is (i + 0.5) / N). The eyes and the inner mouth are brought to their template by a similarity;
    the 192 of 224 rows and columns are resized (facts 6). Differentiable in image and landmarks.
    """
    points_B32 = eyes_and_mouth(landmarks_BK2)
    matrix_B23 = alignment(image_BCHW, points_B32, EYES_AND_MOUTH)
    # The official crop is resampled twice, at 192 and at 224 pixels; the same ratio is kept at other sizes.
    corner = ((CROP - KEPT) / 2, 0.0)
    kept = round(size * KEPT / CROP)
    face = cut(image_BCHW, matrix_B23, corner, KEPT, kept)
    resized = F.interpolate(face, size=(size, size), mode="bilinear", align_corners=False)
    return resized.clamp(-1, 1)


def eyes_and_mouth(landmarks_BK2: Tensor) -> Tensor:
    """The middles of the eyes and of the inner mouth, (B, 3, 2), in the unit of the landmarks."""
    middles = [landmarks_BK2[:, group].mean(1) for group in LANDMARKS]
    return torch.stack(middles, dim=1)
