"""Portraits and talking clips of people who do not exist, and the truth about them: what `ingest.source: generated` makes.

Nobody needs a licensed model or a data set to run the graph, and where the truth is known, it can measure what nobody can on real video.
Every person of a clip appears in that clip only. What is drawn depends on (seed, name of the file, frame) alone.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.params import Ingest, Params
from pipeline.core.errors import UserError
from pipeline.core.files import key_of, write_bytes
from pipeline.core.films import encode_mp4
from pipeline.core.seeds import rng
from pipeline.core.splits import SPLITS
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import scratch_folder
from pipeline.engine.work_unit import WorkUnit, units_of
from pipeline.geometry.camera import project, rotation, sample_look_at
from pipeline.geometry.label import Label
from pipeline.geometry.standin import standin
from pipeline.store.samples import DEPTH_UNIT, DrawnClip, DrawnPortrait, TrueViews
from pipeline.store.shards import Sample, ShardReader, write_shard
from pipeline.store.tables import write_table
from pipeline.synthetic.animation import Shot, clip, photo, with_face_of
from pipeline.synthetic.person import Person, Z, person
from pipeline.synthetic.raster import Picture, render
from pipeline.synthetic.scene import Figure, figure, pose

NOVEL_VIEWS = 4  # per frame
NOVEL_EVERY = 8  # frames of a held-out clip
TRUE_FIELDS = (DrawnPortrait.mask, DrawnPortrait.depth)  # what the truth keeps of a portrait
_FLOATS = pa.list_(pa.float32())
IDENTITIES = pa.schema({"identity": pa.string(), "z": _FLOATS})
PORTRAITS = pa.schema(
    {"file": pa.string(), "identity": pa.string(), "camera": _FLOATS, "label": _FLOATS, "landmarks": _FLOATS}
)
FRAMES = pa.schema(
    {
        "file": pa.string(),
        "clip": pa.string(),
        "index": pa.int64(),
        "identity": pa.string(),
        "split": pa.string(),
    }
    | {"camera": _FLOATS, "label": _FLOATS, "landmarks": _FLOATS, "extra": _FLOATS}
)


def latent(seed: int, identity: str) -> np.ndarray:
    """The 512 numbers of an identity, N(0, 1)."""
    return rng(seed, "generated person", identity).normal(size=Z).astype(np.float32)


def true_label(someone: Person, shot: Shot) -> np.ndarray:
    """The 437 numbers (facts 5.4): the camera holds the whole head rotation, which the neck part says once more."""
    face = shot.moment
    label = Label(shot.camera, someone.shape, face.expression, shot.rotation, face.jaw, face.eyes)
    return label.pack().astype(np.float32)


def true_landmarks(body: Figure, shot: Shot, size: int) -> np.ndarray:
    """The 70 landmarks in pixels of the raw image, (70, 2) float32."""
    model = standin()
    vertices = pose(body, shot.moment)[: len(model.template_V3)]
    corner = vertices[model.faces_F3[model.landmark_faces]]
    return (project((corner * model.landmark_weights[..., None]).sum(1), shot.camera) * size).astype(
        np.float32
    )


def _grey(alpha: np.ndarray) -> np.ndarray:
    return np.round(alpha * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Artist:
    """The worker: draws the portraits of some identities, or one clip."""

    settings: Ingest
    image: int  # pixels of the true novel views
    seed: int

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        record: dict[str, Any] = {"rows": []}
        draw = self._portrait if unit.name.startswith("portraits") else self._clip
        return (sample for item in unit.items for sample in draw(item, record["rows"])), record

    def _portrait(self, file: str, rows: list[dict]) -> Iterator[Sample]:
        identity, size = file.rsplit("-", 1)[0], self.settings.portrait_size
        someone = person(latent(self.seed, identity))
        body, shot = figure(someone), photo(rng(self.seed, "photo", file))
        picture = render(body, shot.moment, shot.camera, size)
        rows.append(_row(body, shot, size, file=file, identity=identity))
        distance = np.where(np.isfinite(picture.depth), picture.depth / DEPTH_UNIT, 0)
        depth = np.round(distance).astype(np.uint16)
        yield (
            key_of(file),
            DrawnPortrait.encode(image=picture.rgb, mask=_grey(picture.alpha), depth=depth),
        )

    def _clip(self, file: str, rows: list[dict]) -> Iterator[Sample]:
        identity, size, split = f"clip-{Path(file).stem}", self.settings.clip_size, file.split("-")[0]
        body = figure(person(latent(self.seed, identity)))
        shots = clip(rng(self.seed, "clip", file), self.settings.frames, self.settings.fps)
        pictures = (render(body, shot.moment, shot.camera, size).rgb for shot in shots)
        yield key_of(file), DrawnClip.encode(clip=encode_mp4(pictures, self.settings.fps))
        for index, shot in enumerate(shots):
            extra = {
                "file": file,
                "clip": file,
                "index": index,
                "identity": identity,
                "split": split,
                "extra": shot.moment.extra.tolist(),
            }
            rows.append(_row(body, shot, size, **extra))
            if split != "train" and index % NOVEL_EVERY == NOVEL_EVERY // 2:
                yield self._novel(file, index, body, shot, shots[0])

    def _novel(self, file: str, index: int, body: Figure, shot: Shot, first: Shot) -> Sample:
        """True views of a frame from other sides, under the light that falls on it in the frame; the first of them once more with the face
        of the clip's `first` frame, so that what the motion alone changes in it is known."""
        generator = rng(self.seed, "novel views", file, index)
        cameras = np.stack([sample_look_at(generator) for _ in range(NOVEL_VIEWS)])
        room = rotation(shot.camera)
        views: list[Picture] = [render(body, shot.moment, camera, self.image, room) for camera in cameras]
        unmoved = render(body, with_face_of(shot.moment, first.moment), cameras[0], self.image, room)
        return f"{key_of(file)}-{index:06d}", TrueViews.encode(
            cameras=cameras,
            view=[view.rgb for view in views],
            alpha=[_grey(view.alpha) for view in views],
            depth=[view.depth for view in views],
            unmoved=unmoved.rgb,
        )


