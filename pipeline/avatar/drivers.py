"""Drivers that are read once: what was found in a video is kept for the next film by it.

Its faces, their crops, the fitted head and what drives Psi depend on the bytes of the video, on the code, on
the params of detection and fit, and on the motion encoder. The hash of these names a file. The files lie
among the finished units of the stages, which `psi4d clean --units` lists and removes.
"""

import contextlib
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.head.flame_file import ADDITIONS, EMBEDDING, SIMPLIFIED
from pipeline.avatar.animator import Animator
from pipeline.avatar.driver import Driver, Frames, frames_of, read_driver
from pipeline.avatar.front_end import FrontEnd
from pipeline.avatar.tensor_file import read_tensors, write_tensors
from pipeline.core.errors import UserError
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import units_folder

MOTIONS_AT_ONCE = 32  # frames whose faces are held at once
# Of other versions the decoder or the detector may see something else.
LIBRARIES = ("av", "decord", "mediapipe", "numpy", "opencv-python", "pillow", "scipy")
# All drivers together. A frame takes about 3 kB, and so a minute of film 5 MB.
KEPT_BYTES = 1 << 30
ARRAYS = ("seconds_N", "crops_N3", "points_N702", "labels_N437", "shown_N")


def kept_folder() -> Path:
    """Where drivers are kept in this project."""
    # Workers of a cluster have another current folder.
    return units_folder("drivers").absolute()


class Drivers:
    """Reads drivers, or what is known of them."""

    def __init__(
        self,
        front: FrontEnd,
        animator: Animator,
        folder: Path,
    ) -> None:
        self.front, self.animator, self.folder = front, animator, folder

    def __call__(self, path: Path) -> tuple[Driver, Tensor]:
        """A driver and what drives Psi in each of its frames, (N, M). Raises UserError as `read_driver`."""
        # What cannot be read has a reason, which is given before its bytes are looked for.
        frames = frames_of(path, self.front.frame_rate)
        file = self.file(path)
        known = self._known(file, frames)
        if known:
            return known
        driver = read_driver(self.front, path)
        motion = driving_motion(self.animator, driver)
        # Where nothing can be kept, the next film takes longer.
        with contextlib.suppress(UserError):
            self._keep(file, driver, motion)
        return driver, motion

    def file(self, path: Path) -> Path:
        """Where what was found in `path` is kept. Raises UserError for a path that is not there."""
        front, animator = self.front, self.animator
        mark = fingerprint(
            __file__,
            path,
            front.detection,
            front.settings,
            front.smooth,
            *_head_files(front.head_model),
            animator.facts["sizes"],
            animator.driven_by,
            animator.motion_sha256,
            str(animator.device),
            [version(name) for name in LIBRARIES],
        )
        return self.folder / f"{mark}.safetensors"

    def _known(self, file: Path, frames: Frames) -> tuple[Driver, Tensor] | None:
        """The driver with `frames` that is kept in `file`; None where there is none, or a damaged one."""
        try:
            tensors, facts = read_tensors(file)
            arrays = {name: tensors[name].numpy() for name in ARRAYS}
            motion = tensors["motion_NM"].to(self.animator.device)
        except (KeyError, ValueError):
            return None
        # The newest are those that were used last.
        with contextlib.suppress(OSError):
            os.utime(file)
        return Driver(frames, lost=facts["lost"], **arrays), motion

    def _keep(self, file: Path, driver: Driver, motion_NM: Tensor) -> None:
        arrays = {name: np.ascontiguousarray(getattr(driver, name)) for name in ARRAYS}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors["motion_NM"] = motion_NM.cpu().contiguous()
        write_tensors(file, tensors, {"lost": driver.lost})
        drop_oldest(self.folder, KEPT_BYTES)


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


def drop_oldest(folder: Path, most: int) -> None:
    """Remove the files of `folder` that were not used for longest, until the others take `most` bytes."""
    # Another process may remove the same files.
    with contextlib.suppress(OSError):
        found = [(file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("*.safetensors")]
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= most:
                return
            file.unlink()
            total -= size


def _head_files(model: str) -> list[str | Path]:
    """The files of the param `flame.model`, or the name of a head model without any."""
    path = Path(os.path.expanduser(model))
    if not path.is_file():
        return [model]
    beside = [path.with_name(name) for name in (*ADDITIONS, SIMPLIFIED, EMBEDDING)]
    return [path, *(file for file in beside if file.is_file())]
