"""The fast inference path of Psi and Psi_3d: the pictures of `Psi.forward` at any sizes, without gradients.

    fast = FastPsi(psi)
    source = fast.source(portrait, motion_of_it)        # once per portrait
    planes = fast.planes(source, motion_driving)        # once per frame; of Psi_3d once per portrait
    pictures = fast.render(planes, source, cameras)     # any number of views

Source: paper section 4.1; what the parts do is in the modules that they are made from. What was measured is
in tests/benchmarks/NOTES.md.
"""

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fast.blocks import FastBackground, FastCanonical, FastGlobalEncoder, FastTriplaneDecoder
from model.fast.layers import convolutions, run_layers
from model.fast.memory import keep_memory
from model.fast.renderer import NOTHING, SHARE, FastRenderer
from model.fast.superresolution import FastSuperResolution
from model.head.deform import NeckField
from model.psi.encoders import shrunk, with_coordinates
from model.psi.network import Psi
from model.psi.projection import Seen, motion_change, moves
from model.volume.planes import Planes, lay_out
from model.volume.renderer import Deform, Rendering, compose


@dataclass
class Source:
    """All that depends on B portraits alone."""

    tokens_BDhw: Tensor  # of the expression-free source
    detail_BWRR: Tensor  # its half of the tri-plane decoder's first convolution
    background_BFnn: Tensor  # in [0, 1]
    scale: float | Tensor  # of the motion
    # Where source features are projected: what is seen of the portrait, its camera, its motion and its neck.
    seen: Seen | None = None
    camera_B25: Tensor | None = None
    motion_BM: Tensor | None = None
    posing: NeckField | None = None


