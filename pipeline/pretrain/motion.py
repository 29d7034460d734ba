"""Stage pretrain, item motion: E_mot at the scale of the generated heads, learned by 2D reenactment of clips (paper section 4.1, facts 6).

Two frames of a clip; a small 2D generator must make each from the other and both motion embeddings. As it sees the other frame through
the embedding alone, that has to hold whatever moves: lips, lids, gaze, brows, and the head pose, too. Faster than by pictures alone, each
part of the embedding learns what it is named after from the landmarks of the fitted head, seen from the front, read out linearly: the same
face is then the same motion from all sides. The landmark maps inside the encoder learn where the landmarks are. Portraits add people for
that. Colours and framing of the frames to be embedded are changed at random, so that appearance is of little use in them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from model.head.flame import Flame
from model.layers.warp import similarity
from model.psi.motion_encoder import CROP, EYES_AND_MOUTH, KEPT, MotionEncoder, motion_crop
from model.psi.reenact2d import Reenactor
from model.weights import save_weights
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.seeds import derive_seed, rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.label import head_vertices
from pipeline.geometry.landmarks import landmarks_70
from pipeline.geometry.motion_targets import MIRROR, motion_measures, motion_targets
from pipeline.store.shards import ShardReader, decode_png
from pipeline.train.loop import TrainingLoop, update

POSE = "pose"  # pitch, yaw and roll of the label, read out of the head-pose part
WEIGHTS = {
    "eye": 0.6,
    "emotion": 0.3,
    "mouth": 0.3,
    POSE: 0.2,
}  # of Huber losses in standard deviations, against L1 of the pictures
MAPPED = [
    68,
    69,
    *range(2, 68),
]  # what the 68 landmark maps show: two points of the contour, which tell little, make room for the pupils
MAPS_WEIGHT = 10.0  # of distances in widths of the crop
GENERATOR_RATE = 0.2
REENACTED = 4  # every so many pairs one is reenacted: the generator costs more than the encoder
VALIDATION_PAIRS = 32
RIDGE = 1e-2  # per sample, for standardised embeddings


@dataclass
class MotionFaces:
    """Aligned faces in memory; N images of S pixels."""

    images: np.ndarray  # (N, S, S, 3) uint8
    points: np.ndarray  # (N, 70, 2) fractions
    clips: np.ndarray  # (N,) name of the clip; empty for portraits
    pose: (
        np.ndarray
    )  # (N, 3) head rotation, axis-angle in radians; NaN where the fit was rejected, also in `frontal`
    frontal: (
        np.ndarray
    )  # (N, 70, 2) landmarks of the fitted head from the front and far away, world units, y down

    def crops(
        self, rows: np.ndarray, size: int, generator: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder is shown of these rows, the same in its own colours, both (B, 3, size, size) in [-1, 1], and where the landmarks
        lie in them, (B, 70, 2) fractions. With a generator framing and colours are random.
        """
        image = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        points = self.points[rows]
        framing = torch.from_numpy(points if generator is None else _jitter(points, generator)).float()
        crop = motion_crop(image, framing, size)
        places = _in_crop(torch.from_numpy(points).float(), framing)
        return (crop if generator is None else _recolour(crop, generator)), crop, places


def read_motion_faces(flame: Flame, ingest: Path, labels: Path, split: str) -> MotionFaces:
    """Usable faces: "train" has the frames of the train clips and the portraits, the others the frames of theirs.

    Raises UserError when there is no frame.
    """
    rows = [row for row in pq.read_table(ingest / "frames.parquet").to_pylist() if row["split"] == split]
    if split == "train":
        rows += [row | {"clip": ""} for row in pq.read_table(ingest / "portraits.parquet").to_pylist()]
    rows = [row for row in rows if row["status"] == "ok"]
    if not any(row["clip"] for row in rows):
        raise UserError(
            f"pretrain motion: {ingest} has no usable frame of a {split} clip. Look into the reasons in its tables."
        )
    fits = [
        row
        for item in ("ffhq", "vfhq")
        for row in pq.read_table(labels / f"{item}.parquet").to_pylist()
        if row["status"] == "ok"
    ]
    fitted = {row["key"]: row["label"] for row in fits}
    label = torch.tensor([fitted.get(row["key"], [np.nan] * 437) for row in rows])
    with torch.no_grad():
        frontal = torch.cat([flame.landmarks(head_vertices(flame, part)) for part in label.split(64)])[
            ..., :2
        ]
    reader = ShardReader(ingest / "shards")
    return MotionFaces(
        images=np.stack([decode_png(reader.read(row["key"], "image.png")) for row in rows]),
        points=landmarks_70(
            np.array([row["landmarks"] for row in rows], np.float32).reshape(len(rows), -1, 3)
        ),
        clips=np.array([row["clip"] for row in rows]),
        pose=label[:, 425:428].numpy(),
        frontal=frontal.numpy() * np.array([1.0, -1.0]),
    )


