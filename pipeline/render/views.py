"""Stage render_views: every frame of every clip from N more sides, rendered once by the frozen Psi_3d.

Paper section 4.3, facts 3.5. What a sample holds is said by `Views` in pipeline/store/samples.py.
`index.parquet` lists the frames (pipeline/store/view_index.py) and keeps those out of training whose
quality is below a threshold (pipeline/render/quality_gate.py).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.fast.psi import FastPsi
from model.head.flame import Flame
from model.psi.motion_encoder import MotionEncoder, motion_crop
from model.psi.network import Psi
from pipeline.config.disk import frame_bytes
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.core.prefetch import prefetch, write_behind
from pipeline.core.seeds import rng
from pipeline.core.splits import SPLITS
from pipeline.engine.fingerprint import code_fingerprint, inputs_fingerprint
from pipeline.engine.job import Job
from pipeline.engine.scratch import publish, scratch_folder
from pipeline.engine.work_unit import WorkUnit, units_of
from pipeline.geometry import head_model
from pipeline.geometry.camera import sample_look_at
from pipeline.geometry.label import FIVE_POINTS, Label, landmarks
from pipeline.geometry.landmarks import landmarks_70
from pipeline.networks.judges import Judges
from pipeline.networks.weights import frozen
from pipeline.render.landmarks import view_landmarks
from pipeline.render.position_map import position_map
from pipeline.render.quality_gate import failed_measures, gate_summary, measure, save_worst
from pipeline.store.samples import Aligned, Views
from pipeline.store.sealed import read_facts
from pipeline.store.shards import Sample, ShardReader
from pipeline.store.tables import RowGroups, labels_of, meshes, read_rows, row_sums, usable
from pipeline.store.view_index import NAME, write_index

# What one pass may hold: coarse samples, as far as a frame allows, and frames.
SAMPLES_AT_ONCE = 1 << 19
FRAMES_AT_ONCE = 8
FRAME = ("key", "clip", "split", "index")


def render_views(
    params: Params,
    ingested: Path,
    labels: Path,
    motion: Path,
    perception: Path,
    psi3d: Path,
    out: Path,
    worst: Path,
) -> dict[str, Any]:
    """Render the views of all usable frames into `out`/shards and `out`/index.parquet; returns the metrics.

    `ingested`, `motion`, `perception` and `psi3d` are the folders of those stages, `labels` the table of
    the clips' labels. `worst` becomes a picture of the frames of the lowest quality. Raises UserError when
    an input is missing or no frame is usable.
    """
    frames, counts = wanted_frames(params, ingested / "frames.parquet", labels)
    work = job(params, ingested, labels, motion, perception, psi3d)
    scratch = scratch_folder(work.label, work.mark)
    done = work.run(scratch, params.machine)
    given_up = {reject.item for result in done for reject in result.rejects}
    rendered = [frame for frame in frames if frame["key"] not in given_up]
    counts["frames"] = _of_splits(rendered)
    counts["rejected"] |= {"given_up": len(given_up), "given_up_frames": sorted(given_up)}
    index = work.tables(scratch, out)
    # The workers were other processes or are gone by now; the picture of the worst frames needs Psi_3d once
    # more.
    renderer = ViewRenderer(params, ingested, labels, motion, perception, psi3d)
    save_worst(worst, index, renderer.reconstruct)
    publish(scratch, out / "shards")
    return counts | {
        "views": len(index) * params.render_views.views,
        "shards": len(done),
        "bytes": sum(result.shard.bytes for result in done if result.shard),
        **gate_summary(index),
    }


def job(
    params: Params,
    ingested: Path,
    labels: Path,
    motion: Path,
    perception: Path,
    psi3d: Path,
) -> Job:
    """The units of the stage, their worker and the index. Raises UserError as `render_views`."""
    section = params.render_views
    frames, _ = wanted_frames(params, ingested / "frames.parquet", labels)
    # The thresholds of the gate are no part of it: they decide about rows of the index, not about shards.
    form = (section.pictures, section.alpha_size)
    values = (section.views, params.networks, params.flame, params.seed, *form)
    common = inputs_fingerprint(*values, motion, perception, psi3d)
    own = _clip_inputs(ingested, labels, frames)
    code = code_fingerprint(__file__)
    units = []
    # A clip has shards of its own, which do not shift when another one comes.
    for clip, group in groupby(frames, key=itemgetter("clip")):
        keys = [frame["key"] for frame in group]
        inputs = inputs_fingerprint(common, own[clip])
        units += units_of(f"views-{clip}", keys, section.shard_size, inputs, code)
    paths = (ingested, labels, motion, perception, psi3d)
    return Job(
        label="render_views",
        units=units,
        make_worker=partial(ViewRenderer, params, *(path.resolve() for path in paths)),
        counts={"frames": 1, "views": section.views},
        item_bytes=frame_bytes(params),
        gpu=True,
        tables=lambda shards, out: write_index(shards, out / NAME, partial(failed_measures, section)),
    )


def _clip_inputs(
    ingested: Path,
    labels: Path,
    frames: list[dict[str, Any]],
) -> dict[str, list[str]]:
    """Checksums of what each clip is rendered from: its rows in both tables, and its shards of pictures."""
    rows = row_sums(ingested / "frames.parquet", "ingest", "clip", [*FRAME, "status", "landmarks"])
    fits = row_sums(labels, "fit_flame", "clip", ["key", "status", "label"])
    pairs = {(frame["clip"], frame["shard"]) for frame in frames}
    own = {clip: [rows[clip], fits[clip]] for clip, _ in sorted(pairs)}
    for clip, shard in sorted(pairs):
        facts = read_facts(ingested / "shards" / shard, "Make it again: dvc repro ingest.")
        own[clip].append(facts["sha256"])
    return own


def wanted_frames(
    params: Params,
    frames: Path,
    labels: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The usable frames that are rendered; returns and raises as `usable_frames`.

    Of a training clip these are `render_views.frames`, drawn at random, of the others all (facts 4.7, 7.1).
    """
    usable_rows, counts = usable_frames(frames, labels)
    most = params.render_views.frames
    if not most:
        return usable_rows, counts
    wanted = []
    for clip, group in groupby(usable_rows, key=itemgetter("clip")):
        rows = list(group)
        if rows[0]["split"] == "train" and len(rows) > most:
            draw = rng(params.seed, "views-frames", clip)
            chosen = draw.choice(len(rows), most, replace=False)
            rows = [rows[place] for place in sorted(chosen)]
        wanted += rows
    counts["frames"] = _of_splits(wanted)
    return wanted, counts


