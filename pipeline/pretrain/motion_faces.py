"""What E_mot is trained on: aligned faces in memory, and batches of pairs of frames and of portraits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.head.flame import Flame
from model.layers.warp import similarity
from model.psi.motion_encoder import CROP, EYES_AND_MOUTH, KEPT, motion_crop
from pipeline.core.errors import UserError
from pipeline.geometry.label import Label, head_vertices
from pipeline.geometry.landmarks import landmarks_70
from pipeline.geometry.motion_targets import MIRROR, motion_targets
from pipeline.store.samples import Aligned
from pipeline.store.shards import ShardReader

POSE = "pose"  # pitch, yaw and roll of the label, read out of the head-pose part
REENACTED = 4  # every so many pairs one is reenacted: the generator costs more than the encoder
LABELS_AT_ONCE = 64


@dataclass
class MotionFaces:
    """Aligned faces in memory; N images of S pixels.

    `pose` and `frontal` are NaN where the fit was rejected.
    """

    images: np.ndarray  # (N, S, S, 3) uint8
    points: np.ndarray  # (N, 70, 2) fractions
    clips: np.ndarray  # (N,) name of the clip; empty for portraits
    pose: np.ndarray  # (N, 3) head rotation, axis-angle in radians
    frontal: np.ndarray  # (N, 70, 2) landmarks of the fitted head from the front, world units, y down

    def crops(
        self,
        rows: np.ndarray,
        size: int,
        generator: np.random.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder is shown of these rows, the same in its own colours, and the landmarks in them.

        (B, 3, size, size) in [-1, 1] twice, and (B, 70, 2) fractions. With a generator framing and colours
        are random.
        """
        image = torch.from_numpy(self.images[rows])
        image = image.permute(0, 3, 1, 2).float()
        points = framing = self.points[rows]
        if generator is not None:
            framing = _jitter(points, generator)
        framing = torch.from_numpy(framing).float()
        crop = shown = motion_crop(image / 127.5 - 1.0, framing, size)
        if generator is not None:
            shown = _recolour(crop, generator)
        places = _in_crop(torch.from_numpy(points).float(), framing)
        return shown, crop, places


@dataclass
class MotionBatch:
    """Frames 2i and 2i + 1 are of one clip, 2B in all; then come B portraits (if there are any)."""

    reenacted: int  # so many of the frames
    shown: Tensor  # (N, 3, size, size)
    crops: Tensor  # (N, 3, size, size)
    places: Tensor  # (N, 70, 2) landmarks in the crops, fractions
    targets: dict[str, Tensor]  # (N, ...)


def read_motion_faces(
    flame: Flame,
    ingest: Path,
    labels: Path,
    split: str,
) -> MotionFaces:
    """The usable faces of a split: of "train" frames and portraits, of the others frames.

    Raises UserError when there is no frame.
    """
    rows = [row for row in _usable(ingest / "frames.parquet") if row["split"] == split]
    if not rows:
        raise UserError(
            f"pretrain motion: {ingest} has no usable frame of a {split} clip. "
            "Look into the reasons in its tables."
        )
    if split == "train":
        rows += [row | {"clip": ""} for row in _usable(ingest / "portraits.parquet")]
    fits = _usable(labels / "ffhq.parquet") + _usable(labels / "vfhq.parquet")
    fitted = {row["key"]: row["label"] for row in fits}
    # A face whose fit was rejected teaches no read-out, but can still be reenacted.
    unknown = [np.nan] * Label.SIZE
    label = torch.tensor([fitted.get(row["key"], unknown) for row in rows])
    with torch.no_grad():
        parts = []
        for some in label.split(LABELS_AT_ONCE):
            vertices = head_vertices(flame, some)
            parts.append(flame.landmarks(vertices))
    frontal = torch.cat(parts)[..., :2]
    mesh = np.array([row["landmarks"] for row in rows], np.float32)
    mesh = mesh.reshape(len(rows), -1, 3)
    reader = ShardReader(ingest / "shards", Aligned.stage)
    images = [Aligned.image.array(reader[row["key"]]) for row in rows]
    return MotionFaces(
        images=np.stack(images),
        points=landmarks_70(mesh),
        clips=np.array([row["clip"] for row in rows]),
        pose=label[:, Label.NECK].numpy(),
        frontal=frontal.numpy() * np.array([1.0, -1.0]),
    )