def pretrain_motion(params: Params, ingest: Path, labels: Path, _truth: Path, out: Path) -> dict[str, Any]:
    """Train E_mot on the train clips and portraits and write `out`/motion.safetensors.

    Returns small metrics of the validation clips: how much of named motions a linear map of the embedding, learned on the train clips, explains
    (R^2, 1 is all, of all frames and about each clip's mean), and the L1 of reenactment with that of the copied source.
    """
    section, sizes, seed = params.pretrain.motion, params.networks.motion, params.seed
    device = choose_device(params.machine.device)
    flame = Flame(head_model.load(params.flame.model))
    faces = read_motion_faces(flame, ingest, labels, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "motion") % 2**63)
        teacher = _Teacher(sizes, faces).to(device)
    # The generator, which sees few pictures, would run away at the rate that brings the encoder on.
    rates = [(teacher.reenactor, GENERATOR_RATE), (teacher.encoder, 1.0), (teacher.readouts, 1.0)]
    groups = [{"params": list(part.parameters()), "lr": section.learning_rate * rate} for part, rate in rates]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.02)
    folder = scratch_folder(
        "pretrain_motion",
        fingerprint(__file__, section, sizes, params.flame, seed, params.threads, ingest, labels),
    )
    training = TrainingLoop(
        label="pretrain motion",
        folder=folder,
        steps=section.steps,
        batch=section.batch,
        modules={"teacher": teacher},
        optimisers={"teacher": optimiser},
        device=device,
    )

    def step(i: int, batch: _Batch) -> dict[str, Tensor]:
        # Half a cosine down to nothing: a short run ends in a settled network.
        for group, (_, rate) in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = section.learning_rate * rate * 0.5 * (1.0 + np.cos(np.pi * i / section.steps))
        losses = teacher(batch)
        update(optimiser, sum(losses.values()))
        return {name: value.detach() for name, value in losses.items()}

    unseen = read_motion_faces(flame, ingest, labels, "validation")
    looked_at = to_device(
        _draw(unseen, VALIDATION_PAIRS, sizes.input, rng(seed, "motion validation")), device
    )

    @torch.no_grad()
    def validate() -> dict[str, float]:
        teacher.eval()
        loss = sum(teacher(looked_at).values())
        teacher.train()
        return {"loss": loss}

    history = training.run(
        lambda i: _draw(faces, section.batch, sizes.input, rng(seed, "motion", i)), step, validate=validate
    )
    teacher.eval()
    note = {"network": "motion encoder", "sizes": asdict(sizes), "trained_on": len(faces.images)}
    save_weights(out / "motion.safetensors", teacher.encoder.state_dict(), note)
    write_json(out / "moved.json", training.moved)
    training.finish()
    last = {
        f"{name}_loss": value
        for row in history
        for name, value in row.items()
        if name not in ("step", "images")
    }
    return {
        "history": history,
        "trained_on": len(faces.images),
        **last,
        **measure_unseen(teacher, faces, unseen),
    }


@dataclass
class _Batch:
    """Frames 2i and 2i + 1 are of one clip, 2B in all; then come B portraits (if there are any)."""

    reenacted: int  # so many of the frames
    shown: Tensor  # (N, 3, size, size)
    crops: Tensor  # (N, 3, size, size)
    places: Tensor  # (N, 70, 2) landmarks in the crops, fractions
    targets: dict[str, Tensor]  # (N, ...)


