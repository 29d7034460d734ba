"""Super-resolution on the fast path.

Its one style is a constant of the network, so that modulated and demodulated weights are too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fast.layers import Convolution
from model.layers.stylegan import GAIN, SynthesisBlock, SynthesisLayer, ToRGB, upsample
from model.volume.superresolution import CLAMP, SuperResolution


def styled(layer: SynthesisLayer | ToRGB, w_W: Tensor) -> Tensor:
    """The weights (outputs, inputs, k, k) that a layer uses with one style."""
    style_I = layer.affine(w_W[None])[0].detach()
    weight = layer.weight.detach()
    if isinstance(layer, ToRGB):
        style_I = style_I * layer.weight_gain
        return weight * style_I[:, None, None]
    weight = weight * style_I[:, None, None]
    # Demodulation: each output has the variance of the inputs.
    energy_O111 = weight.square().sum((1, 2, 3), keepdim=True)
    return weight * (energy_O111 + 1e-8).rsqrt()


class FastSynthesisBlock:
    """Feature and image (B, C, H, W) to twice the size. Weights and biases hold the activation's gain."""

    def __init__(
        self,
        block: SynthesisBlock,
        w_W: Tensor,
        dtype: torch.dtype,
    ) -> None:
        up, same, rgb = block.conv0, block.conv1, block.torgb
        up_weight = styled(up, w_W).transpose(0, 1).to(dtype)
        self.up = up_weight.contiguous(memory_format=torch.channels_last)
        # The filter follows the doubling, which left three zeros beside each value: its gain is 4.
        channels = up.weight.shape[0]
        kernel = (up.resample_filter * (4.0 * GAIN)).expand(channels, 1, 4, 4)
        self.blur = Convolution(
            kernel.to(dtype),
            self._bias(up, dtype),
            "leaky_stylegan",
            groups=channels,
            padding=1,
        )
        same_weight = styled(same, w_W) * GAIN
        same_bias = self._bias(same, dtype)
        self.same = Convolution(same_weight.to(dtype), same_bias, "leaky_stylegan")
        rgb_weight = styled(rgb, w_W)
        rgb_bias = rgb.bias.detach()
        self.rgb = Convolution(rgb_weight.to(dtype), rgb_bias.to(dtype))

    @staticmethod
    def _bias(layer: SynthesisLayer, dtype: torch.dtype) -> Tensor:
        return (layer.bias.detach() * GAIN).to(dtype)

    def __call__(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = F.conv_transpose2d(x, self.up, stride=2)
        x = self.blur(x).clamp_(-CLAMP, CLAMP)
        x = self.same(x).clamp_(-CLAMP, CLAMP)
        # The image adds up over the blocks, in float32.
        detail = self.rgb(x).float()
        detail = detail.clamp_(-CLAMP, CLAMP)
        return x, upsample(image) + detail


class FastSuperResolution:
    """Feature (B, F, n, n) in [-1, 1], the first three channels being RGB -> image (B, 3, S, S).

    n is `sizes.rays`.
    """

    def __init__(
        self,
        network: SuperResolution,
        w_W: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype
        blocks = [getattr(network, f"block{i}") for i in range(network.count)]
        self.blocks = [FastSynthesisBlock(block, w_W, dtype) for block in blocks]

    def __call__(self, feature_BFnn: Tensor) -> Tensor:
        # One picture at a time: a feature of all of them in full size would be gigabytes.
        images = []
        for feature in feature_BFnn.split(1):
            image = feature[:, :3]
            x = feature.to(self.dtype, memory_format=torch.channels_last)
            for block in self.blocks:
                x, image = block(x, image)
            images.append(image)
        return torch.cat(images)
