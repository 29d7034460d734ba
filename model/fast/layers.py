"""Layers of the fast inference path: convolutions with folded weights, and attention by convolutions.

Activations are done while the result is written. Feature maps are (B, C, H, W) in channels-last memory, so
that the tokens of a transformer and the pixels of an image are the same bytes and a linear layer is a 1x1
convolution: oneDNN's convolutions are nearly twice as fast as the matrix product of a CPU without AMX
(tests/benchmarks/NOTES.md). Nothing here has a gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's names for what a convolution may do to its result: name, numbers, algorithm.
ACTIVATIONS: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "leaky": ("leaky_relu", [0.01], ""),
    "leaky_stylegan": ("leaky_relu", [0.2], ""),
    "gelu": ("gelu", [], "none"),
}
SCORES_AT_ONCE = 1 << 21  # attention scores held at once, per head
FEW_SCORES = 1 << 18  # below this the library's attention is as fast


def activate(x: Tensor, name: str) -> Tensor:
    """One of ACTIVATIONS in plain PyTorch."""
    if name == "gelu":
        return F.gelu(x)
    if name == "relu":
        return F.relu(x)
    if name == "none":
        return x
    _, (leak,), _ = ACTIVATIONS[name]
    return F.leaky_relu(x, leak)


class Convolution:
    """A convolution whose weights (outputs, inputs / groups, k, k) are laid out once, when it is first used.

    On a CPU the layout is oneDNN's own and the activation is applied before the result leaves the cache;
    elsewhere it is PyTorch's convolution. Padding keeps the size (divided by the stride) unless it is given.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> None:
        if weight.ndim == 2:
            # A linear layer is a 1x1 convolution.
            weight = weight[:, :, None, None]
        if padding is None:
            padding = dilation * (weight.shape[-1] // 2)
        self.padding = [padding] * 2
        self.stride = [stride] * 2
        self.dilation = [dilation] * 2
        self.groups = groups
        self.activation, self.bias = activation, bias
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.onednn = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()

    def __call__(self, x_BCHW: Tensor, added: Tensor | None = None) -> Tensor:
        """`added` has the shape of the result and comes before the activation, which is then none or relu."""
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        if not self.onednn:
            y = F.conv2d(
                x_BCHW,
                self.weight,
                self.bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
            )
            if added is not None:
                y = y + added
            return activate(y, self.activation)

        # The best layout of the weights depends on the size of the input: without it, some convolutions are
        # ten times slower.
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        if not self.weight.is_mkldnn:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            size = list(x_BCHW.shape)
            self.weight = reorder(self.weight, *geometry, size)
        name, numbers, algorithm = ACTIVATIONS[self.activation]
        convolve = torch.ops.mkldnn._convolution_pointwise
        if added is None:
            return convolve(x_BCHW, self.weight, self.bias, *geometry, name, numbers, algorithm)
        after = None if name == "none" else name
        fused = ("add", 1.0, after, numbers, algorithm)
        return convolve.binary(x_BCHW, added, self.weight, self.bias, *geometry, *fused)


def convolution(
    layer: nn.Conv2d | nn.Linear,
    dtype: torch.dtype,
    activation: str = "none",
) -> Convolution:
    """The same as a layer, with an activation."""
    weight = layer.weight.detach().to(dtype)
    bias = None
    if layer.bias is not None:
        bias = layer.bias.detach().to(dtype)
    if isinstance(layer, nn.Linear):
        return Convolution(weight, bias, activation)
    return Convolution(
        weight,
        bias,
        activation,
        stride=layer.stride[0],
        dilation=layer.dilation[0],
        groups=layer.groups,
        padding=layer.padding[0],
    )


def convolutions(
    layers: nn.Sequential,
    dtype: torch.dtype,
    activation: str,
) -> Sequence[Convolution]:
    """The convolutions of a sequence, each followed by the same activation there."""
    found = []
    for layer in layers:
        # The activations between them are part of the convolutions.
        if isinstance(layer, nn.Conv2d):
            found.append(convolution(layer, dtype, activation))
    return found


def run_layers(layers: Sequence[Convolution], x: Tensor) -> Tensor:
    """One convolution after the other."""
    for layer in layers:
        x = layer(x)
    return x


def to_pixels(x_BCHW: Tensor) -> Tensor:
    """(B, H, W, C), the same bytes."""
    return x_BCHW.permute(0, 2, 3, 1)


def to_map(x_BHWC: Tensor) -> Tensor:
    """(B, C, H, W), the same bytes."""
    return x_BHWC.permute(0, 3, 1, 2)


class Norm:
    """Layer normalisation over the channels."""

    def __init__(self, layer: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.weight = layer.weight.detach().to(dtype)
        self.bias = layer.bias.detach().to(dtype)
        self.eps = layer.eps

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        # Channels are the last axis of the pixels in memory, so that nothing is copied.
        x_BHWC = to_pixels(x_BCHW)
        y_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps)
        return to_map(y_BHWC)


def attend(
    queries_BCHW: Sequence[Tensor],
    keys_BMC: Sequence[Tensor],
    values_BMC: Sequence[Tensor],
) -> Tensor:
    """softmax(q k^T) v of each head, the heads' channels next to each other.

    The scale is part of the queries. Large ones go piece by piece, rows of the grid at a time: keys are the
    weights of a 1x1 convolution that makes scores, values those of another one that brings them together,
    and the scores never leave the cache.
    """
    batch, channels, height, width = queries_BCHW[0].shape
    count = keys_BMC[0].shape[1]
    heads = list(zip(queries_BCHW, keys_BMC, values_BMC, strict=True))
    if height * width * count < FEW_SCORES:
        mixed = [_attend_at_once(*head) for head in heads]
        mixed_BNC = torch.cat(mixed, 3)[:, 0]
        return to_map(mixed_BNC.unflatten(1, (height, width)))

    shape = (batch, height, width, channels * len(heads))
    result = to_map(queries_BCHW[0].new_empty(shape))
    rows = max(1, SCORES_AT_ONCE // (width * count))
    for h, (queries, keys, values) in enumerate(heads):
        own = slice(h * channels, (h + 1) * channels)
        for b in range(batch):
            score = Convolution(keys[b])
            gather = Convolution(values[b].T)
            one = slice(b, b + 1)
            for y in range(0, height, rows):
                some = slice(y, y + rows)
                scores_1MhW = score(queries[one, :, some])
                shares_1hWM = to_pixels(scores_1MhW).softmax(-1)
                result[one, own, some] = gather(to_map(shares_1hWM))
    return result


def _attend_at_once(
    query_BCHW: Tensor,
    key_BMC: Tensor,
    value_BMC: Tensor,
) -> Tensor:
    """The library's attention of one head, (B, 1, H*W, C)."""
    query_BNC = to_pixels(query_BCHW).flatten(1, 2)
    # The axis of heads, of which there is one.
    query, key, value = (part[:, None] for part in (query_BNC, key_BMC, value_BMC))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)
