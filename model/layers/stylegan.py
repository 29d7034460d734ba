"""StyleGAN2 in plain PyTorch: what super-resolution, GenHead's generator and the discriminator are made of.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), in the layout of facts
2.6, 3.1 and 4.5. Every layer has equalised learning rate: its weights are drawn from N(0, 1) and scaled by
1 / sqrt(fan-in) when they are used. Images are NCHW float.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
GAIN = math.sqrt(2.0)  # of the leaky ReLU: keeps the variance
AVERAGE_DECAY = 0.998  # of the running average of styles, an update


def resample_filter() -> Tensor:
    """The separable low-pass filter [1, 3, 3, 1] as a (4, 4) kernel of sum 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / taps.sum() ** 2


def blur(
    x_BCHW: Tensor,
    kernel_44: Tensor,
    pad: int,
    gain: float = 1.0,
    stride: int = 1,
) -> Tensor:
    """Low-pass filter with `pad` zeros on each side; `stride` 2 keeps every second result."""
    channels = x_BCHW.shape[1]
    weight = (kernel_44 * gain).to(x_BCHW.dtype).expand(channels, 1, 4, 4)
    return F.conv2d(x_BCHW, weight, padding=pad, stride=stride, groups=channels)


def upsample(x_BCHW: Tensor) -> Tensor:
    """Twice the size with the low-pass filter and zeros outside.

    That is bilinear interpolation, except that the border fades to zero.
    """
    padded = F.pad(x_BCHW, (1, 1, 1, 1))
    doubled = F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)
    return doubled[:, :, 2:-2, 2:-2]


