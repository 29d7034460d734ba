"""The face in a picture, by MediaPipe: its detector, its mesh of 478 points and its segmentation of people.

The detector finds faces in the whole picture. The mesh network then looks at a cut-out of twice the box, as
on its own it misses small faces.
"""

import os
import warnings
from dataclasses import dataclass

# Mediapipe reads it once, when the library is loaded.
os.environ.setdefault("GLOG_minloglevel", "3")

import mediapipe as mp
import numpy as np
from PIL import Image

from pipeline.core.progress import hushed
from pipeline.ingest.crop import cut, inside, widen
from pipeline.ingest.files import Rejected

# A second face counts from this share of the area of the largest; a smaller one is somebody in the
# background.
SECOND_FACE = 1 / 3
# Pixels of the cut-out for the mesh; the network itself works at 192.
MESH_INPUT = 384
# The size of the cut-out over that of the box; the first nearly always does.
MESH_CONTEXTS = (2.0, 1.5, 3.0)
# The segmentation sees more than the aligned square, as shoulders help it.
MASK_CONTEXT = 1.5
MASK_INPUT = 512
# Pixels of the longer side of a picture that gets a border. The detector itself works at 192, and a border
# around a panorama would take gigabytes.
BORDERED = 1024
# Degrees by which a head may be turned in the picture; no portrait that we looked at has more than 30.
LARGEST_ROLL = 45.0
# An upside-down face can be taken for an upright one. Its surroundings (this many boxes) turned by 180
# degrees then score higher: by at most 0.02 for 24 upright portraits and 77 frames of films, and by more
# than 0.05 for six of seven upside-down ones.
TURN_CONTEXT = 2.5
TURN_INPUT = 256
TURN_GAIN = 0.05
NOT_UPRIGHT = "face not upright"

