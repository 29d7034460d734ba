"""Stage ingest: portraits and clips become tables, with a row for every file and frame, and shards of aligned
faces.

Nothing disappears: a file that cannot be used has a row with status "rejected" and the reason, and so has a
frame. A file that is neither has a row with status "passed over".

Of a clip, one shot is used: the longest with enough faces (pipeline/ingest/shots.py), so that no clip shows
two people. From it `ingest.frames` frames are taken, spread evenly. The official data takes the first 200
frames of a clip and trains on 50 of them (facts 7.1 and 11, issue 13).
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.params import Ingest, Machine
from pipeline.core.checksums import Checksums
from pipeline.core.errors import UserError
from pipeline.core.files import key_of, sha256
from pipeline.core.paths import CHECKSUMS, in_project
from pipeline.engine.fingerprint import code_fingerprint, inputs_fingerprint
from pipeline.engine.job import Job
from pipeline.engine.scratch import publish, scratch_folder
from pipeline.engine.work_unit import WorkUnit, buckets
from pipeline.ingest.crop import cut, fit_crop, five_points, outside_share, smooth_crops, to_aligned
from pipeline.ingest.detector import Face, FaceFinder, face_size
from pipeline.ingest.files import PICTURE, SUFFIXES, VIDEO, Listing, Rejected, find_clips, find_files
from pipeline.ingest.gather import (
    CLIP_UNITS,
    FRAME_ROWS,
    PORTRAIT_UNITS,
    clip_rows,
    face_pixels,
    frame_states,
    frame_tables,
    portrait_table,
    rejected_files,
)
from pipeline.ingest.look import ClipLook
from pipeline.ingest.manifest import files_in
from pipeline.ingest.picture import read_picture
from pipeline.ingest.report import GOOD, PASSED_OVER, REJECTED, Row, is_ok, metrics_of, most_frequent
from pipeline.ingest.sequence import open_clip
from pipeline.ingest.splits import (
    FOLDER,
    HASH,
    check_rule,
    listed_split,
    read_lists,
    recording_of,
    split_clips,
)
from pipeline.store.samples import Aligned
from pipeline.store.shards import Sample
from pipeline.store.tables import CLIPS, FRAMES, PEOPLE, PORTRAITS, Rows, write_parts, write_table

# Settings of the generator, of the splits and of the folders: they change no face and no frame of a file.
OF_OTHERS = {
    "portraits",
    "clips",
    "identities",
    "photos",
    "train_clips",
    "validation_clips",
    "test_clips",
    "portrait_size",
    "clip_size",
    "fps",
    "neck_share",
    "validation_share",
    "test_share",
    "split",
    "recordings",
    "people",
    "shard_size",
}


def ingest(
    settings: Ingest, image: int, machine: Machine, portraits: Path, clips: Path, out: Path
) -> dict[str, Any]:
    """Ingest the two folders at `image` pixels; returns the metrics.

    Writes portraits, clips and frames .parquet and the folder shards to `out`. Raises UserError when a folder
    holds nothing, nothing of it can be used, or there are not three clips, one for each split.
    """
    listings = _listings(settings, portraits, clips)
    work = _job(
        settings,
        image,
        portraits,
        clips,
        listings,
    )
    scratch = scratch_folder(work.label, work.mark)
    done = work.run(scratch, machine)
    portrait_faces, films = portrait_table(done, scratch), clip_rows(done)
    photos = portrait_faces.select(["file", "status", "reason", "width"]).to_pylist()
    _check_some(photos, portraits, "portraits")
    _check_some(films, clips, "clips")
    splits = split_clips(films, settings)
    for row in films:
        row["split"] = splits[row["key"]]
    # Only now, so that no message counts files that were never meant to be read.
    ignored, ignored_films = (_passed_over(listing) for listing in listings)
    films = sorted(films + ignored_films, key=lambda row: row["file"])
    rows = pa.concat_tables([portrait_faces, pa.Table.from_pylist(ignored, PORTRAITS)]).sort_by("file")
    write_table(out / "portraits.parquet", rows)
    _write_people(out / "people.parquet", rows, settings)
    write_table(out / "clips.parquet", pa.Table.from_pylist(films, CLIPS))
    # The frames of a clip go with it.
    write_parts(out / "frames.parquet", FRAMES, frame_tables(done, scratch, splits))
    frames = frame_states(done, scratch)
    publish(scratch, out / "shards")
    return metrics_of(
        photos + ignored,
        films,
        frames,
        face_pixels(done, PORTRAIT_UNITS),
        face_pixels(done, CLIP_UNITS),
    )


def job(
    settings: Ingest,
    image: int,
    portraits: Path,
    clips: Path,
) -> Job:
    """The units of the stage and their worker. Raises UserError when a folder holds nothing."""
    return _job(
        settings,
        image,
        portraits,
        clips,
        _listings(settings, portraits, clips),
    )


def _job(
    settings: Ingest, image: int, portraits: Path, clips: Path, listings: tuple[Listing, Listing]
) -> Job:
    portrait_files, clip_files = (listing.files for listing in listings)
    parts = buckets(portrait_files, settings.shard_size)
    names = {f"{PORTRAIT_UNITS}-{number:06d}": files for number, files in parts.items()}
    inputs = _Inputs(settings, image)
    units = inputs.units(portraits, names)
    units += inputs.units(clips, {f"{CLIP_UNITS}-{key_of(file)}": [file] for file in clip_files})
    inputs.sums.save()
    return Job(
        label="ingest",
        units=units,
        make_worker=partial(
            Ingester,
            settings,
            image,
            portraits.resolve(),
            clips.resolve(),
        ),
        counts={"files": 1},
        rejected=rejected_files,
    )


class _Inputs:
    """What units depend on: the contents of their files, and the settings that their worker reads."""

    def __init__(self, settings: Ingest, image: int) -> None:
        self.code = code_fingerprint(__file__)
        self.settings = inputs_fingerprint(settings.model_dump(exclude=OF_OTHERS), image)
        self.sums = Checksums(CHECKSUMS)

    def units(self, folder: Path, files_of: Mapping[str, list[str]]) -> list[WorkUnit]:
        """A unit for each name, with its files as items."""
        units = []
        for name, items in files_of.items():
            paths = files_in(folder, items)
            contents = []
            for path, found in zip(paths, self.sums.of(paths), strict=True):
                contents.append([path.relative_to(folder).as_posix(), str(found)])
            inputs = inputs_fingerprint(self.settings, contents)
            units.append(WorkUnit(name, items, inputs, self.code))
        return units


class Ingester:
    """The worker of one process.

    A unit is a batch of portraits or one clip, as the prefix of its name says; its items are paths relative
    to the folder of the kind.
    """

    def __init__(
        self,
        settings: Ingest,
        image: int,
        portraits: Path,
        clips: Path,
    ):
        self.settings, self.image, self.portraits, self.clips = settings, image, portraits, clips
        self.faces = FaceFinder(settings.detection_score, settings.min_face)

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        if unit.name.startswith(PORTRAIT_UNITS):
            rows, pixels = Rows(PORTRAITS), []
            record = {PORTRAIT_UNITS: rows, "face_pixels": pixels}
            return self._portraits(unit, rows.rows, pixels), record
        [file] = unit.items
        clip: Row = {"key": key_of(file), "file": file, **GOOD}
        rows, pixels = Rows(FRAMES), []
        record = {"clip": clip, FRAME_ROWS: rows, "face_pixels": pixels}
        return self._clip(clip, f"{unit.name}.tar", rows.rows, pixels), record

    def _portraits(
        self,
        unit: WorkUnit,
        rows: list[Row],
        pixels: list[float],
    ) -> Iterator[Sample]:
        for file in unit.items:
            row = {"key": key_of(file), "file": file, "width": 0, "height": 0} | GOOD
            rows.append(row)
            try:
                picture = read_picture(self.portraits / file)
                row["height"], row["width"] = picture.shape[:2]
                face = self._find(picture)
            except Rejected as reason:
                row |= {"status": REJECTED, "reason": str(reason)}
                continue
            crop = fit_crop(five_points(face.mesh_478))
            row |= _face_columns(face, crop, picture, f"{unit.name}.tar")
            pixels.append(face_size(face.mesh_478))
            yield row["key"], self._fields(picture, crop)

    def _clip(
        self,
        row: Row,
        shard: str,
        frames: list[Row],
        pixels: list[float],
    ) -> Iterator[Sample]:
        file = row["file"]
        row |= dict.fromkeys(("fps", "seconds"), 0.0)
        row |= dict.fromkeys(("width", "height", "frames_declared", "frames_decoded", "frames_ok"), 0)
        look = ClipLook(
            self.settings,
            self._find,
            row,
            frames,
        )
        try:
            row["content"] = _content(self.clips / file)
            clip = open_clip(self.clips / file, self.settings.frame_rate)
            look.at(clip)
        except Rejected as reason:
            row |= {"status": REJECTED, "reason": str(reason)}
            look.reject_frames("its clip is rejected")
            return
        usable = [frame for frame in frames if is_ok(frame)]
        indices = [frame["index"] for frame in usable]
        crops = self._crops(usable, look)
        # The clip is decoded once more, so that it is never in memory as a whole.
        for frame, crop, shown in zip(
            usable,
            crops,
            clip.frames(indices),
            strict=True,
        ):
            if zlib.crc32(shown.picture) != look.sums[shown.index]:
                # The engine tries the clip again, and gives it up by name when that does not help.
                raise ValueError(f"frame {shown.index} of {file} was another picture when it was read again")
            face = look.faces[shown.index]
            frame |= _face_columns(face, crop, shown.picture, shard)
            pixels.append(face_size(face.mesh_478))
            yield frame["key"], self._fields(shown.picture, crop)

    def _crops(self, frames: Sequence[Row], look: ClipLook) -> np.ndarray:
        """The crops of the frames of a clip, (N, 3)."""
        meshes = [look.faces[frame["index"]].mesh_478 for frame in frames]
        crops = np.stack([fit_crop(five_points(mesh_478)) for mesh_478 in meshes])
        if not self.settings.smooth_crop:
            return crops
        seconds = np.array([frame["seconds"] for frame in frames])
        return smooth_crops(crops, seconds)

    def _find(self, picture: np.ndarray) -> Face:
        """The upright face in a picture, with the most of its head. Raises Rejected."""
        face = self.faces.find(picture)
        outside, allowed = _outside(face, picture), self.settings.max_outside
        if outside > allowed:
            told = f"{outside:.0%} of it are outside, at most {allowed:.0%} allowed (ingest.max_outside)"
            raise Rejected(f"head cut by the edge of the picture: {told}")
        # Generated heads are upright, and of a thousand of them three would be taken for upside-down ones.
        if self.settings.source == "folder":
            self.faces.check_upright(picture, face)
        return face

    def _fields(self, picture: np.ndarray, crop: np.ndarray) -> dict[str, bytes]:
        mask = self.faces.mask(picture, crop, self.image)
        return Aligned.encode(image=cut(picture, crop, self.image), mask=mask)


def _write_people(path: Path, portraits: pa.Table, settings: Ingest) -> None:
    """Whom the usable portraits show, when their folders say it; otherwise there is no such table."""
    if settings.source == "generated" or settings.people == "file":
        path.unlink(missing_ok=True)
        return
    people = []
    for row in portraits.select(["key", "file", "status"]).to_pylist():
        if is_ok(row):
            people.append({"key": row["key"], "person": recording_of(row["file"], FOLDER)})
    write_table(path, pa.Table.from_pylist(people, PEOPLE))


def _content(path: Path) -> str:
    """The hash of a file, or those of all files of a folder in the order of their names."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    try:
        return " ".join(sha256(file) for file in files)
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from error


