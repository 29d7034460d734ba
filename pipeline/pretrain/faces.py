"""Ingested faces, with who they show and what was fitted to them, and random variations of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.geometry.label import Estimate, Label
from pipeline.pretrain.face_rows import FaceRows, face_rows
from pipeline.pretrain.lazily import Lazily
from pipeline.store.samples import Aligned
from pipeline.store.tables import photographed, read_rows, usable

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


class Faces:
    """The faces of a split; a batch of them is read when it is wanted."""

    def __init__(self, rows: FaceRows, people: np.ndarray, names: list[str]) -> None:
        """`people` has the class of each face, int64 (N,), and `names` those of the classes."""
        self.rows = rows
        self.people = people
        self.names = names
        self.fitted = rows.fitted
        self.landmarks = rows.points
        self.images = Lazily(self._read, len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """The side of a picture, pixels."""
        return len(self.rows.image(0))

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """What was fitted to some faces, `Estimate` (B, 109) float32; of an unknown one anything finite."""
        label = self.rows.labels[rows]
        label[~self.fitted[rows]] = np.eye(1, Label.SIZE)[0]
        return Estimate.of(label).pack().astype(np.float32)

    def batch(self, rows: np.ndarray, step: np.ndarray | None = None) -> FaceBatch:
        """Some of them, and of which rows a whole step consists, if of more than these."""
        whole = rows if step is None else step
        known = self.fitted[whole].sum()
        pictures = self.images(rows)["image"]
        image = pictures.permute(0, 3, 1, 2).float()
        return FaceBatch(
            image=image / 127.5 - 1.0,
            landmarks=torch.from_numpy(self.landmarks[rows]),
            people=torch.from_numpy(self.people[rows]),
            targets=torch.from_numpy(self.targets(rows)),
            fitted=torch.from_numpy(self.fitted[rows]),
            known=torch.full((len(rows),), int(known)),
        )

    def _read(self, rows: np.ndarray) -> dict[str, Tensor]:
        images = [self.rows.image(row) for row in rows]
        return {"image": torch.from_numpy(np.stack(images))}


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
    rows = face_rows(ingest, labels, split, "perception")
    frames = rows.clips[rows.clips >= 0]
    portraits = []
    # A real portrait is taken for the only one of its person, unless its folder says who it is.
    if len(frames) < len(rows):
        identities = _identities(truth / "portraits.parquet")
        photos = photographed(ingest)
        for row in usable(read_rows(ingest / "portraits.parquet", Aligned.stage, ["key", "file", "status"])):
            key = row["key"]
            own = f"{PORTRAIT} {key}"
            if key in photos:
                own = f"{PERSON} {photos[key]}"
            portraits.append(identities.get(row["file"], own))
    clips = [f"{CLIP} {name}" for name in rows.clip_names]
    # Sorted, so that the class of a person does not hang on the order of the tables.
    known = sorted({*clips, *portraits})
    numbers = {person: number for number, person in enumerate(known)}
    of_clip = np.array([numbers[person] for person in clips], np.int64)
    of_portrait = np.array([numbers[person] for person in portraits], np.int64)
    return Faces(rows, np.concatenate([of_clip[frames], of_portrait]), known)


def _identities(portraits: Path) -> dict[str, str]:
    """Who the generated portraits show, by file; empty where the portraits are real."""
    if not portraits.exists():
        return {}
    rows = read_rows(portraits, Aligned.stage, ["file", "identity"])
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
