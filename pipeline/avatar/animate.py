"""Films of every photo by every driver: work units of the engine, which goes on after a stop.

A unit is one driver with some photos, so that a video is read once for all of them. A photo or a video that
cannot be used costs its own films and is named; the others are made.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pipeline.avatar import saved
from pipeline.avatar.animator import Weights
from pipeline.avatar.driver import find_drivers, is_a
from pipeline.avatar.drivers import kept_folder
from pipeline.avatar.film_maker import PHOTOS_AT_ONCE, Camera, FilmMaker, Look, film_key
from pipeline.avatar.relative import REFERENCES
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes, write_json
from pipeline.core.pictures import below, captioned, encode_jpeg
from pipeline.core.readable import readable_count
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import scratch_folder
from pipeline.engine.work_unit import Done, WorkUnit, units_of
from pipeline.ingest.files import PICTURE, VIDEO, find_files
from pipeline.store.codecs import decode_picture
from pipeline.store.shards import ShardReader

SHEET = "contact_sheet.jpg"


@dataclass(frozen=True)
class Film:
    """What became of a photo and a driver: a file at `path`, or the `reason` why there is none.

    `held` frames show the face of another frame, as the driver's was `lost` for these reasons.
    """

    photo: Path
    driver: Path
    path: Path | None
    reason: str = ""
    frames: int = 0
    seconds: float = 0.0
    held: int = 0
    lost: str = ""
    sound: bool = False
    measures: dict[str, Any] | None = None

    def __str__(self) -> str:
        """A line for people."""
        if self.path is None:
            return f"not made: {self.reason}"
        frames = readable_count(self.frames, "frames")
        sound = "with sound" if self.sound else "without sound"
        line = f"{self.path}: {frames}, {self.seconds:.2f} s, {sound}"
        if self.held:
            line += f"; in {self.held} the face is lost and held ({self.lost})"
        return line


def animate_files(
    params: Params,
    weights: Weights,
    files: Sequence[Path],
    out: Path | None,
    look: Look,
) -> Iterator[str]:
    """`animate` for what a person types: the last of `files` and all videos drive, the others are photos.

    Yields a line for each film. Raises UserError as `animate`, and for a `look` that there is not.
    """
    check_look(look)
    *others, last = files
    # A picture may be a photo or a driver; by this rule shells may expand *.jpg and *.mp4.
    drivers = [file for file in others if is_a(file, VIDEO)] + [last]
    sources = [file for file in others if not is_a(file, VIDEO)]
    if not sources:
        raise UserError("animate needs a photo and a video: psi4d animate PHOTO VIDEO -o OUT.mp4")
    photos = [photo for source in sources for photo in find_photos(source)]
    videos = [video for driver in drivers for video in find_drivers(driver)]
    several = len(photos) * len(videos) > 1
    usual = "films" if several else f"{photos[0].stem}-{videos[0].stem}.mp4"
    place = out or Path(usual)
    yield from map(str, animate(params, weights, photos, videos, place, look))
    if several:
        yield f"all of them below each other: {place / SHEET}"


def animate(
    params: Params,
    weights: Weights,
    photos: Sequence[Path],
    drivers: Sequence[Path],
    out: Path,
    look: Look,
) -> list[Film]:
    """Make the film of every photo, or saved avatar, by every driver.

    `out` is the path of a single film, else a folder, which gets a contact sheet too. Raises UserError when
    networks are missing, the place cannot be written, or there is no film at all.
    """
    # Workers of a cluster have another current folder.
    photos, drivers = [path.resolve() for path in photos], [path.resolve() for path in drivers]
    places = _places(photos, drivers, out)
    # Before hours of work, not after them: what is wrong with the place and with the networks.
    for folder in {path.parent for path in places.values()}:
        check_writable(folder)
    kept = kept_folder()
    maker = FilmMaker(params, weights, look, kept)
    weights = Weights(weights.psi.absolute(), weights.motion.absolute())
    units = _units(photos, drivers)
    machine = params.machine
    if len(units) == 1:
        # A pool of processes takes longer to start than most films to make.
        machine = machine.model_copy(update={"workers": 0})
    make = partial(FilmMaker, params, weights, look, kept) if machine.workers else lambda: maker
    settings = (asdict(look), params.ingest, params.fit_flame, params.flame)
    mark = fingerprint(__file__, *settings, weights.psi, weights.motion, *photos, *drivers)
    scratch = scratch_folder("animate", mark)
    done = run_units(units, make, scratch, machine, "animate", {"films": 1})
    rows = _rows(done)
    reasons = [row["reason"] for row in rows if row["reason"]]
    # Without a film there is no shard either. The next run is to look again, not to remember.
    if len(reasons) == len(rows):
        shutil.rmtree(scratch, ignore_errors=True)
        raise UserError("\n".join(dict.fromkeys(reasons)))
    reader = ShardReader(scratch)
    films = _publish(rows, reader, places)
    if len(places) > 1:
        _write_sheet(films, reader, out / SHEET)
    shutil.rmtree(scratch, ignore_errors=True)
    return films


def check_look(look: Look) -> None:
    """Raises UserError for a value that there is not."""
    allowed = {"camera": get_args(Camera), "relative": REFERENCES}
    for name, known in allowed.items():
        value = getattr(look, name)
        if value and value not in known:
            raise UserError(f"--{name} is {value}, but must be one of {', '.join(known)}.")
    if look.measure and look.camera != "driving":
        raise UserError("--measure compares result and driver in one place: leave --camera at driving.")


def find_photos(path: Path) -> list[Path]:
    """The photos and avatars that `path` names: itself, or all in a folder. Raises UserError for none."""
    if not path.exists():
        raise UserError(f"{path} does not exist. Name a photo, a saved avatar, or a folder of them.")
    if not path.is_dir():
        return [path]
    pictures = [path / name for name in find_files(path, PICTURE).files]
    files = sorted([*pictures, *path.rglob(f"*{saved.SUFFIX}")])
    if not files:
        raise UserError(f"{path} holds no photo and no avatar. Name another folder, or a photo.")
    return files


def check_writable(folder: Path) -> None:
    """Raises UserError when nothing can be written to `folder`; makes it when it is not there."""
    probe = write_bytes(folder / ".psi4d-can-write", b"")
    probe.unlink()


def _units(photos: Sequence[Path], drivers: Sequence[Path]) -> list[WorkUnit]:
    units: list[WorkUnit] = []
    for number, driver in enumerate(drivers):
        items = [[str(photo), str(driver)] for photo in photos]
        units += units_of(f"film-{number:06d}", items, PHOTOS_AT_ONCE)
    return units


def _places(
    photos: Sequence[Path],
    drivers: Sequence[Path],
    out: Path,
) -> dict[str, Path]:
    """Where each film goes, by its key."""
    pairs = [(photo, driver) for driver in drivers for photo in photos]
    if len(pairs) == 1 and not out.is_dir():
        return {film_key(*pairs[0]): out}
    places: dict[str, Path] = {}
    for photo, driver in pairs:
        key = film_key(photo, driver)
        place = out / f"{photo.stem}-{driver.stem}.mp4"
        # Two photos may have one name, in two folders or in two formats.
        taken = place in places.values()
        places[key] = out / f"{key}.mp4" if taken else place
    return places


def _rows(done: Sequence[Done]) -> list[dict[str, Any]]:
    """What is known of every film, also of those that killed their worker."""
    rows: list[dict[str, Any]] = []
    for unit in done:
        rows += unit.record.get("films", [])
        for reject in unit.rejects:
            photo, driver = reject.item
            reason = f"{photo} by {driver}: {reject.reason}"
            rows.append({"photo": photo, "driver": driver, "reason": reason})
    return rows


def _publish(rows: Sequence[dict[str, Any]], reader: ShardReader, places: dict[str, Path]) -> list[Film]:
    """Write the films where they belong."""
    films = []
    for row in rows:
        facts = dict(row)
        photo, driver = Path(facts.pop("photo")), Path(facts.pop("driver"))
        place = None
        if not facts["reason"]:
            key = film_key(photo, driver)
            place = write_bytes(places[key], reader.read(key, "film.mp4"))
            if facts.get("measures"):
                _write_measures(facts["measures"], place)
        films.append(Film(photo, driver, place, **facts))
    return films


def _write_measures(measures: dict[str, Any], film: Path) -> None:
    """Write them beside the film, as a JSON and as a table."""
    # It loads SciPy's filters.
    from pipeline.evaluate.film_measures import table

    write_json(film.with_suffix(".json"), measures)
    write_bytes(film.with_suffix(".txt"), table(measures).encode())


def _write_sheet(films: Sequence[Film], reader: ShardReader, path: Path) -> None:
    lines = []
    for film in films:
        if film.path is not None:
            key = film_key(film.photo, film.driver)
            line = decode_picture(reader.read(key, "line.png"))
            lines.append(captioned(line, film.path.name))
    write_bytes(path, encode_jpeg(below(lines, gap=4)))