def draw_batch(
    faces: MotionFaces,
    batch: int,
    size: int,
    generator: np.random.Generator,
) -> MotionBatch:
    """A batch of pairs and portraits, half of them mirrored."""
    rows = _draw_rows(faces.clips, batch, generator)
    shown, crops, places = faces.crops(rows, size, generator)
    # Mirrored after cropping, since the crop is symmetrical; the two of a pair together.
    pairs = np.repeat(generator.random(batch) < 0.5, 2)
    alone = generator.random(len(rows) - 2 * batch) < 0.5
    mirrored = np.concatenate([pairs, alone])
    turned = torch.from_numpy(mirrored)[:, None, None, None]
    flipped = places * places.new_tensor([-1.0, 1.0])
    flipped = flipped + places.new_tensor([1.0, 0.0])

    # What the read-outs are asked is mirrored with the pictures.
    frontal = faces.frontal[rows]
    frontal[mirrored] = frontal[mirrored][:, MIRROR] * [-1.0, 1.0]
    # In a mirror a head nods as before, but turns and tilts to the other side.
    pose = faces.pose[rows]
    pose[mirrored] *= np.float32([1.0, -1.0, -1.0])
    targets = motion_targets(frontal) | {POSE: pose}
    # Rounded up: the smallest batch has a pair to be reenacted, too.
    pairs_reenacted = -(-batch // REENACTED)
    return MotionBatch(
        reenacted=2 * pairs_reenacted,
        shown=torch.where(turned, shown.flip(3), shown),
        crops=torch.where(turned, crops.flip(3), crops),
        places=torch.where(turned[..., 0], flipped[:, MIRROR], places),
        targets={name: torch.from_numpy(value) for name, value in targets.items()},
    )


def _draw_rows(
    clips: np.ndarray,
    batch: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Rows of the frames of pairs, one after the other, and then of portraits."""
    frames = np.flatnonzero(clips != "")
    pairs = []
    first = generator.choice(frames, batch)
    for row in first:
        of_the_clip = np.flatnonzero(clips == clips[row])
        pairs += [row, generator.choice(of_the_clip)]
    portraits = np.flatnonzero(clips == "")
    alone = generator.choice(portraits, batch) if len(portraits) else portraits
    return np.concatenate([np.array(pairs), alone])


def _in_crop(points_NK2: Tensor, framing_NK2: Tensor) -> Tensor:
    """Image fractions to fractions of the square that `motion_crop` cuts with the landmarks `framing`."""
    eyes_and_mouth = (slice(36, 42), slice(42, 48), slice(60, 68))
    centres = [framing_NK2[:, group].mean(1) for group in eyes_and_mouth]
    reference = torch.stack(centres, dim=1)
    matrix = similarity(reference, reference.new_tensor(EYES_AND_MOUTH))
    turned = points_NK2 @ matrix[:, :, :2].mT
    placed = turned + matrix[:, None, :, 2]
    corner = placed.new_tensor([(CROP - KEPT) / 2, 0.0])
    return (placed + 0.5 - corner) / KEPT


def _jitter(points_N70x2: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Framings that are a little off, as real landmarks are: moved, scaled and turned."""
    count = len(points_N70x2)
    middle = points_N70x2.mean(1, keepdims=True)
    # A point of the plane is a complex number: a factor scales and turns it.
    scale = 1 + 0.04 * generator.normal(size=count)
    turn = np.exp(1j * 0.05 * generator.normal(size=count))
    factor = scale * turn
    across = generator.normal(size=(count, 1))
    down = generator.normal(size=(count, 1))
    z = (points_N70x2 - middle) @ np.array([1, 1j])
    z = z * factor[:, None] + 0.008 * (across + 1j * down)
    return np.stack([z.real, z.imag], axis=-1) + middle


def _recolour(image_BCHW: Tensor, generator: np.random.Generator) -> Tensor:
    """Other light, other skin, sometimes grey, and noise."""
    count = len(image_BCHW)

    def normal(spread: float, *shape: int) -> Tensor:
        drawn = generator.normal(size=(count, *shape))
        return torch.from_numpy(spread * drawn).float()

    # Squared, so that most pictures keep most of their colour.
    drawn = generator.random((count, 1, 1, 1)).astype(np.float32)
    grey = torch.from_numpy(drawn).pow(2)
    image = torch.lerp(image_BCHW, image_BCHW.mean(1, keepdim=True), grey)
    light = normal(0.2, 1, 1, 1).exp()
    tint = normal(0.1, 3, 1, 1).exp()
    image = image * light * tint
    image = image + normal(0.12, 1, 1, 1)
    image = image + normal(0.08, 3, 1, 1)
    noise = normal(0.03, *image.shape[1:])
    return (image + noise).clamp(-1, 1)


def _usable(path: Path) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(path).to_pylist() if row["status"] == "ok"]
