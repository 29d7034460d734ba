"""A photo as Psi wants it: read, found, cut out and fitted as the stages ingest and fit_flame do it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.fit_flame.solver import fit_chunk
from pipeline.geometry.landmarks import landmarks_70
from pipeline.ingest.crop import SIGMA_SHIFT, cut, fit_crop, five_points, to_aligned
from pipeline.ingest.files import Rejected
from pipeline.ingest.picture import read_picture
from pipeline.ingest.report import kind_of_reason

if TYPE_CHECKING:
    from pipeline.fit_flame.landmark_model import LandmarkModel
    from pipeline.ingest.detector import FaceFinder

PREVIEW = 256  # pixels
ADVICE = {
    "no face": "Take a picture that shows one face from the front, upright and well lit.",
    "two faces": "Cut the picture so that one face is left.",
    "face too small": "Take a larger picture, or lower ingest.min_face in params.yaml.",
    "image too small": "Take a larger picture.",
    "face not upright": "Turn the picture so that the face is upright.",
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
    """The detector and the head model of one process, each loaded when it is asked for."""

    def __init__(self, params: Params, size: int) -> None:
        """`size` is that of the aligned pictures, in pixels."""
        self.size, self.settings = size, params.fit_flame
        self.detection, self.head_model = params.ingest, params.flame.model
        self.frame_rate = params.ingest.frame_rate
        # Seconds over which a driver's crop is smoothed: as in training, unless a film wants another value.
        self.smooth = SIGMA_SHIFT if params.ingest.smooth_crop else 0.0

    @cached_property
    def faces(self) -> "FaceFinder":
        """What finds faces."""
        # MediaPipe takes two seconds to import, and a saved avatar with a known driver needs none of it.
        from pipeline.ingest.detector import FaceFinder

        return FaceFinder(self.detection.detection_score, self.detection.min_face)

    @cached_property
    def head(self) -> "LandmarkModel":
        """What is fitted to them."""
        from pipeline.fit_flame.landmark_model import LandmarkModel
        from pipeline.geometry import head_model

        return LandmarkModel(head_model.load(self.head_model))

    def load(self) -> None:
        """Load the detector now and not with the first picture."""
        _ = self.faces

    def find(self, picture: np.ndarray) -> np.ndarray:
        """The mesh (478, 3) of the one upright face in uint8 RGB (H, W, 3), in pixels. Raises Rejected."""
        face = self.faces.find(picture)
        self.faces.check_upright(picture, face)
        return face.mesh_478

    def portrait(self, path: Path) -> Portrait:
        """The face in a photo. Raises UserError, with what to do, when it cannot be used."""
        try:
            picture = read_picture(path)
            mesh = self.find(picture)
            crop = fit_crop(five_points(mesh))
            points = aligned_landmarks(landmarks_70(mesh), crop)
        except Rejected as reason:
            raise unusable(path, str(reason)) from reason
        # A portrait is a person with one frame, as in fit_flame.
        fitted = fit_chunk(self.head, points[None], [path.name], self.settings)
        error, limit = float(fitted.errors[0]), self.settings.max_error
        if not error <= limit:
            found = f"no face: the head model misses its landmarks by {error:.2f} of the eyes' distance"
            raise unusable(path, f"{found}, at most {limit:g} is allowed")
        aligned = cut(picture, crop, self.size)
        # For films: the networks' own picture would make the photo beside the result look blurred.
        preview = cut(picture, crop, PREVIEW)
        return Portrait(aligned, preview, crop, points, fitted.labels[0])


def aligned_landmarks(points_702: np.ndarray, crop_3: np.ndarray) -> np.ndarray:
    """Landmarks (70, 2) in source pixels as fractions of the aligned square.

    Of float32, since that is what the tables of ingest hold: fit and motion are then those of the graph.
    """
    return to_aligned(points_702, crop_3).astype(np.float32)


def unusable(path: Path, reason: str) -> UserError:
    """The error for a file that cannot be used, with what a person can do about `reason`."""
    advice = ADVICE.get(kind_of_reason(reason), "Take another file.")
    return UserError(f"{path}: {reason}. {advice}")
