"""Portraits and talking clips of people who do not exist, and the truth about them.

This is what `ingest.source: generated` makes. It takes no licensed model and no data set to run the graph,
and where the truth is known, it measures what no real video allows. Every person of a clip appears in that
clip only. What is drawn depends on (seed, name of the file, frame) alone.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.params import Ingest, Params
from pipeline.core.errors import UserError
from pipeline.core.files import key_of, write_bytes
from pipeline.core.films import encode_mp4
from pipeline.core.paths import GENERATED, TRUTH
from pipeline.core.seeds import rng
from pipeline.core.splits import SPLITS
from pipeline.engine.fingerprint import code_fingerprint, inputs_fingerprint
from pipeline.engine.job import Job
from pipeline.engine.scratch import keep, scratch_folder
from pipeline.engine.work_unit import Done, WorkUnit, units_of
from pipeline.geometry.camera import project, rotation, sample_look_at
from pipeline.geometry.label import Label
from pipeline.geometry.standin import standin
from pipeline.store.samples import DEPTH_UNIT, DrawnClip, DrawnPortrait, TrueViews
from pipeline.store.shards import Sample, ShardReader, write_shard
from pipeline.store.tables import TRUE_FRAMES, TRUE_IDENTITIES, TRUE_PORTRAITS, write_table
from pipeline.synthetic.animation import Shot, clip, photo, with_face_of
from pipeline.synthetic.person import Person, Z, person
from pipeline.synthetic.raster import render
from pipeline.synthetic.scene import Figure, figure, pose

NOVEL_VIEWS = 4  # per frame
NOVEL_EVERY = 8  # frames of a held-out clip
COUNTS = {"identities", "photos", "train_clips", "validation_clips", "test_clips"}  # they change no file
TRUE_FIELDS = (DrawnPortrait.mask, DrawnPortrait.depth)  # what the truth keeps of a portrait


def latent(seed: int, identity: str) -> np.ndarray:
    """The 512 numbers of an identity, N(0, 1)."""
    generator = rng(seed, "generated person", identity)
    return generator.normal(size=Z).astype(np.float32)


def true_label(someone: Person, shot: Shot) -> np.ndarray:
    """The label (437,) float32 (facts 5.4).

    The camera holds the whole head rotation, which the neck part says once more.
    """
    face = shot.moment
    label = Label(
        shot.camera,
        someone.shape,
        face.expression,
        shot.rotation,
        face.jaw,
        face.eyes,
    )
    return label.pack().astype(np.float32)


def true_landmarks(body: Figure, shot: Shot, size: int) -> np.ndarray:
    """The 70 landmarks in pixels of the raw image, (70, 2) float32."""
    model = standin()
    # Teeth and hair come after the head and have no landmarks.
    head = pose(body, shot.moment)[: len(model.template_V3)]
    triangles = model.faces_F3[model.landmark_faces]
    weighted = head[triangles] * model.landmark_weights[..., None]
    pixels = project(weighted.sum(1), shot.camera) * size
    return pixels.astype(np.float32)


@dataclass(frozen=True)
class Artist:
    """The worker: draws the portraits of some identities, or one clip.

    Its record has the rows of the truth.
    """

    settings: Ingest
    image: int  # pixels of the true novel views
    seed: int

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        # The rows are filled while the samples are taken, and the record is written after the last of them.
        rows: list[dict[str, Any]] = []
        return self._samples(unit, rows), {"rows": rows}

    def _samples(self, unit: WorkUnit, rows: list[dict]) -> Iterator[Sample]:
        draw = self._portrait if unit.name.startswith("portraits") else self._clip
        for file in unit.items:
            yield from draw(file, rows)

    def _portrait(self, file: str, rows: list[dict]) -> Iterator[Sample]:
        identity = file.rsplit("-", 1)[0]
        size = self.settings.portrait_size
        body = self._figure(identity)
        generator = rng(self.seed, "photo", file)
        shot = photo(generator)
        picture = render(body, shot.moment, shot.camera, size)
        names = {"file": file, "identity": identity}
        rows.append(names | _truth(body, shot, size))
        # 16 bits hold 6.5 world units, and 0 says that nothing is there.
        seen = np.isfinite(picture.depth)
        steps = np.where(seen, picture.depth / DEPTH_UNIT, 0)
        depth = np.round(steps)
        sample = DrawnPortrait.encode(
            image=picture.rgb,
            mask=_grey(picture.alpha),
            depth=depth.astype(np.uint16),
        )
        yield key_of(file), sample

    def _clip(self, file: str, rows: list[dict]) -> Iterator[Sample]:
        identity = f"clip-{Path(file).stem}"
        size = self.settings.clip_size
        split = file.split("-")[0]
        fps = self.settings.fps
        body = self._figure(identity)
        generator = rng(self.seed, "clip", file)
        shots = clip(generator, self.settings.frames, fps, self.settings.neck_share)
        pictures = (render(body, shot.moment, shot.camera, size).rgb for shot in shots)
        # The pictures are drawn while they are encoded: a clip never lies in memory.
        film = encode_mp4(pictures, fps)
        yield key_of(file), DrawnClip.encode(clip=film)
        for index, shot in enumerate(shots):
            row = {
                "file": file,
                "clip": file,
                "index": index,
                "identity": identity,
                "split": split,
                "extra": shot.moment.extra.tolist(),
            }
            rows.append(row | _truth(body, shot, size))
            # Drawing other views of every frame would take longer than all the rest.
            middle = index % NOVEL_EVERY == NOVEL_EVERY // 2
            if split != "train" and middle:
                yield self._novel(file, index, body, shot, shots[0])

    def _figure(self, identity: str) -> Figure:
        z = latent(self.seed, identity)
        return figure(person(z))

    def _novel(
        self,
        file: str,
        index: int,
        body: Figure,
        shot: Shot,
        first: Shot,
    ) -> Sample:
        """True views of a frame from other sides, under the light that falls on it in the frame.

        The first of them is drawn once more with the face of the clip's `first` frame, so that what the
        motion alone changes in it is known.
        """
        generator = rng(self.seed, "novel views", file, index)
        cameras = [sample_look_at(generator) for _ in range(NOVEL_VIEWS)]
        # The light stays where it is for the clip's camera, whichever camera looks.
        room = rotation(shot.camera)
        views = [render(body, shot.moment, camera, self.image, room) for camera in cameras]
        still = with_face_of(shot.moment, first.moment)
        unmoved = render(body, still, cameras[0], self.image, room)
        sample = TrueViews.encode(
            cameras=np.stack(cameras),
            view=[view.rgb for view in views],
            alpha=[_grey(view.alpha) for view in views],
            depth=[view.depth for view in views],
            unmoved=unmoved.rgb,
        )
        return f"{key_of(file)}-{index:06d}", sample


def _grey(alpha: np.ndarray) -> np.ndarray:
    levels = np.round(alpha * 255)
    return levels.astype(np.uint8)


def _truth(body: Figure, shot: Shot, size: int) -> dict[str, Any]:
    """The columns that the tables of portraits and of frames have in common."""
    label = true_label(body.person, shot)
    landmarks = true_landmarks(body, shot, size)
    return {
        "camera": shot.camera.tolist(),
        "label": label.tolist(),
        "landmarks": landmarks.ravel().tolist(),
    }


def generate(
    params: Params,
    out: Path = GENERATED,
    truth: Path = TRUTH,
) -> None:
    """Fill `out` (portraits/*.png, clips/*.mp4) and `truth`.

    The truth has the tables identities, portraits and frames, and shards masks-*, views-*. The bytes are the
    same for any number of workers; a stopped run goes on where it was. Raises UserError when a file could not
    be drawn.
    """
    settings = params.ingest
    portraits = _portraits(settings)
    clips = _clips(settings)
    job = _job(params, portraits, clips)
    scratch = scratch_folder(job.label, job.mark)
    done = _draw(job, scratch, params)
    # What an earlier run made stays until all files are drawn.
    for folder in (out / "portraits", out / "clips", truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    reader = ShardReader(scratch)
    for file in portraits:
        picture = reader.read(key_of(file), DrawnPortrait.image.file)
        write_bytes(out / "portraits" / file, picture)
    for file in clips:
        film = reader.read(key_of(file), DrawnClip.clip.file)
        write_bytes(out / "clips" / file, film)
    _write_shards(reader, truth, portraits, clips, settings.shard_size)
    true_portraits = _rows(done, "portraits")
    true_frames = _rows(done, "clip")
    _write_tables(truth, params.seed, true_portraits, true_frames)
    keep(scratch)


def _job(params: Params, portraits: list[str], clips: list[str]) -> Job:
    """The units and their worker: other numbers of people or of clips draw no other file anew."""
    settings = params.ingest
    drawn_by = settings.model_dump(exclude=COUNTS)
    inputs = inputs_fingerprint(drawn_by, params.networks.image, params.seed)
    code = code_fingerprint(__file__)
    units = units_of("portraits", portraits, settings.shard_size, inputs, code)
    units += [WorkUnit(f"clip-{Path(file).stem}", [file], inputs, code) for file in clips]
    return Job(
        label="generate",
        units=units,
        make_worker=partial(Artist, settings, params.networks.image, params.seed),
        counts={"files": 1},
    )


def _draw(job: Job, scratch: Path, params: Params) -> list[Done]:
    """Draw the files into shards of `scratch`, those that an earlier run has not drawn."""
    done = job.run(scratch, params.machine)
    # Here no file is a user's, which may be broken: a reject is a fault of ours.
    rejects = [reject for unit in done for reject in unit.rejects]
    if rejects:
        first = rejects[0]
        raise UserError(
            f"generate: {len(rejects)} files could not be drawn, the first {first.item}: {first.reason}"
        )
    return done


def _portraits(settings: Ingest) -> list[str]:
    names = [f"person{number:05d}" for number in range(settings.identities)]
    return [f"{name}-{number}.png" for name in names for number in range(settings.photos)]


def _clips(settings: Ingest) -> list[str]:
    clips = []
    for split in SPLITS:
        count = getattr(settings, f"{split}_clips")
        clips += [f"{split}-{number:04d}.mp4" for number in range(count)]
    return clips


def _rows(done: list[Done], kind: str) -> list[dict[str, Any]]:
    """The rows of the units whose names begin with `kind`, in their order."""
    rows = []
    for unit in done:
        if unit.name.startswith(kind):
            rows += unit.record["rows"]
    return rows


def _write_shards(
    reader: ShardReader,
    truth: Path,
    portraits: list[str],
    clips: list[str],
    shard_size: int,
) -> None:
    """Masks and depths of the portraits, and the true views of clips."""
    # Samples are read one by one, as a shard may be larger than memory.
    for unit in units_of("masks", portraits, shard_size):
        samples = (_true_fields(reader, key_of(file)) for file in unit.items)
        write_shard(truth / f"{unit.name}.tar", samples)
    drawn = {key_of(file) for file in [*portraits, *clips]}
    novel = sorted(set(reader.keys()) - drawn)
    for unit in units_of("views", novel, shard_size):
        samples = ((key, reader.read(key)) for key in unit.items)
        write_shard(truth / f"{unit.name}.tar", samples)


def _true_fields(reader: ShardReader, key: str) -> Sample:
    files = [field.file for field in TRUE_FIELDS]
    return key, {file: reader.read(key, file) for file in files}


def _write_tables(
    truth: Path,
    seed: int,
    portraits: list[dict],
    frames: list[dict],
) -> None:
    people = sorted({row["identity"] for row in [*portraits, *frames]})
    identities = [{"identity": name, "z": latent(seed, name).tolist()} for name in people]
    for name, rows, schema in (
        ("identities", identities, TRUE_IDENTITIES),
        ("portraits", portraits, TRUE_PORTRAITS),
        ("frames", frames, TRUE_FRAMES),
    ):
        table = pa.Table.from_pylist(rows, schema)
        write_table(truth / f"{name}.parquet", table)
