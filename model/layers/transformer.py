"""Transformer blocks of Psi: attention over image tokens, with motion tokens as keys and values, and an MLP.

The MLP has a depth-wise convolution in it. Source: Xie et al., "SegFormer" (2021), in the form of the paper's
section 4.1 and facts 1.4 and 1.5. Tokens are (B, N, D), row by row of a grid of `grid` = (height, width).
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED_WIDTH, PUBLISHED_STD = 512, 0.02  # the narrowest published linear layer and how all of them start


def initialise(module: nn.Module) -> None:
    """Starts linear layers and convolutions as facts 1.4 says; norms are one, biases zero.

    Linear layers are truncated normal of deviation 0.02, convolutions normal over their fan-out. Linear
    layers narrower than any published one get as much more as keeps their gain: five of them lie between a
    motion embedding and the image tokens, and at 0.02 a small network would not see the motion for its
    first hundreds of steps.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            wider = max(1.0, math.sqrt(PUBLISHED_WIDTH / part.in_features))
            nn.init.trunc_normal_(part.weight, std=PUBLISHED_STD * wider)
        elif isinstance(part, nn.Conv2d):
            # A depth-wise convolution has one input for each output.
            height, width = part.kernel_size
            fan_out = height * width * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)


def to_image(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, D, height, width) of tokens."""
    return tokens_BND.transpose(1, 2).unflatten(2, grid)


def to_tokens(x_BDHW: Tensor) -> Tensor:
    """(B, N, D) of an image."""
    return x_BDHW.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Overlapping 3x3 patches: (B, C, H, W) -> tokens (B, H*W/stride^2, dim), normalised, and their grid.

    There is no positional embedding.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, stride, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x_BDHW = self.proj(x_BCHW)
        return self.norm(to_tokens(x_BDHW)), (x_BDHW.shape[2], x_BDHW.shape[3])


class Attention(nn.Module):
    """Multi-head attention of `x_BND` to `context_BMD`.

    `reduction` 2 first brings the context, a grid of tokens, to half its size.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        reduction: int = 1,
    ) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim)
        # The published layout has keys and values in one layer.
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)
        self.heads, self.reduction = heads, reduction

    def forward(
        self,
        x_BND: Tensor,
        context_BMD: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        # Every query is compared with every key: half the side of the context leaves a quarter of the scores.
        if self.reduction > 1:
            reduced_BDHW = self.sr(to_image(context_BMD, grid))
            context_BMD = self.norm(to_tokens(reduced_BDHW))
        query_BNHd = self.q(x_BND).unflatten(2, (self.heads, -1))
        query_BHNd = query_BNHd.transpose(1, 2)
        both_BM2Hd = self.kv(context_BMD).unflatten(2, (2, self.heads, -1))
        key_BHMd, value_BHMd = both_BM2Hd.permute(2, 0, 3, 1, 4)
        mixed_BHNd = F.scaled_dot_product_attention(query_BHNd, key_BHMd, value_BHMd)
        return self.proj(mixed_BHNd.transpose(1, 2).flatten(2))


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel alone, on the grid of tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_tokens(self.dwconv(to_image(tokens_BND, grid)))


class MLP(nn.Module):
    """Linear, depth-wise 3x3 convolution on the grid, GELU, linear."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.dwconv = DepthwiseConv(ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        hidden = self.dwconv(self.fc1(tokens_BND), grid)
        return self.fc2(F.gelu(hidden))


class Block(nn.Module):
    """Self-attention, then the MLP, each on normalised tokens and added to them (facts 1.5)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: int,
        reduction: int,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, reduction)
        self.mlp = MLP(dim, mlp_ratio)

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        # Normalised in front of each part, so that the sum of all of them reaches the end as it is.
        y_BND = self.norm1(x_BND)
        x_BND = x_BND + self.attn(y_BND, y_BND, grid)
        y_BND = self.norm2(x_BND)
        return x_BND + self.mlp(y_BND, grid)


class MotionBlock(nn.Module):
    """Cross-attention to motion tokens, self-attention, MLP (facts 1.4)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.attn2 = Attention(dim, heads)
        self.mlp = MLP(dim, mlp_ratio)

    def forward(
        self,
        x_BND: Tensor,
        tokens_BMD: Tensor | None,
        grid: tuple[int, int],
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """`scale` multiplies the cross-attention, which is left out when `tokens_BMD` is None."""
        # The motion comes first, so that self-attention spreads what it changed.
        if tokens_BMD is not None:
            y_BND = self.norm2(x_BND)
            x_BND = x_BND + scale * self.attn2(y_BND, tokens_BMD, grid)
        y_BND = self.norm1(x_BND)
        x_BND = x_BND + self.attn1(y_BND, y_BND, grid)
        y_BND = self.norm3(x_BND)
        return x_BND + self.mlp(y_BND, grid)
