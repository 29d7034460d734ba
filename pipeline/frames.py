"""Batches of pseudo multi-view frames for Psi, from the cache that `render_views` made (paper section 4.3)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.counter import rng
from pipeline.errors import UserError
from pipeline.heads import image_tensor
from pipeline.labels import motion_numbers
from pipeline.shards import ShardReader, decode_npy


@dataclass(frozen=True)
class FrameBatch:
    """B pairs of a source frame and a driving frame of the same clip; the target is the driving frame, real or a pseudo view."""

    source: Tensor  # (B, 3, S, S) in [-1, 1]: I_s
    motion_source: Tensor  # (B, M): v_s
    motion_driving: Tensor  # (B, M): v_d, of I_d(theta_p) or of the real driving frame
    target: Tensor  # (B, 3, S, S): I_d(theta_q) or the real driving frame
    opacity: Tensor  # (B, 1, S, S) of the target, in [0, 1]
    uv: Tensor  # (B, 3, S, S) of the real driving frame
    camera: Tensor  # (B, 1, 25) theta_q
    label: Tensor  # (B, 437) of the driving frame
    real: Tensor  # (B,) 1 where the target is a real frame


@dataclass(frozen=True)
class Choice:
    """What a training sample consists of. `p` and `q` are rows of the frame's cameras: 0 is the real frame, 1 to N its pseudo views."""

    source: str
    driving: str
    p: int
    q: int


class PseudoMultiView:
    """Draws pairs by step number: clips, frames and substitutions follow from (seed, step) alone."""

    def __init__(self, folder: Path, *, seed: int, clips: int, motion: str, substitute_p: float, substitute_q: float) -> None:
        """`folder` holds `index.parquet` and `shards`; `clips` limits how many training clips are used (0: all); `motion` is emot or flame."""
        self.reader = ShardReader(folder / "shards")
        self.seed, self.motion, self.substitute_p, self.substitute_q = seed, motion, substitute_p, substitute_q
        index = pq.read_table(folder / "index.parquet", columns=["key", "clip", "split"]).to_pylist()
        self.clips: dict[str, list[str]] = {}
        for row in index:
            if row["split"] == "train":
                self.clips.setdefault(row["clip"], []).append(row["key"])
        self.names = sorted(self.clips)
        if clips > len(self.names):
            raise UserError(f"train.clips is {clips}, but only {len(self.names)} training clips have usable frames. Lower it, or 0 for all of them.")
        self.names = self.names[: clips or None]
        if not self.names:
            raise UserError(f"train: {folder}/index.parquet has no training frame. Look into metrics/ingest.json for what was rejected and why.")

    def choose(self, step: int, size: int) -> list[Choice]:
        """The samples of `step`: source and driving frame independent and uniform within a clip (facts 4.7), theta_p and theta_q substituted
        by the real frame with their probabilities (paper section 4.3)."""
        draw = rng(self.seed, "psi", step)
        chosen = draw.choice(len(self.names), size, replace=size > len(self.names))
        return [self._choice(self.clips[self.names[index]], draw) for index in chosen]

    def _choice(self, frames: list[str], draw: np.random.Generator) -> Choice:
        source, driving = draw.integers(len(frames), size=2)
        views = sum(field.startswith("view") for field in self.reader.fields(frames[driving]))
        real_p, real_q = draw.random() < self.substitute_p, draw.random() < self.substitute_q
        p, q = draw.integers(1, views + 1, size=2)
        return Choice(frames[source], frames[driving], 0 if real_p else int(p), 0 if real_q else int(q))

    def batch(self, step: int, size: int) -> FrameBatch:
        """The batch of `step`."""
        rows = [self._row(choice) for choice in self.choose(step, size)]
        return FrameBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _row(self, choice: Choice) -> tuple[Tensor, ...]:
        view = choice.q - 1
        image, mask = (f"view{view}.png", f"alpha{view}.png") if choice.q else ("image.png", "mask.png")
        read = self.reader.read
        label = torch.from_numpy(decode_npy(read(choice.driving, "label.npy")))
        cameras = torch.from_numpy(decode_npy(read(choice.driving, "cameras.npy")))
        return (
            image_tensor(read(choice.source, "image.png")),
            self._motion(choice.source, 0),
            self._motion(choice.driving, choice.p),
            image_tensor(read(choice.driving, image)),
            image_tensor(read(choice.driving, mask)),
            image_tensor(read(choice.driving, "uv.png")),
            cameras[choice.q : choice.q + 1],
            label,
            torch.tensor(float(choice.q == 0)),
        )

    def _motion(self, key: str, row: int) -> Tensor:
        if self.motion == "flame":
            return motion_numbers(torch.from_numpy(decode_npy(self.reader.read(key, "label.npy")))[None])[0]
        return torch.from_numpy(decode_npy(self.reader.read(key, "motion.npy")))[row]
