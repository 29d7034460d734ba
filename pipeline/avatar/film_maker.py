"""The worker that makes films: it reads a driver once and lets it move one avatar after another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor

from pipeline.avatar.animator import Avatar, Turns, Weights
from pipeline.avatar.driver import Driver, steady_distance
from pipeline.avatar.film import with_sound
from pipeline.avatar.front_end import FrontEnd
from pipeline.avatar.relative import reference_frame, relative_motion, strengthened
from pipeline.avatar.studio import Studio, film_size
from pipeline.config.params import Params
from pipeline.core import paths
from pipeline.core.errors import UserError
from pipeline.core.files import key_of
from pipeline.core.films import encode_mp4
from pipeline.core.pictures import beside, tile
from pipeline.core.progress import progress
from pipeline.engine.work_unit import WorkUnit
from pipeline.geometry import camera_path
from pipeline.geometry.label import Label
from pipeline.geometry.neck import with_necks
from pipeline.store.codecs import PNG
from pipeline.store.shards import Sample

if TYPE_CHECKING:
    from pipeline.avatar.watcher import Watcher

PHOTOS_AT_ONCE = 8  # of a unit; so many avatars and drivers are kept
ORBIT_SECONDS = 4.0
SHEET_TILE, SHEET_TIMES = 128, 5  # pixels; moments of a film that its line of the contact sheet shows

Camera = Literal["driving", "front", "orbit"]
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Look:
    """What films show. `size` is that of a picture in pixels, see `film_size`.

    `relative` names the frame of the driver that counts as rest (pipeline/avatar/relative.py), "" is none;
    `strength` is how many times as far as the driver's the face moves, there too.
    With `measure`, films are watched (pipeline/evaluate/film_measures.py), which takes as long again.
    `smooth` is over how many seconds (deviation of a Gaussian) the driver's place is smoothed, and 3.3 times
    as many its size; 0 is none. With None it is as in ingest, since networks have learnt from such crops.
    """

    camera: Camera = "driving"
    beside: bool = False
    size: int = 0
    relative: str = ""
    measure: bool = False
    smooth: float | None = None
    strength: float = 1.0


class FilmMaker:
    """The worker of one process: a unit's items are pairs of a photo and a driver, as paths.

    The record has a row for each pair. One that cannot be made has a reason there and no sample.
    """

    def __init__(
        self,
        params: Params,
        weights: Weights,
        look: Look,
        kept: Path | None = None,
    ) -> None:
        """`kept` is the folder of known drivers. Raises UserError when the networks cannot be used."""
        self.studio, self.look = Studio(params, weights, kept), look
        if look.smooth is not None:
            self.studio.front.smooth = look.smooth
        self.size = film_size(look.size, self.studio.animator)
        self.watcher = _watcher_of(self.studio.front) if look.measure else None
        self.avatars = Remembered(self.studio.avatar)
        self.drivers = Remembered(self.studio.driver)

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        return self._films(unit.items, rows), {"films": rows}

    def _films(self, items: Sequence[Sequence[str]], rows: list[dict[str, Any]]) -> Iterator[Sample]:
        for photo, path in items:
            row: dict[str, Any] = {"photo": photo, "driver": path, "reason": ""}
            rows.append(row)
            # The engine would try a pair that raises again, and a long video without a face is slow.
            try:
                avatar = self.avatars(Path(photo))
                driver, motion = self.drivers(Path(path))
            except UserError as error:
                row["reason"] = str(error)
                continue
            row |= facts_of(driver)
            montage = Montage(avatar, driver, self.size, self.look.beside)
            if self.watcher:
                montage.watcher = self.watcher(avatar, driver)
            film = self._film(montage, motion, Path(photo).stem)
            # The sound comes last, as packets beside pictures that are encoded already.
            heard = with_sound(film, driver.frames.sound) if driver.frames.sound else None
            row["sound"] = heard is not None
            if montage.watcher is not None:
                row["measures"] = montage.watcher.measures()
            fields = {"film.mp4": heard or film, "line.png": PNG.encode(montage.line())}
            yield film_key(photo, path), fields

    def _film(self, montage: "Montage", motion_NM: Tensor, name: str) -> bytes:
        """The silent film."""
        avatar, driver = montage.avatar, montage.driver
        if self.look.relative:
            rest = reference_frame(driver, self.look.relative, self.studio.head_model)
            motion_NM = relative_motion(avatar.motion_1M, motion_NM, rest)
        motion_NM = strengthened(avatar.motion_1M, motion_NM, self.look.strength)
        cameras = cameras_of(self.look.camera, driver, self.studio.front.smooth)
        turns = turns_of(self.look.camera, driver)
        results = self.studio.animator.pictures(avatar, motion_NM, cameras, turns)
        label = f"{name} by {driver.frames.path.name}"
        watched = progress(results, label=label, total=len(driver), unit="frames")
        return encode_mp4(montage.pictures(watched), driver.rate, driver.seconds_N.tolist())


class Montage:
    """The pictures of a film, from those of Psi; some are kept for the contact sheet."""

    def __init__(
        self,
        avatar: Avatar,
        driver: Driver,
        size: int,
        side_by_side: bool,
    ) -> None:
        self.avatar, self.driver = avatar, driver
        self.size, self.side_by_side = size, side_by_side
        self.source = tile(avatar.portrait.preview_PP3, size)
        times = np.linspace(0, len(driver) - 1, SHEET_TIMES)
        self.chosen = set(times.round().astype(int).tolist())
        self.kept: list[np.ndarray] = []
        self.watcher: Watcher | None = None

    def pictures(self, results: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Enlarged results, next to source and driver if that is wanted."""
        for number, (result, cut) in enumerate(zip(results, self.driver.cuts(), strict=True)):
            large = tile(result, self.size)
            on_sheet = number in self.chosen
            if not (on_sheet or self.watcher or self.side_by_side):
                yield large
                continue
            face = cut(self.size)
            if on_sheet:
                self.kept += [tile(face, SHEET_TILE), tile(result, SHEET_TILE)]
            if self.watcher:
                self.watcher.see(result, face)
            yield self._beside(number, face, large) if self.side_by_side else large

    def _beside(self, number: int, face: np.ndarray, result: np.ndarray) -> np.ndarray:
        held = " (held)" if self.driver.held_N[number] else ""
        return beside([self.source, face, result], ["source", f"driving{held}", "result"])

    def line(self) -> np.ndarray:
        """Source, then driver and result at some times."""
        pairs = len(self.kept) // 2
        captions = ["source", *["driving", "result"] * pairs]
        return beside([tile(self.source, SHEET_TILE), *self.kept], captions)