Box = tuple[float, ...]


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    `box`: left, top, right, bottom in pixels. `score`: in [0, 1]. `mesh_478`: (478, 3) float64, pixels, y
    down, z towards the back.
    """

    box: Box
    score: float
    mesh_478: np.ndarray


class FaceFinder:
    """Holds the networks; make one per process.

    A call does not depend on those before it, as nothing is tracked.
    """

    def __init__(self, detection_score: float, min_face: float):
        """`detection_score`: least score of a detection, [0, 1]. `min_face`: least `face_size`, pixels."""
        self.min_face = min_face
        warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype", category=UserWarning)
        solutions = mp.solutions
        with hushed():
            # The detector for short range took all three dogs of a trial for people.
            self._detector = solutions.face_detection.FaceDetection(
                model_selection=1, min_detection_confidence=detection_score
            )
            self._mesh = solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True
            )
            # The landscape model smears less on portraits, too.
            self._person = solutions.selfie_segmentation.SelfieSegmentation(model_selection=1)
            blank = np.zeros((64, 64, 3), np.uint8)
            for network in (self._detector, self._mesh, self._person):
                network.process(blank)

    def find(self, image: np.ndarray) -> Face:
        """The one face in uint8 RGB (H, W, 3). Raises Rejected: "no face", "two faces", "face too small"."""
        found = self._detect(image) or self._detect_padded(image)
        if not found:
            raise Rejected("no face")
        box, score = found[0]
        if len(found) > 1:
            second, _ = found[1]
            if _area(second) > SECOND_FACE * _area(box):
                raise Rejected("two faces")
        mesh = self._find_mesh(image, box)
        if mesh is None:
            raise Rejected("no face: detected, but the mesh does not fit")
        size = face_size(mesh)
        if size < self.min_face:
            raise Rejected(f"face too small: {size:.0f} pixels, {self.min_face:g} needed")
        return Face(box, score, mesh)

    def check_upright(self, image: np.ndarray, face: Face) -> None:
        """Raise Rejected when a face of `image` lies on its side or stands on its head."""
        roll = roll_of(face.mesh_478)
        if abs(roll) > LARGEST_ROLL:
            raise Rejected(f"{NOT_UPRIGHT}: turned by {roll:.0f} degrees")
        around = _square(face.box, TURN_CONTEXT)
        view = cut(
            image,
            around,
            TURN_INPUT,
            Image.Resampling.BILINEAR,
        )
        turned = np.ascontiguousarray(view[::-1, ::-1])
        if self._best_score(turned) > self._best_score(view) + TURN_GAIN:
            raise Rejected(f"{NOT_UPRIGHT}: it is upside down")

    def mask(
        self,
        image: np.ndarray,
        crop: np.ndarray,
        size: int,
    ) -> np.ndarray:
        """How much each pixel of the aligned square belongs to a person: uint8 (size, size), 255 = wholly.

        What lies beyond the edge of the picture belongs to nobody, though the last pixels are repeated there.
        """
        network_view = cut(
            image,
            widen(crop, MASK_CONTEXT),
            MASK_INPUT,
            Image.Resampling.BILINEAR,
        )
        share = self._person.process(network_view).segmentation_mask
        person = np.clip(share * 255.0 + 0.5, 0, 255).astype(np.uint8)
        side = MASK_INPUT / MASK_CONTEXT
        shift = -(MASK_INPUT - side) / 2 / side
        mask = cut(
            person,
            np.array([1 / side, shift, shift]),
            size,
            Image.Resampling.BILINEAR,
        )
        height, width = image.shape[:2]
        seen = np.rint(mask * inside(crop, width, height, size))
        return seen.astype(np.uint8)

    def _detect(self, image: np.ndarray) -> list[tuple[Box, float]]:
        """Boxes (left, top, right, bottom in pixels) and scores, the largest first."""
        height, width = image.shape[:2]
        found = []
        result = self._detector.process(image)
        for detection in result.detections or []:
            box = detection.location_data.relative_bounding_box
            left = box.xmin * width
            top = box.ymin * height
            right = left + box.width * width
            bottom = top + box.height * height
            score = float(detection.score[0])
            found.append(((left, top, right, bottom), score))
        return sorted(found, key=lambda face: -_area(face[0]))

    def _detect_padded(self, image: np.ndarray) -> list[tuple[Box, float]]:
        """A face that fills the picture is found when there is something around it."""
        longer = max(image.shape[:2])
        shrink = max(1.0, longer / BORDERED)
        small = image
        if shrink > 1:
            height, width = (max(round(side / shrink), 1) for side in image.shape[:2])
            picture = Image.fromarray(image)
            small = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
        border = max(small.shape[:2]) // 2
        around = (border, border)
        padded = np.pad(small, (around, around, (0, 0)), mode="edge")
        found = []
        for box, score in self._detect(padded):
            edges = [(edge - border) * shrink for edge in box]
            found.append((tuple(edges), score))
        return found

    def _best_score(self, image: np.ndarray) -> float:
        return max((score for _, score in self._detect(image)), default=0.0)

    def _find_mesh(self, image: np.ndarray, box: Box) -> np.ndarray | None:
        left, top, right, bottom = box
        for context in MESH_CONTEXTS:
            crop = _square(box, context)
            view = cut(
                image,
                crop,
                MESH_INPUT,
                Image.Resampling.BILINEAR,
            )
            faces = self._mesh.process(view).multi_face_landmarks
            if not faces:
                continue
            points = [(point.x, point.y, point.z) for point in faces[0].landmark]
            mesh = np.array(points)
            mesh[:, :2] -= crop[1:]
            mesh *= context * max(right - left, bottom - top)
            x, y = mesh[:, :2].mean(axis=0)
            # Otherwise it is the mesh of another face.
            if left < x < right and top < y < bottom:
                return mesh
        return None


def face_size(mesh_478: np.ndarray) -> float:
    """Root of the area of the mesh's box, pixels."""
    sides = np.ptp(mesh_478[:, :2], axis=0)
    return float(np.sqrt(np.prod(sides)))


def roll_of(mesh_478: np.ndarray) -> float:
    """Degrees, clockwise, by which the eyes of a face are turned around its mouth; 0 is upright."""
    eyes = (mesh_478[468, :2] + mesh_478[473, :2]) / 2
    mouth = (mesh_478[61, :2] + mesh_478[291, :2]) / 2
    x, y = eyes - mouth
    return float(np.degrees(np.arctan2(x, -y)))


def _square(box: Box, context: float) -> np.ndarray:
    """The crop of a square around a box, `context` times as large as its longer side."""
    left, top, right, bottom = box
    side = context * max(right - left, bottom - top)
    x = (left + right) / 2
    y = (top + bottom) / 2
    return np.array([1 / side, 0.5 - x / side, 0.5 - y / side])


def _area(box: Box) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)
