"""A small 2D face reenactor, the teacher of the motion encoder.

The paper's section 4.1 says that E_mot is learned from video reenactment.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 0.5  # longest warp, as a share of half the image
LEAK = 0.2
FLOW, KEEP, PAINT = 2, 1, 3  # channels of what the network says of each pixel
KEPT = 2.0  # logit of what is kept of the source at the start


class _Block(nn.Module):
    """Two convolutions added to the input; scale and shift of the second one's input come from the motion."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.affine = nn.Linear(code, 2 * channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        style = self.affine(code)[:, :, None, None]
        scale, shift = style.chunk(2, dim=1)
        hidden = self.conv1(self.norm(x))
        modulated = hidden * (1 + scale) + shift
        return x + self.conv2(F.leaky_relu(modulated, LEAK))


class Reenactor(nn.Module):
    """Source image and the motion of source and driving image to the driving image.

    It warps the source and paints over it where need be. It sees the driving image only through its motion,
    so the encoder must put into the motion whatever moves. Warp and paint have half the resolution of the
    image: this network is thrown away, it need not be sharp.
    """

    def __init__(self, motion: int, width: int) -> None:
        """`motion`: numbers of one motion vector; `width`: channels of the first layer, a multiple of 2."""
        super().__init__()
        code = 8 * width
        self.code = nn.Sequential(
            nn.Linear(2 * motion, code),
            nn.LeakyReLU(LEAK),
            nn.Linear(code, code),
            nn.LeakyReLU(LEAK),
        )
        self.enter = nn.Conv2d(5, 2 * width, 3, stride=2, padding=1)
        self.down = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(4 * width, code) for _ in range(2))
        self.up = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.block = _Block(2 * width, code)
        self.leave = nn.Conv2d(2 * width, FLOW + KEEP + PAINT, 3, padding=1)
        # It begins as a copy of the source.
        start = torch.tensor([0.0, 0.0, KEPT, 0.0, 0.0, 0.0])
        with torch.no_grad():
            self.leave.weight[:FLOW] = 0
            self.leave.bias.copy_(start)

    def forward(
        self,
        source_B3HW: Tensor,
        motion_source_BM: Tensor,
        motion_driving_BM: Tensor,
    ) -> Tensor:
        """The driving image (B, 3, H, W) in about [-1, 1]; H and W are multiples of 4."""
        batch, _, height, width = source_B3HW.shape
        difference_BM = motion_driving_BM - motion_source_BM
        motion = torch.cat([motion_driving_BM, difference_BM], dim=1)
        code = self.code(motion)
        identity_23 = torch.eye(2, 3).to(source_B3HW)
        identity_B23 = identity_23.expand(batch, 2, 3)
        grid_BHW2 = F.affine_grid(identity_B23, [batch, 1, height, width], align_corners=False)

        # A convolution does not know where it is: the places come with the picture.
        places_B2HW = grid_BHW2.permute(0, 3, 1, 2)
        with_places = torch.cat([source_B3HW, places_B2HW], dim=1)
        half = F.leaky_relu(self.enter(with_places), LEAK)
        x = F.leaky_relu(self.down(half), LEAK)
        for block in self.blocks:
            x = block(x, code)
        x = half + _double(self.up(x))
        x = self.block(x, code)
        x = self.leave(F.leaky_relu(x, LEAK))

        flow, keep, paint = _double(x).split([FLOW, KEEP, PAINT], dim=1)
        flow_BHW2 = flow.tanh().permute(0, 2, 3, 1)
        places_BHW2 = grid_BHW2 + REACH * flow_BHW2
        warped = F.grid_sample(source_B3HW, places_BHW2, padding_mode="border", align_corners=False)
        return torch.lerp(paint, warped, keep.sigmoid())


def _double(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2, mode="bilinear", align_corners=False)
