"""Canonicalisation and reenactment: the source's motion out of the appearance feature, the driving motion in.

Source: paper section 4.1, facts 1.4. With motion scale 0 it is the static Psi_3d, which leaves the
expression as it is.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.transformer import MotionBlock, PatchEmbed, initialise, to_image
from model.sizes import Sizes

LEAK = 0.01  # of the leaky ReLU behind each mapping layer
QUERY_GAIN = 2.0  # how much larger than usual the queries of a routed start are


def resize(x_BCHW: Tensor, side: int) -> Tensor:
    """Bilinear, corners aligned; nothing where the size is right already."""
    if x_BCHW.shape[-1] == side:
        return x_BCHW
    return F.interpolate(x_BCHW, (side, side), mode="bilinear", align_corners=True)


def keep_size(layer: nn.Linear, gain: float = 1.0) -> None:
    """Weights that put out numbers `gain` times as large as those that go in."""
    deviation = gain / math.sqrt(layer.in_features)
    nn.init.normal_(layer.weight, std=deviation)


class CanonicalEncoder(nn.Module):
    """Appearance feature (B, C, S/8, S/8) and two motion embeddings (B, M) to the canonical feature.

    That is (B, detail_channels, S/2, S/2), where S is how large the encoders see the portrait.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        psi = sizes.psi
        self.side = sizes.encoded
        self.motion_tokens = psi.motion_tokens

        def mapping() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(sizes.motion.dims, psi.motion_hidden),
                nn.LeakyReLU(),
                nn.Linear(psi.motion_hidden, psi.motion_hidden),
                nn.LeakyReLU(),
            )

        def expansion() -> nn.Linear:
            return nn.Linear(psi.motion_hidden, psi.motion_tokens * psi.dim)

        def block() -> MotionBlock:
            return MotionBlock(psi.dim, psi.canonical_heads, psi.mlp_ratio)

        # The order of the layers is that of their random numbers: it must not change.
        self.maps = mapping()
        self.maps_neutral = mapping()
        self.proj_y_neutral = expansion()
        self.proj_y = expansion()
        self.patch_embed = PatchEmbed(psi.global_channels, psi.dim, psi.patch_stride)
        self.trans_blocks_neutral = nn.ModuleList(block() for _ in range(psi.blocks_neutral))
        self.trans_blocks_motion = nn.ModuleList(block() for _ in range(psi.blocks_motion))
        self.shuffle = nn.PixelShuffle(2)
        # Numbers 0 and 3 of the published list are its interpolations; `forward` resizes to the sizes that
        # the image asks for.
        hidden = psi.canonical_upsample_channels
        convolutions = {
            "1": nn.Conv2d(psi.dim // 4, hidden, 3, padding=1),
            "4": nn.Conv2d(hidden, hidden, 3, padding=1),
            "6": nn.Conv2d(hidden, psi.detail_channels, 3, padding=1),
        }
        self.convs = nn.ModuleDict(convolutions)
        initialise(self)
        if psi.motion_start == "routed":
            self._route_motion()

    def _route_motion(self) -> None:
        """Let motion reach the image tokens at its own size, and each of them choose what it listens to.

        The bias of a motion token is its name: it tells tokens apart whatever the motion is. With queries
        of twice the usual size an image token begins by listening to a few of them, so that what is learnt
        for the mouth does not change the rest of the picture. What is said is added from zero on, lest the
        first thousand images are spent on unlearning noise.
        """
        for mapping in (self.maps, self.maps_neutral):
            for layer in mapping[::2]:
                nn.init.kaiming_normal_(layer.weight, a=LEAK)
        for expansion in (self.proj_y, self.proj_y_neutral):
            keep_size(expansion)
            nn.init.normal_(expansion.bias)
        for block in (*self.trans_blocks_neutral, *self.trans_blocks_motion):
            listening = block.attn2
            keep_size(listening.kv)
            keep_size(listening.q, gain=QUERY_GAIN)
            nn.init.zeros_(listening.proj.weight)

    def neutral(
        self,
        feature_BCHW: Tensor,
        motion_source_BM: Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, D) of the expression-free source and their grid: all that depends on it alone."""
        x_BND, grid = self.patch_embed(feature_BCHW)
        motion_BMD = self._tokens(motion_source_BM, self.maps_neutral, self.proj_y_neutral, scale)
        for block in self.trans_blocks_neutral:
            x_BND = block(x_BND, motion_BMD, grid, scale)
        return x_BND, grid

    def reenact(
        self,
        x_BND: Tensor,
        grid: tuple[int, int],
        motion_driving_BM: Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Canonical feature from the result of `neutral` and the driving motion."""
        motion_BMD = self._tokens(motion_driving_BM, self.maps, self.proj_y, scale)
        for block in self.trans_blocks_motion:
            x_BND = block(x_BND, motion_BMD, grid, scale)
        first, second, third = self.convs.values()
        x = self.shuffle(to_image(x_BND, grid))
        x = first(resize(x, self.side // 4))
        x = second(resize(F.relu(x), self.side // 2))
        return third(F.relu(x))

    def forward(
        self,
        feature_BCHW: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """`scale` multiplies the cross-attention.

        A plain 0 leaves it out altogether, and the motions may then be None.
        """
        x_BND, grid = self.neutral(feature_BCHW, motion_source_BM, scale)
        return self.reenact(x_BND, grid, motion_driving_BM, scale)

    def _tokens(
        self,
        motion_BM: Tensor | None,
        mapping: nn.Module,
        expansion: nn.Module,
        scale: float | Tensor,
    ) -> Tensor | None:
        """Motion tokens (B, motion_tokens, D), None where the motion does not matter."""
        # A tensor has a scale for each sample, so that the layers run even where it is zero.
        if not isinstance(scale, Tensor) and scale == 0:
            return None
        if motion_BM is None:
            raise ValueError("a motion embedding is needed unless motion_scale is 0")
        expanded_BX = expansion(mapping(motion_BM))
        return expanded_BX.unflatten(1, (self.motion_tokens, -1))
