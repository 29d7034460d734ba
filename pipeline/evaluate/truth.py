"""What only generated heads allow: comparing with the known cameras, parameters, geometry and views. No stage but evaluate looks at the
truth like this.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.head.flame import SCALE, Flame
from pipeline.clips.held_out import HeldOutClips
from pipeline.core.device import to_device
from pipeline.evaluate import metrics
from pipeline.evaluate.methods import Synthesizers
from pipeline.geometry.expression import INNER
from pipeline.geometry.label import head_vertices
from pipeline.geometry.landmarks import CONTOUR, interocular, landmarks_70
from pipeline.networks.judges import Judges
from pipeline.store.samples import image_tensor
from pipeline.store.shards import ShardReader, decode_npy

CALIBRATION_FRAMES = 1024


@dataclass(frozen=True)
class Views:
    """True views of one frame of a test clip, V of them."""

    key: str  # of the frame in the tables of ingest
    cameras: Tensor  # (V, 25)
    images: Tensor  # (V, 3, S, S) in [-1, 1]
    masks: Tensor  # (V, 1, S, S) in [0, 1]
    depths: Tensor  # (V, 1, S, S) world units along the ray, infinite outside the head
    unmoved: Tensor  # (3, S, S) the first view with the face of the clip's first frame


class Truth:
    """The truth of the generator beside the tables of ingest."""

    def __init__(self, truth: Path, ingest: Path) -> None:
        self.folder, self.ingest = truth, ingest
        files = {row["key"]: row["file"] for row in _rows(ingest / "clips.parquet", ["key", "file"])}
        self.frames = [
            row
            for row in _rows(ingest / "frames.parquet", ["key", "clip", "index", "split", "status"])
            if row["status"] == "ok"
        ]
        labels = {
            (row["file"], row["index"]): row["label"]
            for row in _rows(truth / "frames.parquet", ["file", "index", "label"])
        }
        self.labels = {
            row["key"]: np.array(labels[files[row["clip"]], row["index"]], np.float32) for row in self.frames
        }
        points = {
            (row["file"], row["index"]): row["landmarks"]
            for row in _rows(truth / "frames.parquet", ["file", "index", "landmarks"])
        }
        self.landmarks = {
            row["key"]: np.reshape(points[files[row["clip"]], row["index"]], (70, 2)) for row in self.frames
        }
        self.key_of = {(files[row["clip"]], row["index"]): row["key"] for row in self.frames}

    def parameters(self, keys: Sequence[str]) -> Tensor:
        """True expression, jaw and one eye triple of frames, (N, 106)."""
        labels = np.stack([self.labels[key] for key in keys])
        return torch.from_numpy(np.concatenate([labels[:, 325:425], labels[:, 428:434]], axis=1))

    def calibration_frames(self) -> tuple[Tensor, Tensor]:
        """Real frames of training clips, evenly spread, and their true parameters."""
        keys = [row["key"] for row in self.frames if row["split"] == "train"]
        chosen = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, CALIBRATION_FRAMES).astype(int))]
        reader = ShardReader(self.ingest / "shards")
        return torch.stack([image_tensor(reader.read(key, "image.png")) for key in chosen]), self.parameters(
            chosen
        )

    def views(self) -> Iterator[Views]:
        """All frames whose novel views were rendered directly."""
        reader = ShardReader(self.folder)
        every: list[str] = reader.keys()
        for key in every:
            if "cameras.npy" not in reader.fields(key):  # a mask of a portrait
                continue
            fields = reader.read(key)
            cameras = torch.from_numpy(decode_npy(fields["cameras.npy"])).float()
            count = range(len(cameras))
            yield Views(
                key=key,
                cameras=cameras,
                images=torch.stack([image_tensor(fields[f"view{i}.png"]) for i in count]),
                masks=torch.stack([image_tensor(fields[f"alpha{i}.png"]) for i in count]),
                unmoved=image_tensor(fields["unmoved.png"]),
                depths=torch.stack(
                    [torch.from_numpy(decode_npy(fields[f"depth{i}.npy"])).float()[None] for i in count]
                ),
            )


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    return pq.read_table(path, columns=columns).to_pylist()


@torch.no_grad()
def novel_views(
    truth: Truth, clips: HeldOutClips, synthesizers: Synthesizers, judges: Judges
) -> dict[str, dict[str, float]]:
    """Pictures of a frame from true other sides against the truth: Psi_3d, Psi driven by the frame itself, and the frame copied. Means over
    views.
    """
    values: dict[str, dict[str, list[Tensor]]] = {}
    true_images = []
    for views in truth.views():
        if views.key not in clips.clip_of:
            continue
        frame, views = [clips.frame(views.key)], to_device(views, clips.device)
        true_images.append(views.images)
        for method in ("psi3d", "psi", "copy"):
            drawn = synthesizers.draw(method, frame, frame, views.cameras[None])
            found = {
                "psnr_foreground": metrics.foreground_psnr(drawn.image, views.images, views.masks),
                "lpips": judges.lpips(drawn.image, views.images),
            }
            if drawn.opacity is not None:
                found["opacity_iou"] = metrics.opacity_iou(drawn.opacity, views.masks)
                found["depth_error"] = metrics.depth_error(drawn.depth, drawn.opacity, views.depths)
            for name, value in found.items():
                values.setdefault(method, {}).setdefault(name, []).append(value)
    means = {
        method: {name: float(torch.cat(parts).nanmean()) for name, parts in found.items()}
        for method, found in values.items()
    }
    if true_images:
        thumbnails = metrics.Thumbnails(judges, torch.cat(true_images))
        for found in means.values():
            found["lpips_thumbnail"] = thumbnails(found["lpips"])
    return means


@torch.no_grad()
def response(truth: Truth, clips: HeldOutClips, synthesizers: Synthesizers) -> dict[str, float]:
    """How Psi's pictures of the first frame of a clip change with the motion of another one, at true cameras, beside the true change."""
    found, wanted = [], []
    for views in truth.views():
        if views.key not in clips.clip_of:
            continue
        first = clips.clips[clips.clip_of[views.key]][0]
        if not first.endswith(f"-{0:06d}"):  # the truth knows the change to the very first frame alone
            continue
        source, driving, views = (
            [clips.frame(first)],
            [clips.frame(views.key)],
            to_device(views, clips.device),
        )
        camera = views.cameras[None, :1]
        moved, still = (synthesizers.draw("psi", source, whose, camera).image for whose in (driving, source))
        found.append(moved - still)
        wanted.append(views.images[:1] - views.unmoved[None])
    return metrics.response(torch.cat(found), torch.cat(wanted)) if found else {}