def _draw(faces: MotionFaces, batch: int, size: int, generator: np.random.Generator) -> _Batch:
    """A batch of pairs and portraits, half of them mirrored."""
    frames, portraits = np.flatnonzero(faces.clips != ""), np.flatnonzero(faces.clips == "")
    first = generator.choice(frames, batch)
    second = np.array([generator.choice(np.flatnonzero(faces.clips == faces.clips[row])) for row in first])
    alone = generator.choice(portraits, batch) if len(portraits) else portraits
    rows = np.concatenate([np.stack([first, second], axis=1).reshape(-1), alone])
    shown, crops, places = faces.crops(rows, size, generator)
    # Mirrored after cropping, since the crop is symmetrical; the two of a pair together.
    mirrored = np.concatenate(
        [np.repeat(generator.random(batch) < 0.5, 2), generator.random(len(alone)) < 0.5]
    )
    turned = torch.from_numpy(mirrored)[:, None, None, None]
    flipped = (places * places.new_tensor([-1.0, 1.0]) + places.new_tensor([1.0, 0.0]))[:, MIRROR]
    frontal, pose = faces.frontal[rows], faces.pose[rows]
    frontal[mirrored] = frontal[mirrored][:, MIRROR] * [-1.0, 1.0]
    pose[mirrored] *= np.float32([1.0, -1.0, -1.0])
    targets = motion_targets(frontal) | {POSE: pose}
    return _Batch(
        reenacted=2 * -(-batch // REENACTED),
        shown=torch.where(turned, shown.flip(3), shown),
        crops=torch.where(turned, crops.flip(3), crops),
        places=torch.where(turned[..., 0], flipped, places),
        targets={name: torch.from_numpy(value) for name, value in targets.items()},
    )


def _in_crop(points_NK2: Tensor, framing_NK2: Tensor) -> Tensor:
    """Image fractions to fractions of the square that `motion_crop` cuts with the landmarks `framing`."""
    reference = torch.stack(
        [framing_NK2[:, group].mean(1) for group in (slice(36, 42), slice(42, 48), slice(60, 68))], dim=1
    )
    matrix = similarity(reference, reference.new_tensor(EYES_AND_MOUTH))
    placed = points_NK2 @ matrix[:, :, :2].mT + matrix[:, None, :, 2]
    return (placed + 0.5 - placed.new_tensor([(CROP - KEPT) / 2, 0.0])) / KEPT


def _jitter(points_N70x2: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Framings that are a little off, as real landmarks are: moved, scaled and turned."""
    count = len(points_N70x2)
    middle = points_N70x2.mean(1, keepdims=True)
    factor = (1 + 0.04 * generator.normal(size=count)) * np.exp(1j * 0.05 * generator.normal(size=count))
    z = (points_N70x2 - middle) @ np.array([1, 1j])
    z = z * factor[:, None] + 0.008 * (
        generator.normal(size=(count, 1)) + 1j * generator.normal(size=(count, 1))
    )
    return np.stack([z.real, z.imag], axis=-1) + middle


def _recolour(image_BCHW: Tensor, generator: np.random.Generator) -> Tensor:
    """Other light, other skin, sometimes grey, and noise."""
    count = len(image_BCHW)

    def normal(spread: float, *shape: int) -> Tensor:
        return torch.from_numpy(spread * generator.normal(size=(count, *shape))).float()

    grey = torch.from_numpy(generator.random((count, 1, 1, 1)).astype(np.float32)).pow(2)
    image = torch.lerp(image_BCHW, image_BCHW.mean(1, keepdim=True), grey)
    image = (
        image * normal(0.2, 1, 1, 1).exp() * normal(0.1, 3, 1, 1).exp()
        + normal(0.12, 1, 1, 1)
        + normal(0.08, 3, 1, 1)
    )
    return (image + normal(0.03, *image.shape[1:])).clamp(-1, 1)


class _Teacher(nn.Module):
    """The encoder and what teaches it: the reenactor, and linear read-outs of landmarks from the parts of the embedding."""

    def __init__(self, sizes: Any, faces: MotionFaces) -> None:
        super().__init__()
        self.encoder = MotionEncoder(sizes)
        # All the encoder knows passes through one rectified map; begun at zero it would as likely as not be dark everywhere and stay so.
        nn.init.ones_(self.encoder.model.conv6.bias)
        self.encoder.model.l0.register_forward_hook(self._keep_maps)
        self.reenactor = Reenactor(sizes.dims + sizes.headpose, sizes.width)
        targets = motion_targets(faces.frontal) | {POSE: faces.pose}
        parts = {
            POSE: sizes.headpose,
            "eye": sizes.eye,
            "emotion": sizes.emotion,
            "mouth": sizes.feature,
        }  # as the encoder returns them
        self.readouts = nn.ModuleDict(
            {name: nn.Linear(width, targets[name].shape[1]) for name, width in parts.items()}
        )
        for name, values in targets.items():
            self.register_buffer(f"{name}_mean", torch.from_numpy(np.nan_to_num(np.nanmean(values, axis=0))))
            self.register_buffer(
                f"{name}_spread", torch.from_numpy(np.nan_to_num(np.nanstd(values, axis=0)).clip(1e-3))
            )

    def forward(self, batch: _Batch) -> dict[str, Tensor]:
        """The losses, scalars."""
        parts = dict(zip(self.readouts, self.encoder(batch.shown), strict=True))
        losses = {}
        for name, readout in self.readouts.items():
            wanted = (batch.targets[name] - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_spread")
            known = ~wanted.isnan()
            error = (readout(parts[name]) - wanted.nan_to_num())[known]
            losses[name] = WEIGHTS[name] * nn.functional.smooth_l1_loss(error, torch.zeros_like(error))
        losses["maps"] = (
            MAPS_WEIGHT * (_peaks(self.maps) - batch.places[:, MAPPED[: self.maps.shape[1]]]).abs().mean()
        )
        motion = torch.cat(list(parts.values()), dim=1)[: batch.reenacted]
        made, wanted = self.reenact(batch.crops[: batch.reenacted], motion)
        return losses | {"l1": (made - wanted).abs().mean(), "gradient": _gradient_difference(made, wanted)}

    def _keep_maps(self, _module: nn.Module, _inputs: tuple[Tensor, ...], maps: Tensor) -> None:
        self.maps = maps

    def reenact(self, crops: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Each frame of the pairs made from the other, and as it is."""
        swapped = torch.arange(len(crops), device=crops.device) ^ 1
        return self.reenactor(crops[swapped], motion[swapped], motion), crops


def _peaks(maps_NKhw: Tensor) -> Tensor:
    """The mean place (N, K, 2), fractions, under the softmax of each map."""
    height, width = maps_NKhw.shape[2:]
    share = maps_NKhw.flatten(2).softmax(2).unflatten(2, (height, width))
    x, y = ((torch.arange(side, device=share.device) + 0.5) / side for side in (width, height))
    return torch.stack([share.sum(2) @ x, share.sum(3) @ y], dim=-1)


def _gradient_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the image gradients: edges must lie where they belong."""
    difference = a - b
    return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


@torch.no_grad()
def measure_unseen(teacher: _Teacher, train: MotionFaces, test: MotionFaces) -> dict[str, float]:
    """The metrics of `pretrain_motion`."""
    known = np.flatnonzero(train.clips != "")
    inputs, unseen = (
        _embed(teacher, faces, rows) for faces, rows in ((train, known), (test, np.arange(len(test.clips))))
    )
    mean, spread = inputs.mean(0), inputs.std(0).clip(1e-6)
    inputs, unseen = ((x - mean) / spread for x in (inputs, unseen))
    normal = inputs.T @ inputs + RIDGE * len(inputs) * np.eye(inputs.shape[1])
    wanted, answers = motion_measures(train.points[known]), motion_measures(test.points)
    metrics = {}
    for name, values in wanted.items():
        middle = values.mean()
        guess = unseen @ np.linalg.solve(normal, inputs.T @ (values - middle)) + middle
        metrics[f"{name}_r2"] = _explained(answers[name], guess)
        metrics[f"{name}_r2_in_clip"] = _explained(
            _centred(answers[name], test.clips), _centred(guess, test.clips)
        )
    made, copied = [], []
    for clip in dict.fromkeys(test.clips.tolist()):
        rows = np.flatnonzero(test.clips == clip)
        rows = np.stack([rows[: len(rows) // 2], rows[-(len(rows) // 2) :]], axis=1).reshape(
            -1
        )  # half a clip apart
        if not len(rows):
            continue
        shown, crops, _ = to_device(test.crops(rows, teacher.encoder.sizes.input), teacher.eye_mean.device)
        result, target = teacher.reenact(crops, torch.cat(teacher.encoder(shown), dim=1))
        made.append(float((result - target).abs().mean()))
        copied.append(float((crops[torch.arange(len(crops)) ^ 1] - target).abs().mean()))
    return metrics | {
        "reenactment_l1": round(float(np.mean(made)), 5),
        "copied_source_l1": round(float(np.mean(copied)), 5),
    }


def _embed(teacher: _Teacher, faces: MotionFaces, rows: np.ndarray) -> np.ndarray:
    """Embeddings (N, dims) as Psi gets them."""
    encoder = teacher.encoder
    crops = (
        faces.crops(rows[start : start + 64], encoder.sizes.input)[0] for start in range(0, len(rows), 64)
    )
    return (
        torch.cat([encoder.embedding(crop.to(teacher.eye_mean.device)) for crop in crops])
        .double()
        .cpu()
        .numpy()
    )


def _centred(values: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Without the mean of each clip: what is left is motion, not anatomy."""
    out = values.copy()
    for clip in set(clips.tolist()):
        out[clips == clip] -= values[clips == clip].mean()
    return out


def _explained(values: np.ndarray, guess: np.ndarray) -> float:
    """R^2."""
    return round(
        1.0 - float(np.square(values - guess).sum() / max(np.square(values - values.mean()).sum(), 1e-12)), 4
    )
