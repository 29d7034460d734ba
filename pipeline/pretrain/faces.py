"""Ingested faces in memory, with who they show and what was fitted to them, and random variations of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import UserError
from pipeline.geometry.label import Estimate, Label
from pipeline.geometry.landmarks import landmarks_70
from pipeline.store.samples import Aligned
from pipeline.store.shards import ShardReader
from pipeline.store.tables import photographed

# What a person is known by; its name begins with it.
CLIP, PORTRAIT, PERSON = "clip", "portrait", "person"


@dataclass(frozen=True)
class FaceBatch:
    """B faces; targets as `Regressor`."""

    image: Tensor  # (B, 3, S, S) in [-1, 1]
    landmarks: Tensor  # (B, 70, 2) fractions
    people: Tensor  # (B,) class
    targets: Tensor  # (B, 109) `Estimate`
    fitted: Tensor  # (B,) bool: `targets` is known
    known: Tensor  # (B,) of how many faces of the whole step `targets` are known, in each row


@dataclass(frozen=True)
class Faces:
    """Aligned faces in memory; N images of S pixels."""

    images: np.ndarray  # (N, S, S, 3) uint8
    landmarks: np.ndarray  # (N, 70, 2) fractions
    people: np.ndarray  # (N,) class of each image
    targets: np.ndarray  # (N, 109) `Estimate`
    fitted: np.ndarray  # (N,) bool: `targets` is known
    names: list[str]  # of the classes

    def batch(self, rows: np.ndarray, step: np.ndarray | None = None) -> FaceBatch:
        """Some of them, and of which rows a whole step consists, if of more than these."""
        whole = rows if step is None else step
        known = self.fitted[whole].sum()
        image = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).float()
        return FaceBatch(
            image=image / 127.5 - 1.0,
            landmarks=torch.from_numpy(self.landmarks[rows]),
            people=torch.from_numpy(self.people[rows]),
            targets=torch.from_numpy(self.targets[rows]),
            fitted=torch.from_numpy(self.fitted[rows]),
            known=torch.full((len(rows),), int(known)),
        )


def read_faces(
    ingest: Path,
    labels: Path,
    truth: Path,
    split: str,
) -> Faces:
    """All usable faces of a split: of "train" portraits and frames, of the others frames.

    A person is an identity of the generator, a folder of portraits, a portrait or a clip. Raises UserError
    when there is no face.
    """
    rows = _usable(ingest / "frames.parquet", split=split)
    people = [f"{CLIP} {row['clip']}" for row in rows]
    # A real portrait is taken for the only one of its person, unless its folder says who it is.
    if split == "train":
        identities = _identities(truth / "portraits.parquet")
        photos = photographed(ingest)
        for row in _usable(ingest / "portraits.parquet"):
            key = row["key"]
            own = f"{PERSON} {photos[key]}" if key in photos else f"{PORTRAIT} {key}"
            rows.append(row)
            people.append(identities.get(row["file"], own))
    if not rows:
        raise UserError(
            f"pretrain perception: {ingest} holds no usable face of the {split} split. "
            "See the reasons in its tables."
        )
    # Faces whose fit was rejected count for what needs no fit.
    fitted = _usable(labels / "ffhq.parquet") + _usable(labels / "vfhq.parquet")
    fits = {row["key"]: row["label"] for row in fitted}
    unknown = np.eye(1, Label.SIZE)[0]
    label = np.array([fits.get(row["key"], unknown) for row in rows], np.float32)
    mesh = np.array([row["landmarks"] for row in rows], np.float32)
    mesh = mesh.reshape(-1, 478, 3)
    # Sorted, so that the class of a person does not hang on the order of the tables.
    known = sorted(set(people))
    numbers = {person: number for number, person in enumerate(known)}
    reader = ShardReader(ingest / "shards", Aligned.stage)
    images = [Aligned.image.array(reader[row["key"]]) for row in rows]
    return Faces(
        images=np.stack(images),
        landmarks=landmarks_70(mesh),
        people=np.array([numbers[person] for person in people]),
        targets=Estimate.of(label).pack().astype(np.float32),
        fitted=np.array([row["key"] in fits for row in rows]),
        names=known,
    )


def _usable(path: Path, **equal: str) -> list[dict[str, Any]]:
    """The rows of a table whose status is ok and whose other columns are as they are said to be."""
    wanted = {"status": "ok"} | equal
    return [row for row in pq.read_table(path).to_pylist() if wanted.items() <= row.items()]


def _identities(portraits: Path) -> dict[str, str]:
    """Who the generated portraits show, by file; empty where the portraits are real."""
    if not portraits.exists():
        return {}
    rows = pq.read_table(portraits).to_pylist()
    return {row["file"]: f"identity {row['identity']}" for row in rows}


def augment(
    image_BCHW: Tensor,
    landmarks_BN2: Tensor,
    generator: torch.Generator,
    geometry: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Randomly shifted, scaled, recoloured, blurred and noisy copies of images.

    They are shifted and scaled by up to `geometry` of the image. Also the landmarks, where they lie
    then, and how blurred and how noisy each copy is, (B, 2) in [0, 1].
    """
    count, device = len(image_BCHW), image_BCHW.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(count, *shape, generator=generator).to(device)
        return drawn * (high - low) + low

    scale = 1.0 + uniform(-geometry, geometry, 1)
    shift = uniform(-geometry, geometry, 2)
    # Grids of images go from -1 to 1, landmarks from 0 to 1.
    turn = torch.diag_embed(scale.expand(-1, 2))
    theta = torch.cat([turn, shift[:, :, None] * 2.0], dim=2)
    grid = F.affine_grid(theta, image_BCHW.shape, align_corners=False)
    image = F.grid_sample(
        image_BCHW,
        grid,
        padding_mode="border",
        align_corners=False,
    )
    centred = landmarks_BN2 - 0.5 - shift[:, None]
    landmarks = centred / scale[:, None] + 0.5

    contrast = uniform(0.75, 1.25, 1, 1, 1)
    tint = uniform(0.9, 1.1, 3, 1, 1)
    brightness = uniform(-0.15, 0.15, 1, 1, 1)
    image = image * contrast * tint + brightness
    # A third of the copies is not blurred at all, and a third is not noisy.
    blurred = uniform(-0.5, 1.0, 1, 1, 1).clamp_min(0.0)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    smooth = F.avg_pool2d(padded, 3, 1)
    image = torch.lerp(image, smooth, blurred)
    noisy = uniform(-0.5, 1.0, 1, 1, 1).clamp_min(0.0)
    noise = torch.randn(image.shape, generator=generator).to(device)
    image = image + 0.08 * noisy * noise
    damage = torch.cat([blurred, noisy], 1)[..., 0, 0]
    return image.clamp(-1.0, 1.0), landmarks, damage
