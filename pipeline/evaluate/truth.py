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
from pipeline.evaluate.methods import Drawn, Synthesizers
from pipeline.geometry import camera
from pipeline.geometry.expression import INNER
from pipeline.geometry.label import FaceParameters, Label, head_vertices
from pipeline.geometry.landmarks import CONTOUR, interocular, landmarks_70
from pipeline.geometry.rotations import angles_between
from pipeline.networks.judges import Judges
from pipeline.store.samples import Aligned, TrueViews
from pipeline.store.shards import ShardReader

# Enough for the 109 inputs of a ridge regression; more would only take longer to be read.
CALIBRATION_FRAMES = 1024
# So many heads have their vertices made together, which bounds the memory that it takes.
AT_ONCE = 64


@dataclass(frozen=True)
class Views:
    """True views of one frame of a test clip, V of them; `key` is that of the frame in ingest.

    Depths are world units along the ray, infinite outside the head. `unmoved` is the first view
    with the face of the clip's first frame.
    """

    key: str
    cameras: Tensor  # (V, 25)
    images: Tensor  # (V, 3, S, S) in [-1, 1]
    masks: Tensor  # (V, 1, S, S) in [0, 1]
    depths: Tensor  # (V, 1, S, S)
    unmoved: Tensor  # (3, S, S) in [-1, 1]


