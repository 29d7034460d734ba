"""The networks of Psi up to the tri-planes on the fast path: what depends on the source alone apart from what follows the motion.

Each class is made from the trained module of the same name and gives its results; feature maps are as in `model/fast/layers.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fast.layers import Convolution, Norm, attend, convolutions, run_layers
from model.layers.transformer import MLP, Attention, Block, MotionBlock, PatchEmbed
from model.psi.background import Background
from model.psi.canonical import CanonicalEncoder, resize
from model.psi.encoders import GlobalEncoder, ResidualBlock
from model.psi.triplane_decoder import TriplaneDecoder


class FastResidualBlock:
    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.first, self.second = (
            Convolution.of(block.conv1, dtype, "relu"),
            Convolution.of(block.conv2, dtype, "relu"),
        )
        self.shortcut = None if block.downsample is None else Convolution.of(block.downsample[0], dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x if self.shortcut is None else self.shortcut(x))


class FastGlobalEncoder:
    """Image with coordinates (B, 5, S, S) -> appearance feature (B, channels, S/8, S/8)."""

    def __init__(self, encoder: GlobalEncoder, dtype: torch.dtype) -> None:
        trunk, (pyramid, last, _) = encoder.encoder, encoder.decoder
        self.first = Convolution.of(trunk.conv1, dtype, "relu")
        layers = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
        self.blocks = [FastResidualBlock(block, dtype) for layer in layers for block in layer]
        self.branches = [convolutions(branch, dtype, "relu") for branch in pyramid.convs]
        self.project, self.last = (
            Convolution.of(pyramid.project[0], dtype, "relu"),
            Convolution.of(last, dtype, "relu"),
        )

    def __call__(self, x_B5SS: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x_B5SS), 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        parts = [run_layers(branch, x) for branch in self.branches[:-1]]
        mean = run_layers(self.branches[-1], F.adaptive_avg_pool2d(x, 1))
        return self.last(self.project(torch.cat([*parts, mean.expand_as(parts[0])], 1)))


class FastBackground:
    """Image with coordinates (B, 5, S, S) -> logits (B, features, S, S)."""

    def __init__(self, network: Background, dtype: torch.dtype) -> None:
        self.first = Convolution.of(network.input_conv[0], dtype, "leaky")
        downs = (network.down_conv_1, network.down_conv_2, network.down_conv_3)
        self.downs = [
            (Convolution.of(down[0], dtype, "leaky"), Convolution.of(down[2].op, dtype)) for down in downs
        ]
        self.middle = convolutions(network.middle, dtype, "leaky")
        ups = (network.up_conv_1, network.up_conv_2, network.up_conv_3, network.up_conv_4)
        self.ups = [(Convolution.of(up[0], dtype, "leaky"), Convolution.of(up[2].conv, dtype)) for up in ups]
        self.last = Convolution.of(network.out_conv, dtype)

    def __call__(self, x_B5SS: Tensor) -> Tensor:
        skips = [self.first(x_B5SS)]
        for pair in self.downs:
            skips.append(run_layers(pair, skips[-1]))
        x = run_layers(self.middle, skips[-1])
        for narrow, up in self.ups:
            x = up(F.interpolate(narrow(torch.cat([x, skips.pop()], 1)), scale_factor=2, mode="nearest"))
        return self.last(x)


class FastAttention:
    """Attention of a grid of tokens to itself, `reduction` as in the module."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        heads = attention.heads
        scale = (attention.q.out_features // heads) ** -0.5
        weights = [
            layer.detach().chunk(heads) for layer in (attention.q.weight * scale, attention.q.bias * scale)
        ]
        self.queries = [
            Convolution(weight.to(dtype), bias.to(dtype)) for weight, bias in zip(*weights, strict=True)
        ]
        self.both = Convolution.of(attention.kv, dtype)
        self.project, self.heads = Convolution.of(attention.proj, dtype), heads
        if attention.reduction > 1:
            self.reduce, self.norm = Convolution.of(attention.sr, dtype), Norm(attention.norm, dtype)
        self.reduction = attention.reduction

    def __call__(self, x_BCHW: Tensor, added: Tensor) -> Tensor:
        """`added` is added to the result."""
        context_BCHW = self.norm(self.reduce(x_BCHW)) if self.reduction > 1 else x_BCHW
        keys, values = self.both(context_BCHW).flatten(2).mT.chunk(2, 2)
        mixed = attend(
            [query(x_BCHW) for query in self.queries], keys.chunk(self.heads, 2), values.chunk(self.heads, 2)
        )
        return self.project(mixed, added)


class FastMotionAttention:
    """Attention of a grid to M motion tokens. They are fewer than a head's channels, so that it costs less to take the keys through the
    weights of the queries, and the values through those of the last layer, than the grid."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.both, self.heads = Convolution.of(attention.kv, dtype), attention.heads
        scale = (attention.q.out_features // self.heads) ** -0.5
        self.query_HdD, self.bias_Hd1 = (
            (part.detach() * scale).unflatten(0, (self.heads, -1)).to(dtype)
            for part in (attention.q.weight, attention.q.bias[:, None])
        )
        self.project_HDd = (
            attention.proj.weight.detach()
            .unflatten(1, (self.heads, -1))
            .transpose(0, 1)
            .to(dtype)
            .contiguous()
        )
        self.bias = attention.proj.bias.detach().to(dtype)

    def __call__(
        self, x_BDhw: Tensor, tokens_BDM1: Tensor, scale: float | Tensor, added_BDhw: Tensor
    ) -> Tensor:
        """`scale` times the result and `added`; a tensor is (B, 1, 1, 1)."""
        keys_BHMd, values_BHdM = (
            part.unflatten(1, (self.heads, -1)) for part in self.both(tokens_BDM1)[..., 0].chunk(2, 1)
        )
        keys_BHMd = keys_BHMd.mT
        score_weight, score_bias = (
            (keys_BHMd @ self.query_HdD).flatten(1, 2),
            (keys_BHMd @ self.bias_Hd1).flatten(1),
        )
        gather_weight = (self.project_HDd @ values_BHdM * scale).transpose(1, 2).flatten(2)
        results = []
        for b in range(len(x_BDhw)):
            bias = self.bias * (scale[b].flatten() if isinstance(scale, Tensor) else scale)
            scores_1hwn = Convolution(score_weight[b], score_bias[b])(x_BDhw[b : b + 1]).permute(0, 2, 3, 1)
            shares_1hwn = scores_1hwn.unflatten(3, (self.heads, -1)).softmax(-1).flatten(3)
            results.append(
                Convolution(gather_weight[b], bias)(shares_1hwn.permute(0, 3, 1, 2), added_BDhw[b : b + 1])
            )
        return results[0] if len(results) == 1 else torch.cat(results)


class FastMLP:
    def __init__(self, mlp: MLP, dtype: torch.dtype) -> None:
        self.layers = [Convolution.of(mlp.fc1, dtype), Convolution.of(mlp.dwconv.dwconv, dtype, "gelu")]
        self.last = Convolution.of(mlp.fc2, dtype)

    def __call__(self, x: Tensor, added: Tensor) -> Tensor:
        return self.last(run_layers(self.layers, x), added)


class FastBlock:
    """A transformer block; one with motion tokens (B, D, M, 1) when they are given."""

    def __init__(self, block: Block | MotionBlock, dtype: torch.dtype) -> None:
        motion = isinstance(block, MotionBlock)
        self.norms = [
            Norm(norm, dtype)
            for norm in ((block.norm1, block.norm3) if motion else (block.norm1, block.norm2))
        ]
        self.own = FastAttention(block.attn1 if motion else block.attn, dtype)
        self.mlp = FastMLP(block.mlp, dtype)
        if motion:
            self.norm_motion, self.motion = Norm(block.norm2, dtype), FastMotionAttention(block.attn2, dtype)

    def __call__(self, x: Tensor, tokens: Tensor | None = None, scale: float | Tensor = 1.0) -> Tensor:
        if tokens is not None:
            x = self.motion(self.norm_motion(x), tokens, scale, x)
        x = self.own(self.norms[0](x), x)
        return self.mlp(self.norms[1](x), x)


class FastPatchEmbed:
    def __init__(self, embed: PatchEmbed, dtype: torch.dtype) -> None:
        self.project, self.norm = Convolution.of(embed.proj, dtype), Norm(embed.norm, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x))


class FastCanonical:
    """`neutral` is all that depends on the source alone."""

    def __init__(self, encoder: CanonicalEncoder, dtype: torch.dtype) -> None:
        self.dtype, self.image, self.count = dtype, encoder.image, encoder.motion_tokens
        self.embed = FastPatchEmbed(encoder.patch_embed, dtype)
        self.blocks = {
            "neutral": [FastBlock(block, dtype) for block in encoder.trans_blocks_neutral],
            "motion": [FastBlock(block, dtype) for block in encoder.trans_blocks_motion],
        }
        self.maps: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
            name: (mapping, expand.weight.detach().to(dtype), expand.bias.detach().to(dtype))
            for name, mapping, expand in (
                ("neutral", encoder.maps_neutral, encoder.proj_y_neutral),
                ("motion", encoder.maps, encoder.proj_y),
            )
        }
        last = (("1", "relu"), ("4", "relu"), ("6", "none"))
        self.convs = [Convolution.of(encoder.convs[key], dtype, activation) for key, activation in last]

    def neutral(self, feature_BCHW: Tensor, motion_source_BM: Tensor | None, scale: float | Tensor) -> Tensor:
        """Tokens (B, D, h, w) of the expression-free source."""
        return self._blocks("neutral", self.embed(feature_BCHW), motion_source_BM, scale)

    def reenact(self, x_BDhw: Tensor, motion_driving_BM: Tensor | None, scale: float | Tensor) -> Tensor:
        """Canonical feature (B, detail_channels, S/2, S/2)."""
        x = F.pixel_shuffle(self._blocks("motion", x_BDhw, motion_driving_BM, scale), 2)
        first, second, third = self.convs
        return third(second(resize(first(resize(x, self.image // 4)), self.image // 2)))

    def _blocks(self, which: str, x: Tensor, motion_BM: Tensor | None, scale: float | Tensor) -> Tensor:
        tokens = None
        if isinstance(scale, Tensor) or scale != 0:
            if motion_BM is None:
                raise ValueError("a motion embedding is needed unless motion_scale is 0")
            mapping, weight, bias = self.maps[which]
            tokens = (
                F.linear(mapping(motion_BM).to(self.dtype), weight, bias)
                .unflatten(1, (self.count, -1))
                .mT[..., None]
            )
            if isinstance(scale, Tensor):
                scale = scale.to(self.dtype)[..., None]
        for block in self.blocks[which]:
            x = block(x, tokens, scale)
        return x


class FastTriplaneDecoder:
    """The first convolution sees the canonical and the detail feature, and is linear: the half of the latter, `detail`, depends on the
    source alone."""

    def __init__(self, decoder: TriplaneDecoder, dtype: torch.dtype) -> None:
        first = decoder.convs1[0]
        canonical, detail = first.weight.detach().to(dtype).chunk(2, 1)
        self.first, self.detail = Convolution(canonical), Convolution(detail, first.bias.detach().to(dtype))
        self.second = Convolution.of(decoder.convs1[2], dtype, "leaky")
        self.embed = FastPatchEmbed(decoder.patch_embed, dtype)
        self.blocks = [FastBlock(block, dtype) for block in decoder.trans_blocks]
        self.last = [*convolutions(decoder.convs2, dtype, "leaky"), Convolution.of(decoder.conv_last, dtype)]
        self.stride = decoder.shuffle.upscale_factor

    def __call__(self, canonical_BCRR: Tensor, detail_BWRR: Tensor) -> Tensor:
        """Planes (B, 3 * plane_channels, R, R) from the canonical feature and the half of the detail feature."""
        x = self.embed(self.second(F.leaky_relu_(self.first(canonical_BCRR, detail_BWRR))))
        for block in self.blocks:
            x = block(x)
        return run_layers(self.last, torch.cat([F.pixel_shuffle(x, self.stride), canonical_BCRR], 1))