def _outside(face: Face, picture: np.ndarray) -> float:
    height, width = picture.shape[:2]
    return outside_share(face.mesh_478, width, height)


def _face_columns(
    face: Face,
    crop: np.ndarray,
    picture: np.ndarray,
    shard: str,
) -> Row:
    landmarks = to_aligned(face.mesh_478, crop).astype(np.float32)
    columns = {"box": list(face.box), "score": face.score, "landmarks": landmarks.ravel()}
    return columns | {"crop": crop.tolist(), "outside": _outside(face, picture), "shard": shard}


def _listings(
    settings: Ingest,
    portraits: Path,
    clips: Path,
) -> tuple[Listing, Listing]:
    """What the two folders hold. Raises UserError when there is nothing to read."""
    check_rule(settings.recordings)
    pictures, films = find_files(portraits, PICTURE), find_clips(clips)
    if settings.source == "folder" and settings.split != HASH:
        lists = read_lists(in_project(settings.split))
        for file in list(films.files):
            if listed_split(file, lists) is None:
                films.files.remove(file)
                films.passed_over[file] = "in no list of ingest.split"
    _check_found(
        pictures,
        portraits,
        "portraits",
        PICTURE,
    )
    _check_found(
        films,
        clips,
        "clips",
        VIDEO,
    )
    return pictures, films


