"""Watches a film while it is made: its measures, identity and expression."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.avatar.animator import Avatar, image_batch
from pipeline.avatar.driver import Driver
from pipeline.avatar.front_end import FrontEnd
from pipeline.core.pictures import tile
from pipeline.evaluate.film_measures import identity
from pipeline.evaluate.film_watch import FilmWatch
from pipeline.evaluate.metrics import aed
from pipeline.geometry.label import FIVE_POINTS
from pipeline.networks.judges import Judges

EVERY = 8  # frames whose identity is looked at


class Watcher:
    """Of one film: its measures, and how alike its results are to source and driver."""

    def __init__(
        self,
        front: FrontEnd,
        judges: Judges | None,
        avatar: Avatar,
        driver: Driver,
    ) -> None:
        self.avatar, self.driver, self.judges = avatar, driver, judges
        self.watch = FilmWatch(front.faces)
        # Of every EVERY-th frame: cosines to source and driver, the driver's yaw, the miss of its expression.
        self.compared: list[tuple[float, float, float, float]] = []

    def see(self, result: np.ndarray, face: np.ndarray) -> None:
        """Take in the next frame: Psi's picture and the driver's face, uint8 (S, S, 3) of any sizes."""
        number = len(self.watch.points)
        pictures = self.watch.see(result, face)
        if self.judges is not None and number % EVERY == 0:
            self._compare(self.judges, pictures, number)

    def measures(self) -> dict[str, Any]:
        """The measures of the film, see `FilmWatch`.

        With judges, also how alike the results are to source and driver (`identity`), and how far their
        expression is from the driver's (AED of evaluate).
        """
        # The driver's landmarks are those its camera was fitted to; held frames stand still in both.
        driver = self.driver.points_N702.astype(np.float64)
        values = self.watch.measures(driver, self.driver.seconds_N)
        if self.judges is not None:
            source, driver, yaw, misses = np.transpose(self.compared)
            values["identity"] = identity(source, driver, yaw)
            values["expression_error"] = float(misses.mean())
        return values

    @torch.inference_mode()
    def _compare(
        self,
        judges: Judges,
        pictures: dict[str, np.ndarray],
        number: int,
    ) -> None:
        """How alike the result is to both. Its face is where the driver's is, as they share the camera."""
        points, portrait = self.driver.points_N702[number], self.avatar.portrait
        result = _identity(judges, pictures["result"], points)
        source = _identity(judges, portrait.preview_PP3, portrait.points_702)
        driver = _identity(judges, pictures["driver"], points)
        # Both are read at the size that the estimator has learnt from.
        small = [tile(picture, len(portrait.picture_SS3)) for picture in pictures.values()]
        wanted, found = judges.expression_pose(image_batch(np.stack(small))).split(1)
        miss = float(aed(found, wanted))
        x, _, z = self.driver.labels_N437[number, [3, 7, 11]]
        yaw = float(np.degrees(np.arctan2(x, z)))
        self.compared.append((float(result @ source), float(result @ driver), yaw, miss))


def _identity(
    judges: Judges,
    picture_SS3: np.ndarray,
    points_702: np.ndarray,
) -> Tensor:
    """Recognition features (E,) of the face with these landmarks."""
    five = torch.from_numpy(points_702[list(FIVE_POINTS)]).float()
    return judges.identity(image_batch(picture_SS3[None]), five[None])[0]


def judges_in(folder: Path) -> Judges | None:
    """The perception networks of a run, None where there are none."""
    return Judges.load(folder) if (folder / "identity.safetensors").is_file() else None
