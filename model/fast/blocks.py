"""The networks of Psi up to the tri-planes on the fast path.

What depends on the source alone stands apart from what follows the motion. Each class is made from the
trained module of the same name and gives its results; feature maps are as in `model/fast/layers.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fast.layers import (
    Convolution,
    Norm,
    attend,
    convolution,
    convolutions,
    run_layers,
    to_map,
    to_pixels,
)
from model.layers.transformer import MLP, Attention, Block, MotionBlock, PatchEmbed
from model.psi.background import Background
from model.psi.canonical import CanonicalEncoder, resize
from model.psi.encoders import GlobalEncoder, ResidualBlock
from model.psi.triplane_decoder import TriplaneDecoder


class FastResidualBlock:
    """The addition of the shortcut and the ReLU behind it are part of the second convolution."""

    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.first = convolution(block.conv1, dtype, "relu")
        self.second = convolution(block.conv2, dtype, "relu")
        self.shortcut = None
        if block.downsample is not None:
            self.shortcut = convolution(block.downsample[0], dtype)

    def __call__(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return self.second(hidden, x)


class FastGlobalEncoder:
    """Image with coordinates (B, 5, S, S) -> appearance feature (B, channels, S/8, S/8)."""

    def __init__(self, encoder: GlobalEncoder, dtype: torch.dtype) -> None:
        trunk = encoder.encoder
        pyramid, last, _ = encoder.decoder
        self.first = convolution(trunk.conv1, dtype, "relu")
        self.blocks = []
        for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
            self.blocks += [FastResidualBlock(block, dtype) for block in layer]
        # Each dilation sees more of the head; the last branch sees the mean of all of it.
        self.branches = [convolutions(branch, dtype, "relu") for branch in pyramid.convs]
        self.project = convolution(pyramid.project[0], dtype, "relu")
        self.last = convolution(last, dtype, "relu")

    def __call__(self, x_B5SS: Tensor) -> Tensor:
        x = self.first(x_B5SS)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        *convolved, of_mean = self.branches
        parts = [run_layers(branch, x) for branch in convolved]
        mean = F.adaptive_avg_pool2d(x, 1)
        mean = run_layers(of_mean, mean)
        parts.append(mean.expand_as(parts[0]))
        x = self.project(torch.cat(parts, 1))
        return self.last(x)


class FastBackground:
    """Image with coordinates (B, 5, S, S) -> logits (B, features, S, S)."""

    def __init__(self, network: Background, dtype: torch.dtype) -> None:
        self.first = convolution(network.input_conv[0], dtype, "leaky")
        self.downs = []
        for same, _, down in (network.down_conv_1, network.down_conv_2, network.down_conv_3):
            first = convolution(same, dtype, "leaky")
            second = convolution(down.op, dtype)
            self.downs.append((first, second))
        self.middle = convolutions(network.middle, dtype, "leaky")
        self.ups = []
        for narrow, _, up in (network.up_conv_1, network.up_conv_2, network.up_conv_3, network.up_conv_4):
            first = convolution(narrow, dtype, "leaky")
            second = convolution(up.conv, dtype)
            self.ups.append((first, second))
        self.last = convolution(network.out_conv, dtype)

    def __call__(self, x_B5SS: Tensor) -> Tensor:
        x = self.first(x_B5SS)
        skips = [x]
        for pair in self.downs:
            x = run_layers(pair, x)
            skips.append(x)
        x = run_layers(self.middle, x)
        for narrow, up in self.ups:
            x = torch.cat([x, skips.pop()], 1)
            x = narrow(x)
            # Doubling copies pixels: the convolution behind it makes of them what lies between.
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = up(x)
        return self.last(x)


class FastAttention:
    """Attention of a grid of tokens to itself, `reduction` as in the module."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        self.reduction = attention.reduction
        # The scale of the scores is part of the queries; each head has a convolution of its own.
        weight, bias = scaled_query(attention)
        weights = weight.to(dtype).chunk(self.heads)
        biases = bias.to(dtype).chunk(self.heads)
        heads = zip(weights, biases, strict=True)
        self.queries = [Convolution(*head) for head in heads]
        self.both = convolution(attention.kv, dtype)
        self.project = convolution(attention.proj, dtype)
        if self.reduction > 1:
            self.reduce = convolution(attention.sr, dtype)
            self.norm = Norm(attention.norm, dtype)

    def __call__(self, x_BCHW: Tensor, added: Tensor) -> Tensor:
        """`added` is added to the result."""
        context_BCHW = x_BCHW
        if self.reduction > 1:
            context_BCHW = self.norm(self.reduce(x_BCHW))
        # Keys and values are matrices for `attend`, which makes weights of convolutions of them.
        both_BM2C = self.both(context_BCHW).flatten(2).mT
        keys_BMC, values_BMC = both_BM2C.chunk(2, 2)
        keys = keys_BMC.chunk(self.heads, 2)
        values = values_BMC.chunk(self.heads, 2)
        queries = [query(x_BCHW) for query in self.queries]
        mixed = attend(queries, keys, values)
        return self.project(mixed, added)


