"""The face in a picture: MediaPipe's detector, its mesh of 478 points with irises, and its segmentation of the person.

The detector finds faces in the whole picture, the mesh network then looks at a cut-out of twice the box: on its own it misses small faces.
"""

import os
import warnings
from dataclasses import dataclass

os.environ.setdefault("GLOG_minloglevel", "3")  # read once, when the library is loaded

import mediapipe as mp
import numpy as np
from PIL import Image

from pipeline.core.progress import hushed
from pipeline.ingest.crop import cut, widen
from pipeline.ingest.reader import Rejected

SECOND_FACE = 1 / 3  # of the area of the largest: a smaller one is somebody in the background
MESH_INPUT = 384  # pixels of the cut-out; the network itself works at 192
MESH_CONTEXTS = (2.0, 1.5, 3.0)  # cut-out over box, the first nearly always does
MASK_CONTEXT = 1.5  # the segmentation sees more than the aligned square: shoulders help it
MASK_INPUT = 512


@dataclass(frozen=True)
class Face:
    """box: left, top, right, bottom in pixels; score in [0, 1]; mesh_478: (478, 3) float64, pixels, y down, z towards the back."""

    box: tuple[float, float, float, float]
    score: float
    mesh_478: np.ndarray


class FaceFinder:
    """Holds the networks; make one per process. Every call stands alone (no tracking), so that results do not depend on order."""

    def __init__(self, detection_score: float, min_face: float):
        """`detection_score`: least score of a detection, [0, 1]; `min_face`: least size of a face in pixels, see `face_size`."""
        self.min_face = min_face
        warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype", category=UserWarning)
        solutions = mp.solutions
        with hushed():
            self._detector = solutions.face_detection.FaceDetection(
                model_selection=1, min_detection_confidence=detection_score
            )
            self._mesh = solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True
            )
            self._person = solutions.selfie_segmentation.SelfieSegmentation(
                model_selection=1
            )  # the landscape model smears less here
            blank = np.zeros((64, 64, 3), np.uint8)
            for network in (self._detector, self._mesh, self._person):
                network.process(blank)

    def find(self, image: np.ndarray) -> Face:
        """The one face in uint8 RGB (H, W, 3). Raises Rejected: "no face", "two faces", "face too small".

        Only the detector for the full range is asked: the one for short range took all three dogs of our trial for people.
        """
        found = self._detect(image) or self._detect_padded(image)
        if not found:
            raise Rejected("no face")
        if len(found) > 1 and _area(found[1][0]) > SECOND_FACE * _area(found[0][0]):
            raise Rejected("two faces")
        mesh = self._find_mesh(image, found[0][0])
        if mesh is None:
            raise Rejected("no face: detected, but the mesh does not fit")
        size = face_size(mesh)
        if size < self.min_face:
            raise Rejected(f"face too small: {size:.0f} pixels, {self.min_face:g} needed")
        return Face(*found[0], mesh)

    def mask(self, image: np.ndarray, crop: np.ndarray, size: int) -> np.ndarray:
        """How much each pixel of the aligned square belongs to a person: uint8 (size, size), 255 = wholly."""
        network_view = cut(image, widen(crop, MASK_CONTEXT), MASK_INPUT, Image.Resampling.BILINEAR)
        person = np.clip(self._person.process(network_view).segmentation_mask * 255.0 + 0.5, 0, 255).astype(
            np.uint8
        )
        side = MASK_INPUT / MASK_CONTEXT
        shift = -(MASK_INPUT - side) / 2 / side
        return cut(person, np.array([1 / side, shift, shift]), size, Image.Resampling.BILINEAR)

    def _detect(self, image: np.ndarray) -> list[tuple[tuple[float, ...], float]]:
        """Boxes (left, top, right, bottom in pixels) and scores, the largest first."""
        height, width = image.shape[:2]
        found = []
        for detection in self._detector.process(image).detections or []:
            box = detection.location_data.relative_bounding_box
            left, top = box.xmin * width, box.ymin * height
            found.append(
                ((left, top, left + box.width * width, top + box.height * height), float(detection.score[0]))
            )
        return sorted(found, key=lambda face: -_area(face[0]))

    def _detect_padded(self, image: np.ndarray) -> list[tuple[tuple[float, ...], float]]:
        """A face that fills the picture is found when there is something around it."""
        border = max(image.shape[:2]) // 2
        padded = np.pad(image, ((border, border), (border, border), (0, 0)), mode="edge")
        return [(tuple(edge - border for edge in box), score) for box, score in self._detect(padded)]

    def _find_mesh(self, image: np.ndarray, box: tuple[float, ...]) -> np.ndarray | None:
        left, top, right, bottom = box
        for context in MESH_CONTEXTS:
            side = context * max(right - left, bottom - top)
            crop = np.array([1 / side, 0.5 - (left + right) / 2 / side, 0.5 - (top + bottom) / 2 / side])
            faces = self._mesh.process(
                cut(image, crop, MESH_INPUT, Image.Resampling.BILINEAR)
            ).multi_face_landmarks
            if not faces:
                continue
            points = np.array([(point.x, point.y, point.z) for point in faces[0].landmark])
            points[:, :2] -= crop[1:]
            mesh = points * side
            x, y = mesh[:, :2].mean(axis=0)
            if left < x < right and top < y < bottom:  # else it is the mesh of another face
                return mesh
        return None


def face_size(mesh_478: np.ndarray) -> float:
    """Root of the area of the mesh's box, pixels."""
    return float(np.sqrt(np.prod(np.ptp(mesh_478[:, :2], axis=0))))


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
