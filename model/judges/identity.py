"""The face recognition network: an ArcFace iResNet on aligned 112 x 112 crops (facts 4.2)."""

from torch import Tensor, nn

from model.layers.warp import alignment, cut
from model.sizes import IdentitySizes

INPUT = 112
FIVE_OF_70 = (68, 69, 30, 48, 54)  # pupils, tip of the nose, corners of the mouth among the 70 landmarks
TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first block of a layer halves the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
    ):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        # It is made in any case: what is made after it would otherwise start from other random numbers.
        across = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(across, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x))
        y = self.prelu(self.bn2(y))
        y = self.bn3(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return y + x


class IdentityNet(nn.Module):
    """Crops (B, 3, 112, 112) in [-1, 1] to embeddings (B, embedding).

    They are not normalised: compare them by their cosine.
    """

    def __init__(self, sizes: IdentitySizes):
        super().__init__()
        width = sizes.width
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        inputs = width
        # Each layer begins with a block that halves the size; the published names count from 1.
        for index, blocks in enumerate(sizes.blocks):
            outputs = width << index
            layers = [_Block(inputs, outputs, stride=2)]
            for _ in range(1, blocks):
                layers.append(_Block(outputs, outputs, stride=1))
            self.add_module(f"layer{index + 1}", nn.Sequential(*layers))
            inputs = outputs
        # A linear layer sees every place of the last map, as the face lies the same in every crop.
        self.stages = len(sizes.blocks)
        side = INPUT >> self.stages
        self.bn2 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs * side**2, sizes.embedding)
        self.features = nn.BatchNorm1d(sizes.embedding)

    def forward(self, crop_B3HW: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(crop_B3HW)))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        x = self.bn2(x).flatten(1)
        return self.features(self.fc(x))


def identity_crop(image_BCHW: Tensor, five_points_B52: Tensor) -> Tensor:
    """Aligned faces (B, C, 112, 112) by ArcFace's template, zero outside the image.

    `five_points_B52`: the eye on the left in the picture, the other eye, tip of the nose, corners of the
    mouth from left to right, as fractions of the image, y down. FIVE_OF_70 picks them out of 70 landmarks.
    Differentiable in image and points.
    """
    matrix_B23 = alignment(image_BCHW, five_points_B52, TEMPLATE)
    return cut(image_BCHW, matrix_B23, (0.0, 0.0), INPUT, INPUT)
