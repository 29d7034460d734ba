"""Watches a film while it is made: finds the face again in every picture, for the measures."""

from typing import Any

import cv2
import numpy as np

from pipeline.core.pictures import tile
from pipeline.evaluate.film_measures import BackgroundFlow, film_measures
from pipeline.geometry.landmarks import landmarks_70
from pipeline.ingest.detector import FaceFinder
from pipeline.ingest.files import Rejected

# Pixels; the face mesh finds little in smaller pictures.
SIDE = 256
# The crop of a picture that is aligned already.
WHOLE = np.array([1 / SIDE, 0.0, 0.0])


class FilmWatch:
    """Of one film: the landmarks of its results, and how far their background and that of the driver move."""

    def __init__(self, faces: FaceFinder) -> None:
        self.faces = faces
        self.points: list[np.ndarray] = []
        self.flows = {"driver": BackgroundFlow(), "result": BackgroundFlow()}

    def see(self, result: np.ndarray, face: np.ndarray) -> dict[str, np.ndarray]:
        """Take in the next frame: Psi's picture and the driver's face, uint8 (S, S, 3) of any sizes.

        Returns both at SIDE pixels.
        """
        pictures = {"driver": tile(face, SIDE), "result": tile(result, SIDE)}
        for name, picture in pictures.items():
            mask = self.faces.mask(picture, WHOLE, SIDE)
            grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            self.flows[name].add(grey, mask)
        # The mesh is found anew in the enlarged picture, without a hint where the driver's face is.
        self.points.append(self.landmarks(pictures["result"]))
        return pictures

    def landmarks(self, picture: np.ndarray) -> np.ndarray:
        """Those of the face in a picture of SIDE pixels, as fractions (70, 2); NaN where there is none."""
        try:
            return landmarks_70(self.faces.find(picture).mesh_478) / SIDE
        except Rejected:
            return np.full((70, 2), np.nan)

    def measures(self, driver_N702: np.ndarray, seconds_N: np.ndarray) -> dict[str, Any]:
        """Those of `film_measures`, and `background` as BackgroundFlow gives it."""
        values = film_measures(driver_N702, np.stack(self.points), seconds_N)
        values["background"] = {name: flow.mean() for name, flow in self.flows.items()}
        return values
