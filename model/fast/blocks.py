"""The networks of Psi up to the tri-planes on the fast path.

What depends on the source alone stands apart from what follows the motion. Each class is made from the
trained module of the same name and gives its results; feature maps are as in `model/fast/layers.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fast.layers import Convolution, Norm, attend, convolutions, run_layers, to_map, to_pixels
from model.layers.transformer import MLP, Attention, Block, MotionBlock, PatchEmbed
from model.psi.background import Background
from model.psi.canonical import CanonicalEncoder, resize
from model.psi.encoders import GlobalEncoder, ResidualBlock
from model.psi.triplane_decoder import TriplaneDecoder


class FastResidualBlock:
    """The addition of the shortcut and the ReLU behind it are part of the second convolution."""

    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.first = Convolution.of(block.conv1, dtype, "relu")
        self.second = Convolution.of(block.conv2, dtype, "relu")
        self.shortcut = None if block.downsample is None else Convolution.of(block.downsample[0], dtype)

    def __call__(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden, x if self.shortcut is None else self.shortcut(x))


class FastGlobalEncoder:
    """Image with coordinates (B, 5, S, S) -> appearance feature (B, channels, S/8, S/8)."""

    def __init__(self, encoder: GlobalEncoder, dtype: torch.dtype) -> None:
        trunk = encoder.encoder
        pyramid, last, _ = encoder.decoder
        self.first = Convolution.of(trunk.conv1, dtype, "relu")
        blocks = [*trunk.layer1, *trunk.layer2, *trunk.layer3, *trunk.layer4]
        self.blocks = [FastResidualBlock(block, dtype) for block in blocks]
        self.branches = [convolutions(branch, dtype, "relu") for branch in pyramid.convs]
        self.project = Convolution.of(pyramid.project[0], dtype, "relu")
        self.last = Convolution.of(last, dtype, "relu")

    def __call__(self, x_B5SS: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x_B5SS), 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        *convolved, of_mean = self.branches
        parts = [run_layers(branch, x) for branch in convolved]
        mean = run_layers(of_mean, F.adaptive_avg_pool2d(x, 1))
        parts.append(mean.expand_as(parts[0]))
        return self.last(self.project(torch.cat(parts, 1)))


class FastBackground:
    """Image with coordinates (B, 5, S, S) -> logits (B, features, S, S)."""

    def __init__(self, network: Background, dtype: torch.dtype) -> None:
        self.first = Convolution.of(network.input_conv[0], dtype, "leaky")
        self.downs = []
        for narrow, _, down in (network.down_conv_1, network.down_conv_2, network.down_conv_3):
            pair = (Convolution.of(narrow, dtype, "leaky"), Convolution.of(down.op, dtype))
            self.downs.append(pair)
        self.middle = convolutions(network.middle, dtype, "leaky")
        self.ups = []
        for narrow, _, up in (network.up_conv_1, network.up_conv_2, network.up_conv_3, network.up_conv_4):
            pair = (Convolution.of(narrow, dtype, "leaky"), Convolution.of(up.conv, dtype))
            self.ups.append(pair)
        self.last = Convolution.of(network.out_conv, dtype)

    def __call__(self, x_B5SS: Tensor) -> Tensor:
        skips = [self.first(x_B5SS)]
        for pair in self.downs:
            skips.append(run_layers(pair, skips[-1]))
        x = run_layers(self.middle, skips[-1])
        for narrow, up in self.ups:
            x = narrow(torch.cat([x, skips.pop()], 1))
            x = up(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.last(x)


class FastAttention:
    """Attention of a grid of tokens to itself, `reduction` as in the module."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.heads, self.reduction = attention.heads, attention.reduction
        # The scale of the scores is part of the queries; each head has a convolution of its own.
        scale = (attention.q.out_features // self.heads) ** -0.5
        weights = (attention.q.weight * scale).detach().chunk(self.heads)
        biases = (attention.q.bias * scale).detach().chunk(self.heads)
        self.queries = []
        for weight, bias in zip(weights, biases, strict=True):
            self.queries.append(Convolution(weight.to(dtype), bias.to(dtype)))
        self.both = Convolution.of(attention.kv, dtype)
        self.project = Convolution.of(attention.proj, dtype)
        if self.reduction > 1:
            self.reduce = Convolution.of(attention.sr, dtype)
            self.norm = Norm(attention.norm, dtype)

    def __call__(self, x_BCHW: Tensor, added: Tensor) -> Tensor:
        """`added` is added to the result."""
        context_BCHW = self.norm(self.reduce(x_BCHW)) if self.reduction > 1 else x_BCHW
        # Keys and values are matrices for `attend`, which makes weights of convolutions of them.
        keys_BMC, values_BMC = self.both(context_BCHW).flatten(2).mT.chunk(2, 2)
        queries = [query(x_BCHW) for query in self.queries]
        mixed = attend(queries, keys_BMC.chunk(self.heads, 2), values_BMC.chunk(self.heads, 2))
        return self.project(mixed, added)


class FastMotionAttention:
    """Attention of a grid to M motion tokens.

    They are fewer than a head's channels d, so that it costs less to take the keys through the weights of the
    queries, and the values through those of the last layer, than the grid:

        scores = (W_q x + b_q) K = (K W_q) x + K b_q        result = W_p (V shares) = (W_p V) shares
    """

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        self.both = Convolution.of(attention.kv, dtype)
        scale = (attention.q.out_features // self.heads) ** -0.5
        by_head = (self.heads, -1)
        weight = attention.q.weight.detach()
        bias = attention.q.bias[:, None].detach()
        self.query_HdD = (weight * scale).unflatten(0, by_head).to(dtype)
        self.bias_Hd1 = (bias * scale).unflatten(0, by_head).to(dtype)
        project_DHd = attention.proj.weight.detach().unflatten(1, by_head)
        self.project_HDd = project_DHd.transpose(0, 1).to(dtype).contiguous()
        self.bias = attention.proj.bias.detach().to(dtype)

    def __call__(
        self,
        x_BDhw: Tensor,
        tokens_BDM1: Tensor,
        scale: float | Tensor,
        added_BDhw: Tensor,
    ) -> Tensor:
        """`scale` times the result and `added`; a tensor is (B, 1, 1, 1)."""
        keys, values = self.both(tokens_BDM1)[..., 0].chunk(2, 1)
        keys_BHMd = keys.unflatten(1, (self.heads, -1)).mT
        values_BHdM = values.unflatten(1, (self.heads, -1))
        score_weight = (keys_BHMd @ self.query_HdD).flatten(1, 2)
        score_bias = (keys_BHMd @ self.bias_Hd1).flatten(1)
        gather_weight = (self.project_HDd @ values_BHdM * scale).transpose(1, 2).flatten(2)
        results = []
        for b in range(len(x_BDhw)):
            own = slice(b, b + 1)
            score = Convolution(score_weight[b], score_bias[b])
            scores_1hwHM = to_pixels(score(x_BDhw[own])).unflatten(3, (self.heads, -1))
            shares_1hwN = scores_1hwHM.softmax(-1).flatten(3)
            bias = self.bias * (scale[b].flatten() if isinstance(scale, Tensor) else scale)
            gather = Convolution(gather_weight[b], bias)
            results.append(gather(to_map(shares_1hwN), added_BDhw[own]))
        return results[0] if len(results) == 1 else torch.cat(results)


class FastMLP:
    """The addition behind the MLP is part of its last layer."""

    def __init__(self, mlp: MLP, dtype: torch.dtype) -> None:
        self.layers = [Convolution.of(mlp.fc1, dtype), Convolution.of(mlp.dwconv.dwconv, dtype, "gelu")]
        self.last = Convolution.of(mlp.fc2, dtype)

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        return self.last(run_layers(self.layers, x), added)


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
            x = self.motion(self.norm_motion(x), tokens, scale, x)
        x = self.own(self.norm_own(x), x)
        return self.mlp(self.norm_mlp(x), x)


class FastPatchEmbed:
    """Patches (B, D, h, w), normalised."""

    def __init__(self, embed: PatchEmbed, dtype: torch.dtype) -> None:
        self.project = Convolution.of(embed.proj, dtype)
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
        self.mapping, self.count, self.dtype = mapping, count, dtype
        self.weight = expansion.weight.detach().to(dtype)
        self.bias = expansion.bias.detach().to(dtype)

    def __call__(self, motion_BM: Tensor) -> Tensor:
        # The mapping is small; it stays in the number type that it was trained in.
        mapped = self.mapping(motion_BM).to(self.dtype)
        tokens_BMD = F.linear(mapped, self.weight, self.bias).unflatten(1, (self.count, -1))
        return tokens_BMD.mT[..., None]


class FastCanonical:
    """`neutral` is all that depends on the source alone."""

    def __init__(self, encoder: CanonicalEncoder, dtype: torch.dtype) -> None:
        self.dtype, self.image = dtype, encoder.image
        self.embed = FastPatchEmbed(encoder.patch_embed, dtype)
        count = encoder.motion_tokens
        self.neutral_tokens = FastTokens(encoder.maps_neutral, encoder.proj_y_neutral, count, dtype)
        self.motion_tokens = FastTokens(encoder.maps, encoder.proj_y, count, dtype)
        self.neutral_blocks = [FastBlock(block, dtype) for block in encoder.trans_blocks_neutral]
        self.motion_blocks = [FastBlock(block, dtype) for block in encoder.trans_blocks_motion]
        self.first = Convolution.of(encoder.convs["1"], dtype, "relu")
        self.second = Convolution.of(encoder.convs["4"], dtype, "relu")
        self.third = Convolution.of(encoder.convs["6"], dtype)

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
        """Canonical feature (B, detail_channels, S/2, S/2)."""
        x = self._run(self.motion_blocks, self.motion_tokens, x_BDhw, motion_driving_BM, scale)
        quarter = resize(F.pixel_shuffle(x, 2), self.image // 4)
        half = resize(self.first(quarter), self.image // 2)
        return self.third(self.second(half))

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
        canonical, detail = first.weight.detach().to(dtype).chunk(2, 1)
        self.first = Convolution(canonical)
        self.detail = Convolution(detail, first.bias.detach().to(dtype))
        self.second = Convolution.of(decoder.convs1[2], dtype, "leaky")
        self.embed = FastPatchEmbed(decoder.patch_embed, dtype)
        self.blocks = [FastBlock(block, dtype) for block in decoder.trans_blocks]
        self.last = [*convolutions(decoder.convs2, dtype, "leaky"), Convolution.of(decoder.conv_last, dtype)]
        self.stride = decoder.shuffle.upscale_factor

    def __call__(self, canonical_BCRR: Tensor, detail_BWRR: Tensor) -> Tensor:
        """Planes (B, 3 * plane_channels, R, R) from the canonical feature and the half of the detail one."""
        wide = F.leaky_relu_(self.first(canonical_BCRR, detail_BWRR))
        x = self.embed(self.second(wide))
        for block in self.blocks:
            x = block(x)
        shuffled = F.pixel_shuffle(x, self.stride)
        return run_layers(self.last, torch.cat([shuffled, canonical_BCRR], 1))
