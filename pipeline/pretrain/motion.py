"""Stage pretrain, item motion: E_mot at the scale of the generated heads (paper section 4.1, facts 6).

It is learned by 2D reenactment of clips. Of two frames of a clip a small 2D generator must make each
from the other and both motion embeddings. As it sees the frame that it makes through the embedding
alone, that has to hold whatever moves: lips, lids, gaze, brows, and the head pose, too.

Faster than by pictures alone, each part of the embedding learns what it is named after from the
landmarks of the fitted head, seen from the front, read out linearly: the same face is then the same
motion from all sides. The landmark maps inside the encoder learn where the landmarks are. Portraits add
people for that, and half of the faces that are not reenacted are seen from another side
(pipeline/pretrain/other_sides.py). Colours and framing of the frames to be embedded are changed at
random, so that appearance is of little use in them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.head.flame import Flame
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.files import write_json
from pipeline.core.seeds import derive_seed, rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.motion_targets import motion_measures
from pipeline.networks.weights import save_weights
from pipeline.pretrain.face_rows import evenly
from pipeline.pretrain.motion_faces import MotionBatch, MotionFaces, draw_batch, read_motion_faces
from pipeline.pretrain.motion_teacher import Teacher
from pipeline.train.checkpoint import History
from pipeline.train.distributed import Group, only_first
from pipeline.train.loop import Run, forget, train
from pipeline.train.schedule import set_rates
from pipeline.train.task import Loss, Task

# The generator, which sees few pictures, would run away at the rate that brings the encoder on.
GENERATOR_RATE = 0.2
WEIGHT_DECAY = 0.02
VALIDATION_PAIRS = 32
RIDGE = 1e-2  # per sample, for standardised embeddings
EMBEDDED_AT_ONCE = 64
PAIRS_AT_ONCE = 32


class MotionTask(Task[MotionBatch]):
    """The encoder with its generator and read-outs."""

    def __init__(
        self,
        params: Params,
        teacher: Teacher,
        faces: MotionFaces,
        unseen: MotionFaces,
    ) -> None:
        """`unseen` are people on whom it is not trained."""
        self.section, self.seed = params.pretrain.motion, params.seed
        self.size = params.networks.motion.input
        self.teacher, self.faces = teacher, faces
        groups = []
        for part in (teacher.reenactor, teacher.encoder, teacher.readouts):
            slower = GENERATOR_RATE if part is teacher.reenactor else 1.0
            rate = self.section.learning_rate * slower
            groups.append({"params": list(part.parameters()), "lr": rate})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        self.networks = {"teacher": teacher}
        self.optimisers = {"teacher": self.optimiser}
        # Every look is at the same pairs, so that the curve shows the network and not the draw.
        draw = rng(self.seed, "motion validation")
        looked_at = draw_batch(unseen, VALIDATION_PAIRS, self.size, draw)
        self.looked_at = to_device(looked_at, teacher.eye_mean.device)

    def batch(self, step: int, microbatch: int) -> MotionBatch:
        draw = rng(self.seed, "motion", step, microbatch)
        return draw_batch(self.faces, self.section.microbatch, self.size, draw)

    def set_rates(self, step: int) -> None:
        # Half a cosine down to nothing: a short run ends in a settled network.
        set_rates(
            self.optimiser,
            step,
            warmup=0,
            decay_until=self.section.steps,
        )

    def losses(self, step: int, microbatch: int, batch: MotionBatch) -> Iterator[Loss]:
        # The terms have their weights already. Each is a mean over what is known in the microbatch.
        share = self.section.microbatch / self.section.batch
        terms = {name: share * value for name, value in self.teacher(batch).items()}
        yield Loss.weighted("teacher", terms, dict.fromkeys(terms, 1.0))

    @torch.no_grad()
    def validate(self, group: Group) -> Mapping[str, float]:
        if not group.first:
            return {}
        self.teacher.eval()
        loss = sum(self.teacher(self.looked_at).values())
        self.teacher.train()
        return {"loss": loss}


def pretrain_motion(
    params: Params,
    ingest: Path,
    labels: Path,
    _truth: Path,
    out: Path,
    curves: Path | None = None,
) -> dict[str, Any]:
    """Train E_mot on the train clips and portraits and write `out`/motion.safetensors; returns metrics.

    These are small numbers of the validation clips: how much of named motions a linear map of the
    embedding, learned on the train clips, explains (R^2, 1 is all, of all frames and about each clip's
    mean), and the L1 of reenactment with that of the copied source.
    """
    section, sizes, seed = params.pretrain.motion, params.networks.motion, params.seed
    device = choose_device(params.machine.device)
    inputs = (section, sizes, params.flame, seed, ingest, labels)
    folder = scratch_folder("pretrain_motion", fingerprint(__file__, *inputs))

    flame = Flame(head_model.load(params.flame.model))
    faces = read_motion_faces(flame, ingest, labels, "train", seed)
    unseen = read_motion_faces(flame, ingest, labels, "validation", seed)
    # The weights follow from the seed alone, and the global generator goes on as if nothing was drawn.
    with torch.random.fork_rng(devices=[]):
        own_seed = derive_seed(seed, "motion")
        torch.manual_seed(own_seed % 2**63)
        teacher = Teacher(sizes, faces).to(device)
    run = Run(
        "pretrain motion",
        folder,
        section.steps,
        section.batch,
        section.batch // section.microbatch,
        device=device,
        curves=curves,
    )
    trained = train(MotionTask(params, teacher, faces, unseen), run)
    only_first(trained.group)

    teacher.eval()
    note = {
        "network": "motion encoder",
        "sizes": asdict(sizes),
        "trained_on": len(faces),
    }
    save_weights(out / "motion.safetensors", teacher.encoder.state_dict(), note)
    write_json(out / "moved.json", trained.moved)
    forget(run)
    return {
        "history": trained.history,
        "trained_on": len(faces),
        **_last_losses(trained.history),
        **measure_unseen(teacher, faces, unseen),
    }


def _last_losses(history: History) -> dict[str, float]:
    """The last value of everything in the history."""
    last: dict[str, float] = {}
    for row in history:
        last |= row
    losses = {}
    for name, value in last.items():
        if name not in ("step", "images"):
            losses[f"{name}_loss"] = value
    return losses


@torch.no_grad()
def measure_unseen(
    teacher: Teacher,
    train: MotionFaces,
    test: MotionFaces,
) -> dict[str, float]:
    """The metrics of `pretrain_motion`."""
    return _explained_motions(teacher, train, test) | _reenactment(teacher, test)


def _explained_motions(
    teacher: Teacher,
    train: MotionFaces,
    test: MotionFaces,
) -> dict[str, float]:
    """R^2 of named motions, read from the embedding by ridge regression on the train clips."""
    known = train.frames[evenly(len(train.frames))]
    inputs = _embed(teacher, train, known)
    unseen = _embed(teacher, test, np.arange(len(test)))
    mean = inputs.mean(0)
    spread = inputs.std(0).clip(1e-6)
    inputs = (inputs - mean) / spread
    unseen = (unseen - mean) / spread
    # Ridge regression: (X^T X + r n I) w = X^T (y - mean of y).
    ridge = RIDGE * len(inputs) * np.eye(inputs.shape[1])
    normal = inputs.T @ inputs + ridge
    wanted = motion_measures(train.points[known])
    answers = motion_measures(test.points)
    metrics = {}
    for name, values in wanted.items():
        middle = values.mean()
        moments = inputs.T @ (values - middle)
        weights = np.linalg.solve(normal, moments)
        guess = unseen @ weights + middle
        answer = answers[name]
        metrics[f"{name}_r2"] = _explained(answer, guess)
        # Without the mean of each clip: what is left is motion, not anatomy.
        guess = _centred(guess, test.clips)
        answer = _centred(answer, test.clips)
        metrics[f"{name}_r2_in_clip"] = _explained(answer, guess)
    return metrics


def _reenactment(teacher: Teacher, test: MotionFaces) -> dict[str, float]:
    """L1 of frames made from another one of their clip, and of that one in their place."""
    made, copied = [], []
    # The numbers of clips begin with 0.
    for clip in range(test.clips.max() + 1):
        rows = test.clip(clip)
        half = len(rows) // 2
        if not half:
            continue
        # The two of a pair are half a clip apart.
        first, last = rows[:half], rows[-half:]
        pairs = np.stack([first, last], axis=1)
        parts = []
        for start in range(0, half, PAIRS_AT_ONCE):
            some = pairs[start : start + PAIRS_AT_ONCE]
            parts.append(_reenacted(teacher, test, some.reshape(-1)))
        result, target, other = map(torch.cat, zip(*parts, strict=True))
        made.append(_distance(result, target))
        copied.append(_distance(other, target))
    return {
        "reenactment_l1": round(float(np.mean(made)), 5),
        "copied_source_l1": round(float(np.mean(copied)), 5),
    }


def _reenacted(
    teacher: Teacher,
    test: MotionFaces,
    rows: np.ndarray,
) -> tuple[Tensor, Tensor, Tensor]:
    """The frames `rows` of pairs made from their partners, themselves, and their partners."""
    found = test.crops(rows, teacher.encoder.sizes.input)
    shown, crops, _ = to_device(found, teacher.eye_mean.device)
    motion = torch.cat(teacher.encoder(shown), dim=1)
    result, target = teacher.reenact(crops, motion)
    # The partner of an even row is the next one, that of an odd row the one before.
    partners = torch.arange(len(crops)) ^ 1
    return result, target, crops[partners]


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())


def _embed(
    teacher: Teacher,
    faces: MotionFaces,
    rows: np.ndarray,
) -> np.ndarray:
    """Embeddings (N, dims) as Psi gets them."""
    encoder, device = teacher.encoder, teacher.eye_mean.device
    found = []
    for start in range(0, len(rows), EMBEDDED_AT_ONCE):
        some = rows[start : start + EMBEDDED_AT_ONCE]
        shown, _, _ = faces.crops(some, encoder.sizes.input)
        found.append(encoder.embedding(shown.to(device)))
    # Normal equations square the condition number, which single precision has no digits for.
    return torch.cat(found).double().cpu().numpy()


def _centred(values: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Values (N,) less the mean of each clip."""
    out = values.copy()
    for clip in set(clips.tolist()):
        out[clips == clip] -= values[clips == clip].mean()
    return out


def _explained(values: np.ndarray, guess: np.ndarray) -> float:
    """R^2."""
    error = np.square(values - guess).sum()
    spread = np.square(values - values.mean()).sum()
    return round(1.0 - float(error / max(spread, 1e-12)), 4)
