"""What every command needs: the networks, the front end, and avatars and drivers by their paths."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.head.flame import Flame
from pipeline.avatar import saved
from pipeline.avatar.animator import Animator, Avatar, Weights
from pipeline.avatar.driver import Driver, read_driver
from pipeline.avatar.front_end import FrontEnd
from pipeline.avatar.skull import Skull, skull_of
from pipeline.config.params import Params
from pipeline.geometry import head_model

SMALLEST_FILM = 256  # pixels that a picture is enlarged to when nothing is said
MOTIONS_AT_ONCE = 32  # frames whose faces are held at once


class Studio:
    """Networks and front end of one process."""

    def __init__(self, params: Params, weights: Weights) -> None:
        """Raises UserError when the networks cannot be used."""
        # With more threads the last bits are others, and a film shall be the same alone and among others.
        torch.set_num_threads(1)
        self.animator = Animator(weights, params.machine.device, params.flame.model)
        self.front = FrontEnd(params, self.animator.sizes.image)
        self.head_model = params.flame.model

    def skull(self, avatar: Avatar) -> Skull:
        """The skull of the head that was fitted to the photo of `avatar`."""
        flame = Flame(head_model.load(self.head_model))
        return skull_of(flame, avatar.portrait.label_437, self.animator.sizes.box)

    def avatar(self, path: Path) -> Avatar:
        """The avatar that `path` holds, or that of the photo it is. Raises UserError."""
        if path.suffix == saved.SUFFIX:
            return saved.load(path, self.animator)
        return self.animator.avatar(self.front.portrait(path))

    def driver(self, path: Path) -> tuple[Driver, Tensor]:
        """A driver and what drives Psi in each of its frames, (N, M). Raises UserError."""
        driver = read_driver(self.front, path)
        return driver, driving_motion(self.animator, driver)


def driving_motion(animator: Animator, driver: Driver) -> Tensor:
    """What drives Psi in each frame, (N, M). A held frame has the motion of the one that it repeats."""
    # A few faces at once: at 512 pixels a minute of film would be 1.4 GB.
    parts: list[Tensor] = []
    pictures: list[np.ndarray] = []
    start = 0
    for picture in driver.faces(animator.sizes.image):
        pictures.append(picture)
        stop = start + len(pictures)
        if len(pictures) < MOTIONS_AT_ONCE and stop < len(driver):
            continue
        points, labels = driver.points_N702[start:stop], driver.labels_N437[start:stop]
        parts.append(animator.motion(np.stack(pictures), points, labels))
        pictures, start = [], stop
    return torch.cat(parts)[torch.from_numpy(driver.shown_N)]


def film_size(size: int, animator: Animator) -> int:
    """Pixels of a picture: `size`, or for 0 the networks' own, SMALLEST_FILM at least; even, for H.264."""
    wanted = size or max(SMALLEST_FILM, animator.sizes.image)
    return wanted + wanted % 2