class Remembered(Generic[Thing]):
    """A function of a path that is asked for the same few paths again and again.

    The newest PHOTOS_AT_ONCE results are kept, and so are errors: a video without a face is read once for all
    photos.
    """

    def __init__(self, make: Callable[[Path], Thing]) -> None:
        self.make = make
        self.known: dict[Path, Thing | UserError] = {}

    def __call__(self, path: Path) -> Thing:
        """What the function makes of `path`. Raises UserError as it does."""
        if path not in self.known:
            # A driver holds the numbers of all its frames, so that not all of hundreds can stay.
            if len(self.known) == PHOTOS_AT_ONCE:
                oldest = next(iter(self.known))
                del self.known[oldest]
            self.known[path] = self._try(path)
        result = self.known[path]
        if isinstance(result, UserError):
            raise result
        return result

    def _try(self, path: Path) -> Thing | UserError:
        try:
            return self.make(path)
        except UserError as error:
            return error


def _watcher_of(front: FrontEnd) -> "Callable[[Avatar, Driver], Watcher]":
    """What makes a watcher of each film."""
    # Its instruments take seconds to load, which a film that is not measured should not cost.
    from pipeline.avatar.watcher import Watcher, judges_in

    return partial(Watcher, front, judges_in(paths.PERCEPTION))


def facts_of(driver: Driver) -> dict[str, Any]:
    """Of a film by `driver`: frames, seconds, and how many frames hold another's face, with the reasons."""
    reasons = [f"{count} x {reason}" for reason, count in driver.lost.items()]
    return {
        "frames": len(driver),
        "seconds": float(driver.seconds_N[-1] + 1 / driver.rate),
        "held": int(driver.held_N.sum()),
        "lost": ", ".join(reasons),
    }


def cameras_of(
    kind: Camera,
    driver: Driver,
    smooth: float,
) -> np.ndarray:
    """A camera for each frame, float32 (N, 25): as the driver is seen, in front, or going around.

    `smooth`: see `steady_distance`.
    """
    if kind == "driving":
        return steady_distance(driver.labels_N437[:, Label.CAMERA], driver.seconds_N, smooth)
    if kind == "front":
        return camera_path.front(len(driver))
    # Round after round for a long film, rather than one slow one.
    round_trip = max(1, round(ORBIT_SECONDS * driver.rate))
    return camera_path.orbit(round_trip)[np.arange(len(driver)) % round_trip]


def turns_of(kind: Camera, driver: Driver) -> Turns | None:
    """How the head turns on its shoulders in each frame; None while the camera goes around a still head.

    Seen from in front it turns as far as the driver's does (facts 8). Otherwise the camera keeps the mean
    rotation of the film.
    """
    if kind == "orbit":
        return None
    if kind == "front":
        return Turns(driver.labels_N437, by_camera=False)
    return Turns(with_necks(driver.labels_N437), by_camera=True)


def film_key(photo: str | Path, driver: str | Path) -> str:
    """The key of a film's sample."""
    return key_of(f"{photo}/{driver}")
