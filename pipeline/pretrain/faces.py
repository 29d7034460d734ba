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
from pipeline.geometry.landmarks import landmarks_70
from pipeline.store.shards import ShardReader, decode_png


@dataclass
class Faces:
    """Aligned faces in memory; N images of S pixels."""

    images: np.ndarray  # (N, S, S, 3) uint8
    landmarks: np.ndarray  # (N, 70, 2) fractions
    people: np.ndarray  # (N,) class of each image
    targets: np.ndarray  # (N, 109) as Regressor
    fitted: np.ndarray  # (N,) bool: `targets` is known

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1], landmarks, people, targets and fitted of the chosen rows."""
        image = torch.from_numpy(self.images[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return (
            image,
            *(
                torch.from_numpy(array[chosen])
                for array in (self.landmarks, self.people, self.targets, self.fitted)
            ),
        )


def read_faces(ingest: Path, labels: Path, truth: Path, split: str) -> Faces:
    """All usable faces of a split ("train": portraits and frames; the others: frames). A person is an identity of the generator, a portrait or
    a clip.
    """
    reader = ShardReader(ingest / "shards")
    rows = [
        row | {"person": f"clip {row['clip']}"}
        for row in _rows(ingest / "frames.parquet")
        if row["split"] == split
    ]
    if split == "train":
        known = truth / "portraits.parquet"
        person = (
            {row["file"]: f"identity {row['identity']}" for row in _rows(known)} if known.exists() else {}
        )
        rows += [
            row | {"person": person.get(row["file"], f"portrait {row['key']}")}
            for row in _rows(ingest / "portraits.parquet")
        ]
    rows = [row for row in rows if row["status"] == "ok"]
    if not rows:
        raise UserError(
            f"pretrain perception: {ingest} holds no usable face of the {split} split. See the reasons in its tables."
        )
    fits = {
        row["key"]: row["label"]
        for name in ("ffhq", "vfhq")
        for row in _rows(labels / f"{name}.parquet")
        if row["status"] == "ok"
    }
    numbers = {person: i for i, person in enumerate(sorted({row["person"] for row in rows}))}
    return Faces(
        images=np.stack([decode_png(reader.read(row["key"], "image.png")) for row in rows]),
        landmarks=landmarks_70(np.array([row["landmarks"] for row in rows], np.float32).reshape(-1, 478, 3)),
        people=np.array([numbers[row["person"]] for row in rows]),
        targets=regression_targets(
            np.array([fits.get(row["key"], np.eye(1, 437)[0]) for row in rows], np.float32)
        ),
        fitted=np.array([row["key"] in fits for row in rows]),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def regression_targets(labels_NL: np.ndarray) -> np.ndarray:
    """Labels (N, 437) to what `Regressor` estimates (N, 109): expression, jaw, one eye triple, rotation vector of the world-to-camera
    matrix.
    """
    world2cam = labels_NL[:, :16].reshape(-1, 4, 4)[:, :3, :3].transpose(0, 2, 1)
    return np.concatenate(
        [labels_NL[:, 325:425], labels_NL[:, 428:434], rotation_vectors(world2cam)], axis=1
    ).astype(np.float32)


def rotation_vectors(matrices_N33: np.ndarray) -> np.ndarray:
    """Rotation matrices to axis-angle vectors (N, 3), radians; 0 for what is no rotation."""
    skew = np.stack(
        [
            matrices_N33[:, 2, 1] - matrices_N33[:, 1, 2],
            matrices_N33[:, 0, 2] - matrices_N33[:, 2, 0],
            matrices_N33[:, 1, 0] - matrices_N33[:, 0, 1],
        ],
        1,
    )
    sine = np.linalg.norm(skew, axis=1, keepdims=True) / 2
    cosine = (np.trace(matrices_N33, axis1=1, axis2=2)[:, None] - 1) / 2
    return skew / 2 * np.where(sine > 1e-8, np.arctan2(sine, cosine) / np.maximum(sine, 1e-8), 1.0)


def augment(
    image_BCHW: Tensor, landmarks_BN2: Tensor, generator: torch.Generator, geometry: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Randomly shifted and scaled (by up to `geometry` of the image), recoloured, blurred and noisy copies; also the landmarks and, as (B,
    2), how
    blurred and how noisy each is (0 to 1)."""
    count = len(image_BCHW)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(image_BCHW.device) * (high - low) + low

    scale, shift = 1.0 + uniform(-geometry, geometry, 1), uniform(-geometry, geometry, 2)
    theta = torch.cat([torch.diag_embed(scale.expand(-1, 2)), shift[:, :, None] * 2.0], dim=2)
    image = F.grid_sample(
        image_BCHW,
        F.affine_grid(theta, image_BCHW.shape, align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    landmarks = (landmarks_BN2 - 0.5 - shift[:, None]) / scale[:, None] + 0.5
    image = image * uniform(0.75, 1.25, 1, 1, 1) * uniform(0.9, 1.1, 3, 1, 1) + uniform(-0.15, 0.15, 1, 1, 1)
    blurred = (uniform(-0.5, 1.0, 1, 1, 1)).clamp_min(0.0)
    image = torch.lerp(image, F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1), blurred)
    noisy = (uniform(-0.5, 1.0, 1, 1, 1)).clamp_min(0.0)
    image = image + 0.08 * noisy * torch.randn(image.shape, generator=generator).to(image.device)
    return image.clamp(-1.0, 1.0), landmarks, torch.cat([blurred, noisy], 1)[..., 0, 0]
