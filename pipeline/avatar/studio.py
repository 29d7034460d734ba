"""What every command needs: the networks, the front end, and avatars and drivers by their paths."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.avatar import saved
from pipeline.avatar.animator import Animator, Avatar, Weights
from pipeline.avatar.driver import Driver
from pipeline.avatar.drivers import Drivers, kept_folder
from pipeline.avatar.front_end import FrontEnd
from pipeline.config.params import Params

if TYPE_CHECKING:
    from pipeline.avatar.skull import Skull

SMALLEST_FILM = 256  # pixels that a picture is enlarged to when nothing is said


class Studio:
    """Networks and front end of one process."""

    def __init__(
        self,
        params: Params,
        weights: Weights,
        kept: Path | None = None,
    ) -> None:
        """`kept` is the folder of drivers that were read before, the usual one where nothing is said.

        Raises UserError when the networks cannot be used.
        """
        # With more threads the last bits are others, and a film shall be the same alone and among others.
        torch.set_num_threads(1)
        self.animator = Animator(weights, params.machine.device, params.flame.model)
        self.front = FrontEnd(params, self.animator.sizes.image)
        self.head_model = params.flame.model
        self.drivers = Drivers(self.front, self.animator, kept or kept_folder())

    def skull(self, avatar: Avatar) -> "Skull":
        """The skull of the head that was fitted to the photo of `avatar`."""
        # Libraries for meshes take half a second to load, and a film needs none.
        from model.head.flame import Flame
        from pipeline.avatar.skull import skull_of
        from pipeline.geometry import head_model

        flame = Flame(head_model.load(self.head_model))
        return skull_of(flame, avatar.portrait.label_437, self.animator.sizes.box)

    def avatar(self, path: Path) -> Avatar:
        """The avatar that `path` holds, or that of the photo it is. Raises UserError."""
        if path.suffix == saved.SUFFIX:
            return saved.load(path, self.animator)
        return self.animator.avatar(self.front.portrait(path))

    def driver(self, path: Path) -> tuple[Driver, Tensor]:
        """A driver and what drives Psi in each of its frames, (N, M). Raises UserError."""
        return self.drivers(path)


def film_size(size: int, animator: Animator) -> int:
    """Pixels of a picture: `size`, or for 0 the networks' own, SMALLEST_FILM at least; even, for H.264."""
    wanted = size or max(SMALLEST_FILM, animator.sizes.image)
    return wanted + wanted % 2
