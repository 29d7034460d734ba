"""What drives an avatar: a video, a folder of numbered pictures or one picture, frame by frame.

Two passes, so that no video is ever in memory as a whole. The first finds the face in every frame; then crops
are smoothed and the head model is fitted over time. The second cuts out the faces. Frames in which the face
is lost or not fitted hold what came before them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.avatar.front_end import FrontEnd, aligned_landmarks, unusable
from pipeline.avatar.sections import SECTION, in_sections, with_rotations
from pipeline.core.errors import UserError
from pipeline.core.films import frame_rate
from pipeline.core.prefetch import write_behind
from pipeline.core.progress import progress
from pipeline.fit_flame.solver import fit_chunk
from pipeline.geometry.landmarks import landmarks_70
from pipeline.ingest.crop import SIGMA_SHIFT, cut, fit_crop, five_points, smooth_crops
from pipeline.ingest.files import PICTURE, Rejected, find_clips, is_wanted
from pipeline.ingest.picture import read_picture
from pipeline.ingest.report import kind_of_reason
from pipeline.ingest.sequence import open_clip

UNFITTED = "head model does not fit"
NOTHING = np.empty(0)


class Frames(Protocol):
    """Where the frames of a driver come from.

    `count`: how many are expected. `rate`: how many a second. `sound`: the file that has their sound.
    """

    path: Path
    count: int
    rate: Fraction
    sound: Path | None

    def read(self) -> Iterator[tuple[float, np.ndarray]]:
        """All frames: seconds since the first, uint8 RGB (H, W, 3). Raises Rejected if one is broken."""
        ...


class ClipFrames:
    """The frames of a video, or of a folder of numbered pictures."""

    def __init__(self, path: Path, fps: float) -> None:
        """`fps` is that of a folder. Raises Rejected when nothing can be read."""
        self.path = path
        self.clip = open_clip(path, fps)
        self.count = self.clip.packets
        self.rate = frame_rate(self.clip.fps or fps)
        self.sound = None if path.is_dir() else path

    def read(self) -> Iterator[tuple[float, np.ndarray]]:
        for frame in self.clip.frames():
            yield frame.seconds, frame.picture


class StillFrame:
    """A single picture."""

    sound = None
    count = 1

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.rate = path, frame_rate(fps)

    def read(self) -> Iterator[tuple[float, np.ndarray]]:
        yield 0.0, read_picture(self.path)


def find_drivers(path: Path) -> list[Path]:
    """The drivers that `path` names: itself, or the clips in a folder. Raises UserError if it is absent."""
    if not path.exists():
        raise UserError(f"{path} does not exist. Name a video, a picture, or a folder of either.")
    if not path.is_dir():
        return [path]
    clips = [path / name for name in find_clips(path).files]
    return clips or [path]


def is_a(path: Path, kind: str) -> bool:
    """Whether `path` is a file of a kind (pipeline/ingest/files.py), or is called like one."""
    try:
        return is_wanted(path, kind)
    except Rejected:
        return False


def frames_of(path: Path, fps: float) -> Frames:
    """The frames of a video, of a folder of numbered pictures at `fps` a second, or of one picture.

    Raises UserError when it is none of these.
    """
    try:
        return StillFrame(path, fps) if is_a(path, PICTURE) else ClipFrames(path, fps)
    except Rejected as reason:
        raise unusable(path, str(reason)) from reason


@dataclass(frozen=True)
class Driver:
    """What N frames say.

    `shown_N` has the frame whose face each shows: itself, or another one where the face is lost; `lost`
    counts why.
    """

    frames: Frames
    seconds_N: np.ndarray  # float64, since the first frame
    crops_N3: np.ndarray  # float64
    points_N702: np.ndarray  # float32, fractions of the aligned square
    labels_N437: np.ndarray  # float32; the first 25 numbers are the camera
    shown_N: np.ndarray  # int64
    lost: dict[str, int]

    def __len__(self) -> int:
        return len(self.seconds_N)

    @property
    def rate(self) -> Fraction:
        """Frames a second by the usual step between two, which a late frame does not change."""
        if len(self) == 1:
            return self.frames.rate
        step = float(np.median(np.diff(self.seconds_N)))
        return frame_rate(1 / step)

    @property
    def held_N(self) -> np.ndarray:
        """The frames that repeat the face of another one, bool."""
        return self.shown_N != np.arange(len(self))

    def faces(self, size: int) -> Iterator[np.ndarray]:
        """The aligned squares at `size` pixels, uint8; of a held frame its own picture at the held crop."""
        for face in self.cuts():
            yield face(size)

    def cuts(self) -> Iterator[Callable[[int], np.ndarray]]:
        """The same as functions of the size, for a film that shows few of them: to cut takes 10 ms."""
        for (_, picture), crop in zip(self.frames.read(), self.crops_N3, strict=False):
            yield partial(cut, picture, crop)


class _Face(NamedTuple):
    """What was found in a frame: landmarks in pixels, or the kind of reason why there are none."""

    seconds: float
    five_52: np.ndarray = NOTHING  # what the crop is fitted to
    points_702: np.ndarray = NOTHING
    reason: str = ""


def read_driver(front: FrontEnd, path: Path) -> Driver:
    """Find and fit the face in every frame. Raises UserError for a file that is broken or shows no face."""
    frames = frames_of(path, front.frame_rate)
    try:
        faces = list(_find_faces(front, frames))
    except Rejected as reason:
        raise unusable(path, str(reason)) from reason
    lost = Counter(face.reason for face in faces if face.reason)
    known = np.array([number for number, face in enumerate(faces) if not face.reason], int)
    if not len(known):
        raise unusable(path, _why_none(lost, len(faces)))

    # What ingest does with the frames of a clip, and then fit_flame.
    found = [faces[number] for number in known]
    seconds = np.array([face.seconds for face in faces])
    crops = _crops(front, found, seconds[known])
    pairs = zip(_landmarks(found), crops, strict=True)
    points = np.stack([aligned_landmarks(*pair) for pair in pairs])
    labels, errors = _fit(front, points)

    # A face that the head model does not fit is lost as well: its camera would make the head jump.
    fits = errors <= front.settings.max_error
    lost[UNFITTED] = int((~fits).sum())
    if not fits.any():
        raise unusable(path, _why_none(lost, len(faces)))
    shown = shown_frames(len(faces), known[fits])
    rows = np.searchsorted(known, shown)
    reasons = {reason: count for reason, count in sorted(lost.items()) if count}
    return Driver(frames, seconds, crops[rows], points[rows], labels[rows], shown, reasons)


def _landmarks(faces: list[_Face]) -> list[np.ndarray]:
    return [face.points_702 for face in faces]


def _find_faces(front: FrontEnd, frames: Frames) -> Iterator[_Face]:
    # Loading silences the whole process, so that it cannot be left to the thread.
    front.load()

    def find(frame: tuple[float, np.ndarray]) -> _Face:
        seconds, picture = frame
        try:
            mesh = front.find(picture)
        except Rejected as reason:
            return _Face(seconds, reason=kind_of_reason(str(reason)))
        return _Face(seconds, five_points(mesh), landmarks_70(mesh))

    # The next frame is decoded while the networks look at this one.
    label = f"faces in {frames.path.name}"
    pictures = progress(frames.read(), label=label, total=frames.count, unit="frames")
    return write_behind(find, pictures)


def _crops(front: FrontEnd, faces: list[_Face], seconds_K: np.ndarray) -> np.ndarray:
    """The crops (K, 3) of frames with a face, smoothed over `front.smooth` seconds."""
    crops = np.stack([fit_crop(face.five_52) for face in faces])
    return _smoothed(crops, seconds_K, front.smooth) if front.smooth else crops


def steady_distance(
    cameras_N25: np.ndarray,
    seconds_N: np.ndarray,
    smooth: float,
) -> np.ndarray:
    """Cameras (N, 25) at distances from the head that are smoothed like crops; with 0 they are as they were.

    A fit to noisy landmarks finds another distance in each frame, and the head of the result would pulsate.
    Rotations stay, as a quick nod is real.
    """
    if not smooth:
        return cameras_N25
    cameras = cameras_N25.astype(np.float64)
    places = cameras[:, [3, 7, 11]]
    distance = np.linalg.norm(places, axis=1)
    # Of a crop that stays in its place and is as large as the camera is far.
    middle = np.full(len(cameras), 0.5)
    crops = np.stack([1 / distance, middle, middle], axis=1)
    steady = _smoothed(crops, seconds_N, smooth)
    share = 1 / steady[:, 0] / distance
    cameras[:, [3, 7, 11]] = share[:, None] * places
    return cameras.astype(np.float32)


def _smoothed(crops_N3: np.ndarray, seconds_N: np.ndarray, smooth: float) -> np.ndarray:
    # Ingest smooths over SIGMA_SHIFT seconds of its clock, so a slower clock smooths over more of ours.
    clock = SIGMA_SHIFT / smooth

    def work(rows: slice) -> np.ndarray:
        return smooth_crops(crops_N3[rows], clock * seconds_N[rows])

    return in_sections(len(crops_N3), work)


def _fit(front: FrontEnd, points_K702: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (K, 437) and errors (K,) of one person over time."""

    def fit(rows: slice) -> np.ndarray:
        points = points_K702[rows]
        fitted = fit_chunk(front.head, points, ["driver"] * len(points), front.settings)
        return np.concatenate([fitted.labels, fitted.errors[:, None]], axis=1)

    numbers = in_sections(len(points_K702), fit)
    labels, errors = numbers[:, :437].astype(np.float32), numbers[:, 437]
    if len(labels) > SECTION:
        labels = with_rotations(labels)
    return labels, errors


def _why_none(lost: Counter[str], count: int) -> str:
    """The most frequent reason, for a person."""
    if not count:
        return "0 frames decoded"
    reason, times = lost.most_common(1)[0]
    return f"{reason}: in {times} of {count} frames"


def shown_frames(count: int, known_K: np.ndarray) -> np.ndarray:
    """For each of `count` frames the known one that it shows: the last up to it, or the first of all.

    `known_K` are the numbers of the known frames, ascending; the result is (count,) of them.
    """
    # Before the first known frame there is none to hold, so the first one is shown early.
    places = np.searchsorted(known_K, np.arange(count), side="right") - 1
    return known_K[np.maximum(places, 0)]