def usable_frames(
    frames: Path,
    labels: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The frames that have a face and a label, by clip and index, and how many have and have not.

    Raises UserError when none has.
    """
    rows = read_rows(frames, "ingest", [*FRAME, "shard", "status"])
    fits = usable(read_rows(labels, "fit_flame", ["key", "status"]))
    fitted = {row["key"] for row in fits}
    faces = usable(rows)
    found = [row for row in faces if row["key"] in fitted]
    found.sort(key=lambda row: (row["clip"], row["index"]))
    if not found:
        raise UserError(
            f"render_views: no frame in {frames} has both a face and a label. "
            f"The columns `reason` there and in {labels} say why."
        )
    counts = {
        "clips": len({row["clip"] for row in found}),
        "frames": _of_splits(found),
        "rejected": {
            "without_face": len(rows) - len(faces),
            "without_label": len(faces) - len(found),
        },
    }
    return found, counts


def _of_splits(frames: list[dict[str, Any]]) -> dict[str, int]:
    """How many frames each split has."""
    counts = Counter(frame["split"] for frame in frames)
    return {split: counts[split] for split in SPLITS}


@dataclass(frozen=True)
class Real:
    """A batch of real frames: what ingest and fit_flame found."""

    frames: list[dict[str, Any]]  # rows of the table
    files: list[dict[str, bytes]]
    image: Tensor  # (B, 3, S, S) in [-1, 1]
    mask: Tensor  # (B, 1, S, S) in [0, 1]
    points: Tensor  # (B, 70, 2) fractions
    label: Tensor  # (B, 437)
    cameras: Tensor  # (B, 1 + N, 25): its own, then those of the pseudo views


class ViewRenderer:
    """The worker of one process: a unit's items are keys of frames."""

    def __init__(
        self,
        params: Params,
        ingested: Path,
        labels: Path,
        motion: Path,
        perception: Path,
        psi3d: Path,
    ) -> None:
        self.seed = params.seed
        section = params.render_views
        self.views = section.views
        self.codecs = section.pictures.model_dump()
        self.small_alpha = section.alpha_size == "rays"
        self.sizes = params.networks
        self.device = choose_device(params.machine.device)
        self.reader = ShardReader(ingested / "shards", Aligned.stage)
        self.labels = RowGroups(labels, "fit_flame", ["key", "label"])
        frames = ingested / "frames.parquet"
        self.frames = RowGroups(frames, Aligned.stage, [*FRAME, "landmarks"])
        head = head_model.load(params.flame.model)
        self.flame = Flame(head).to(self.device)
        self.psi3d = FastPsi(frozen(Psi(self.sizes), psi3d / "psi3d.safetensors", self.device))
        encoder = MotionEncoder(self.sizes.motion)
        self.motion = frozen(encoder, motion / "motion.safetensors", self.device)
        self.judges = Judges.load(perception, self.device)

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        return self._samples(list(unit.items)), {}

    def _samples(self, keys: list[str]) -> Iterator[Sample]:
        # All views of a frame are rendered in one pass: memory allows fewer frames the larger they are.
        samples_a_frame = (1 + self.views) * self.sizes.rays**2 * self.sizes.samples
        fitting = max(SAMPLES_AT_ONCE // samples_a_frame, 1)
        step = min(fitting, FRAMES_AT_ONCE)
        frames = self._frames(keys)
        starts = range(0, len(keys), step)
        batches = [frames[start : start + step] for start in starts]
        # Reading runs a batch ahead in a thread, and PNGs are compressed a batch behind in another one.
        read = prefetch(lambda i: self._read(batches[i]), 0, len(batches))
        rendered = (self.render(to_device(real, self.device)) for _, real in read)
        for batch, samples in zip(batches, write_behind(self._encode, rendered), strict=True):
            for frame, sample in zip(batch, samples, strict=True):
                yield frame["key"], sample

    @torch.inference_mode()
    def reconstruct(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The real frames and what Psi_3d makes of them at their own cameras, (n, 3, S, S) in [-1, 1]."""
        images, reconstructions = [], []
        # One by one, so that what is shown of a frame does not depend on the others that are bad.
        for frame in self._frames(keys):
            real = to_device(self._read([frame]), self.device)
            camera = real.cameras[:, :1]
            drawn = self.psi3d(real.image, None, None, camera, 0.0, camera_source_B25=camera[:, 0])
            images.append(real.image[0])
            reconstructions.append(drawn.image[0])
        return torch.stack(images), torch.stack(reconstructions)

    def _frames(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of both tables joined."""
        labels, frames = self.labels.rows(keys), self.frames.rows(keys)
        return [frames[key] | {"label": labels[key]["label"]} for key in keys]

    def _read(self, frames: list[dict[str, Any]]) -> Real:
        files = [self.reader.read(frame["key"]) for frame in frames]
        label = labels_of(frames)
        cameras = []
        for frame, own in zip(frames, label[:, Label.CAMERA], strict=True):
            cameras.append(self._cameras(frame, own))
        return Real(
            frames=frames,
            files=files,
            image=torch.stack([Aligned.image.tensor(file) for file in files]),
            mask=torch.stack([Aligned.mask.tensor(file) for file in files]),
            points=torch.from_numpy(landmarks_70(meshes(frames))),
            label=torch.from_numpy(label),
            cameras=torch.from_numpy(np.stack(cameras)),
        )

    def _cameras(self, frame: dict[str, Any], own: np.ndarray) -> np.ndarray:
        """The cameras (1 + N, 25) of a frame: its own, and random ones that look at the head."""
        cameras = [own]
        for view in range(self.views):
            draw = rng(self.seed, "views", frame["clip"], frame["index"], view)
            cameras.append(sample_look_at(draw))
        return np.stack(cameras)

    @torch.inference_mode()
    def render(self, real: Real) -> list[dict[str, Any]]:
        """The values of all fields of `Views` for each frame.

        One tri-plane and one background serve all views of a frame, which is why they are rendered here and
        not in training.
        """
        source = self.psi3d.source(real.image, None, 0.0, real.cameras[:, 0])
        planes = self.psi3d.planes(source, None)
        rendering = self.psi3d.render(planes, source, real.cameras)
        shape = real.cameras.shape[:2]
        size = real.image.shape[-1]
        # Opacity is rendered at the size of rays; masks of real frames have the size of images.
        opacity = F.interpolate(
            rendering.opacity,
            size=(size, size),
            mode="bilinear",
            align_corners=False,
        )
        images = rendering.image.clamp(-1, 1).unflatten(0, shape)
        opacities = opacity.clamp(0, 1).unflatten(0, shape)
        motion = self._motion(real, images[:, 1:])
        quality = self._quality(real, images[:, 0], opacities[:, 0])
        points = view_landmarks(self.flame, real.label, real.cameras)
        uv = position_map(
            self.flame,
            real.label,
            real.cameras[:, 0],
            size,
        )

        pictures = to_uint8(images.flatten(0, 1))
        pictures = pictures.reshape(*shape, size, size, 3)
        # What is rendered with few rays holds no more when it is enlarged.
        shown = rendering.opacity.clamp(0, 1).unflatten(0, shape) if self.small_alpha else opacities
        alphas = (shown[:, :, 0] * 255.0).round().byte()
        columns: dict[str, Any] = {
            "view": pictures[:, 1:],
            "alpha": alphas[:, 1:].cpu().numpy(),
            "uv": to_uint8(uv),
            "cameras": real.cameras.cpu().numpy(),
            "motion": motion.cpu().numpy(),
            "label": real.label.cpu().numpy(),
            "landmarks": points.cpu().numpy(),
        }
        fields = []
        for i, (row, file) in enumerate(zip(real.frames, real.files, strict=True)):
            # The real frame goes on as the bytes that ingest wrote.
            known = {name: column[i] for name, column in columns.items()}
            known["image"] = file[Aligned.image.file]
            known["mask"] = file[Aligned.mask.file]
            place = {name: row[name] for name in ("clip", "index", "split")}
            known["frame"] = place | quality[i]
            fields.append(known)
        return fields

    def _quality(
        self,
        real: Real,
        image_B3SS: Tensor,
        opacity_B1SS: Tensor,
    ) -> list[dict[str, float]]:
        """The quality of frames by what Psi_3d makes of them at their own cameras."""
        points = landmarks(self.flame, real.label, real.cameras[:, :1])
        five_points = points[:, 0, list(FIVE_POINTS)]
        return measure(
            self.judges,
            image_B3SS,
            opacity_B1SS,
            real.image,
            real.mask,
            five_points,
        )

    def _motion(self, real: Real, views_BN3SS: Tensor) -> Tensor:
        """Motion embeddings (B, 1 + N, M).

        The real frame is cropped by the landmarks found in it, the pseudo views by those of the fitted head.
        """
        # In a rendered view no detector is needed, as its camera and the head are known.
        projected = landmarks(self.flame, real.label, real.cameras[:, 1:])
        pictures = torch.cat([real.image[:, None], views_BN3SS], dim=1)
        points = torch.cat([real.points[:, None], projected], dim=1)
        crops = motion_crop(
            pictures.flatten(0, 1),
            points.flatten(0, 1),
            self.sizes.motion.input,
        )
        return self.motion.embedding(crops).unflatten(0, pictures.shape[:2])

    def _encode(self, samples: list[dict[str, Any]]) -> list[dict[str, bytes]]:
        return [Views.encode(self.codecs, **fields) for fields in samples]