class Truth:
    """The truth of the generator beside the tables of ingest.

    `labels` has the true 437 numbers and `landmarks` the true (70, 2), in pixels of the raw frame,
    of each usable frame by its key.
    """

    def __init__(self, truth: Path, ingest: Path) -> None:
        self.folder, self.ingest = truth, ingest
        columns = ["key", "clip", "index", "split", "status"]
        self.frames = _usable(_rows(ingest / "frames.parquet", columns))
        clips = _rows(ingest / "clips.parquet", ["key", "file"])
        files = {row["key"]: row["file"] for row in clips}
        columns = ["file", "index", "label", "landmarks"]
        drawn = _rows(truth / "frames.parquet", columns)
        known = {(row["file"], row["index"]): row for row in drawn}
        self.labels: dict[str, np.ndarray] = {}
        self.landmarks: dict[str, np.ndarray] = {}
        # The generator knows a frame by its file and number, which ingest has made a key of.
        for row in self.frames:
            file = files[row["clip"]]
            true = known[file, row["index"]]
            self.labels[row["key"]] = np.array(true["label"], np.float32)
            self.landmarks[row["key"]] = np.reshape(true["landmarks"], (70, 2))

    def parameters(self, keys: Sequence[str]) -> Tensor:
        """True expression, jaw and one eye triple of frames, (N, 106): both eyes look one way."""
        labels = np.stack([self.labels[key] for key in keys])
        parameters = FaceParameters.of(labels)
        return torch.from_numpy(parameters.pack())

    def calibration_frames(self) -> tuple[Tensor, Tensor]:
        """Real frames of training clips (N, 3, S, S), evenly spread, and their true (N, 106)."""
        keys = [row["key"] for row in self.frames if row["split"] == "train"]
        places = np.linspace(0, len(keys) - 1, CALIBRATION_FRAMES).astype(int)
        chosen = [keys[place] for place in np.unique(places)]
        reader = ShardReader(self.ingest / "shards", Aligned.stage)
        images = [Aligned.image.tensor(reader[key]) for key in chosen]
        return torch.stack(images), self.parameters(chosen)

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
    images = [TrueViews.view.tensor(sample, i) for i in numbers]
    masks = [TrueViews.alpha.tensor(sample, i) for i in numbers]
    depths = [TrueViews.depth.tensor(sample, i) for i in numbers]
    return Views(
        key=key,
        cameras=cameras,
        images=torch.stack(images),
        masks=torch.stack(masks),
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
    """Pictures of a frame from true other sides against the truth: means over views.

    They are by method and name. The methods are Psi_3d, Psi driven by the frame itself, and the
    frame copied.
    """
    values: dict[str, dict[str, list[Tensor]]] = {}
    true_images = []
    for views in _views_of(truth, clips):
        frame = [clips.frame(views.key)]
        true_images.append(views.images)
        for method in ("psi3d", "psi", "copy"):
            drawn = synthesizers.draw(method, frame, frame, views.cameras[None])
            numbers = values.setdefault(method, {})
            for name, value in _against_views(drawn, views, judges).items():
                numbers.setdefault(name, []).append(value)
    if not true_images:
        return {}
    thumbnails = metrics.Thumbnails(judges)
    thumbnails.shrink(torch.cat(true_images))
    means = {}
    for method, numbers in values.items():
        # A view without overlap has no depth error.
        scores = {name: float(torch.cat(parts).nanmean()) for name, parts in numbers.items()}
        scores["lpips_thumbnail"] = thumbnails(scores["lpips"])
        means[method] = scores
    return means


def _against_views(drawn: Drawn, views: Views, judges: Judges) -> dict[str, Tensor]:
    """The numbers of each view by name, (V,); those of the geometry where a method has one."""
    numbers = {
        "psnr_foreground": metrics.foreground_psnr(drawn.image, views.images, views.masks),
        "lpips": judges.lpips(drawn.image, views.images),
    }
    if drawn.opacity is not None:
        numbers["opacity_iou"] = metrics.opacity_iou(drawn.opacity, views.masks)
        numbers["depth_error"] = metrics.depth_error(drawn.depth, drawn.opacity, views.depths)
    return numbers


@torch.no_grad()
def response(
    truth: Truth,
    clips: HeldOutClips,
    synthesizers: Synthesizers,
) -> dict[str, float]:
    """How Psi's pictures of a clip's first frame change with the motion of another frame.

    The true change stands beside it. Both are seen by true cameras; the numbers are those of
    `metrics.response`.
    """
    found, wanted = [], []
    for views in _views_of(truth, clips):
        first = clips.clips[clips.clip_of[views.key]][0]
        # The truth knows the change from the very first frame alone, which may have been rejected.
        if not first.endswith(f"-{0:06d}"):
            continue
        source = [clips.frame(first)]
        driving = [clips.frame(views.key)]
        camera = views.cameras[None, :1]
        moved = synthesizers.draw("psi", source, driving, camera).image
        still = synthesizers.draw("psi", source, source, camera).image
        found.append(moved - still)
        wanted.append(views.images[:1] - views.unmoved[None])
    if not found:
        return {}
    return metrics.response(torch.cat(found), torch.cat(wanted))


def fit_against_truth(
    truth: Truth,
    labels: Path,
    flame: Flame,
) -> dict[str, dict[str, float]]:
    """How far the front end is from the truth: of portraits in ingest, of clip frames in fit_flame.

    `labels` is the folder of the fitted labels.
    """
    fits = _usable(_rows(labels / "vfhq.parquet", ["key", "status", "label"]))
    fitted = torch.tensor(np.array([row["label"] for row in fits], np.float32))
    true = torch.from_numpy(np.stack([truth.labels[row["key"]] for row in fits]))
    device = flame.template_V3.device
    errors = label_errors(flame, fitted.to(device), true.to(device))
    return {"ingest": _landmark_errors(truth), "fit_flame": errors}


def _landmark_errors(truth: Truth) -> dict[str, float]:
    """Median landmark errors of the ingested portraits, over the inter-ocular distance.

    The contour is told apart from the inner landmarks, as the face mesh draws it elsewhere than
    iBUG does.
    """
    true_rows = _rows(truth.folder / "portraits.parquet", ["file", "landmarks"])
    portraits = {row["file"]: row["landmarks"] for row in true_rows}
    columns = ["file", "status", "landmarks", "crop"]
    found = _usable(_rows(truth.ingest / "portraits.parquet", columns))
    wanted = np.array([portraits[row["file"]] for row in found]).reshape(-1, 70, 2)
    meshes = np.array([row["landmarks"] for row in found]).reshape(-1, 478, 3)
    crops = np.array([row["crop"] for row in found])
    # A crop is (scale, x, y): a point of the aligned image is scale * raw + (x, y).
    scale, shift = crops[:, None, :1], crops[:, None, 1:]
    raw = (landmarks_70(meshes) - shift) / scale
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
    rotation = _angle_between(fitted_N437, true_N437)
    distances = []
    for fitted, true in zip(fitted_N437.split(AT_ONCE), true_N437.split(AT_ONCE), strict=True):
        between = head_vertices(flame, fitted) - head_vertices(flame, true)
        distances.append(between.norm(dim=2).mean(1))
    return {
        "rotation_degrees": float(torch.rad2deg(rotation).median()),
        "jaw_degrees": float(torch.rad2deg(jaw).median()),
        "vertices_mm": float(torch.cat(distances).median()) / SCALE * 1000.0,
    }


def _angle_between(fitted_N437: Tensor, true_N437: Tensor) -> Tensor:
    """The angle between the rotations of labels' cameras, radians, float64 (N,)."""
    found = camera.rotation(fitted_N437).double().cpu()
    wanted = camera.rotation(true_N437).double().cpu()
    return torch.from_numpy(angles_between(found.numpy(), wanted.numpy()))