class FastPsi:
    """A copy of a trained network for inference: later changes of its weights are not seen.

    `dtype` bfloat16 is for the networks; rays and samples stay float32. `nothing` and `share` say what the
    renderer may leave out (`model/fast/renderer.py`). `compiled` has torch.compile translate the networks at
    their first use: for GPUs, on the CPU the libraries beneath are faster. The process keeps its memory from
    then on (`model/fast/memory.py`).
    """

    def __init__(
        self,
        psi: Psi,
        dtype: torch.dtype = torch.float32,
        nothing: float = NOTHING,
        share: float = SHARE,
        compiled: bool = False,
    ) -> None:
        keep_memory()
        self.sizes, self.dtype = psi.sizes, dtype
        self.nothing, self.share = nothing, share
        own = psi.sizes
        self.encoder_global = FastGlobalEncoder(psi.encoder_global, dtype)
        self.encoder_detail = convolutions(psi.encoder_detail.encoder, dtype, "leaky")
        self.canonical = FastCanonical(psi.encoder_canonical, dtype)
        self.triplane = FastTriplaneDecoder(psi.generator_triplane, dtype)
        self.background = FastBackground(psi.background, dtype)
        # Rays and samples are float32 whatever the networks are: depths need more than eight bits.
        sizes = (own.rays, own.samples, own.samples_fine, own.box)
        gate = copy.deepcopy(psi.projection)
        self.renderer = FastRenderer(psi.decoder, *sizes, gate)
        self.projection = copy.deepcopy(psi.projection)
        if self.projection is not None:
            self.projection.to(dtype, memory_format=torch.channels_last)
        # A few convolutions, and colours that are those of the portrait: float32 as the rays are.
        self.portrait_detail = copy.deepcopy(psi.portrait_detail)
        self.superresolution = FastSuperResolution(psi.superresolution, psi.w_avg, dtype)
        # The renderer stays as it is: what it skips depends on the numbers, which a compiler cannot know.
        if compiled:
            self.source = torch.compile(self.source)
            self.planes = torch.compile(self.planes)
            self.superresolution = torch.compile(self.superresolution)

    @torch.inference_mode()
    def source(
        self,
        source_B3SS: Tensor,
        motion_source_BM: Tensor | None,
        motion_scale: float | Tensor = 1.0,
        camera_source_B25: Tensor | None = None,
        posing_source: NeckField | None = None,
    ) -> Source:
        """What is kept of portraits in [-1, 1]; arguments as those of `Psi.planes`."""
        # All feature maps keep the layout of the image: channels last, as oneDNN's convolutions want them.
        encoded_B3EE = shrunk(source_B3SS, self.sizes.encoded)
        image = with_coordinates(encoded_B3EE).to(self.dtype, memory_format=torch.channels_last)
        appearance = self.encoder_global(image)
        tokens = self.canonical.neutral(appearance, motion_source_BM, motion_scale)
        detail = run_layers(self.encoder_detail, image)
        detail = self.triplane.detail(detail)
        colour = torch.sigmoid(self.background(image))
        size = (self.sizes.rays, self.sizes.rays)
        background = F.interpolate(colour, size, mode="bilinear", align_corners=False)
        known = Source(tokens, detail, background.float(), motion_scale)
        if self.projection is None:
            return known
        portrait = source_B3SS.to(self.dtype, memory_format=torch.channels_last)
        seen = self.projection.seen(portrait, camera_source_B25, moves(motion_scale))
        return replace(
            known,
            # Its colours are shown: they keep float32, whatever the networks have.
            seen=replace(seen, portrait_B3SS=source_B3SS),
            camera_B25=camera_source_B25,
            motion_BM=motion_source_BM,
            posing=posing_source,
        )

    @torch.inference_mode()
    def planes(self, source: Source, motion_driving_BM: Tensor | None) -> Planes:
        """What the driving motion is rendered from, float32."""
        canonical = self.canonical.reenact(source.tokens_BDhw, motion_driving_BM, source.scale)
        maps = self.triplane(canonical, source.detail_BWRR)
        triplanes = lay_out(maps.float(), self.sizes.planes)
        if self.projection is None:
            return Planes(triplanes)
        change = motion_change(source.motion_BM, motion_driving_BM, source.scale)
        change = None if change is None else change.to(self.dtype)
        changed = self.projection.changed(source.seen, canonical, change)
        portrait, detail = self.projection(changed).float(), None
        if self.portrait_detail is not None:
            detail = self.portrait_detail.map(changed.float())
        return Planes(triplanes, portrait, source.camera_B25, source.posing, detail, changed.flow_B2SS)

    @torch.inference_mode()
    def render(
        self,
        planes: Planes,
        source: Source,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
    ) -> Rendering:
        """Pictures of B tri-planes from V cameras each, as those of `Psi.render` without a generator."""
        rays, _ = self.renderer(planes, cameras_BV25, deform, self.nothing, self.share)
        rendering = compose(rays, source.background_BFnn)
        rendering.image = self.picture(rendering, planes, cameras_BV25, deform)
        return rendering

    @torch.inference_mode()
    def picture(
        self,
        rendering: Rendering,
        planes: Planes,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
    ) -> Tensor:
        """The final pictures (B*V, 3, S, S) of what was rendered."""
        rendering.image = self.superresolution(rendering.feature)
        if self.portrait_detail is None:
            return rendering.image
        return self.portrait_detail(rendering, planes, cameras_BV25, deform)

    def __call__(
        self,
        source_B3SS: Tensor,
        motion_source_BM: Tensor | None,
        motion_driving_BM: Tensor | None,
        cameras_BV25: Tensor,
        motion_scale: float | Tensor = 1.0,
        deform: Deform | None = None,
        camera_source_B25: Tensor | None = None,
        posing_source: NeckField | None = None,
    ) -> Rendering:
        """`source`, `planes` and `render` in one call."""
        taken_by = (camera_source_B25, posing_source)
        source = self.source(source_B3SS, motion_source_BM, motion_scale, *taken_by)
        planes = self.planes(source, motion_driving_BM)
        return self.render(planes, source, cameras_BV25, deform)
