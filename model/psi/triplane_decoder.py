"""The tri-plane decoder: canonical and detail feature at half of the image to three feature planes of that size (facts 1.5)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from model.layers.transformer import Block, PatchEmbed, initialise, to_image
from model.sizes import Sizes
from model.volume.planes import lay_out

STRIDE = 2  # of the patches; a pixel shuffle brings the tokens back


def conv_stack(*channels: int) -> nn.Sequential:
    """3x3 convolutions through these channels, each with a leaky ReLU of 0.01."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(inplace=True)]
    return nn.Sequential(*layers)


class TriplaneDecoder(nn.Module):
    """Two features (B, detail_channels, S/2, S/2) -> planes (B, 3, plane_channels, S/2, S/2)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        psi, wide = sizes.psi, sizes.psi.decoder_channels
        self.layout = sizes.planes
        self.convs1 = conv_stack(2 * psi.detail_channels, wide, wide // 2)
        self.patch_embed = PatchEmbed(wide // 2, psi.dim, STRIDE)
        self.trans_blocks = nn.ModuleList([Block(psi.dim, psi.decoder_heads, psi.mlp_ratio, reduction=2)])
        self.shuffle = nn.PixelShuffle(STRIDE)
        self.convs2 = conv_stack(psi.dim // STRIDE**2 + psi.detail_channels, wide, wide // 2, wide // 2)
        self.conv_last = nn.Conv2d(wide // 2, 3 * sizes.plane_channels, 3, padding=1)
        initialise(self)
        nn.init.normal_(self.conv_last.weight, std=0.15)

    def forward(self, canonical_BCRR: Tensor, detail_BCRR: Tensor) -> Tensor:
        x, grid = self.patch_embed(self.convs1(torch.cat([canonical_BCRR, detail_BCRR], 1)))
        for block in self.trans_blocks:
            x = block(x, grid)
        x = self.shuffle(to_image(x, grid))
        return lay_out(self.conv_last(self.convs2(torch.cat([x, canonical_BCRR], 1))), self.layout)
