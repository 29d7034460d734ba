"""The portraits that GenHead is trained on, with what is known of the heads in them.

Of generated portraits that is the truth of the generator, in the crop of the aligned image; of real ones
what was fitted to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from model.sizes import Sizes
from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.core.files import key_of
from pipeline.core.seeds import rng
from pipeline.geometry.camera import pack, unpack
from pipeline.geometry.label import Label
from pipeline.pretrain.lazily import Lazily
from pipeline.store.samples import DEPTH_UNIT, Aligned, DrawnPortrait
from pipeline.store.shards import ShardReader
from pipeline.store.tables import OK, matrix, photographed, read_columns
from pipeline.train.image_terms import shrink

USABLE = pc.field("status") == OK


class Heads(Protocol):
    """What is known of the heads in N portraits."""

    z: np.ndarray  # (N, 512) float32, of the person
    label: np.ndarray  # (N, 437) float32
    camera: np.ndarray  # (N, 25) float32, of the aligned image

    def maps(self, row: int, fields: Mapping[str, bytes]) -> tuple[Tensor, Tensor]:
        """Opacity in [0, 1] and depth along the ray of a portrait with these files, (1, n, n)."""
        ...


class Portraits:
    """N portraits of S pixels and n rays; their pictures are read when they are wanted."""

    def __init__(
        self,
        keys: list[str],
        heads: Heads,
        reader: ShardReader,
        rays: int,
    ) -> None:
        self.keys, self.heads, self.reader, self.rays = keys, heads, reader, rays
        self.z = torch.from_numpy(heads.z)
        self.label = torch.from_numpy(heads.label)
        self.camera = torch.from_numpy(heads.camera)
        self._maps = Lazily(self._read, len(keys))

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Portraits":
        """The same with all but the pictures on `device`."""
        self.z, self.label, self.camera = to_device((self.z, self.label, self.camera), device)
        return self

    def maps(self, rows: np.ndarray) -> "Maps":
        """The pictures of some portraits, on the CPU."""
        return Maps(**self._maps(rows))

    def _read(self, rows: np.ndarray) -> dict[str, Tensor]:
        found = [self._read_one(row) for row in rows]
        stacked = {}
        for field in fields(Maps):
            own = [getattr(one, field.name) for one in found]
            stacked[field.name] = torch.stack(own)
        return stacked

    def _read_one(self, row: int) -> "Maps":
        files = self.reader.read(self.keys[row])
        image = Aligned.image.tensor(files)
        opacity, depth = self.heads.maps(row, files)
        return Maps(image, shrink(image[None], self.rays)[0], opacity, depth)


@dataclass(frozen=True)
class Maps:
    """The pictures of B portraits."""

    image: Tensor  # (B, 3, S, S) in [-1, 1]
    raw: Tensor  # (B, 3, n, n), the same at the size of volume rendering
    opacity: Tensor  # (B, 1, n, n) in [0, 1]
    depth: Tensor  # (B, 1, n, n) world units along the ray; inf where there is nothing or nothing is known


def load_portraits(
    ingested: Path,
    labels: Path,
    truth: Path,
    sizes: Sizes,
    seed: int,
) -> Portraits:
    """The portraits that ingest and fit_flame accepted. Raises UserError when there is none."""
    columns = ["key", "file", "crop", "width", "height"]
    accepted = read_columns(ingested / "portraits.parquet", Aligned.stage, columns, USABLE)
    fits = read_columns(labels / "ffhq.parquet", "fit_flame", ["key", "label"], USABLE)
    fitted = {key: row for row, key in enumerate(fits["key"].to_pylist())}
    rows = [row for row in accepted.to_pylist() if row["key"] in fitted]
    rows.sort(key=lambda row: row["key"])
    if not rows:
        raise UserError(
            "pretrain genhead: no portrait was both accepted and fitted. "
            "metrics/ingest.json and metrics/fit_flame_ffhq.json say why."
        )
    keys = [row["key"] for row in rows]
    # Only generated portraits come with a truth.
    if (truth / "portraits.parquet").exists():
        heads: Heads = TrueHeads(truth, rows, sizes.rays)
    else:
        label = matrix(fits, "label")[[fitted[key] for key in keys]]
        photos = photographed(ingested)
        people = [photos.get(key, key) for key in keys]
        heads = FittedHeads(people, label, sizes, seed)
    return Portraits(keys, heads, ShardReader(ingested / "shards", Aligned.stage), sizes.rays)


class TrueHeads:
    """Generated portraits, whose heads are known."""

    def __init__(self, truth: Path, rows: list[dict[str, Any]], rays: int) -> None:
        """`rows` are those of ingest: file, crop, width, height."""
        self.rows, self.rays = rows, rays
        self.drawn = ShardReader(truth, DrawnPortrait.stage)
        columns = ["file", "identity", "camera", "label"]
        known = read_columns(truth / "portraits.parquet", DrawnPortrait.stage, columns)
        people = read_columns(truth / "identities.parquet", DrawnPortrait.stage, ["identity", "z"])
        place = {file: number for number, file in enumerate(known["file"].to_pylist())}
        places = [place[row["file"]] for row in rows]
        person = {name: number for number, name in enumerate(people["identity"].to_pylist())}
        names = known["identity"].to_pylist()
        shown = [person[names[number]] for number in places]
        self.z = matrix(people, "z")[shown]
        self.label = matrix(known, "label")[places]
        raw_cameras = matrix(known, "camera")[places]
        cameras = [aligned_camera(camera, row) for camera, row in zip(raw_cameras, rows, strict=True)]
        self.camera = np.stack(cameras)

    def maps(self, row: int, _fields: Mapping[str, bytes]) -> tuple[Tensor, Tensor]:
        """The truth, seen in the crop of the aligned image."""
        crop = self.rows[row]["crop"]
        drawn = self.drawn.read(key_of(self.rows[row]["file"]))
        mask = DrawnPortrait.mask.array(drawn).astype(np.float32) / 255.0
        depth = DrawnPortrait.depth.array(drawn).astype(np.float32) * DEPTH_UNIT
        opacity = aligned_mean(mask, crop, self.rays)
        depth = aligned_depth(depth, crop, self.rays)
        return torch.from_numpy(opacity)[None], torch.from_numpy(depth)[None]


class FittedHeads:
    """Real portraits.

    They have the mask that ingest found, no depth, the fitted label, and a code for every person.
    """

    def __init__(
        self,
        people: list[str],
        label_N437: np.ndarray,
        sizes: Sizes,
        seed: int,
    ) -> None:
        """`people` are names of who the N portraits show."""
        self.rays = sizes.rays
        self.label = label_N437
        self.camera = label_N437[:, Label.CAMERA]
        # The code follows from the name, so that other portraits in the folder do not change it.
        codes = []
        for person in people:
            draw = rng(seed, "portrait code", person)
            codes.append(draw.normal(size=sizes.genhead.z_dim))
        self.z = np.stack(codes).astype(np.float32)

    def maps(self, _row: int, files: Mapping[str, bytes]) -> tuple[Tensor, Tensor]:
        """The mask that ingest found, and no depth."""
        opacity = shrink(Aligned.mask.tensor(files)[None], self.rays)[0]
        return opacity, torch.full_like(opacity, torch.inf)


def aligned_camera(camera_25: np.ndarray, row: dict[str, Any]) -> np.ndarray:
    """The camera of the raw image, with the intrinsics of the aligned one.

    `row` has crop (scale, tx, ty), width and height of the raw image.
    """
    # The crop C takes raw fractions to aligned ones, so that K' = C K; the camera itself stays.
    cam2world, intrinsics = unpack(camera_25)
    scale, tx, ty = row["crop"]
    across = scale * row["width"]
    down = scale * row["height"]
    crop = np.array(
        [
            [across, 0.0, tx],
            [0.0, down, ty],
            [0.0, 0.0, 1.0],
        ]
    )
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
