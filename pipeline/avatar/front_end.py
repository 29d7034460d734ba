"""A photo as Psi wants it: read, found, cut out and fitted as the stages ingest and fit_flame do it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.fit_flame.landmark_model import LandmarkModel
from pipeline.fit_flame.solver import fit_chunk
from pipeline.geometry import head_model
from pipeline.geometry.landmarks import PUPILS, landmarks_70
from pipeline.ingest.crop import cut, fit_crop, five_points, to_aligned
from pipeline.ingest.detector import FaceFinder
from pipeline.ingest.files import Rejected
from pipeline.ingest.picture import read_picture

LARGEST_TILT = 40.0  # degrees; training turns cameras by 14 about their axis, and people tilt their heads
PREVIEW = 256  # pixels
ADVICE = {
    "no face": "Take a picture that shows one face from the front, upright and well lit.",
    "two faces": "Cut the picture so that one face is left.",
    "face too small": "Take a larger picture, or lower ingest.min_face in params.yaml.",
    "image too small": "Take a larger picture.",
    "head on its side": "Turn the picture so that the face is upright.",
    "no video stream": "Name a file with pictures in it.",
    "empty file": "Copy it again.",
}


@dataclass(frozen=True)
class Portrait:
    """What is known of one aligned face. S is the size of the networks' pictures, P is PREVIEW."""

    picture_SS3: np.ndarray  # uint8
    preview_PP3: np.ndarray  # uint8, the same for people
    crop_3: np.ndarray  # float64, see pipeline/ingest/crop.py
    points_702: np.ndarray  # float32, landmarks as fractions of the aligned square
    label_437: np.ndarray  # float32 (facts 5.4)


class FrontEnd:
    """The detector and the head model of one process."""

    def __init__(self, params: Params, size: int) -> None:
        """`size` is that of the aligned pictures, in pixels."""
        self.size, self.settings = size, params.fit_flame
        self.smooth = params.ingest.smooth_crop
        self.faces = FaceFinder(params.ingest.detection_score, params.ingest.min_face)
        self.head = LandmarkModel(head_model.load(params.flame.model))

    def portrait(self, path: Path) -> Portrait:
        """The face in a photo. Raises UserError, with what to do, when it cannot be used."""
        try:
            picture = read_picture(path)
            mesh = self.faces.find(picture).mesh_478
            crop = fit_crop(five_points(mesh))
            points = aligned_landmarks(landmarks_70(mesh), crop)
            check_upright(points)
        except Rejected as reason:
            raise unusable(path, str(reason)) from reason
        fitted = fit_chunk(self.head, points[None], [path.name], self.settings)
        error, limit = float(fitted.errors[0]), self.settings.max_error
        if not error <= limit:
            found = f"no face: the head model misses its landmarks by {error:.2f} of the eyes' distance"
            raise unusable(path, f"{found}, at most {limit:g} is allowed")
        squares = [cut(picture, crop, size) for size in (self.size, PREVIEW)]
        return Portrait(*squares, crop, points, fitted.labels[0])


def aligned_landmarks(points_702: np.ndarray, crop_3: np.ndarray) -> np.ndarray:
    """Landmarks (70, 2) in source pixels as fractions of the aligned square.

    Of float32, since that is what the tables of ingest hold: fit and motion are then those of the graph.
    """
    return to_aligned(points_702, crop_3).astype(np.float32)


def check_upright(points_702: np.ndarray) -> None:
    """Raises Rejected for a head that lies on its side, which no training picture does."""
    across, down = points_702[PUPILS][1] - points_702[PUPILS][0]
    tilt = float(np.degrees(np.arctan2(down, across)))
    if abs(tilt) > LARGEST_TILT:
        raise Rejected(f"head on its side: tilted by {tilt:.0f} degrees")


def unusable(path: Path, reason: str) -> UserError:
    """The error for a file that cannot be used, with what a person can do about `reason`."""
    kind = reason.split(":")[0]
    advice = ADVICE.get(kind, "Take another file.")
    return UserError(f"{path}: {reason}. {advice}")
