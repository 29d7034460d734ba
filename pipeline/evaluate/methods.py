"""The pictures that Psi, Psi_3d or nobody makes of real frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from model.psi.network import Psi
from model.sizes import Sizes
from model.weights import load_weights
from pipeline.clips.held_out import Frame, stack_frames
from pipeline.core.errors import UserError

BATCH = 8


@dataclass(frozen=True)
class Drawn:
    """N pictures by a method, all at the size of the final image. A copied image has no geometry."""

    image: Tensor  # (N, 3, S, S)
    opacity: Tensor | None = None  # (N, 1, S, S)
    depth: Tensor | None = None  # (N, 1, S, S) world units along the ray


class Synthesizers:
    """Psi and Psi_3d, frozen, sampling deterministically."""

    def __init__(self, sizes: Sizes, psi: Path, psi3d: Path, device: torch.device | str = "cpu") -> None:
        """Raises UserError when the weights in the folders cannot be read or have other sizes."""
        try:
            weights, facts = load_weights(psi / "psi.safetensors")
            self.motion = facts["motion"]
            self.psi = Psi(sizes.driven_by(self.motion)).to(device).requires_grad_(False).eval()
            self.psi.load_state_dict(weights)
            self.psi3d = Psi(sizes).to(device).requires_grad_(False).eval()
            self.psi3d.load_state_dict(load_weights(psi3d / "psi3d.safetensors")[0])
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"the synthesizers in {psi} and {psi3d} cannot be used: {error}") from error

    def draw(
        self, method: str, sources: Sequence[Frame], drivings: Sequence[Frame], cameras_NV25: Tensor
    ) -> Drawn:
        """V pictures of each source under the motion of its driving frame, in the order of the samples, then of their cameras."""
        if method == "copy":
            return Drawn(stack_frames(sources, "image").repeat_interleave(cameras_NV25.shape[1], 0))
        parts = [
            self._draw(method, sources[i : i + BATCH], drivings[i : i + BATCH], cameras_NV25[i : i + BATCH])
            for i in range(0, len(sources), BATCH)
        ]
        return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def _draw(
        self, method: str, sources: Sequence[Frame], drivings: Sequence[Frame], cameras: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        image = stack_frames(sources, "image")
        if method == "psi":
            rendering = self.psi(
                image, stack_frames(sources, "motion"), stack_frames(drivings, "motion"), cameras
            )
        else:
            rendering = self.psi3d(image, None, None, cameras, motion_scale=0.0)
        size = rendering.image.shape[-2:]
        geometry = [
            F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            for x in (rendering.opacity, rendering.depth)
        ]
        return rendering.image.clamp(-1, 1), *geometry
