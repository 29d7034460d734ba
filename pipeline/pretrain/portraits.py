"""The portraits that GenHead is trained on, with what is known of the heads in them.

Of generated portraits that is the truth of the generator, in the crop of the aligned image; of real ones
what was fitted to them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.sizes import Sizes
from pipeline.core.batches import collate
from pipeline.core.errors import UserError
from pipeline.core.files import key_of
from pipeline.core.seeds import rng
from pipeline.geometry.camera import pack, unpack
from pipeline.geometry.label import Label
from pipeline.store.samples import DEPTH_UNIT, Aligned, DrawnPortrait
from pipeline.store.shards import ShardReader
from pipeline.store.tables import photographed
from pipeline.train.image_terms import shrink

Fields = dict[str, bytes]


@dataclass
class Portraits:
    """All portraits in memory; N portraits, S pixels, n rays."""

    image: Tensor  # (N, 3, S, S) in [-1, 1]
    opacity: Tensor  # (N, 1, n, n) in [0, 1]
    depth: Tensor  # (N, 1, n, n) world units along the ray; inf where there is nothing or nothing is known
    z: Tensor  # (N, 512) of the person
    label: Tensor  # (N, 437)
    camera: Tensor  # (N, 25) of the aligned image


def load_portraits(
    ingested: Path,
    labels: Path,
    truth: Path,
    sizes: Sizes,
    seed: int,
) -> Portraits:
    """The portraits that ingest and fit_flame accepted. Raises UserError when there is none."""
    rows = {row["key"]: row for row in _usable(ingested / "portraits.parquet")}
    fitted = {row["key"]: row["label"] for row in _usable(labels / "ffhq.parquet")}
    keys = sorted(rows.keys() & fitted.keys())
    if not keys:
        raise UserError(
            "pretrain genhead: no portrait was both accepted and fitted. "
            "metrics/ingest.json and metrics/fit_flame_ffhq.json say why."
        )
    # Only generated portraits come with a truth.
    if (truth / "portraits.parquet").exists():
        heads = TrueHeads(truth, sizes.rays)
    else:
        heads = FittedHeads(fitted, photographed(ingested), sizes, seed)
    images = ShardReader(ingested / "shards", Aligned.stage)
    return collate([heads(rows[key], images.read(key)) for key in keys])


class TrueHeads:
    """Generated portraits, whose heads are known."""

    def __init__(self, truth: Path, rays: int) -> None:
        portraits = pq.read_table(truth / "portraits.parquet").to_pylist()
        identities = pq.read_table(truth / "identities.parquet").to_pylist()
        self.known = {row["file"]: row for row in portraits}
        self.codes = {row["identity"]: row["z"] for row in identities}
        self.drawn, self.rays = ShardReader(truth, DrawnPortrait.stage), rays

    def __call__(self, row: dict[str, Any], fields: Fields) -> Portraits:
        """A portrait, without the axis of the batch."""
        real = self.known[row["file"]]
        drawn = self.drawn.read(key_of(row["file"]))
        mask = DrawnPortrait.mask.array(drawn).astype(np.float32) / 255.0
        depth = DrawnPortrait.depth.array(drawn).astype(np.float32) * DEPTH_UNIT
        opacity = aligned_mean(mask, row["crop"], self.rays)
        depth = aligned_depth(depth, row["crop"], self.rays)
        raw_camera = np.array(real["camera"], np.float32)
        camera = aligned_camera(raw_camera, row)
        return Portraits(
            image=Aligned.image.tensor(fields),
            opacity=torch.from_numpy(opacity)[None],
            depth=torch.from_numpy(depth)[None],
            z=torch.tensor(self.codes[real["identity"]]),
            label=torch.tensor(real["label"]),
            camera=torch.from_numpy(camera),
        )


class FittedHeads:
    """Real portraits.

    They have the mask that ingest found, no depth, the fitted label, and a code for every person: each
    portrait shows another one, but for those in `people`, by key.
    """

    def __init__(
        self,
        fitted: dict[str, list[float]],
        people: dict[str, str],
        sizes: Sizes,
        seed: int,
    ) -> None:
        self.fitted, self.people, self.sizes, self.seed = fitted, people, sizes, seed

    def __call__(self, row: dict[str, Any], fields: Fields) -> Portraits:
        """A portrait, without the axis of the batch."""
        opacity = shrink(Aligned.mask.tensor(fields)[None], self.sizes.rays)[0]
        label = torch.tensor(self.fitted[row["key"]])
        # The code follows from the name, so that other portraits in the folder do not change it.
        person = self.people.get(row["key"], row["key"])
        draw = rng(self.seed, "portrait code", person)
        code = draw.normal(size=self.sizes.genhead.z_dim)
        return Portraits(
            image=Aligned.image.tensor(fields),
            opacity=opacity,
            depth=torch.full_like(opacity, torch.inf),
            z=torch.from_numpy(code.astype(np.float32)),
            label=label,
            camera=label[Label.CAMERA],
        )


def aligned_camera(camera_25: np.ndarray, row: dict[str, Any]) -> np.ndarray:
    """The camera of the raw image, with the intrinsics of the aligned one.

    `row` has crop (scale, tx, ty), width and height of the raw image.
    """
    # The crop C takes raw fractions to aligned ones, so that K' = C K; the camera itself stays.
    cam2world, intrinsics = unpack(camera_25)
    scale, tx, ty = row["crop"]
    across, down = scale * row["width"], scale * row["height"]
    crop = np.array([[across, 0.0, tx], [0.0, down, ty], [0.0, 0.0, 1.0]])
    return pack(cam2world, crop @ intrinsics)


def aligned_mean(
    raw_HW: np.ndarray,
    crop: list[float],
    side: int,
    sub: int = 4,
) -> np.ndarray:
    """The mean over each pixel of the aligned image of side x side, by sub x sub points.

    Outside of the raw image its border goes on.
    """
    fine = _resample(raw_HW, crop, side * sub, cv2.INTER_LINEAR)
    return fine.reshape(side, sub, side, sub).mean((1, 3))


def aligned_depth(
    raw_HW: np.ndarray,
    crop: list[float],
    side: int,
) -> np.ndarray:
    """Depth at the centres of the aligned pixels, inf where the raw image has none (0)."""
    # The mean of a head and of nothing would be a depth at which there is neither.
    depth = _resample(raw_HW, crop, side, cv2.INTER_NEAREST)
    return np.where(depth > 0, depth, np.inf).astype(np.float32)


def _resample(
    raw_HW: np.ndarray,
    crop: list[float],
    side: int,
    method: int,
) -> np.ndarray:
    """The raw image at the centres of side x side pixels of the aligned one."""
    # aligned = scale * raw + t, solved for raw; OpenCV counts from the centre of a pixel, not from its edge.
    scale, tx, ty = crop
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    across = (centres - tx) / scale - 0.5
    down = (centres - ty) / scale - 0.5
    x, y = np.meshgrid(across, down)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return cv2.remap(
        raw_HW,
        x,
        y,
        method,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _usable(path: Path) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(path).to_pylist() if row["status"] == "ok"]