def _row(body: Figure, shot: Shot, size: int, **names: Any) -> dict[str, Any]:
    return names | {
        "camera": shot.camera.tolist(),
        "label": true_label(body.person, shot).tolist(),
        "landmarks": true_landmarks(body, shot, size).ravel().tolist(),
    }


def generate(params: Params, out: Path = Path("data/generated"), truth: Path = Path("data/truth")) -> None:
    """Fill `out` (portraits/*.png, clips/*.mp4) and `truth` (tables identities, portraits, frames; shards masks-*, views-*).

    The same bytes for any number of workers; a stopped run goes on where it was.
    """
    settings = params.ingest
    portraits = [f"person{i:05d}-{k}.png" for i in range(settings.identities) for k in range(settings.photos)]
    clips = [f"{split}-{i:04d}.mp4" for split in SPLITS for i in range(getattr(settings, f"{split}_clips"))]
    plan = units_of("portraits", portraits, settings.shard_size) + units_of("clip", clips, 1)
    scratch = scratch_folder("generated", fingerprint(__file__, settings, params.networks.image, params.seed))
    done = run_units(
        plan,
        partial(Artist, settings, params.networks.image, params.seed),
        scratch,
        params.machine,
        "generate",
        {"files": 1},
    )
    if rejects := [
        reject for unit in done for reject in unit.rejects
    ]:  # no file of a user's, which may be broken: a fault of ours
        raise UserError(
            f"generate: {len(rejects)} files could not be drawn, the first {rejects[0].item}: {rejects[0].reason}"
        )
    rows = {
        kind: [row for unit in done if unit.name.startswith(kind) for row in unit.record["rows"]]
        for kind in ("portraits", "clip")
    }
    for folder in (out / "portraits", out / "clips", truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    files = {
        key_of(file): out / kind / file
        for kind, names in (("portraits", portraits), ("clips", clips))
        for file in names
    }
    reader = ShardReader(scratch)
    for key, path in files.items():
        field = DrawnPortrait.image if path.suffix == ".png" else DrawnClip.clip
        write_bytes(path, reader.read(key, field.file))
    for unit in units_of("masks", portraits, settings.shard_size):
        known = (
            {field.file: reader.read(key_of(file), field.file) for field in TRUE_FIELDS}
            for file in unit.items
        )
        write_shard(truth / f"{unit.name}.tar", zip(map(key_of, unit.items), known, strict=True))
    novel = sorted(set(reader.keys()) - set(files))
    for unit in units_of("views", novel, settings.shard_size):
        write_shard(truth / f"{unit.name}.tar", ((key, reader.read(key)) for key in unit.items))
    people = sorted({row["identity"] for kind in rows for row in rows[kind]})
    table = [{"identity": name, "z": latent(params.seed, name).tolist()} for name in people]
    write_table(truth / "identities.parquet", pa.Table.from_pylist(table, IDENTITIES))
    write_table(truth / "portraits.parquet", pa.Table.from_pylist(rows["portraits"], PORTRAITS))
    write_table(truth / "frames.parquet", pa.Table.from_pylist(rows["clip"], FRAMES))
    shutil.rmtree(scratch, ignore_errors=True)
