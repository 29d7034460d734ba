"""A small 2D face reenactor, the teacher of the motion encoder (paper section 4.1: E_mot is learned from video reenactment)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 0.5  # longest warp, as a share of half the image


class _Block(nn.Module):
    """Two convolutions added to the input; scale and shift of the second one's input come from the motion."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.conv1, self.conv2 = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.affine = nn.Linear(code, 2 * channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.affine(code)[:, :, None, None].chunk(2, dim=1)
        return x + self.conv2(F.leaky_relu(self.conv1(self.norm(x)) * (1 + scale) + shift, 0.2))


class Reenactor(nn.Module):
    """Source image and the motion of source and driving image to the driving image: a warp of the source, painted over where need be.

    It sees the driving image only through its motion, so the encoder must put into the motion whatever moves. Warp and paint have half the
    resolution of the image: this network is thrown away, it need not be sharp.
    """

    def __init__(self, motion: int, width: int) -> None:
        """`motion`: numbers of one motion vector; `width`: channels of the first layer, a multiple of 2."""
        super().__init__()
        code = 8 * width
        self.code = nn.Sequential(
            nn.Linear(2 * motion, code), nn.LeakyReLU(0.2), nn.Linear(code, code), nn.LeakyReLU(0.2)
        )
        self.enter = nn.Conv2d(5, 2 * width, 3, stride=2, padding=1)
        self.down = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(4 * width, code) for _ in range(2))
        self.up = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.block = _Block(2 * width, code)
        self.leave = nn.Conv2d(2 * width, 6, 3, padding=1)
        with torch.no_grad():  # begins as a copy of the source
            self.leave.weight[:2] = 0
            self.leave.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0]))

    def forward(self, source_B3HW: Tensor, motion_source_BM: Tensor, motion_driving_BM: Tensor) -> Tensor:
        """The driving image (B, 3, H, W) in about [-1, 1]; H and W are multiples of 4."""
        batch, _, height, width = source_B3HW.shape
        code = self.code(torch.cat([motion_driving_BM, motion_driving_BM - motion_source_BM], dim=1))
        grid = F.affine_grid(
            torch.eye(2, 3).to(source_B3HW).expand(batch, 2, 3),
            [batch, 1, height, width],
            align_corners=False,
        )
        half = F.leaky_relu(self.enter(torch.cat([source_B3HW, grid.permute(0, 3, 1, 2)], dim=1)), 0.2)
        x = F.leaky_relu(self.down(half), 0.2)
        for block in self.blocks:
            x = block(x, code)
        x = half + F.interpolate(self.up(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.leave(F.leaky_relu(self.block(x, code), 0.2))
        flow, keep, paint = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).split(
            [2, 1, 3], dim=1
        )
        places = grid + REACH * flow.tanh().permute(0, 2, 3, 1)
        warped = F.grid_sample(source_B3HW, places, padding_mode="border", align_corners=False)
        return torch.lerp(paint, warped, keep.sigmoid())
