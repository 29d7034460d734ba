"""2D super-resolution: the rendered feature map to the final image (facts 2.6).

There is a StyleGAN2 block for each doubling.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.stylegan import SynthesisBlock, upsample
from model.sizes import Sizes

CLAMP = 256.0


class SuperResolution(nn.Module):
    """Feature (B, F, n, n) and its RGB (B, 3, n, n), both in [-1, 1], and one style -> image (B, 3, S, S).

    No noise is added. Other sizes of input are first resized to n = `sizes.rays`.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.rays = sizes.rays
        inputs, side = sizes.feature_channels, sizes.rays
        for i, outputs in enumerate(sizes.superresolution_channels):
            side *= 2
            block = SynthesisBlock(inputs, outputs, sizes.w_dim, side, img_channels=3, clamp=CLAMP)
            self.add_module(f"block{i}", block)
            inputs = outputs
        self.count = len(sizes.superresolution_channels)

    def forward(
        self,
        feature_BFnn: Tensor,
        rgb_B3nn: Tensor,
        w_BW: Tensor,
        noise: bool = False,
    ) -> Tensor:
        """`w_BW` may have a batch of 1, for all images."""
        x = self._fit(feature_BFnn)
        image = self._fit(rgb_B3nn)
        # A block has three layers, and all of them have the one style.
        ws_B3W = w_BW[:, None].expand(-1, 3, -1)
        for i in range(self.count):
            block = getattr(self, f"block{i}")
            x, image = block(x, image, ws_B3W, noise)
        return image

    def enlarge(self, rgb_B3nn: Tensor) -> Tensor:
        """The RGB enlarged to (B, 3, S, S) as the network does it, nothing added: what it has to surpass."""
        image = self._fit(rgb_B3nn)
        for _ in range(self.count):
            image = upsample(image)
        return image

    def _fit(self, x: Tensor) -> Tensor:
        if x.shape[-1] == self.rays:
            return x
        # Antialiasing as in the published network: it matters where the input is larger (facts 2.6).
        size = (self.rays, self.rays)
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
