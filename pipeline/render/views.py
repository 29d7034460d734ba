"""Stage render_views: every frame of every clip from N more sides, rendered once by the frozen Psi_3d (paper section 4.3, facts 3.5).

A sample holds, of one frame: `image.png` and `mask.png` as ingested, N pseudo views `view{i}.png` with their opacity `alpha{i}.png`
(S x S), `cameras.npy` (1 + N, 25 float32) and `motion.npy` (1 + N, M float32), row 0 for the real frame, `label.npy` (437 float32),
`landmarks.npy` (1 + N, 70, 2 float32), those of the fitted head as fractions of the image, `uv.png`, the head model's canonical
positions at the camera of the real frame, and `frame.json`: clip, index, split and the frame's quality
(pipeline/render/quality_gate.py). `index.parquet` lists the frames (pipeline/store/view_index.py) and keeps those below a threshold out of training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from model.fast.psi import FastPsi
from model.head.flame import Flame
from model.psi.motion_encoder import MotionEncoder, motion_crop
from model.psi.network import Psi
from model.weights import load_weights
from pipeline.config.disk import frame_bytes
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.core.prefetch import prefetch, write_behind
from pipeline.core.seeds import rng
from pipeline.core.splits import SPLITS
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import publish, scratch_folder
from pipeline.engine.work_unit import WorkUnit, units_of
from pipeline.geometry import head_model
from pipeline.geometry.camera import sample_look_at
from pipeline.geometry.label import FIVE_POINTS, landmarks
from pipeline.geometry.landmarks import landmarks_70
from pipeline.networks.judges import Judges
from pipeline.render.landmarks import view_landmarks
from pipeline.render.position_map import position_map
from pipeline.render.quality_gate import failed_measures, gate_summary, measure, save_worst
from pipeline.store.samples import image_tensor
from pipeline.store.shards import Sample, ShardReader, encode_npy, encode_png
from pipeline.store.view_index import describe_frame, write_index

SAMPLES_AT_ONCE, FRAMES_AT_ONCE = (
    1 << 19,
    8,
)  # what one pass may hold: coarse samples, as far as a frame allows, and frames
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

    `ingested`, `motion`, `perception` and `psi3d` are the folders of those stages, `labels` the table of the clips' labels. `worst` becomes a
    picture of the frames of the lowest quality. Raises UserError when an input is missing or no frame is usable.
    """
    frames, counts = usable_frames(ingested / "frames.parquet", labels)
    units = units_of("views", [frame["key"] for frame in frames], params.render_views.shard_size)
    section, inputs = params.render_views, (ingested, labels, motion, perception, psi3d)
    values = (section.views, section.shard_size, params.networks, params.flame, params.seed)
    mark = fingerprint(__file__, *values, ingested, labels, motion, perception, psi3d)
    scratch = scratch_folder("render_views", mark)
    worker = partial(ViewRenderer, params, *(path.resolve() for path in inputs))
    size = frame_bytes(params)
    done = run_units(
        units, worker, scratch, params.machine, "render_views", {"frames": 1, "views": section.views}, size
    )
    given_up = {reject.item for result in done for reject in result.rejects}
    frames = [frame for frame in frames if frame["key"] not in given_up]
    counts["frames"] = {split: sum(frame["split"] == split for frame in frames) for split in SPLITS}
    counts["rejected"] |= {"given_up": len(given_up), "given_up_frames": sorted(given_up)}
    index = write_index(scratch, out / "index.parquet", partial(failed_measures, section))
    save_worst(worst, index, worker().reconstruct)
    publish(scratch, out / "shards")
    return counts | {
        "views": len(index) * section.views,
        "shards": len(done),
        "bytes": sum(result.shard.bytes for result in done if result.shard),
        **gate_summary(index),
    }


