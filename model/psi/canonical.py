"""Canonicalisation and reenactment: takes the source's motion out of the appearance feature and puts the driving motion in.

Source: paper section 4.1, facts 1.4. With motion scale 0 it is the static Psi_3d, which leaves the expression as it is.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.transformer import MotionBlock, PatchEmbed, initialise, to_image
from model.sizes import Sizes

LEAK = 0.01  # of the leaky ReLU behind each mapping layer


def resize(x_BCHW: Tensor, side: int) -> Tensor:
    """Bilinear, corners aligned; nothing where the size is right already."""
    return (
        x_BCHW
        if x_BCHW.shape[-1] == side
        else F.interpolate(x_BCHW, (side, side), mode="bilinear", align_corners=True)
    )


def keep_size(layer: nn.Linear, gain: float = 1.0) -> None:
    """Weights that put out numbers `gain` times as large as those that go in."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))


class CanonicalEncoder(nn.Module):
    """Appearance feature (B, C, S/8, S/8) and two motion embeddings (B, M) -> canonical feature (B, detail_channels, S/2, S/2)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        psi = sizes.psi
        self.image, self.motion_tokens = sizes.image, psi.motion_tokens

        def mapping() -> nn.Sequential:
            first = nn.Linear(sizes.motion.dims, psi.motion_hidden)
            return nn.Sequential(
                first, nn.LeakyReLU(), nn.Linear(psi.motion_hidden, psi.motion_hidden), nn.LeakyReLU()
            )

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                MotionBlock(psi.dim, psi.canonical_heads, psi.mlp_ratio) for _ in range(count)
            )

        self.maps, self.maps_neutral = mapping(), mapping()
        self.proj_y_neutral = nn.Linear(psi.motion_hidden, psi.motion_tokens * psi.dim)
        self.proj_y = nn.Linear(psi.motion_hidden, psi.motion_tokens * psi.dim)
        self.patch_embed = PatchEmbed(psi.global_channels, psi.dim, psi.patch_stride)
        self.trans_blocks_neutral = blocks(psi.blocks_neutral)
        self.trans_blocks_motion = blocks(psi.blocks_motion)
        self.shuffle = nn.PixelShuffle(2)
        hidden = psi.canonical_upsample_channels
        # Numbers 0 and 3 of the published list are its interpolations; `forward` resizes to the sizes that the image asks for.
        self.convs = nn.ModuleDict(
            {
                "1": nn.Conv2d(psi.dim // 4, hidden, 3, padding=1),
                "4": nn.Conv2d(hidden, hidden, 3, padding=1),
                "6": nn.Conv2d(hidden, psi.detail_channels, 3, padding=1),
            }
        )
        initialise(self)
        if psi.motion_start == "routed":
            self._route_motion()

    def _route_motion(self) -> None:
        """Let motion reach the image tokens at its own size, and each of them choose what it listens to.

        The bias of a motion token is its name: it tells tokens apart whatever the motion is. With queries of twice the usual size an image
        token begins by listening to a few of them, so that what is learnt for the mouth does not change the rest of the picture. What is
        said is added from zero on, lest the first thousand images are spent on unlearning noise.
        """
        for mapping in (self.maps, self.maps_neutral):
            for layer in mapping[::2]:
                nn.init.kaiming_normal_(layer.weight, a=LEAK)
        for expansion in (self.proj_y, self.proj_y_neutral):
            keep_size(expansion)
            nn.init.normal_(expansion.bias)
        for block in (*self.trans_blocks_neutral, *self.trans_blocks_motion):
            keep_size(block.attn2.kv)
            keep_size(block.attn2.q, gain=2.0)
            nn.init.zeros_(block.attn2.proj.weight)

    def neutral(
        self, feature_BCHW: Tensor, motion_source_BM: Tensor | None, scale: float | Tensor = 1.0
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, D) of the expression-free source and their grid: all that depends on the source alone."""
        x, grid = self.patch_embed(feature_BCHW)
        tokens = self._tokens(motion_source_BM, self.maps_neutral, self.proj_y_neutral, scale)
        for block in self.trans_blocks_neutral:
            x = block(x, tokens, grid, scale)
        return x, grid

    def reenact(
        self,
        x_BND: Tensor,
        grid: tuple[int, int],
        motion_driving_BM: Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Canonical feature at half of the image from the result of `neutral` and the driving motion."""
        tokens = self._tokens(motion_driving_BM, self.maps, self.proj_y, scale)
        for block in self.trans_blocks_motion:
            x_BND = block(x_BND, tokens, grid, scale)
        feature = self.shuffle(to_image(x_BND, grid))
        y = F.relu(self.convs["1"](resize(feature, self.image // 4)))
        y = F.relu(self.convs["4"](resize(y, self.image // 2)))
        return self.convs["6"](y)

    def forward(
        self,
        feature_BCHW: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """`scale` multiplies the cross-attention; a plain 0 leaves it out altogether, and the motions may then be None."""
        x, grid = self.neutral(feature_BCHW, motion_source_BM, scale)
        return self.reenact(x, grid, motion_driving_BM, scale)

    def _tokens(
        self, motion_BM: Tensor | None, mapping: nn.Module, expand: nn.Module, scale: float | Tensor
    ) -> Tensor | None:
        if not isinstance(scale, Tensor) and scale == 0:
            return None
        if motion_BM is None:
            raise ValueError("a motion embedding is needed unless motion_scale is 0")
        return expand(mapping(motion_BM)).unflatten(1, (self.motion_tokens, -1))