def scaled_query(attention: Attention) -> tuple[Tensor, Tensor]:
    """Weight and bias of the queries, which hold the scale of the scores, d^-0.5 of a head's channels d."""
    query = attention.q
    scale = (query.out_features // attention.heads) ** -0.5
    return query.weight.detach() * scale, query.bias.detach() * scale


class FastMotionAttention:
    """Attention of a grid to M motion tokens.

    They are fewer than a head's channels d, so that it costs less to take the keys through the weights of the
    queries, and the values through those of the last layer, than the grid:

        scores = (W_q x + b_q) K = (K W_q) x + K b_q        result = W_p (V shares) = (W_p V) shares
    """

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        self.both = convolution(attention.kv, dtype)
        by_head = (self.heads, -1)
        weight, bias = scaled_query(attention)
        self.query_HdD = weight.unflatten(0, by_head).to(dtype)
        self.bias_Hd1 = bias[:, None].unflatten(0, by_head).to(dtype)
        project = attention.proj
        project_DHd = project.weight.detach().unflatten(1, by_head)
        project_HDd = project_DHd.transpose(0, 1).to(dtype)
        self.project_HDd = project_HDd.contiguous()
        self.bias = project.bias.detach().to(dtype)

    def __call__(
        self,
        x_BDhw: Tensor,
        tokens_BDM1: Tensor,
        scale: float | Tensor,
        added_BDhw: Tensor,
    ) -> Tensor:
        """`scale` times the result and `added`; a tensor is (B, 1, 1, 1)."""
        by_head = (self.heads, -1)
        both_B2DM = self.both(tokens_BDM1)[..., 0]
        keys, values = both_B2DM.chunk(2, 1)
        keys_BHMd = keys.unflatten(1, by_head).mT
        values_BHdM = values.unflatten(1, by_head)
        score_weight_BHMD = keys_BHMd @ self.query_HdD
        score_bias_BHM1 = keys_BHMd @ self.bias_Hd1
        gather_weight_BHDM = self.project_HDd @ values_BHdM * scale
        # The tokens of all heads are the channels between the two convolutions.
        score_weight = score_weight_BHMD.flatten(1, 2)
        score_bias = score_bias_BHM1.flatten(1)
        gather_weight = gather_weight_BHDM.transpose(1, 2).flatten(2)
        results = []
        # Each sample has weights of its own.
        for b in range(len(x_BDhw)):
            own = slice(b, b + 1)
            own_scale = scale[b].flatten() if isinstance(scale, Tensor) else scale
            score = Convolution(score_weight[b], score_bias[b])
            gather = Convolution(gather_weight[b], self.bias * own_scale)
            scores_1hwN = to_pixels(score(x_BDhw[own]))
            shares_1hwHM = scores_1hwN.unflatten(3, by_head).softmax(-1)
            shares_1hwN = shares_1hwHM.flatten(3)
            result = gather(to_map(shares_1hwN), added_BDhw[own])
            results.append(result)
        return results[0] if len(results) == 1 else torch.cat(results)


class FastMLP:
    """The addition behind the MLP is part of its last layer."""

    def __init__(self, mlp: MLP, dtype: torch.dtype) -> None:
        first = convolution(mlp.fc1, dtype)
        second = convolution(mlp.dwconv.dwconv, dtype, "gelu")
        self.layers = [first, second]
        self.last = convolution(mlp.fc2, dtype)

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        x = run_layers(self.layers, x)
        return self.last(x, added)


class FastBlock:
    """A transformer block; one with motion tokens (B, D, M, 1) when they are given."""

    def __init__(self, block: Block | MotionBlock, dtype: torch.dtype) -> None:
        if isinstance(block, MotionBlock):
            own, mlp_norm = block.attn1, block.norm3
            self.norm_motion = Norm(block.norm2, dtype)
            self.motion = FastMotionAttention(block.attn2, dtype)
        else:
            own, mlp_norm = block.attn, block.norm2
        self.norm_own = Norm(block.norm1, dtype)
        self.own = FastAttention(own, dtype)
        self.norm_mlp = Norm(mlp_norm, dtype)
        self.mlp = FastMLP(block.mlp, dtype)

    def __call__(
        self,
        x: Tensor,
        tokens: Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        if tokens is not None:
            normed = self.norm_motion(x)
            x = self.motion(normed, tokens, scale, x)
        normed = self.norm_own(x)
        x = self.own(normed, x)
        normed = self.norm_mlp(x)
        return self.mlp(normed, x)


class FastPatchEmbed:
    """Patches (B, D, h, w), normalised."""

    def __init__(self, embed: PatchEmbed, dtype: torch.dtype) -> None:
        self.project = convolution(embed.proj, dtype)
        self.norm = Norm(embed.norm, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x))


class FastTokens:
    """A motion embedding (B, M) to its tokens (B, D, motion_tokens, 1)."""

    def __init__(
        self,
        mapping: nn.Module,
        expansion: nn.Linear,
        count: int,
        dtype: torch.dtype,
    ) -> None:
        self.mapping = mapping
        self.count = count
        self.dtype = dtype
        self.weight = expansion.weight.detach().to(dtype)
        self.bias = expansion.bias.detach().to(dtype)

    def __call__(self, motion_BM: Tensor) -> Tensor:
        # The mapping is small; it stays in the number type that it was trained in.
        mapped = self.mapping(motion_BM).to(self.dtype)
        expanded = F.linear(mapped, self.weight, self.bias)
        tokens_BMD = expanded.unflatten(1, (self.count, -1))
        return tokens_BMD.mT[..., None]


class FastCanonical:
    """`neutral` is all that depends on the source alone."""

    def __init__(self, encoder: CanonicalEncoder, dtype: torch.dtype) -> None:
        self.dtype, self.side = dtype, encoder.side
        self.embed = FastPatchEmbed(encoder.patch_embed, dtype)
        count = encoder.motion_tokens
        self.neutral_tokens = FastTokens(encoder.maps_neutral, encoder.proj_y_neutral, count, dtype)
        self.motion_tokens = FastTokens(encoder.maps, encoder.proj_y, count, dtype)
        self.neutral_blocks = [FastBlock(block, dtype) for block in encoder.trans_blocks_neutral]
        self.motion_blocks = [FastBlock(block, dtype) for block in encoder.trans_blocks_motion]
        layers = encoder.convs
        self.first = convolution(layers["1"], dtype, "relu")
        self.second = convolution(layers["4"], dtype, "relu")
        self.third = convolution(layers["6"], dtype)

    def neutral(
        self,
        feature_BCHW: Tensor,
        motion_source_BM: Tensor | None,
        scale: float | Tensor,
    ) -> Tensor:
        """Tokens (B, D, h, w) of the expression-free source."""
        x = self.embed(feature_BCHW)
        return self._run(self.neutral_blocks, self.neutral_tokens, x, motion_source_BM, scale)

    def reenact(
        self,
        x_BDhw: Tensor,
        motion_driving_BM: Tensor | None,
        scale: float | Tensor,
    ) -> Tensor:
        """Canonical feature (B, detail_channels, S/2, S/2); S is how large the encoders see the portrait."""
        x = self._run(self.motion_blocks, self.motion_tokens, x_BDhw, motion_driving_BM, scale)
        x = F.pixel_shuffle(x, 2)
        x = self.first(resize(x, self.side // 4))
        x = self.second(resize(x, self.side // 2))
        return self.third(x)

    def _run(
        self,
        blocks: list[FastBlock],
        to_tokens: FastTokens,
        x: Tensor,
        motion_BM: Tensor | None,
        scale: float | Tensor,
    ) -> Tensor:
        tokens = None
        if isinstance(scale, Tensor) or scale != 0:
            if motion_BM is None:
                raise ValueError("a motion embedding is needed unless motion_scale is 0")
            # As feature maps with one column, tokens go through the same convolutions.
            tokens = to_tokens(motion_BM)
            if isinstance(scale, Tensor):
                scale = scale.to(self.dtype)[..., None]
        for block in blocks:
            x = block(x, tokens, scale)
        return x


class FastTriplaneDecoder:
    """The first convolution sees the canonical and the detail feature, and is linear.

    Its half for the latter, `detail`, depends on the source alone.
    """

    def __init__(self, decoder: TriplaneDecoder, dtype: torch.dtype) -> None:
        first = decoder.convs1[0]
        weight = first.weight.detach().to(dtype)
        bias = first.bias.detach().to(dtype)
        canonical, detail = weight.chunk(2, 1)
        self.first = Convolution(canonical)
        self.detail = Convolution(detail, bias)
        self.second = convolution(decoder.convs1[2], dtype, "leaky")
        self.embed = FastPatchEmbed(decoder.patch_embed, dtype)
        self.blocks = [FastBlock(block, dtype) for block in decoder.trans_blocks]
        last = convolution(decoder.conv_last, dtype)
        self.last = [*convolutions(decoder.convs2, dtype, "leaky"), last]
        self.stride = decoder.shuffle.upscale_factor

    def __call__(self, canonical_BCRR: Tensor, detail_BWRR: Tensor) -> Tensor:
        """Planes (B, 3 * plane_channels, R, R) from the canonical feature and the half of the detail one."""
        x = self.first(canonical_BCRR, detail_BWRR)
        x = self.second(F.leaky_relu_(x))
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        x = F.pixel_shuffle(x, self.stride)
        x = torch.cat([x, canonical_BCRR], 1)
        return run_layers(self.last, x)
