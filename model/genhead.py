"""GenHead, the 4D GAN that makes the synthetic heads: latent code and FLAME parameters to tri-planes (paper section 3.2, facts 3).

Planes 0 to 2 hold eyes and mouth interior, planes 3 to 5 the face and the rest of the head, both in the canonical head's space. A picture
is rendered in the space of a label (camera, shape, expression, jaw, eyes; neck at rest), whose points are taken to the canonical space
by three deformations; masks of the head mesh say which rays meet an eye or the open mouth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.head.deform import PartDeformation
from model.head.flame import Flame, split_label
from model.head.rasterise import part_masks
from model.layers.stylegan import MappingNetwork, SynthesisNetwork
from model.sizes import Sizes
from model.volume.colour_decoder import ColourDecoder
from model.volume.planes import sample_planes
from model.volume.renderer import Rays, Rendering, compose, render_rays
from model.volume.superresolution import SuperResolution

EYE_BOX = 1.2  # times the extent of an eyeball
CONDITION = 325  # camera 25, shape 300

Samples = tuple[Tensor, Tensor]  # colour (..., F), raw density (...)


@dataclass
class HeadState:
    """What rendering needs to know of B labels seen from V cameras each."""

    deform: Callable[
        [Tensor, str], Tensor
    ]  # (points (B, N, 3), "eyes" | "face" | "mouth") -> canonical points (B, N, 3)
    eye_boxes_BE23: Tensor  # lower and upper corner of each eye's box; eye planes hold inside only
    eye_mask_BVnn: Tensor  # in [0, 1]
    mouth_mask_BVnn: Tensor


class _StyleGan(nn.Module):
    def __init__(self, mapping: MappingNetwork, synthesis: SynthesisNetwork) -> None:
        super().__init__()
        self.synthesis, self.mapping = synthesis, mapping


class GenHead(nn.Module):
    """Generator of heads. `flame` deforms and masks; it adds nothing to the state dict."""

    def __init__(self, sizes: Sizes, flame: Flame) -> None:
        super().__init__()
        own = sizes.genhead
        self.sizes = sizes

        def network(
            condition: int, layers: int, resolution: int, channels: int, base: int, most: int, first: int = 4
        ) -> _StyleGan:
            synthesis = SynthesisNetwork(sizes.w_dim, resolution, channels, base, most, first)
            return _StyleGan(
                MappingNetwork(own.z_dim, condition, sizes.w_dim, synthesis.num_ws, layers), synthesis
            )

        planes = 6 * sizes.plane_channels
        self.backbone = network(
            CONDITION,
            own.mapping_layers,
            sizes.plane_resolution,
            planes,
            own.channel_base,
            own.channel_max,
            own.first_resolution,
        )
        self.background = network(
            0,
            own.background_mapping_layers,
            own.background_resolution,
            sizes.feature_channels,
            own.background_channel_base,
            own.background_channel_max,
        )
        self.superresolution = SuperResolution(sizes)
        self.decoder = ColourDecoder(sizes.plane_channels, sizes.decoder_hidden, sizes.feature_channels)
        self.deformation = PartDeformation(flame)
        self.register_buffer(
            "style", torch.ones(1, sizes.w_dim), persistent=False
        )  # super-resolution always has this one (facts 3.1)

    def planes(
        self, z_BZ: Tensor, condition_B325: Tensor, truncation: float = 1.0, update_average: bool = False
    ) -> Tensor:
        """Tri-planes (B, 6, C, R, R) of latent codes, conditioned on a camera and a shape. `update_average` is for training."""
        styles = self.backbone.mapping(z_BZ, condition_B325, truncation, update_average)
        return self.backbone.synthesis(styles).unflatten(1, (6, self.sizes.plane_channels))

    def background_feature(
        self, z_BZ: Tensor, truncation: float = 1.0, update_average: bool = False
    ) -> Tensor:
        """What stands behind the head, (B, F, n, n) in [0, 1]; the official code uses the head's z."""
        logits = self.background.synthesis(self.background.mapping(z_BZ, None, truncation, update_average))
        size = (self.sizes.rays, self.sizes.rays)
        return F.interpolate(torch.sigmoid(logits), size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def offsets(self, label_B437: Tensor, cells: int) -> Tensor | None:
        """The deformation of labels on a grid, (B, 3, 3, cells, cells, cells): to be stored and given to `state` again and again.

        None for 0 cells: then `state` searches for every point, and there is nothing to store.
        """
        if cells == 0:
            return None
        _, shape, expression, pose, eyes = split_label(label_B437)
        return self.deformation.grids(shape, expression, pose[:, 3:], eyes, cells).offsets_BP3GGG

    def deform(self, label_B437: Tensor, offsets: Tensor | None) -> Callable[[Tensor, str], Tensor]:
        """Points (B, N, 3) of the labels' space and a part to canonical points; `offsets` are those of the labels or None."""
        _, shape, expression, pose, eyes = split_label(label_B437)
        return (
            self.deformation.exact(shape, expression, pose[:, 3:], eyes)
            if offsets is None
            else self.deformation.from_offsets(offsets)
        )

    @torch.no_grad()
    def state(self, label_B437: Tensor, cameras_BV25: Tensor, offsets: Tensor | None = None) -> HeadState:
        """Deformation and masks of labels (their neck is taken as at rest) for V cameras each.

        With `offsets` the deformation is interpolated, without it is searched for every point, as in the official code.
        """
        _, shape, expression, pose, eyes = split_label(label_B437)
        flame, jaw = self.deformation.flame, pose[:, 3:]
        vertices = self.deformation.meshes(shape, expression, jaw, eyes)[0]
        boxes = []
        for key in ("left_eye", "right_eye"):
            ball = vertices[:, torch.as_tensor(flame.head.regions[key], device=vertices.device)]
            low, high = ball.amin(1), ball.amax(1)
            boxes.append(torch.stack([low, high], 1).lerp(((low + high) / 2)[:, None], 1 - EYE_BOX))
        views = cameras_BV25.shape[1]
        masks = part_masks(
            flame, vertices.repeat_interleave(views, 0), cameras_BV25.flatten(0, 1), self.sizes.rays
        )
        return HeadState(
            self.deform(label_B437, offsets),
            torch.stack(boxes, 1),
            *(mask.view(-1, views, *mask.shape[2:]) for mask in masks),
        )

    def forward(
        self,
        z_BZ: Tensor,
        condition_B325: Tensor,
        state: HeadState,
        cameras_BV25: Tensor,
        truncation: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """`planes`, `background_feature` and `render` in one call."""
        planes = self.planes(z_BZ, condition_B325, truncation)
        return self.render(planes, self.background_feature(z_BZ, truncation), state, cameras_BV25, generator)

    def render(
        self,
        planes_B6CRR: Tensor,
        background_BFnn: Tensor,
        state: HeadState,
        cameras_BV25: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Pictures of B heads from V cameras each; `generator` jitters the samples along the rays, without one they are fixed."""
        rays = self.rays(planes_B6CRR, state, cameras_BV25, generator)

        rendering = compose(rays, background_BFnn)
        rendering.image = self.superresolution(rendering.feature, rendering.raw, self.style)
        return rendering

    def rays(
        self,
        planes_B6CRR: Tensor,
        state: HeadState,
        cameras_BV25: Tensor,
        generator: torch.Generator | None = None,
        automatic: bool = False,
    ) -> Rays:
        """Part-wise volume rendering, at the resolution of the masks.

        `automatic` lets the densities decide between mouth and face instead of the mask (the official switch "auto fuse").
        """
        parts, face = planes_B6CRR[:, :3], planes_B6CRR[:, 3:]
        batch = len(planes_B6CRR)
        eye_mask, mouth_mask = state.eye_mask_BVnn.view(batch, -1), state.mouth_mask_BVnn.view(batch, -1)
        # Few rays meet eyes or mouth, so the part planes are looked up for those alone: as many in each head as in the one with most.
        covered = (eye_mask > 0) | (mouth_mask > 0)
        picked = covered.float().topk(int(covered.sum(1).amax()), dim=1).indices.sort(dim=1).values
        rows = (picked + torch.arange(batch, device=picked.device)[:, None] * eye_mask.shape[1]).flatten()

        def look(planes: Tensor, points_BKS3: Tensor, part: str) -> Samples:
            points = state.deform(points_BKS3.flatten(1, 2), part)
            colour, sigma = self.decoder(sample_planes(planes, points, self.sizes.box))
            shape = points_BKS3.shape[1:3]
            return colour.unflatten(1, shape), sigma.unflatten(1, shape)

        def field(points_BVRS3: Tensor) -> Samples:
            points = points_BVRS3.flatten(1, 2)
            whole = look(face, points, "face")
            if picked.numel():
                some = points.flatten(0, 1)[rows].view(batch, -1, *points.shape[2:])
                boxes = state.eye_boxes_BE23[:, None, None]
                in_eye = (
                    ((some[..., None, :] > boxes[..., 0, :]) & (some[..., None, :] < boxes[..., 1, :]))
                    .all(-1)
                    .any(-1)
                )
                masks = (mask.flatten()[rows].view(batch, -1, 1) for mask in (eye_mask, mouth_mask))
                under = tuple(values.flatten(0, 1)[rows].unflatten(0, (batch, -1)) for values in whole)
                fused = fuse(
                    under, look(parts, some, "eyes"), look(parts, some, "mouth"), in_eye, *masks, automatic
                )
                whole = tuple(
                    a.flatten(0, 1).index_copy(0, rows, b.flatten(0, 1)).view(a.shape)
                    for a, b in zip(whole, fused, strict=True)
                )
            return whole[0].view(*points_BVRS3.shape[:-1], -1), whole[1].view(points_BVRS3.shape[:-1])

        own = self.sizes
        return render_rays(
            field,
            cameras_BV25,
            state.eye_mask_BVnn.shape[-1],
            own.samples,
            own.samples_fine,
            own.box,
            generator,
        )

    def plane_features(self, planes_B6CRR: Tensor, points_BN3: Tensor, state: HeadState) -> Tensor:
        """Plane-averaged features (B, N, C) of the face planes at points of the label's space: the target of the tri-plane loss."""
        return sample_planes(planes_B6CRR[:, 3:], state.deform(points_BN3, "face"), self.sizes.box)


def fuse(
    face: Samples,
    eye: Samples,
    mouth: Samples,
    in_eye: Tensor,
    eye_mask: Tensor,
    mouth_mask: Tensor,
    automatic: bool,
) -> Samples:
    """Colour (..., F) and density (...) of samples that eyes, mouth and face share; masks broadcast to the densities (facts 3.2 point 4).

    As in the official renderer, found from its outputs: the part's density is weighed by its mask before it is mixed with the face's by
    the same mask, and inside an eye's box the mouth counts once more.
    """
    eye_mask = eye_mask * in_eye
    # Inside the box the part planes blend from mouth to eye by the eye mask.
    part_colour = mouth[0] + eye_mask[..., None] * (eye[0] - mouth[0])
    part_sigma = eye_mask * eye[1] + (in_eye * (1 - eye_mask) + mouth_mask) * mouth[1]
    share = eye_mask + mouth_mask
    colour = face[0] + share[..., None] * (part_colour - face[0])
    sigma = face[1] + share * (part_sigma - face[1])
    if automatic:
        prefer = torch.sigmoid(part_sigma - face[1])
        at_mouth = mouth_mask > 0
        colour = torch.where(
            at_mouth[..., None], face[0] + prefer[..., None] * (part_colour - face[0]), colour
        )
        sigma = torch.where(at_mouth, face[1] + part_sigma, sigma)
    return colour, sigma
