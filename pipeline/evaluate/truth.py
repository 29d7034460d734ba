"""What only generated heads allow: comparing with known cameras, parameters, geometry and views.

No stage but evaluate looks at the truth like this.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from pipeline.geometry.camera import rotation
from pipeline.geometry.expression import INNER
from pipeline.geometry.label import FaceParameters, Label, head_vertices
from pipeline.geometry.landmarks import CONTOUR, interocular, landmarks_70
from pipeline.geometry.rotations import angles_between
from pipeline.networks.judges import Judges
from pipeline.store.samples import Aligned, TrueViews
from pipeline.store.shards import ShardReader

CALIBRATION_FRAMES = 1024
AT_ONCE = 64  # heads whose vertices are made together


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
    """The truth of the generator beside the tables of ingest.

    `labels` has the true 437 numbers and `landmarks` the true (70, 2), in pixels of the raw frame, of each
    usable frame by its key.
    """

    def __init__(self, truth: Path, ingest: Path) -> None:
        self.folder, self.ingest = truth, ingest
        columns = ["key", "clip", "index", "split", "status"]
        self.frames = [row for row in _rows(ingest / "frames.parquet", columns) if row["status"] == "ok"]
        files = {row["key"]: row["file"] for row in _rows(ingest / "clips.parquet", ["key", "file"])}
        columns = ["file", "index", "label", "landmarks"]
        known = {(row["file"], row["index"]): row for row in _rows(truth / "frames.parquet", columns)}
        self.labels = {}
        self.landmarks = {}
        for row in self.frames:
            found = known[files[row["clip"]], row["index"]]
            self.labels[row["key"]] = np.array(found["label"], np.float32)
            self.landmarks[row["key"]] = np.reshape(found["landmarks"], (70, 2))

    def parameters(self, keys: Sequence[str]) -> Tensor:
        """True expression, jaw and one eye triple of frames, (N, 106).

        One is enough, as both generated eyes look the same way.
        """
        labels = np.stack([self.labels[key] for key in keys])
        return torch.from_numpy(FaceParameters.of(labels).pack())

    def calibration_frames(self) -> tuple[Tensor, Tensor]:
        """Real frames of training clips, evenly spread, (N, 3, S, S), and their true parameters (N, 106)."""
        keys = [row["key"] for row in self.frames if row["split"] == "train"]
        places = np.unique(np.linspace(0, len(keys) - 1, CALIBRATION_FRAMES).astype(int))
        chosen = [keys[place] for place in places]
        reader = ShardReader(self.ingest / "shards", Aligned.stage)
        images = torch.stack([Aligned.image.tensor(reader[key]) for key in chosen])
        return images, self.parameters(chosen)

    def views(self) -> Iterator[Views]:
        """All frames whose novel views were rendered directly."""
        reader = ShardReader(self.folder, TrueViews.stage)
        for key in reader:
            # A sample without cameras is the mask of a portrait.
            if TrueViews.cameras.file in reader[key]:
                yield _views(key, reader.read(key))


def _views(key: str, sample: Mapping[str, bytes]) -> Views:
    cameras = TrueViews.cameras.tensor(sample)
    numbers = range(len(cameras))
    depths = [TrueViews.depth.tensor(sample, i) for i in numbers]
    return Views(
        key=key,
        cameras=cameras,
        images=torch.stack([TrueViews.view.tensor(sample, i) for i in numbers]),
        masks=torch.stack([TrueViews.alpha.tensor(sample, i) for i in numbers]),
        depths=torch.stack(depths)[:, None],
        unmoved=TrueViews.unmoved.tensor(sample),
    )


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    return pq.read_table(path, columns=columns).to_pylist()


def _views_of(truth: Truth, clips: HeldOutClips) -> Iterator[Views]:
    """The true views of frames of `clips`, on their device."""
    for views in truth.views():
        if views.key in clips.clip_of:
            yield to_device(views, clips.device)


@torch.no_grad()
def novel_views(
    truth: Truth,
    clips: HeldOutClips,
    synthesizers: Synthesizers,
    judges: Judges,
) -> dict[str, dict[str, float]]:
    """Pictures of a frame from true other sides against the truth; means over views by method and number.

    The methods are Psi_3d, Psi driven by the frame itself, and the frame copied.
    """
    values: dict[str, dict[str, list[Tensor]]] = {}
    true_images = []
    for views in _views_of(truth, clips):
        frame = [clips.frame(views.key)]
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
    if not true_images:
        return {}
    thumbnails = metrics.Thumbnails(judges, torch.cat(true_images))
    means = {}
    for method, found in values.items():
        scores = {name: float(torch.cat(parts).nanmean()) for name, parts in found.items()}
        means[method] = scores | {"lpips_thumbnail": thumbnails(scores["lpips"])}
    return means


@torch.no_grad()
def response(
    truth: Truth,
    clips: HeldOutClips,
    synthesizers: Synthesizers,
) -> dict[str, float]:
    """How Psi's pictures of a clip's first frame change with the motion of another, beside the true change.

    Both are seen by true cameras; the numbers are those of `metrics.response`.
    """
    found, wanted = [], []
    for views in _views_of(truth, clips):
        first = clips.clips[clips.clip_of[views.key]][0]
        # The truth knows the change from the very first frame alone, which may have been rejected.
        if not first.endswith(f"-{0:06d}"):
            continue
        source, driving = [clips.frame(first)], [clips.frame(views.key)]
        camera = views.cameras[None, :1]
        moved = synthesizers.draw("psi", source, driving, camera).image
        still = synthesizers.draw("psi", source, source, camera).image
        found.append(moved - still)
        wanted.append(views.images[:1] - views.unmoved[None])
    return metrics.response(torch.cat(found), torch.cat(wanted)) if found else {}


def fit_against_truth(
    truth: Truth,
    labels: Path,
    flame: Flame,
) -> dict[str, dict[str, float]]:
    """How far the front end is from the truth: `ingest` of portraits, `fit_flame` of all clip frames.

    `labels` is the folder of the fitted labels.
    """
    fits = _usable(_rows(labels / "vfhq.parquet", ["key", "status", "label"]))
    fitted = torch.tensor(np.array([row["label"] for row in fits], np.float32))
    true = torch.from_numpy(np.stack([truth.labels[row["key"]] for row in fits]))
    fitted, true = to_device((fitted, true), flame.template_V3.device)
    return {"ingest": _landmark_errors(truth), "fit_flame": label_errors(flame, fitted, true)}


def _landmark_errors(truth: Truth) -> dict[str, float]:
    """Median landmark errors of the ingested portraits, over the inter-ocular distance.

    The contour is told apart from the inner landmarks, as the face mesh draws it elsewhere than iBUG does.
    """
    true_rows = _rows(truth.folder / "portraits.parquet", ["file", "landmarks"])
    portraits = {row["file"]: row["landmarks"] for row in true_rows}
    columns = ["file", "status", "landmarks", "crop"]
    found = _usable(_rows(truth.ingest / "portraits.parquet", columns))
    crops = np.array([row["crop"] for row in found])
    meshes = np.array([row["landmarks"] for row in found]).reshape(-1, 478, 3)
    # A crop is (scale, x, y): a point of the aligned image is scale * raw + (x, y).
    raw = (landmarks_70(meshes) - crops[:, None, 1:]) / crops[:, None, :1]
    wanted = np.array([portraits[row["file"]] for row in found]).reshape(-1, 70, 2)
    error = metrics.landmark_error(raw, wanted, interocular(wanted))
    return {
        "landmark_error": float(np.median(error[:, INNER])),
        "contour_error": float(np.median(error[:, CONTOUR])),
    }


def _usable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["status"] == "ok"]


@torch.no_grad()
def label_errors(
    flame: Flame,
    fitted_N437: Tensor,
    true_N437: Tensor,
) -> dict[str, float]:
    """Medians over labels: head rotation and jaw in degrees, vertices in mm of the head model.

    The last are mean distances of the vertices in the head's own frame.
    """
    jaw = (fitted_N437[:, Label.JAW] - true_N437[:, Label.JAW]).norm(dim=1)
    distances = []
    for fitted, true in zip(fitted_N437.split(AT_ONCE), true_N437.split(AT_ONCE), strict=True):
        between = head_vertices(flame, fitted) - head_vertices(flame, true)
        distances.append(between.norm(dim=2).mean(1))
    return {
        "rotation_degrees": float(torch.rad2deg(_angle_between(fitted_N437, true_N437)).median()),
        "jaw_degrees": float(torch.rad2deg(jaw).median()),
        "vertices_mm": float(torch.cat(distances).median()) / SCALE * 1000.0,
    }


def _angle_between(fitted_N437: Tensor, true_N437: Tensor) -> Tensor:
    """The angle between the rotations of labels' cameras, radians, float64 (N,)."""
    rotations = [rotation(label).double().cpu().numpy() for label in (fitted_N437, true_N437)]
    return torch.from_numpy(angles_between(*rotations))
