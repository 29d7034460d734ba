"""GenHead, the 4D GAN that makes the synthetic heads (paper section 3.2, facts 3).

Latent code and FLAME parameters to tri-planes: planes 0 to 2 hold eyes and mouth interior, planes 3 to 5
the face and the rest of the head, both in the canonical head's space. A picture is rendered in the space of
a label (camera, shape, expression, jaw, eyes; neck at rest), whose points are taken to the canonical space
by three deformations; masks of the head mesh say which rays meet an eye or the open mouth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.head.deform import PartDeformation
from model.head.flame import Flame
from model.head.label import Label
from model.head.rasterise import part_masks
from model.layers.stylegan import MappingNetwork, SynthesisNetwork
from model.sizes import Sizes
from model.volume.colour_decoder import ColourDecoder
from model.volume.planes import sample_planes
from model.volume.renderer import Rays, Rendering, compose, render_rays
from model.volume.superresolution import SuperResolution

EYE_BOX = 1.2  # times the extent of an eyeball
CONDITION = Label.CONDITION.stop  # camera 25, shape 300

Samples = tuple[Tensor, Tensor]  # colour (..., F), raw density (...)
# Samples of face, eye and mouth, whether they lie in an eye's box, eye mask, mouth mask -> fused samples.
Fuse = Callable[[Samples, Samples, Samples, Tensor, Tensor, Tensor], Samples]
# Points (B, N, 3) and "eyes", "face" or "mouth" -> canonical points.
DeformPart = Callable[[Tensor, str], Tensor]


@dataclass
class HeadState:
    """What rendering needs to know of B labels seen from V cameras each."""

    deform: DeformPart
    eye_boxes_BE23: Tensor  # lower and upper corner of each eye's box; eye planes hold inside only
    eye_mask_BVnn: Tensor  # in [0, 1]
    mouth_mask_BVnn: Tensor


@dataclass
class EyesAndMouth:
    """The P rays of each head that meet an eye or the mouth, and what is known of them."""

    rows: Tensor  # (B*P,) int64, their places among the V*n*n rays of all heads
    eye_mask_BP1: Tensor
    mouth_mask_BP1: Tensor

    @classmethod
    def of(cls, state: HeadState) -> "EyesAndMouth":
        """Each head has as many as the one with most of them; the others get some that meet neither."""
        batch = len(state.eye_mask_BVnn)
        eye_BR = state.eye_mask_BVnn.view(batch, -1)
        mouth_BR = state.mouth_mask_BVnn.view(batch, -1)
        covered_BR = (eye_BR > 0) | (mouth_BR > 0)
        # Tensors have one length for all heads. Sorted, the rays of a head keep their order in the picture.
        most = int(covered_BR.sum(1).amax())
        picked_BP = covered_BR.float().topk(most, dim=1).indices.sort(dim=1).values
        first_B1 = torch.arange(batch, device=picked_BP.device)[:, None] * eye_BR.shape[1]
        rows = (picked_BP + first_B1).flatten()
        masks = (mask_BR.flatten()[rows].view(batch, most, 1) for mask_BR in (eye_BR, mouth_BR))
        return cls(rows, *masks)

    def pick(self, values_BR: Tensor) -> Tensor:
        """(B, P, ...) of the values (B, R, ...) of all rays."""
        return values_BR.flatten(0, 1)[self.rows].unflatten(0, (len(values_BR), -1))

    def put(self, values_BR: Tensor, picked_BP: Tensor) -> Tensor:
        """The values (B, R, ...) of all rays with those of these rays replaced."""
        flat = values_BR.flatten(0, 1).index_copy(0, self.rows, picked_BP.flatten(0, 1))
        return flat.view(values_BR.shape)


class _StyleGan(nn.Module):
    """A mapping and a synthesis network under the names of the published checkpoint."""

    def __init__(self, mapping: MappingNetwork, synthesis: SynthesisNetwork) -> None:
        super().__init__()
        self.synthesis, self.mapping = synthesis, mapping


def fuse_by_mask(
    face: Samples,
    eye: Samples,
    mouth: Samples,
    in_eye: Tensor,
    eye_mask: Tensor,
    mouth_mask: Tensor,
) -> Samples:
    """Colour (..., F) and density (...) of samples that eyes, mouth and face share (facts 3.2 point 4).

    Masks broadcast to the densities. As in the official renderer, found from its outputs: the part's
    density is weighed by its mask before it is mixed with the face's by the same mask, and inside an eye's
    box the mouth counts once more.
    """
    eye_mask = eye_mask * in_eye
    part_colour, part_sigma = blend_parts(eye, mouth, in_eye, eye_mask, mouth_mask)
    face_colour, face_sigma = face
    share = eye_mask + mouth_mask
    colour = face_colour + share[..., None] * (part_colour - face_colour)
    return colour, face_sigma + share * (part_sigma - face_sigma)


def blend_parts(
    eye: Samples,
    mouth: Samples,
    in_eye: Tensor,
    eye_mask: Tensor,
    mouth_mask: Tensor,
) -> Samples:
    """What the part planes hold: from mouth to eye by an eye mask that is 0 outside of the eyes' boxes."""
    (eye_colour, eye_sigma), (mouth_colour, mouth_sigma) = eye, mouth
    colour = mouth_colour + eye_mask[..., None] * (eye_colour - mouth_colour)
    mouth_weight = in_eye * (1 - eye_mask) + mouth_mask
    return colour, eye_mask * eye_sigma + mouth_weight * mouth_sigma