def usable_frames(frames: Path, labels: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The frames that have a face and a label, by clip and index, and how many have and have not. Raises UserError when none has."""
    for path, stage in ((frames, "ingest"), (labels, "fit_flame")):
        if not path.is_file():
            raise UserError(f"render_views: {path} is missing. Run the stage {stage}: dvc repro.")
    fitted = {
        row["key"]
        for row in pq.read_table(labels, columns=["key", "status"]).to_pylist()
        if row["status"] == "ok"
    }
    rows = pq.read_table(frames, columns=[*FRAME, "status"]).to_pylist()
    usable = sorted(
        (row for row in rows if row["status"] == "ok" and row["key"] in fitted),
        key=lambda row: (row["clip"], row["index"]),
    )
    if not usable:
        raise UserError(
            f"render_views: no frame in {frames} has both a face and a label. The columns `reason` there and in {labels} say why."
        )
    without_face = sum(row["status"] != "ok" for row in rows)
    counts = {split: sum(row["split"] == split for row in usable) for split in SPLITS}
    rejected = {"without_face": without_face, "without_label": len(rows) - without_face - len(usable)}
    return usable, {"clips": len({row["clip"] for row in usable}), "frames": counts, "rejected": rejected}


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
        self, params: Params, ingested: Path, labels: Path, motion: Path, perception: Path, psi3d: Path
    ) -> None:
        self.seed, self.views, self.sizes = params.seed, params.render_views.views, params.networks
        self.device = choose_device(params.machine.device)
        self.reader = ShardReader(ingested / "shards")
        self.labels, self.frames = labels, ingested / "frames.parquet"
        self.flame = Flame(head_model.load(params.flame.model)).to(self.device)
        self.psi3d = FastPsi(self._frozen(Psi(self.sizes), psi3d / "psi3d.safetensors"))
        self.motion = self._frozen(MotionEncoder(self.sizes.motion), motion / "motion.safetensors")
        self.judges = Judges.load(perception, self.device)

    def _frozen(self, network: torch.nn.Module, path: Path) -> Any:
        network.load_state_dict(load_weights(path)[0])
        return network.to(self.device).eval().requires_grad_(False)

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        return self._samples(list(unit.items)), {}

    def _samples(self, keys: list[str]) -> Iterator[Sample]:
        frame = (1 + self.views) * self.sizes.rays**2 * self.sizes.samples
        step = min(max(SAMPLES_AT_ONCE // frame, 1), FRAMES_AT_ONCE)
        frames = self._frames(keys)
        batches = [frames[start : start + step] for start in range(0, len(keys), step)]
        rendered = (
            self.render(to_device(real, self.device))
            for _, real in prefetch(lambda i: self._read(batches[i]), 0, len(batches))
        )
        for batch, samples in zip(batches, write_behind(encode, rendered), strict=True):
            yield from zip((frame["key"] for frame in batch), samples, strict=True)

    @torch.inference_mode()
    def reconstruct(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The real frames and what Psi_3d makes of them at their own cameras, (n, 3, S, S) in [-1, 1]."""
        pairs = []
        for frame in self._frames(keys):
            real = to_device(self._read([frame]), self.device)
            pairs.append(
                (
                    real.image[0],
                    self.psi3d(real.image, None, None, real.cameras[:, :1], motion_scale=0.0).image[0],
                )
            )
        images, reconstructions = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(reconstructions)

    def _frames(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of both tables, of which no worker could hold all at paper scale."""
        labels, frames = (
            {
                row["key"]: row
                for row in pq.read_table(
                    table, columns=columns, filters=pc.field("key").isin(keys)
                ).to_pylist()
            }
            for table, columns in ((self.labels, ["key", "label"]), (self.frames, [*FRAME, "landmarks"]))
        )
        return [frames[key] | labels[key] for key in keys]

    def _read(self, frames: list[dict[str, Any]]) -> Real:
        files = [self.reader.read(frame["key"]) for frame in frames]
        label = np.array([frame["label"] for frame in frames], np.float32)
        cameras = np.stack(
            [self._cameras(frame, own) for frame, own in zip(frames, label[:, :25], strict=True)]
        )
        mesh = np.array([frame["landmarks"] for frame in frames], np.float32).reshape(len(frames), -1, 3)
        image, mask = (
            torch.stack([image_tensor(file[name]) for file in files]) for name in ("image.png", "mask.png")
        )
        points = torch.from_numpy(landmarks_70(mesh))
        return Real(frames, files, image, mask, points, torch.from_numpy(label), torch.from_numpy(cameras))

    def _cameras(self, frame: dict[str, Any], own: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                own,
                *(
                    sample_look_at(rng(self.seed, "views", frame["clip"], frame["index"], view))
                    for view in range(self.views)
                ),
            ]
        )

    @torch.inference_mode()
    def render(self, real: Real) -> list[dict[str, bytes | np.ndarray]]:
        """The fields of each frame, for `encode`. One tri-plane and one background serve all views of a frame."""
        source = self.psi3d.source(real.image, None, motion_scale=0.0)
        rendering = self.psi3d.render(self.psi3d.planes(source, None), source, real.cameras)
        size = real.image.shape[-1]
        opacity = F.interpolate(rendering.opacity, size=(size, size), mode="bilinear", align_corners=False)
        images, opacities = (
            values.unflatten(0, real.cameras.shape[:2])
            for values in (rendering.image.clamp(-1, 1), opacity.clamp(0, 1))
        )
        motion = self._motion(real, images[:, 1:])
        points = landmarks(self.flame, real.label, real.cameras[:, :1])[:, 0, list(FIVE_POINTS)]
        quality = measure(self.judges, images[:, 0], opacities[:, 0], real.image, real.mask, points)
        pictures = to_uint8(images.flatten(0, 1)).reshape(*images.shape[:2], size, size, 3)
        alphas = (opacities[:, :, 0] * 255.0).round().byte().cpu().numpy()
        known_landmarks = view_landmarks(self.flame, real.label, real.cameras)
        uv = to_uint8(position_map(self.flame, real.label, real.cameras[:, 0], size))
        fields = []
        for i, file in enumerate(real.files):
            known: dict[str, bytes | np.ndarray] = {
                "image.png": file["image.png"],
                "mask.png": file["mask.png"],
                "uv.png": uv[i],
            }
            known["frame.json"] = describe_frame(
                *(real.frames[i][name] for name in ("clip", "index", "split")), quality[i]
            )
            known |= {f"view{v}.png": pictures[i, 1 + v] for v in range(self.views)} | {
                f"alpha{v}.png": alphas[i, 1 + v] for v in range(self.views)
            }
            arrays = {"cameras.npy": real.cameras[i], "motion.npy": motion[i], "label.npy": real.label[i]}
            arrays["landmarks.npy"] = known_landmarks[i]
            fields.append(known | {name: array.cpu().numpy() for name, array in arrays.items()})
        return fields

    def _motion(self, real: Real, views_BN3SS: Tensor) -> Tensor:
        """Motion embeddings (B, 1 + N, M): the real frame by the landmarks found in it, the pseudo views by those of the fitted head."""
        projected = landmarks(self.flame, real.label, real.cameras[:, 1:])
        pictures = torch.cat([real.image[:, None], views_BN3SS], dim=1)
        points = torch.cat([real.points[:, None], projected], dim=1)
        crops = motion_crop(pictures.flatten(0, 1), points.flatten(0, 1), self.sizes.motion.input)
        return self.motion.embedding(crops).unflatten(0, pictures.shape[:2])


def encode(samples: list[dict[str, bytes | np.ndarray]]) -> list[dict[str, bytes]]:
    """The samples with their pictures and arrays as the bytes of PNG and .npy files."""
    writers = {"png": encode_png, "npy": encode_npy}
    return [
        {
            name: value if isinstance(value, bytes) else writers[name.rpartition(".")[2]](value)
            for name, value in fields.items()
        }
        for fields in samples
    ]
