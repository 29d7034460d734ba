"""The tri-plane decoder: canonical and detail feature to three feature planes (facts 1.5).

All of them have half of the resolution at which the encoders see the portrait.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from model.layers.transformer import Block, PatchEmbed, initialise, to_image
from model.sizes import Sizes
from model.volume.planes import lay_out

STRIDE = 2  # of the patches; a pixel shuffle brings the tokens back
LAST_STD = 0.15  # of the weights of the last convolution at the start


def conv_stack(*channels: int) -> nn.Sequential:
    """3x3 convolutions through these channels, each with a leaky ReLU of 0.01."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [convolution, nn.LeakyReLU(inplace=True)]
    return nn.Sequential(*layers)


class TriplaneDecoder(nn.Module):
    """Two features (B, detail_channels, S/2, S/2) -> planes (B, 3, plane_channels, S/2, S/2)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        psi = sizes.psi
        wide = psi.decoder_channels
        narrow = wide // 2
        self.layout = sizes.planes
        self.convs1 = conv_stack(2 * psi.detail_channels, wide, narrow)
        self.patch_embed = PatchEmbed(narrow, psi.dim, STRIDE)
        block = Block(psi.dim, psi.decoder_heads, psi.mlp_ratio, reduction=2)
        self.trans_blocks = nn.ModuleList([block])
        self.shuffle = nn.PixelShuffle(STRIDE)
        shuffled = psi.dim // STRIDE**2
        self.convs2 = conv_stack(shuffled + psi.detail_channels, wide, narrow, narrow)
        self.conv_last = nn.Conv2d(narrow, 3 * sizes.plane_channels, 3, padding=1)
        initialise(self)
        nn.init.normal_(self.conv_last.weight, std=LAST_STD)

    def forward(self, canonical_BCRR: Tensor, detail_BCRR: Tensor) -> Tensor:
        both = torch.cat([canonical_BCRR, detail_BCRR], 1)
        x_BND, grid = self.patch_embed(self.convs1(both))
        for block in self.trans_blocks:
            x_BND = block(x_BND, grid)
        x_BCRR = self.shuffle(to_image(x_BND, grid))
        # The canonical feature once more, as the tokens are coarser than it.
        both = torch.cat([x_BCRR, canonical_BCRR], 1)
        maps_BCRR = self.conv_last(self.convs2(both))
        return lay_out(maps_BCRR, self.layout)