class GenHead(nn.Module):
    """Generator of heads. `flame` deforms and masks; it adds nothing to the state dict."""

    def __init__(self, sizes: Sizes, flame: Flame) -> None:
        super().__init__()
        own = sizes.genhead
        self.sizes = sizes

        def with_mapping(
            synthesis: SynthesisNetwork,
            condition: int,
            layers: int,
        ) -> _StyleGan:
            mapping = MappingNetwork(own.z_dim, condition, sizes.w_dim, synthesis.num_ws, layers)
            return _StyleGan(mapping, synthesis)

        backbone = SynthesisNetwork(
            sizes.w_dim,
            sizes.plane_resolution,
            img_channels=6 * sizes.plane_channels,
            channel_base=own.channel_base,
            channel_max=own.channel_max,
            first=own.first_resolution,
        )
        self.backbone = with_mapping(backbone, CONDITION, own.mapping_layers)
        background = SynthesisNetwork(
            sizes.w_dim,
            own.background_resolution,
            img_channels=sizes.feature_channels,
            channel_base=own.background_channel_base,
            channel_max=own.background_channel_max,
        )
        self.background = with_mapping(background, 0, own.background_mapping_layers)
        self.superresolution = SuperResolution(sizes)
        self.decoder = ColourDecoder(sizes.plane_channels, sizes.decoder_hidden, sizes.feature_channels)
        self.deformation = PartDeformation(flame)
        # Super-resolution always has this style (facts 3.1).
        self.register_buffer("style", torch.ones(1, sizes.w_dim), persistent=False)

    def planes(
        self,
        z_BZ: Tensor,
        condition_B325: Tensor,
        truncation: float = 1.0,
        update_average: bool = False,
    ) -> Tensor:
        """Tri-planes (B, 6, C, R, R) of latent codes, conditioned on a camera and a shape.

        `update_average` is for training.
        """
        styles = self.backbone.mapping(z_BZ, condition_B325, truncation, update_average)
        return self.backbone.synthesis(styles).unflatten(1, (6, self.sizes.plane_channels))

    def background_feature(
        self,
        z_BZ: Tensor,
        truncation: float = 1.0,
        update_average: bool = False,
    ) -> Tensor:
        """What stands behind the head, (B, F, n, n) in [0, 1]; the official code uses the head's z."""
        styles = self.background.mapping(z_BZ, None, truncation, update_average)
        logits = self.background.synthesis(styles)
        size = (self.sizes.rays, self.sizes.rays)
        return F.interpolate(torch.sigmoid(logits), size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def offsets(self, label_B437: Tensor, cells: int) -> Tensor | None:
        """The deformation of labels on a grid, (B, 3, 3, cells, cells, cells), to be stored for `state`.

        None for 0 cells: then `state` searches for every point, and there is nothing to store.
        """
        if cells == 0:
            return None
        head = Label.split(label_B437)
        grids = self.deformation.grids(head.shape, head.expression, head.jaw, head.eyes, cells)
        return grids.offsets_BP3GGG

    def deform(self, label_B437: Tensor, offsets: Tensor | None) -> DeformPart:
        """From the labels' space to the canonical one; `offsets` are those of the labels or None."""
        if offsets is not None:
            return self.deformation.from_offsets(offsets)
        head = Label.split(label_B437)
        return self.deformation.exact(head.shape, head.expression, head.jaw, head.eyes)

    @torch.no_grad()
    def state(
        self,
        label_B437: Tensor,
        cameras_BV25: Tensor,
        offsets: Tensor | None = None,
    ) -> HeadState:
        """Deformation and masks of labels (their neck is taken as at rest) for V cameras each.

        With `offsets` the deformation is interpolated, without it is searched for every point, as in the
        official code.
        """
        flame, head = self.deformation.flame, Label.split(label_B437)
        # Boxes and masks are of the exact head, whatever the deformation is interpolated from.
        vertices_BV3, _ = self.deformation.meshes(head.shape, head.expression, head.jaw, head.eyes)
        boxes = []
        for key in ("left_eye", "right_eye"):
            region = torch.as_tensor(flame.head.regions[key], device=vertices_BV3.device)
            ball = vertices_BV3[:, region]
            low_B3, high_B3 = ball.amin(1), ball.amax(1)
            middle_B3 = (low_B3 + high_B3) / 2
            corners_B23 = torch.stack([low_B3, high_B3], 1)
            boxes.append(corners_B23.lerp(middle_B3[:, None], 1 - EYE_BOX))
        views = cameras_BV25.shape[1]
        of_each_view = vertices_BV3.repeat_interleave(views, 0)
        masks = part_masks(flame, of_each_view, cameras_BV25.flatten(0, 1), self.sizes.rays)
        eye_mask, mouth_mask = (mask.view(-1, views, *mask.shape[2:]) for mask in masks)
        return HeadState(self.deform(label_B437, offsets), torch.stack(boxes, 1), eye_mask, mouth_mask)

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
        background = self.background_feature(z_BZ, truncation)
        return self.render(planes, background, state, cameras_BV25, generator)

    def render(
        self,
        planes_B6CRR: Tensor,
        background_BFnn: Tensor,
        state: HeadState,
        cameras_BV25: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Pictures of B heads from V cameras each.

        `generator` jitters the samples along the rays, without one they are fixed.
        """
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
        fuse: Fuse = fuse_by_mask,
    ) -> Rays:
        """Part-wise volume rendering at the resolution of the masks; `fuse` makes one of three samples."""
        own = self.sizes
        part_planes = planes_B6CRR[:, :3]
        face_planes = planes_B6CRR[:, 3:]
        boxes_BE23 = state.eye_boxes_BE23[:, None, None]
        # Few rays meet eyes or mouth, so the part planes are looked up for those alone.
        some = EyesAndMouth.of(state)

        def look(
            planes: Tensor,
            points_BRS3: Tensor,
            part: str,
        ) -> Samples:
            points_BN3 = state.deform(points_BRS3.flatten(1, 2), part)
            colour, sigma = self.decoder(sample_planes(planes, points_BN3, own.box))
            shape = points_BRS3.shape[1:3]
            return colour.unflatten(1, shape), sigma.unflatten(1, shape)

        def field(points_BVRS3: Tensor) -> Samples:
            points = points_BVRS3.flatten(1, 2)
            colour, sigma = look(face_planes, points, "face")
            if some.rows.numel():
                points = some.pick(points)
                above = (points[..., None, :] > boxes_BE23[..., 0, :]).all(-1)
                below = (points[..., None, :] < boxes_BE23[..., 1, :]).all(-1)
                fused_colour, fused_sigma = fuse(
                    (some.pick(colour), some.pick(sigma)),
                    look(part_planes, points, "eyes"),
                    look(part_planes, points, "mouth"),
                    (above & below).any(-1),
                    some.eye_mask_BP1,
                    some.mouth_mask_BP1,
                )
                colour = some.put(colour, fused_colour)
                sigma = some.put(sigma, fused_sigma)
            shape = points_BVRS3.shape[:-1]
            return colour.view(*shape, -1), sigma.view(shape)

        side = state.eye_mask_BVnn.shape[-1]
        return render_rays(field, cameras_BV25, side, own.samples, own.samples_fine, own.box, generator)

    def plane_features(
        self,
        planes_B6CRR: Tensor,
        points_BN3: Tensor,
        state: HeadState,
    ) -> Tensor:
        """Plane-averaged features (B, N, C) of the face planes at points of the label's space.

        They are the target of the tri-plane loss.
        """
        return sample_planes(planes_B6CRR[:, 3:], state.deform(points_BN3, "face"), self.sizes.box)