def fit_against_truth(truth: Truth, labels: Path, flame: Flame) -> dict[str, dict[str, float]]:
    """How far the front end is from the truth. Of the ingested portraits: the median landmark error (over the inter-ocular distance) of the
    inner landmarks, and of the contour, which the face mesh draws elsewhere than iBUG does. Of the fitted labels of all clip frames,
    medians: head
    rotation and jaw in degrees, vertices in the head's own frame in millimetres of the head model."""
    portraits = {
        row["file"]: row["landmarks"]
        for row in _rows(truth.folder / "portraits.parquet", ["file", "landmarks"])
    }
    found = [
        row
        for row in _rows(truth.ingest / "portraits.parquet", ["file", "status", "landmarks", "crop"])
        if row["status"] == "ok"
    ]
    crops = np.array([row["crop"] for row in found])
    mesh = landmarks_70(np.array([row["landmarks"] for row in found]).reshape(-1, 478, 3))
    raw = (mesh - crops[:, None, 1:]) / crops[:, None, :1]
    wanted = np.array([portraits[row["file"]] for row in found]).reshape(-1, 70, 2)
    landmark = metrics.landmark_error(raw, wanted, interocular(wanted))

    fits = [
        row for row in _rows(labels / "vfhq.parquet", ["key", "status", "label"]) if row["status"] == "ok"
    ]
    fitted = torch.tensor(np.array([row["label"] for row in fits], np.float32))
    true = torch.from_numpy(np.stack([truth.labels[row["key"]] for row in fits]))
    fitted, true = to_device((fitted, true), flame.template_V3.device)
    return {
        "ingest": {
            "landmark_error": float(np.median(landmark[:, INNER])),
            "contour_error": float(np.median(landmark[:, CONTOUR])),
        },
        "fit_flame": label_errors(flame, fitted, true),
    }


@torch.no_grad()
def label_errors(flame: Flame, fitted_N437: Tensor, true_N437: Tensor) -> dict[str, float]:
    """Medians over labels: head rotation and jaw in degrees, mean distance of the vertices in the head's own frame in mm of the head model."""
    rotation, wanted = (
        label[:, :16].reshape(-1, 4, 4)[:, :3, :3].double() for label in (fitted_N437, true_N437)
    )
    cosine = ((rotation.transpose(1, 2) @ wanted).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    jaw = (fitted_N437[:, 428:431] - true_N437[:, 428:431]).norm(dim=1)
    distance = [
        (head_vertices(flame, a) - head_vertices(flame, b)).norm(dim=2).mean(1)
        for a, b in zip(fitted_N437.split(64), true_N437.split(64), strict=True)
    ]
    return {
        "rotation_degrees": float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).median()),
        "jaw_degrees": float(torch.rad2deg(jaw).median()),
        "vertices_mm": float(torch.cat(distance).median()) / SCALE * 1000.0,
    }
