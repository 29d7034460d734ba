"""Real frames of held-out clips: who was not trained on, and which of their frames are looked at."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.core.seeds import rng
from pipeline.geometry.label import motion_numbers
from pipeline.store.samples import image_tensor
from pipeline.store.shards import ShardReader, decode_npy


@dataclass(frozen=True)
class Frame:
    """A real frame as the synthesizers see it."""

    key: str
    clip: str
    image: Tensor  # (3, S, S) in [-1, 1]
    mask: Tensor  # (1, S, S) in [0, 1]
    motion: Tensor  # (M,)
    camera: Tensor  # (25,) fitted
    label: Tensor  # (437,) fitted


class HeldOutClips(ABC):
    """The clips of a split that have two frames or more, and which of their frames are looked at."""

    def __init__(
        self, rows: Iterable[Mapping[str, str]], split: str, device: torch.device | str = "cpu"
    ) -> None:
        """`rows` have key, clip and split of each usable frame. Raises UserError when there is no such clip."""
        self.device = device
        frames: dict[str, list[str]] = {}
        for row in rows:
            if row["split"] == split:
                frames.setdefault(row["clip"], []).append(row["key"])
        self.clips = {clip: sorted(keys) for clip, keys in sorted(frames.items()) if len(keys) > 1}
        if not self.clips:
            raise UserError(
                f"there is no {split} clip with two usable frames. Raise ingest.{split}_clips or ingest.{split}_share; metrics/ingest.json and "
                "metrics/fit_flame_vfhq.json say what was rejected and why."
            )
        self.clip_of = {key: clip for clip, keys in self.clips.items() for key in keys}

    @abstractmethod
    def frame(self, key: str) -> Frame:
        """The frame of a key, on `device`."""

    def self_pairs(self, count: int) -> list[tuple[str, str]]:
        """(source, driving) keys: the first frame of each clip drives none, `count` others, evenly spaced, drive it."""
        pairs = []
        for keys in self.clips.values():
            others = keys[1:]
            chosen = np.unique(np.linspace(0, len(others) - 1, min(count, len(others))).round().astype(int))
            pairs += [(keys[0], others[i]) for i in chosen]
        return pairs

    def cross_pairs(self, count: int, seed: int) -> list[tuple[str, str]]:
        """(source, driving) keys of different clips; sources take turns, drivers are drawn."""
        names, pairs = list(self.clips), []
        for i in range(count if len(names) > 1 else 0):
            draw = rng(seed, "evaluate", "cross", i)
            source = names[i % len(names)]
            driver = [name for name in names if name != source][draw.integers(len(names) - 1)]
            pairs.append((self.clips[source][0], self.clips[driver][draw.integers(len(self.clips[driver]))]))
        return pairs

    def frontal_groups(self, count: int, seed: int) -> list[tuple[str, list[str]]]:
        """For Cons.: each source with `count` drivers from other clips (all different clips while there are enough)."""
        groups = []
        for i, (clip, keys) in enumerate(self.clips.items()):
            others = [name for name in self.clips if name != clip]
            draw = rng(seed, "evaluate", "frontal", i)
            chosen = draw.choice(len(others), count, replace=count > len(others)) if others else []
            groups.append(
                (keys[0], [self.clips[others[j]][draw.integers(len(self.clips[others[j]]))] for j in chosen])
            )
        return groups


class CachedClips(HeldOutClips):
    """The frames in the cache that `render_views` made."""

    def __init__(self, views: Path, motion: str, split: str, device: torch.device | str = "cpu") -> None:
        self.reader, self.motion = ShardReader(views / "shards"), motion
        super().__init__(
            pq.read_table(views / "index.parquet", columns=["key", "clip", "split"]).to_pylist(),
            split,
            device,
        )

    def frame(self, key: str) -> Frame:
        read = self.reader.read
        label = torch.from_numpy(decode_npy(read(key, "label.npy"))).float()
        motion = (
            motion_numbers(label[None])[0]
            if self.motion == "flame"
            else torch.from_numpy(decode_npy(read(key, "motion.npy")))[0].float()
        )
        image, mask = image_tensor(read(key, "image.png")), image_tensor(read(key, "mask.png"))
        camera = torch.from_numpy(decode_npy(read(key, "cameras.npy")))[0].float()
        return to_device(Frame(key, self.clip_of[key], image, mask, motion, camera, label), self.device)


class IngestedClips(HeldOutClips):
    """The frames as ingest and fit_flame left them: before there is a cache, and without motion."""

    def __init__(self, ingest: Path, labels: Path, split: str, device: torch.device | str = "cpu") -> None:
        """`labels` is the table of the clips."""
        self.reader = ShardReader(ingest / "shards")
        fits = pq.read_table(
            labels, columns=["key", "clip", "split", "status", "label"], filters=[("split", "=", split)]
        ).to_pylist()
        self.labels = {row["key"]: row["label"] for row in fits if row["status"] == "ok"}
        super().__init__((row for row in fits if row["key"] in self.labels), split, device)

    def frame(self, key: str) -> Frame:
        read, label = self.reader.read, torch.tensor(self.labels[key])
        image, mask = image_tensor(read(key, "image.png")), image_tensor(read(key, "mask.png"))
        return to_device(
            Frame(key, self.clip_of[key], image, mask, label.new_zeros(0), label[:25], label), self.device
        )


def stack_frames(frames: Sequence[Frame], name: str) -> Tensor:
    return torch.stack([getattr(frame, name) for frame in frames])
