"""Stage ingest: portraits and clips become tables with a row for every file and frame, and shards of aligned pictures with masks.

Nothing disappears: what cannot be used has a row with status "rejected" and the reason. Of a clip the official data takes the first 200
frames and trains on 50 of them (facts 7.1 and 11, issue 13), in the mean every fourth; so here `frames` frames are taken from the first 200
with an even step of at most four.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.params import Ingest, Machine
from pipeline.core.errors import UserError
from pipeline.core.files import key_of
from pipeline.core.paths import GENERATED
from pipeline.core.splits import SPLITS, split_folder
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.job import Job
from pipeline.engine.scratch import publish, scratch_folder
from pipeline.engine.work_unit import Done, WorkUnit, units_of
from pipeline.ingest.crop import cut, fit_crop, five_points, smooth_crops, to_aligned
from pipeline.ingest.detector import Face, FaceFinder, face_size
from pipeline.ingest.reader import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Rejected,
    find_files,
    probe_video,
    read_frames,
    read_image,
)
from pipeline.store.samples import Aligned
from pipeline.store.shards import Sample
from pipeline.store.tables import CLIPS, FRAMES, PORTRAITS, write_table

WINDOW = 200  # frames from the start of a clip
LARGEST_STEP = 4


Row = dict[str, Any]
GOOD = {"status": "ok", "reason": ""}


def ingest(
    settings: Ingest, image: int, machine: Machine, portraits: Path, clips: Path, out: Path
) -> dict[str, Any]:
    """Ingest the two folders at `image` pixels; writes portraits, clips and frames .parquet and shards/ to `out`, returns the metrics.

    Raises UserError when a folder holds nothing, nothing of it can be used, or there are not three clips, one for each split.
    """
    _, other_images = _list(portraits, IMAGE_SUFFIXES, "portraits", settings)
    _, other_videos = _list(clips, VIDEO_SUFFIXES, "clips", settings)
    work = job(settings, image, portraits, clips)
    scratch = scratch_folder(work.label, work.mark)
    done = work.run(scratch, machine)
    portrait_rows, clip_rows, frame_rows = _rows(done)
    _check_some(portrait_rows, portraits, "portraits")
    _check_some(clip_rows, clips, "clips")
    splits = split_clips(clip_rows, settings)
    for row in clip_rows:
        row["split"] = splits[row["key"]]
    for row in frame_rows:
        row["split"] = splits[row["clip"]]
    for name, schema, rows in (
        ("portraits", PORTRAITS, portrait_rows),
        ("clips", CLIPS, clip_rows),
        ("frames", FRAMES, frame_rows),
    ):
        write_table(out / f"{name}.parquet", pa.Table.from_pylist(rows, schema))
    publish(scratch, out / "shards")
    return _metrics(portrait_rows, clip_rows, frame_rows, other_images, other_videos)


def job(settings: Ingest, image: int, portraits: Path, clips: Path) -> Job:
    """The units of the stage and their worker. Raises UserError when a folder holds nothing."""
    portrait_files, _ = _list(portraits, IMAGE_SUFFIXES, "portraits", settings)
    clip_files, _ = _list(clips, VIDEO_SUFFIXES, "clips", settings)
    stamps = _stamps(portraits, portrait_files), _stamps(clips, clip_files)
    return Job(
        label="ingest",
        mark=fingerprint(__file__, settings, image, *stamps),
        units=units_of("portraits", portrait_files, settings.shard_size) + units_of("clips", clip_files, 1),
        make_worker=partial(Ingester, settings, image, portraits.resolve(), clips.resolve()),
        counts={"files": 1},
    )


def source_folders(settings: Ingest) -> tuple[Path, Path]:
    """Where portraits and clips are read: the generated ones or those of the user."""
    if settings.source == "generated":
        return GENERATED / "portraits", GENERATED / "clips"
    return Path(settings.portraits), Path(settings.clips)


def choose_frames(available: int, most: int) -> range:
    """Which frames of a clip of `available` frames are used, at most `most` of them (see the module's docstring)."""
    step = min(max(min(available, WINDOW) // most, 1), LARGEST_STEP)
    return range(0, min(available, WINDOW, most * step), step)


def split_clips(rows: Sequence[Row], settings: Ingest) -> dict[str, str]:
    """The split, train, validation or test, for the key of every clip.

    A generated file says it in its name; for a folder see `split_folder`. Raises UserError when a split would have no usable clip.
    """
    usable = [row for row in rows if row["status"] == "ok"]
    if settings.source == "generated":
        splits = {row["key"]: Path(row["file"]).name.split("-")[0] for row in rows}
    else:
        files, good = [row["file"] for row in rows], [row["file"] for row in usable]
        found = split_folder(files, good, settings.validation_share, settings.test_share)
        splits = {row["key"]: found[row["file"]] for row in rows}
    counts = Counter(splits[row["key"]] for row in usable)
    if len(counts) < len(SPLITS):
        more = (
            "Add clips to ingest.clips"
            if settings.source == "folder"
            else "Raise ingest.train_clips, validation_clips and test_clips"
        )
        reasons = _reasons(rows)
        raise UserError(
            f"of {len(rows)} clips {len(usable)} can be used, but training, validation and testing need one each at least"
            + (f" (rejected: {reasons}). " if reasons else ". ") + f"{more} in params.yaml."
        )  # fmt: skip
    return splits


class Ingester:
    """The worker of one process. A unit is a batch of portraits or one clip, as the prefix of its name says; its items are file names."""

    def __init__(self, settings: Ingest, image: int, portraits: Path, clips: Path):
        self.settings, self.image, self.portraits, self.clips = settings, image, portraits, clips
        self.faces = FaceFinder(settings.detection_score, settings.min_face)

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, list[Row]]]:
        record: dict[str, list[Row]] = {"portraits": [], "clips": [], "frames": []}
        if unit.name.startswith("portraits"):
            return self._portraits(unit, record["portraits"]), record
        return self._clip(unit.items[0], f"{unit.name}.tar", record), record

    def _portraits(self, unit: WorkUnit, rows: list[Row]) -> Iterator[Sample]:
        for file in unit.items:
            row = {"key": key_of(file), "file": file, "width": 0, "height": 0} | GOOD
            rows.append(row)
            try:
                picture = read_image(self.portraits / file)
                row |= {"width": picture.shape[1], "height": picture.shape[0]}
                face = self.faces.find(picture)
            except Rejected as reason:
                row |= {"status": "rejected", "reason": str(reason)}
                continue
            crop = fit_crop(five_points(face.mesh_478))
            row |= _face_columns(face, crop, f"{unit.name}.tar")
            yield row["key"], self._fields(picture, crop)

    def _clip(self, file: str, shard: str, record: dict[str, list[Row]]) -> Iterator[Sample]:
        path = self.clips / file
        row: Row = {
            "key": key_of(file),
            "file": file,
            "fps": 0.0,
            "seconds": 0.0,
            "width": 0,
            "height": 0,
        } | GOOD
        row |= {"frames_declared": 0, "frames_decoded": 0, "frames_ok": 0}
        record["clips"].append(row)
        rows = record["frames"]
        try:
            faces = self._look(path, row, rows)
        except Rejected as reason:
            row |= {"status": "rejected", "reason": str(reason)}
            for frame in rows:
                if frame["status"] == "ok":
                    frame |= {"status": "rejected", "reason": "its clip is rejected"}
            return
        usable = [frame for frame in rows if frame["status"] == "ok"]
        indices = [frame["index"] for frame in usable]
        crops = np.stack([fit_crop(five_points(faces[index].mesh_478)) for index in indices])
        if self.settings.smooth_crop:
            crops = smooth_crops(crops, np.array([frame["seconds"] for frame in usable]))
        decoded = read_frames(path, indices)  # a second time, so that a clip is never in memory as a whole
        for frame, crop, (index, _, picture) in zip(usable, crops, decoded, strict=True):
            frame |= _face_columns(faces[index], crop, shard)
            yield frame["key"], self._fields(picture, crop)

    def _look(self, path: Path, row: Row, frames: list[Row]) -> dict[int, Face]:
        """Probe the clip, fill its row and those of its frames, and return the faces of the good ones. Raises Rejected."""
        video = probe_video(path)
        row |= {
            "fps": video.fps,
            "frames_declared": video.declared,
            "width": video.width,
            "height": video.height,
            "seconds": video.seconds,
        }
        if video.packets < video.declared:
            raise Rejected(f"truncated: {video.packets} of {video.declared} frames")
        chosen = choose_frames(video.packets, self.settings.frames)
        if len(chosen) < self.settings.min_frames:
            raise Rejected(f"clip too short: {len(chosen)} frames, {self.settings.min_frames} needed")
        faces = {}
        for index, seconds, picture in read_frames(path, chosen):
            frame = {
                "key": f"{row['key']}-{index:06d}",
                "clip": row["key"],
                "index": index,
                "seconds": seconds,
            } | GOOD
            frames.append(frame)
            row |= {
                "width": picture.shape[1],
                "height": picture.shape[0],
            }  # the container gives the size before it is turned
            try:
                faces[index] = self.faces.find(picture)
            except Rejected as reason:
                frame |= {"status": "rejected", "reason": str(reason)}
        row |= {"frames_decoded": len(frames), "frames_ok": len(faces)}
        if not frames:
            raise Rejected("0 frames decoded")
        if len(frames) < len(chosen):
            raise Rejected(f"truncated: {len(frames)} of {len(chosen)} frames")
        if not faces:
            raise Rejected(Counter(frame["reason"] for frame in frames).most_common(1)[0][0])
        if len(faces) < self.settings.min_frames:
            good = f"{len(faces)} good frames of {len(frames)}"
            raise Rejected(f"clip too short: {good}, {self.settings.min_frames} needed ({_reasons(frames)})")
        return faces

    def _fields(self, picture: np.ndarray, crop: np.ndarray) -> dict[str, bytes]:
        mask = self.faces.mask(picture, crop, self.image)
        return Aligned.encode(image=cut(picture, crop, self.image), mask=mask)


def _face_columns(face: Face, crop: np.ndarray, shard: str) -> Row:
    landmarks = to_aligned(face.mesh_478, crop).astype("<f4")
    packed = base64.b64encode(
        landmarks.tobytes()
    ).decode()  # as text in the engine's JSON a float would take 20 letters
    return {
        "box": list(face.box),
        "score": face.score,
        "landmarks": packed,
        "crop": crop.tolist(),
        "shard": shard,
    }


def _list(folder: Path, suffixes: frozenset[str], key: str, settings: Ingest) -> tuple[list[str], int]:
    files, others = find_files(folder, suffixes)
    if not files:
        state = (
            "does not exist"
            if not folder.is_dir()
            else f"holds none ({others} other files)"
            if others
            else "is empty"
        )
        raise UserError(
            f"no {key} to read: the folder {folder} (ingest.{key}) {state}. Put {' '.join(sorted(suffixes))} files there, "
            "name another folder in params.yaml, or set ingest.source: generated."
        )
    return files, others


def _stamps(folder: Path, files: Sequence[str]) -> list[tuple[str, int, int]]:
    """What tells changed files from unchanged ones; reading all of them would take as long as the work."""
    found = [(file, folder / file) for file in files]
    return [
        (file, path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (file, -1, 0)
        for file, path in found
    ]


def _rows(done: Sequence[Done]) -> tuple[list[Row], list[Row], list[Row]]:
    """All rows of portraits, clips and frames in order, with the landmarks as numbers again."""
    tables = [
        [row for unit in done for row in unit.record.get(kind, [])]
        for kind in ("portraits", "clips", "frames")
    ]
    for unit in done:
        for reject in unit.rejects:
            row = {
                "key": key_of(reject.item),
                "file": reject.item,
                "status": "rejected",
                "reason": f"given up: {reject.reason}",
            }
            tables[0 if unit.name.startswith("portraits") else 1].append(row | {"width": 0, "height": 0})
    for table in tables[:2]:
        table.sort(key=lambda row: row["file"])  # as they were listed
    for row in tables[0] + tables[2]:
        if row["status"] == "ok":
            row["landmarks"] = np.frombuffer(base64.b64decode(row["landmarks"]), "<f4")
    return tables[0], tables[1], tables[2]


def _kind(reason: str) -> str:
    return reason.split(":")[0]


def _rejected(rows: Sequence[Row]) -> dict[str, int]:
    return dict(sorted(Counter(_kind(row["reason"]) for row in rows if row["status"] != "ok").items()))


def _reasons(rows: Sequence[Row]) -> str:
    """The most frequent reasons in words."""
    counts = sorted(_rejected(rows).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} x {reason}" for reason, count in counts[:4])


def _check_some(rows: Sequence[Row], folder: Path, key: str) -> None:
    if not any(row["status"] == "ok" for row in rows):
        example = rows[0]
        raise UserError(
            f"none of the {len(rows)} {key} in {folder} can be used: {_reasons(rows)} "
            f"(for example {example['file']}: {example['reason']}). "
            f"Check ingest.{key}, ingest.min_face, ingest.min_frames and ingest.detection_score in params.yaml."
        )


def _metrics(
    portraits: list[Row], clips: list[Row], frames: list[Row], other_images: int, other_videos: int
) -> dict[str, Any]:
    """Counts of what was taken and why the rest was not, the share of readable portraits with a face, face sizes in source pixels."""
    result: dict[str, Any] = {
        name: {"ok": sum(row["status"] == "ok" for row in rows), "rejected": _rejected(rows)}
        for name, rows in (("portraits", portraits), ("clips", clips), ("frames", frames))
    }
    for name, rows in (("portraits", portraits), ("frames", frames)):
        sizes = [_source_size(row) for row in rows if row["status"] == "ok"]
        result[name]["median_face_pixels"] = round(float(np.median(sizes)), 1)
    readable = [row for row in portraits if row["width"]]
    result["portraits"]["face_share"] = round(
        sum(_kind(row["reason"]) != "no face" for row in readable) / len(readable), 4
    )
    result["portraits"]["ignored_files"], result["clips"]["ignored_files"] = other_images, other_videos
    for split in SPLITS:
        result["clips"][split] = sum(row["status"] == "ok" and row["split"] == split for row in clips)
    return result


def _source_size(row: Row) -> float:
    return face_size(np.asarray(row["landmarks"]).reshape(478, 3)) / row["crop"][0]
