"""What E_mot is trained on: aligned faces, and batches of pairs of frames and of portraits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.head.flame import Flame
from model.layers.warp import similarity
from model.psi.motion_encoder import CROP, EYES_AND_MOUTH, KEPT, motion_crop
from pipeline.core.seeds import rng
from pipeline.geometry.camera import sample_look_at
from pipeline.geometry.label import Label, head_vertices, landmarks
from pipeline.geometry.motion_targets import MIRROR, motion_targets
from pipeline.pretrain.face_rows import FaceRows, face_rows
from pipeline.pretrain.lazily import Lazily
from pipeline.pretrain.other_sides import from_another_side

POSE = "pose"  # pitch, yaw and roll of the label, read out of the head-pose part
REENACTED = 4  # every so many pairs one is reenacted: the generator costs more than the encoder
FROM_ANOTHER_SIDE = 0.5  # of the faces that are not reenacted, as a camera of pseudo views would see them
LABELS_AT_ONCE = 64
POINTS_BYTES = 70 * 2 * 8  # of the landmarks of a head from the front


class MotionFaces:
    """The faces of a split; N of them, whose pictures are read when they are wanted."""

    def __init__(self, rows: FaceRows, flame: Flame, seed: int) -> None:
        self.rows, self.flame, self.seed = rows, flame, seed
        self.points = rows.points  # (N, 70, 2) fractions
        self.clips = rows.clips  # (N,) number of the clip; -1 for portraits
        self.frames = np.flatnonzero(self.clips >= 0)
        self.portraits = np.flatnonzero(self.clips < 0)
        self._by_clip = np.argsort(self.clips, kind="stable")
        self._sorted = self.clips[self._by_clip]
        self._images = Lazily(self._read, len(rows))
        self._frontal = Lazily(self._turned, len(rows), LABELS_AT_ONCE, POINTS_BYTES)
        self._other_sides = Lazily(self._seen_from_another_side, len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def clip(self, number: int) -> np.ndarray:
        """The rows of the frames of a clip, ascending."""
        first = np.searchsorted(self._sorted, number)
        last = np.searchsorted(self._sorted, number, "right")
        return self._by_clip[first:last]

    def pose(self, rows: np.ndarray) -> np.ndarray:
        """Head rotations (B, 3), axis-angle in radians; NaN where the fit was rejected."""
        return self.rows.labels[rows][:, Label.NECK]

    def frontal(self, rows: np.ndarray) -> np.ndarray:
        """Landmarks (B, 70, 2) of fitted heads from the front, world units, y down; NaN as for `pose`."""
        return self._frontal(rows)["points"].numpy() * np.array([1.0, -1.0])

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What the parts of the embedding are taught of these rows."""
        return motion_targets(self.frontal(rows)) | {POSE: self.pose(rows)}

    def crops(
        self,
        rows: np.ndarray,
        size: int,
        generator: np.random.Generator | None = None,
        turned: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder is shown of these rows, the same in its own colours, and the landmarks in them.

        (B, 3, size, size) in [-1, 1] twice, and (B, 70, 2) fractions. With a generator framing and colours
        are random. `turned` (B,) says which faces, fitted ones, are seen from another side.
        """
        image = self._images(rows)["image"]
        points = self.points[rows]
        if turned is not None and turned.any():
            other = self._other_sides(rows[turned])
            image[turned], points[turned] = other["image"], other["points"].numpy()
        image = image.permute(0, 3, 1, 2).float()
        framing = points
        if generator is not None:
            framing = _jitter(points, generator)
        framing = torch.from_numpy(framing).float()
        crop = shown = motion_crop(image / 127.5 - 1.0, framing, size)
        if generator is not None:
            shown = _recolour(crop, generator)
        places = _in_crop(torch.from_numpy(points).float(), framing)
        return shown, crop, places

    def _read(self, rows: np.ndarray) -> dict[str, Tensor]:
        images = [self.rows.image(row) for row in rows]
        return {"image": torch.from_numpy(np.stack(images))}

    def _seen_from_another_side(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Pictures as those of `_read`, and the landmarks (B, 70, 2) of the fitted heads in them."""
        cameras = [sample_look_at(rng(self.seed, "other sides", int(row))) for row in rows]
        camera = torch.from_numpy(np.stack(cameras))
        label = torch.from_numpy(self.rows.labels[rows])
        image = self._images(rows)["image"].permute(0, 3, 1, 2).float()
        drawn = from_another_side(self.flame, image, label, camera)
        return {
            "image": drawn.round().to(torch.uint8).permute(0, 2, 3, 1),
            "points": landmarks(self.flame, label, camera[:, None])[:, 0],
        }

    @torch.no_grad()
    def _turned(self, rows: np.ndarray) -> dict[str, Tensor]:
        label = torch.from_numpy(self.rows.labels[rows])
        vertices = head_vertices(self.flame, label)
        return {"points": self.flame.landmarks(vertices)[..., :2]}


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
    seed: int,
) -> MotionFaces:
    """The usable faces of a split: of "train" frames and portraits, of the others frames.

    A face whose fit was rejected teaches no read-out, but can still be reenacted. Raises UserError when there
    is no frame.
    """
    return MotionFaces(face_rows(ingest, labels, split, "motion"), flame, seed)


def draw_batch(
    faces: MotionFaces,
    batch: int,
    size: int,
    generator: np.random.Generator,
) -> MotionBatch:
    """A batch of pairs and portraits, half of them mirrored, and half of what is not reenacted turned."""
    rows = _draw_rows(faces, batch, generator)
    # Rounded up: the smallest batch has a pair to be reenacted, too.
    reenacted = 2 * -(-batch // REENACTED)
    turned = (generator.random(len(rows)) < FROM_ANOTHER_SIDE) & faces.rows.fitted[rows]
    turned[:reenacted] = False
    shown, crops, places = faces.crops(rows, size, generator, turned)
    # Mirrored after cropping, since the crop is symmetrical; the two of a pair together.
    pairs = np.repeat(generator.random(batch) < 0.5, 2)
    alone = generator.random(len(rows) - 2 * batch) < 0.5
    mirrored = np.concatenate([pairs, alone])
    flip = torch.from_numpy(mirrored)[:, None, None, None]
    flipped = places * places.new_tensor([-1.0, 1.0])
    flipped = flipped + places.new_tensor([1.0, 0.0])

    # What the read-outs are asked is mirrored with the pictures.
    frontal = faces.frontal(rows)
    frontal[mirrored] = frontal[mirrored][:, MIRROR] * [-1.0, 1.0]
    # In a mirror a head nods as before, but turns and tilts to the other side.
    pose = faces.pose(rows)
    pose[mirrored] *= np.float32([1.0, -1.0, -1.0])
    # That of another camera is not known as a label has it.
    pose[turned] = np.nan
    targets = motion_targets(frontal) | {POSE: pose}
    return MotionBatch(
        reenacted=reenacted,
        shown=torch.where(flip, shown.flip(3), shown),
        crops=torch.where(flip, crops.flip(3), crops),
        places=torch.where(flip[..., 0], flipped[:, MIRROR], places),
        targets={name: torch.from_numpy(value) for name, value in targets.items()},
    )


def _draw_rows(
    faces: MotionFaces,
    batch: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Rows of the frames of pairs, one after the other, and then of portraits."""
    pairs = []
    first = generator.choice(faces.frames, batch)
    for row in first:
        of_the_clip = faces.clip(faces.clips[row])
        pairs += [row, generator.choice(of_the_clip)]
    portraits = faces.portraits
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