def activate(
    x: Tensor,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """Leaky ReLU times sqrt(2) and `gain`.

    `clamp` bounds the result before that last gain, as half precision needs it.
    """
    y = F.leaky_relu(x, LEAK) * (GAIN * gain)
    return y if clamp is None else bound(y, clamp * gain)


def bound(x: Tensor, limit: float) -> Tensor:
    """Numbers from -limit to limit."""
    return x.clamp(-limit, limit)


def normalise(x_BC: Tensor) -> Tensor:
    """Divides each row by its root mean square."""
    mean_square_B1 = x_BC.square().mean(1, keepdim=True)
    return x_BC * (mean_square_B1 + 1e-8).rsqrt()


class FullyConnected(nn.Module):
    """A linear layer (B, inputs) -> (B, outputs) with equalised learning rate; leaky ReLU if asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: bool = False,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        # Weights that are drawn larger and scaled back when they are used learn as much slower, as Adam's
        # steps do not depend on their size.
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_multiplier))
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Weights and biases as they are used."""
        return self.weight * self.weight_gain, self.bias * self.bias_gain

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.scaled()
        y = F.linear(x, weight, bias)
        return activate(y) if self.activation else y


class Conv(nn.Module):
    """A square convolution, padded to keep the size, with optional leaky ReLU.

    `down` halves the size behind the low-pass filter.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        bias: bool = True,
        activation: bool = True,
        down: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("resample_filter", resample_filter())
        self.activation, self.down = activation, down
        self.clamp, self.kernel = clamp, kernel
        self.weight_gain = 1.0 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x_BCHW: Tensor, gain: float = 1.0) -> Tensor:
        weight = self.weight * self.weight_gain
        if not self.down:
            y = F.conv2d(x_BCHW, weight, self.bias, padding=self.kernel // 2)
        elif self.kernel == 1:
            # A 1x1 convolution looks at no neighbours, so that the filter may leave out every second result.
            half = blur(x_BCHW, self.resample_filter, 1, stride=2)
            y = F.conv2d(half, weight, self.bias)
        else:
            smooth = blur(x_BCHW, self.resample_filter, 2)
            y = F.conv2d(smooth, weight, self.bias, stride=2)
        if self.activation:
            return activate(y, gain, self.clamp)
        y = y if gain == 1.0 else y * gain
        return y if self.clamp is None else bound(y, self.clamp * gain)


def modulated_conv(
    x_BIHW: Tensor,
    weight_OIKK: Tensor,
    style_BI: Tensor,
    demodulate: bool,
    up: bool = False,
) -> Tensor:
    """Convolution whose input channels are scaled by `style_BI`.

    Demodulation brings each output channel back to unit variance: it is divided by the length of its styled
    weights. `up` doubles the size (the caller filters: the result has one row and column more than twice the
    input).
    """
    scale_BO = None
    if demodulate:
        energy_OI = weight_OIKK.square().sum((2, 3))
        scale_BO = (style_BI.square() @ energy_OI.T + 1e-8).rsqrt()
    # A style of batch 1 holds for all images and goes into the weights. Otherwise images and results are
    # scaled, which costs less than one set of weights per image and gives the same numbers.
    shared = style_BI.shape[0] == 1
    if shared:
        weight_OIKK = weight_OIKK * style_BI[0][None, :, None, None]
        if scale_BO is not None:
            weight_OIKK = weight_OIKK * scale_BO[0][:, None, None, None]
    else:
        x_BIHW = x_BIHW * style_BI[:, :, None, None]
    if up:
        y = F.conv_transpose2d(x_BIHW, weight_OIKK.transpose(0, 1), stride=2)
    else:
        y = F.conv2d(x_BIHW, weight_OIKK, padding=weight_OIKK.shape[-1] // 2)
    return y if shared or scale_BO is None else y * scale_BO[:, :, None, None]


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU. `resolution` is that of the result."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        resolution: int,
        up: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.register_buffer("resample_filter", resample_filter())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up, self.clamp = up, clamp

    def forward(
        self,
        x_BCHW: Tensor,
        w_BW: Tensor,
        noise: bool = True,
    ) -> Tensor:
        style = self.affine(w_BW)
        y = modulated_conv(x_BCHW, self.weight, style, demodulate=True, up=self.up)
        # The gain makes up for the zeros that the doubling put in.
        if self.up:
            y = blur(y, self.resample_filter, 1, gain=4.0)
        if noise:
            y = y + self.noise_const * self.noise_strength
        return activate(y + self.bias[:, None, None], clamp=self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the output channels, no activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.clamp = clamp
        self.weight_gain = 1.0 / math.sqrt(inputs)

    def forward(self, x_BCHW: Tensor, w_BW: Tensor) -> Tensor:
        # Without demodulation the equalising scale of the weights is part of the style.
        style = self.affine(w_BW) * self.weight_gain
        y = modulated_conv(x_BCHW, self.weight, style, demodulate=False) + self.bias[:, None, None]
        return y if self.clamp is None else bound(y, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution of the skip architecture.

    `inputs` 0 makes the first block: a learnt constant and one convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("resample_filter", resample_filter())
        if inputs == 0:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(inputs, outputs, w_dim, resolution, up=True, clamp=clamp)
        self.conv1 = SynthesisLayer(outputs, outputs, w_dim, resolution, clamp=clamp)
        self.torgb = ToRGB(outputs, img_channels, w_dim, clamp=clamp)
        self.convolutions = 1 if inputs == 0 else 2

    def forward(
        self,
        x_BCHW: Tensor | None,
        image_BKHW: Tensor | None,
        ws_BLW: Tensor,
        noise: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Feature and image at twice the size.

        `ws_BLW` holds a style for each convolution and one for the image.
        """
        styles = iter(ws_BLW.unbind(1))
        if self.convolutions == 1:
            x = self.const.expand(ws_BLW.shape[0], -1, -1, -1)
        else:
            x = self.conv0(x_BCHW, next(styles), noise)
        x = self.conv1(x, next(styles), noise)
        image = self.torgb(x, next(styles))
        if image_BKHW is not None:
            image = upsample(image_BKHW) + image
        return x, image


def channels_at(
    resolution: int,
    base: int,
    most: int,
) -> int:
    """StyleGAN's width of a resolution."""
    return min(base // resolution, most)


class SynthesisNetwork(nn.Module):
    """Styles (B, num_ws, w_dim) -> image (B, img_channels, resolution, resolution).

    There is a block for `first` pixels (b4), for twice that, and so on up to `resolution`. Raises ValueError
    when the two are not powers of two from 4 on, the first one not above the last.
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        first: int = 4,
    ) -> None:
        super().__init__()
        generator = "a StyleGAN generator"
        for side in (first, resolution):
            if side < 4 or side & (side - 1):
                raise ValueError(
                    f"the resolutions of {generator} must be powers of two from 4 on, but one is {side}"
                )
        if first > resolution:
            raise ValueError(
                f"the first block of {generator} ({first}) must not be larger than its image ({resolution})"
            )
        exponents = range(first.bit_length() - 1, resolution.bit_length())
        self.resolutions = [2**exponent for exponent in exponents]
        inputs = 0
        for size in self.resolutions:
            outputs = channels_at(size, channel_base, channel_max)
            block = SynthesisBlock(inputs, outputs, w_dim, size, img_channels)
            self.add_module(f"b{size}", block)
            inputs = outputs
        self.num_ws = 2 * len(self.resolutions)

    def forward(self, ws_BLW: Tensor, noise: bool = True) -> Tensor:
        x = image = None
        first = 0
        for size in self.resolutions:
            block = getattr(self, f"b{size}")
            # The style of a block's image is also that of the next block's first convolution.
            end = first + block.convolutions
            x, image = block(x, image, ws_BLW[:, first : end + 1], noise)
            first = end
        return image


class MappingNetwork(nn.Module):
    """Latent code and condition to styles: (B, z_dim), (B, c_dim) -> (B, num_ws, w_dim).

    z_dim 0 or c_dim 0 leaves that input out. num_ws None returns (B, w_dim) without average, as the
    discriminator's condition needs it.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        # Styles are drawn towards the average to trade variety for quality; a condition has none.
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        inputs = z_dim + (w_dim if c_dim else 0)
        for i in range(num_layers):
            layer = FullyConnected(inputs, w_dim, activation=True, lr_multiplier=lr_multiplier)
            self.add_module(f"fc{i}", layer)
            inputs = w_dim
        self.z_dim, self.c_dim = z_dim, c_dim
        self.num_ws, self.num_layers = num_ws, num_layers

    def forward(
        self,
        z: Tensor | None,
        condition: Tensor | None = None,
        truncation: float = 1.0,
        update_average: bool = False,
    ) -> Tensor:
        """`truncation` below 1 moves the styles towards the running average `w_avg`.

        `update_average` updates that, in training.
        """
        parts = [normalise(z)] if self.z_dim else []
        if self.c_dim:
            parts.append(normalise(self.embed(condition)))
        w = torch.cat(parts, 1)
        for i in range(self.num_layers):
            w = getattr(self, f"fc{i}")(w)
        if self.num_ws is None:
            return w
        if update_average:
            batch_average = w.detach().mean(0)
            self.w_avg.copy_(batch_average.lerp(self.w_avg, AVERAGE_DECAY))
        if truncation != 1.0:
            w = self.w_avg.lerp(w, truncation)
        return w[:, None].expand(-1, self.num_ws, -1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the size.

    `img_channels` > 0 makes the first block, which also turns the image into features.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        img_channels: int = 0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("resample_filter", resample_filter())
        if img_channels:
            self.fromrgb = Conv(img_channels, inputs, 1, clamp=clamp)
        self.conv0 = Conv(inputs, inputs, 3, clamp=clamp)
        self.conv1 = Conv(inputs, outputs, 3, down=True, clamp=clamp)
        # The shortcut carries the gradient through all blocks: it has neither bias nor activation.
        self.skip = Conv(inputs, outputs, 1, bias=False, activation=False, down=True)
        self.first = img_channels > 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.fromrgb(x_BCHW) if self.first else x_BCHW
        # The sum of two branches of variance 1 is brought back to variance 1.
        half = math.sqrt(0.5)
        skipped = self.skip(x, half)
        return skipped + self.conv1(self.conv0(x), half)


def deviation_groups(batch: int, group: int) -> int:
    """How many groups the images of a batch make; image i belongs to group i mod their number.

    Where the batch does not divide, some groups have an image more than `group`: one that is alone would tell
    nothing of its like.
    """
    return max(batch // group, 1)


def append_deviation(x_BCHW: Tensor, group: int) -> Tensor:
    """Minibatch standard deviation: one more channel, the mean deviation between the images of a group.

    The groups are those of `deviation_groups`.
    """
    batch, channels, height, width = x_BCHW.shape
    count = deviation_groups(batch, group)
    if batch % count:
        variance = torch.stack([x_BCHW[own::count].var(0, unbiased=False) for own in range(count)])
    else:
        variance = x_BCHW.reshape(-1, count, channels, height, width).var(0, unbiased=False)
    # The root of nothing has no finite gradient, and equal images have no variance.
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
    of_each = deviation[torch.arange(batch, device=x_BCHW.device) % count]
    channel_B1HW = of_each[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x_BCHW, channel_B1HW], 1)


class DiscriminatorEpilogue(nn.Module):
    """From 4x4 features and the mapped condition (B, w_dim) to one logit per image, (B, 1)."""

    def __init__(
        self,
        channels: int,
        condition_dim: int,
        group: int,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.conv = Conv(channels + 1, channels, 3, clamp=clamp)
        self.fc = FullyConnected(channels * 16, channels, activation=True)
        self.out = FullyConnected(channels, condition_dim)
        self.group = group

    def forward(self, x_BCHW: Tensor, condition_BW: Tensor) -> Tensor:
        x = self.conv(append_deviation(x_BCHW, self.group))
        x = self.out(self.fc(x.flatten(1)))
        # A projection discriminator: the logit is the product with the condition, at unit variance.
        product_B1 = (x * condition_BW).sum(1, keepdim=True)
        return product_B1 / math.sqrt(condition_BW.shape[1])