def _check_found(
    listing: Listing,
    folder: Path,
    key: str,
    kind: str,
) -> None:
    if listing.files:
        return
    others = len(listing.passed_over)
    if not folder.is_dir():
        state = "does not exist"
    elif others:
        example, reason = next(iter(listing.passed_over.items()))
        state = f"holds none ({others} other files, for example {example}: {reason})"
    else:
        state = "is empty"
    suffixes = " ".join(sorted(SUFFIXES[kind]))
    raise UserError(
        f"no {key} to read: the folder {folder} (ingest.{key}) {state}. Put {suffixes} files there, name "
        "another folder in params.yaml, or set ingest.source: generated."
    )


def _passed_over(listing: Listing) -> list[Row]:
    """A row for every file that was never meant to be read."""
    rows = []
    for file, reason in listing.passed_over.items():
        row: Row = {"key": key_of(file), "file": file, "status": PASSED_OVER, "reason": reason}
        rows.append(row | {"width": 0, "height": 0, "split": ""})
    return rows


def _check_some(
    rows: Sequence[Row],
    folder: Path,
    key: str,
) -> None:
    if not any(map(is_ok, rows)):
        example = rows[0]
        raise UserError(
            f"none of the {len(rows)} {key} in {folder} can be used: {most_frequent(rows)} "
            f"(for example {example['file']}: {example['reason']}). Check ingest.{key}, ingest.min_face, "
            "ingest.max_outside, ingest.min_frames and ingest.detection_score in params.yaml."
        )
