"""The pictures that Psi and Psi_3d make of real frames, and the frame as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from model.head.flame import Flame
from model.psi.network import Psi
from model.sizes import Sizes
from model.weights import load_weights
from pipeline.clips.held_out import Frame, stack_frames
from pipeline.core.errors import UserError
from pipeline.geometry.label import Label
from pipeline.geometry.neck import Neck, TurningNeck

# So many sources are drawn together, which bounds the memory that it takes.
BATCH = 8


@dataclass(frozen=True)
class Drawn:
    """N pictures by a method at the size of the final image; a copied image has no geometry."""

    image: Tensor  # (N, 3, S, S) in [-1, 1]
    opacity: Tensor | None = None  # (N, 1, S, S) in [0, 1]
    depth: Tensor | None = None  # (N, 1, S, S) world units along the ray


class Synthesizers:
    """Psi and Psi_3d, frozen, sampling deterministically."""

    def __init__(
        self,
        sizes: Sizes,
        psi: Path,
        psi3d: Path,
        flame: Flame,
        device: torch.device | str = "cpu",
    ) -> None:
        """`flame` is on `device`, too: where Psi was trained with a neck field, it turns the necks.

        Raises UserError when the weights in the folders cannot be read or have other sizes.
        """
        try:
            # How Psi is driven decides on the size of its first layers, so the file says it.
            weights, facts = load_weights(psi / "psi.safetensors")
            self.motion = facts["motion"]
            self.psi = _frozen(Psi(sizes.driven_by(self.motion)), weights, device)
            self.neck = TurningNeck(flame) if facts.get("neck") == "field" else Neck()
            weights, _ = load_weights(psi3d / "psi3d.safetensors")
            self.psi3d = _frozen(Psi(sizes), weights, device)
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"the synthesizers in {psi} and {psi3d} cannot be used: {error}") from error

    def draw(
        self,
        method: str,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
        cameras_NV25: Tensor,
    ) -> Drawn:
        """V pictures of each source under the motion of its driving frame, (N * V, ...).

        They are in the order of the sources, then of their cameras, which are given in the frame of the
        head. `method` is psi, psi3d or copy.
        """
        if method == "copy":
            views = cameras_NV25.shape[1]
            return Drawn(stack_frames(sources, "image").repeat_interleave(views, 0))
        parts = []
        for start in range(0, len(sources), BATCH):
            some = slice(start, start + BATCH)
            parts.append(self._draw(method, sources[some], drivings[some], cameras_NV25[some]))
        columns = zip(*parts, strict=True)
        return Drawn(*map(torch.cat, columns))

    @torch.no_grad()
    def _draw(
        self,
        method: str,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
        cameras: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        image, camera_source = stack_frames(sources, "image"), stack_frames(sources, "camera")
        if method == "psi":
            own = stack_frames(sources, "motion")
            driving = stack_frames(drivings, "motion")
            labels = stack_frames(sources, "label")
            # The source's own shape turns as the driving neck does (facts 8).
            shape = Label.split(labels).shape
            moved = replace(Label.split(stack_frames(drivings, "label")), shape=shape)
            posed = self.neck.driven(cameras, moved.pack())
            taken_by = self.neck.source(camera_source, labels)
            rendering = self.psi(
                image,
                own,
                driving,
                posed.camera,
                deform=posed.field,
                camera_source_B25=taken_by.camera,
                posing_source=taken_by.field,
            )
        else:
            rendering = self.psi3d(image, None, None, cameras, 0.0, camera_source_B25=camera_source)
        # The volume is rendered with fewer rays than the image has pixels.
        size = rendering.image.shape[-2:]
        opacity = F.interpolate(
            rendering.opacity,
            size=size,
            mode="bilinear",
            align_corners=False,
        )
        depth = F.interpolate(
            rendering.depth,
            size=size,
            mode="bilinear",
            align_corners=False,
        )
        return rendering.image.clamp(-1, 1), opacity, depth


def _frozen(
    psi: Psi,
    weights: dict[str, Tensor],
    device: torch.device | str,
) -> Psi:
    psi = psi.to(device).requires_grad_(False).eval()
    psi.load_state_dict(weights)
    return psi
