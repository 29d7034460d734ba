"""Batches of pseudo multi-view frames for Psi, from the cache that `render_views` made (paper section 4.3).

What a batch consists of follows from (seed, step) alone, so a position in the data is a number, and any
process can make any part of any batch.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from model.volume.planes import picture_places
from pipeline.clips.necks import necks_of
from pipeline.core.batches import collate
from pipeline.core.errors import UserError
from pipeline.core.seeds import rng
from pipeline.geometry.label import Label, Motion
from pipeline.geometry.triangulation import triangulate
from pipeline.store.samples import Views
from pipeline.store.view_index import FEWEST_FRAMES, NAME, ViewIndex
from pipeline.train.blinks import BlinkCompensation


@dataclass(frozen=True)
class FrameBatch:
    """B pairs of a source frame and a driving frame of the same clip.

    The target is the driving frame, real or a pseudo view of it.
    """

    source: Tensor  # (B, 3, S, S) in [-1, 1]: I_s
    camera_source: Tensor  # (B, 25), fitted
    motion_source: Tensor  # (B, M): v_s
    motion_driving: Tensor  # (B, M): v_d, of I_d(theta_p) or of the real driving frame
    target: Tensor  # (B, 3, S, S): I_d(theta_q) or the real driving frame
    opacity: Tensor  # (B, 1, S, S) of the target, in [0, 1]
    uv: Tensor  # (B, 3, S, S) of the real driving frame
    camera: Tensor  # (B, 1, 25) theta_q, from where Psi is to draw the target
    landmarks: Tensor  # (B, 70, 2) of the fitted head seen by `camera`, fractions of the image
    # Those of the source in its own picture, and where that would show them with the driving expression.
    landmarks_source: Tensor  # (B, 70, 2)
    landmarks_reenacted: Tensor  # (B, 70, 2)
    real: Tensor  # (B,) 1 where the target is a real frame
    reals: Tensor  # (B,) how many targets of the whole step are real frames, in each row
    # (B, 437), with what a clip's rotation leaves to the neck, which is at rest in pseudo views; (B, 0) where
    # there is no neck field.
    label_source: Tensor
    label_driving: Tensor


@dataclass(frozen=True)
class Choice:
    """What a training sample consists of: `source` and `driving` are rows of the index.

    `p` and `q` are rows of the driving frame's cameras: 0 is the real frame, 1 to N its pseudo views.
    """

    source: int
    driving: int
    p: int
    q: int


class PseudoMultiView:
    """Draws pairs by step number: clips, frames and substitutions follow from (seed, step) alone."""

    def __init__(
        self,
        folder: str | Path,
        *,
        seed: int,
        clips: int,
        motion: str,
        substitute_p: float,
        substitute_q: float,
        bad: Collection[str] = (),
        blinks: BlinkCompensation | None = None,
        neck: str = "none",
    ) -> None:
        """Open the cache in `folder` (or at an address that fsspec knows): `index.parquet` and `shards`.

        `clips` limits how many training clips are used (0: all); `motion` is emot or flame, `neck` none or
        field. Frames with the keys in `bad` are not used. `blinks` moves the cameras of pseudo targets.

        Raises UserError when the index cannot be read, or has not so many clips with frames enough that
        passed the quality gate.
        """
        self.index = ViewIndex(folder)
        self.seed, self.motion, self.blinks = seed, motion, blinks
        self.substitute_p, self.substitute_q = substitute_p, substitute_q
        self.necks = necks_of(self.index) if neck == "field" else None
        # A clip of which one frame is left has no pair.
        found, self.frames_left_out = self.index.clips("train")
        found, self.frames_marked_bad = self._without(found, bad)
        self.clips = {name: frames for name, frames in found.items() if len(frames) >= FEWEST_FRAMES}
        self.clips_left_out = len(found) - len(self.clips)
        names = sorted(self.clips)
        if clips > len(names):
            raise UserError(
                f"train.clips is {clips}, but only {len(names)} training clips have usable frames. "
                "Lower it, or 0 for all of them."
            )
        self.names = names[: clips or None]
        if not self.names:
            raise UserError(
                f"train: {folder}/{NAME} has no training clip with {FEWEST_FRAMES} usable frames. "
                "Look into metrics/ingest.json and metrics/render_views.json for what was rejected and why; "
                "render_views.min_* are the thresholds of quality."
            )

    def _without(
        self, clips: dict[str, np.ndarray], bad: Collection[str]
    ) -> tuple[dict[str, np.ndarray], int]:
        """The frames of each clip but for those with the keys in `bad`, and how many these are."""
        # A cache of paper scale has millions of keys, which are only read for somebody who has marked some.
        if not bad:
            return clips, 0
        keys = self.index.columns(["key"])["key"]
        marked = pc.is_in(keys, pa.array(sorted(bad), pa.string())).to_numpy()
        left = {name: frames[~marked[frames]] for name, frames in clips.items()}
        removed = sum(int(marked[frames].sum()) for frames in clips.values())
        return left, removed

    def choose(self, step: int, size: int) -> list[Choice]:
        """The samples of `step`, those of all microbatches: first the ones with real targets.

        Source and driving frame are independent and uniform within a clip (facts 4.7). The real frame
        stands in for theta_p and theta_q with their probabilities (paper section 4.3).
        """
        # Without replacement: a batch shows as many people as it can.
        draw = rng(self.seed, "psi", step)
        chosen = draw.choice(len(self.names), size, replace=size > len(self.names))
        choices = [self._choice(self.clips[self.names[index]], draw) for index in chosen]
        # A real target costs several times what a pseudo view does. As the microbatches are dealt in turn,
        # they get equally many, and no process waits for another that has more.
        return sorted(choices, key=lambda choice: choice.q != 0)

    def _choice(self, frames: np.ndarray, draw: np.random.Generator) -> Choice:
        # Everything is drawn whatever comes of it: a substitution does not shift what is drawn after it.
        source, driving = draw.integers(len(frames), size=2)
        real_p, real_q = draw.random() < self.substitute_p, draw.random() < self.substitute_q
        # Two views, or the motion of a pseudo target would be read in that very target.
        views = self.index.views
        p, q = 1 + draw.choice(views, 2, replace=views < 2)
        return Choice(
            source=int(frames[source]),
            driving=int(frames[driving]),
            p=0 if real_p else int(p),
            q=0 if real_q else int(q),
        )

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> FrameBatch:
        """Some rows of the batch of `step`, which has `size` samples.

        Raises UserError that names shard, sample and field when one is damaged.
        """
        choices = self.choose(step, size)
        reals = sum(choice.q == 0 for choice in choices)
        return collate([self._sample(choice, reals) for choice in choices[rows]])

    def _sample(self, choice: Choice, reals: int) -> FrameBatch:
        """A pair without the axis of the batch."""
        # Only the fields of this choice are read: those of all views are most of a sample's bytes.
        view = choice.q - 1
        image, mask = (Views.view, Views.alpha) if choice.q else (Views.image, Views.mask)
        motion = Views.label if self.motion == "flame" else Views.motion
        own = {motion.file} if self.necks is None else {motion.file, Views.label.file}
        of_both = {Views.cameras.file, Views.landmarks.file} | own
        source = self.index.read(choice.source, of_both | {Views.image.file})
        of_the_frame = of_both | {Views.uv.file}
        blinks = self.blinks if choice.q else None
        if blinks:
            of_the_frame.add(Views.label.file)
        driving = self.index.read(choice.driving, of_the_frame | {image.name(view), mask.name(view)})
        target = image.tensor(driving, view)
        camera = Views.cameras.tensor(driving)[choice.q]
        if blinks:
            camera = blinks.nearer(camera, Views.label.tensor(driving))
        camera_source = Views.cameras.tensor(source)[0]
        landmarks = Views.landmarks.tensor(driving)
        # Source and driving frame show one person: their heads differ by the expression alone.
        expression = triangulate(landmarks, Views.cameras.tensor(driving))
        return FrameBatch(
            source=Views.image.tensor(source),
            camera_source=camera_source,
            motion_source=self._motion(source, 0),
            motion_driving=self._motion(driving, choice.p),
            target=target,
            opacity=enlarged(mask.tensor(driving, view), target.shape[-1]),
            uv=Views.uv.tensor(driving),
            camera=camera[None],
            landmarks=landmarks[choice.q],
            landmarks_source=Views.landmarks.tensor(source)[0],
            landmarks_reenacted=picture_places(expression[None], camera_source[None])[0],
            real=torch.tensor(float(choice.q == 0)),
            reals=torch.tensor(reals),
            label_source=self._label(source, choice.source),
            label_driving=self._label(driving, choice.driving, at_rest=choice.q > 0),
        )

    def _label(self, sample: dict[str, bytes], frame: int, at_rest: bool = False) -> Tensor:
        """The label (437,) of a frame with its neck, (0,) without a neck field."""
        if self.necks is None:
            return torch.empty(0)
        label = Views.label.tensor(sample)
        neck = torch.from_numpy(self.necks[frame])
        label[Label.NECK] = torch.zeros_like(neck) if at_rest else neck
        return label

    def _motion(self, sample: dict[str, bytes], row: int) -> Tensor:
        """The motion (M,) of a row of a frame's cameras."""
        if self.motion == "flame":
            return Motion.of(Views.label.tensor(sample)).pack()
        return Views.motion.tensor(sample)[row]


def enlarged(opacity_1nn: Tensor, side: int) -> Tensor:
    """An opacity at the size of its picture, (1, side, side); that of a pseudo view may have that of rays."""
    if opacity_1nn.shape[-1] == side:
        return opacity_1nn
    return F.interpolate(opacity_1nn[None], (side, side), mode="bilinear", align_corners=False)[0]
