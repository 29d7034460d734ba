"""Every number of the networks, in one place.

The defaults are the published networks (facts digest sections 1 to 3 and 6); a smaller scale is the same
code with smaller numbers, read from the `networks` section of params.yaml.
"""

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class PsiSizes:
    """Psi and Psi_3d (paper section 4.1, facts 1)."""

    encoder_width: int = 64  # first layer of the ResNet; later ones have 2, 4 and 8 times as many channels
    encoder_blocks: tuple[int, ...] = (3, 4, 6, 3)
    # Pixels a side at which the encoders and the background see the portrait; 0 for all of them, as
    # published. Projected features and portrait detail see all of them at any number.
    encoder_input: int = 0
    global_channels: int = 256  # appearance feature at 1/8 of what the encoders see
    detail_stem: int = 64
    detail_channels: int = 96  # detail feature and canonical feature at 1/2 of it
    motion_hidden: int = 512
    motion_tokens: int = 64
    dim: int = 1024  # transformer width, canonicalisation and tri-plane decoder
    patch_stride: int = 2
    canonical_heads: int = 4
    canonical_upsample_channels: int = 128
    blocks_neutral: int = 4
    blocks_motion: int = 4
    mlp_ratio: int = 2
    decoder_heads: int = 2
    decoder_channels: int = 256  # first convolutions of the tri-plane decoder; the later ones have half of it
    background_width: int = 64
    # How the motion layers start. published: deviation 0.02, by which the motion arrives at the image
    # tokens a hundred times smaller than they are, and needs millions of images to be heard. routed: see
    # CanonicalEncoder.
    motion_start: Literal["published", "routed"] = "published"
    # Channels of the projected source features, 0 without, as published: see PortraitFeatures.
    projected: int = 0
    # Channels of the portrait's features that every pixel of the image looks up, 0 without, as published:
    # see PortraitDetail. It counts where `projected` is not 0.
    portrait_detail: int = 0


@dataclass(frozen=True)
class GenHeadSizes:
    """The 4D GAN that makes the synthetic heads (facts 3.1)."""

    z_dim: int = 512
    mapping_layers: int = 2
    # Of the backbone's blocks; a larger learnt constant finds the places of eyes and mouth in fewer steps.
    first_resolution: int = 4
    channel_base: int = 32768
    channel_max: int = 512
    background_resolution: int = 64
    background_mapping_layers: int = 8
    background_channel_base: int = 16384
    background_channel_max: int = 512
    # A side of the grid on which the deformation is searched and then interpolated; 0: searched at every
    # point.
    deformation_cells: int = 0


@dataclass(frozen=True)
class DiscriminatorSizes:
    """The dual discriminator (facts 4.5)."""

    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    group: int = 2  # minibatch standard deviation


@dataclass(frozen=True)
class MotionSizes:
    """E_mot, the frozen 2D motion encoder (facts 6).

    An embedding has eye + emotion + feature numbers: 548 in the paper.
    """

    input: int = 224
    width: int = 64
    channels: int = 256
    depth: int = 4  # of the hourglass
    landmarks: int = 68
    feature: int = 512
    headpose: int = 6
    eye: int = 6
    emotion: int = 30
    mouth: int = 500

    @property
    def dims(self) -> int:
        return self.eye + self.emotion + self.feature


@dataclass(frozen=True)
class IdentitySizes:
    """The face recognition network (facts 4.2): an ArcFace iResNet on 112x112 crops."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    embedding: int = 512


@dataclass(frozen=True)
class Sizes:
    """All networks. `image` is the final resolution, `rays` that of volume rendering ("nrr")."""

    image: int = 512
    rays: int = 128
    samples: int = 48  # coarse samples a ray
    samples_fine: int = 48
    box: float = 1.3  # side of the tri-plane cube, world units
    # Where Psi's decoder puts a pixel of its feature map. published: rows of the xy plane go up where rows
    # of the portrait go down, and the other planes swap its axes. upright: each plane lies like the
    # portrait, so that convolutions carry what is local.
    planes: Literal["published", "upright"] = "published"
    plane_resolution: int = 256
    plane_channels: int = 32
    decoder_hidden: int = 64
    feature_channels: int = 32
    w_dim: int = 512
    superresolution_channels: tuple[int, ...] = (256, 128)  # one block a doubling from rays to image
    psi: PsiSizes = field(default_factory=PsiSizes)
    genhead: GenHeadSizes = field(default_factory=GenHeadSizes)
    discriminator: DiscriminatorSizes = field(default_factory=DiscriminatorSizes)
    motion: MotionSizes = field(default_factory=MotionSizes)
    identity: IdentitySizes = field(default_factory=IdentitySizes)

    @property
    def encoded(self) -> int:
        """Pixels a side at which Psi's encoders see the portrait."""
        return self.psi.encoder_input or self.image

    def __post_init__(self) -> None:
        """Raises ValueError, naming the fields, when the numbers do not fit together."""
        psi, encoded = self.psi, self.encoded
        channels = self.superresolution_channels
        doubled = bool(channels) and self.image == self.rays * 2 ** len(channels)
        patches = psi.patch_stride in (1, 2, 4) and encoded // 8 % psi.patch_stride == 0
        heads = {"canonical_heads": psi.canonical_heads, "decoder_heads": psi.decoder_heads}
        _require(
            self.image >= 32 and self.image & (self.image - 1) == 0,
            f"image must be a power of two from 32 on, but is {self.image}",
        )
        _require(
            doubled,
            "image must be rays doubled once for each of superresolution_channels, but image is "
            f"{self.image}, rays is {self.rays} and superresolution_channels has {len(channels)} numbers",
        )
        _require(
            32 <= encoded <= self.image and encoded & (encoded - 1) == 0,
            f"psi.encoder_input must be 0, or a power of two from 32 to image, but is {psi.encoder_input}",
        )
        _require(
            self.plane_resolution == encoded // 2,
            f"plane_resolution must be half of what the encoders see ({encoded} pixels), "
            f"but is {self.plane_resolution}",
        )
        _require(self.samples >= 4, f"samples must be at least 4, but is {self.samples}")
        _require(self.samples_fine >= 2, f"samples_fine must be at least 2, but is {self.samples_fine}")
        _require(
            self.feature_channels >= 3,
            f"feature_channels must be at least 3 (they begin with RGB), but is {self.feature_channels}",
        )
        _require(self.box > 0, f"box must be positive, but is {self.box}")
        _require(
            len(psi.encoder_blocks) == 4 and min(psi.encoder_blocks) >= 1,
            f"psi.encoder_blocks must be four numbers from 1 on, but is {psi.encoder_blocks}",
        )
        _require(
            patches,
            "psi.patch_stride must be 1, 2 or 4 and divide an eighth of what the encoders see "
            f"({encoded} pixels), but is {psi.patch_stride}",
        )
        _require(psi.dim % 4 == 0, f"psi.dim must be divisible by 4, but is {psi.dim}")
        for name, count in heads.items():
            _require(
                psi.dim % count == 0,
                f"psi.{name} must divide psi.dim ({psi.dim}), but is {count}",
            )
        _require(
            psi.decoder_channels % 2 == 0,
            f"psi.decoder_channels must be even, but is {psi.decoder_channels}",
        )

    def driven_by(self, motion: str) -> "Sizes":
        """The sizes of a Psi that is driven by E_mot ("emot") or by 109 numbers of the label ("flame").

        The latter are eyes 6, jaw 3, expression 100.
        """
        if motion != "flame":
            return self
        return replace(self, motion=replace(self.motion, eye=6, emotion=3, feature=100))


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
