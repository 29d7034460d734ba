"""Real frames of the clips of people who no network is trained on, and which of them are looked at."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.clips.necks import necks_of
from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.core.seeds import rng
from pipeline.geometry.label import Label, Motion
from pipeline.store.samples import Aligned, Views
from pipeline.store.shards import ShardReader
from pipeline.store.view_index import ViewIndex


@dataclass(frozen=True)
class Frame:
    """A real frame as the synthesizers see it."""

    key: str
    clip: str
    image: Tensor  # (3, S, S) in [-1, 1]
    mask: Tensor  # (1, S, S) in [0, 1]
    motion: Tensor  # (M,)
    camera: Tensor  # (25,) fitted
    label: Tensor  # (437,) fitted; of a cache the neck is what the clip's rotation leaves of the head's turn


class HeldOutClips(ABC):
    """The clips of a split that have two frames or more, and which of their frames are looked at."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, str]],
        split: str,
        device: torch.device | str = "cpu",
        bad: Collection[str] = (),
        most: int = 0,
    ) -> None:
        """`rows` have key, clip and split of each usable frame; those with the keys in `bad` are left out.

        Of the clips the first `most` by name are looked at, or all if it is 0.
        Raises UserError when there is no such clip.
        """
        self.device, self.marked_bad = device, 0
        frames: dict[str, list[str]] = {}
        for row in rows:
            if row["split"] != split:
                continue
            if row["key"] in bad:
                self.marked_bad += 1
            else:
                frames.setdefault(row["clip"], []).append(row["key"])
        # A single frame has nothing that it could be driven by, or drive.
        found = {clip: sorted(keys) for clip, keys in sorted(frames.items()) if len(keys) > 1}
        self.clips = dict(list(found.items())[: most or None])
        if not self.clips:
            raise UserError(
                f"there is no {split} clip with two usable frames. Raise ingest.{split}_clips or "
                f"ingest.{split}_share; metrics/ingest.json and metrics/fit_flame_vfhq.json say what was "
                "rejected and why."
            )
        self.clip_of = {key: clip for clip, keys in self.clips.items() for key in keys}

    @abstractmethod
    def read(self, key: str) -> Frame:
        """The frame of a key, on the CPU."""

    def frame(self, key: str) -> Frame:
        """The frame of a key, on `device`."""
        return to_device(self.read(key), self.device)

    def self_pairs(self, count: int) -> list[tuple[str, str]]:
        """(source, driving) keys: the first frame of each clip is driven by `count` others, evenly spaced."""
        pairs = []
        for first, *others in self.clips.values():
            # Neighbouring frames look alike: those far apart say more of the motion.
            places = np.linspace(0, len(others) - 1, min(count, len(others)))
            for place in np.unique(places.round().astype(int)):
                pairs.append((first, others[place]))
        return pairs

    def cross_pairs(self, count: int, seed: int) -> list[tuple[str, str]]:
        """(source, driving) keys of different clips; sources take turns, drivers are drawn."""
        names, pairs = list(self.clips), []
        if len(names) < 2:
            return []
        for number in range(count):
            # Each pair has a generator of its own, so that more pairs leave the first ones as they are.
            draw = rng(seed, "evaluate", "cross", number)
            source = names[number % len(names)]
            others = [name for name in names if name != source]
            driver = others[draw.integers(len(others))]
            pairs.append((self.clips[source][0], self._any_frame(driver, draw)))
        return pairs

    def all_cross_pairs(self, count: int) -> list[tuple[str, str]]:
        """(source, driving) keys of different clips in rounds, nothing drawn.

        In each round every clip is a source once and a driver once; in the next a source meets the clip
        behind its last driver. Over all rounds the frames of a driver are taken from its first to its last.
        """
        names, pairs = list(self.clips), []
        if len(names) < 2:
            return []
        rounds = -(-count // len(names))
        for number in range(count):
            turn, place = divmod(number, len(names))
            further = 1 + turn % (len(names) - 1)
            driver = self.clips[names[(place + further) % len(names)]]
            frame = len(driver) * (2 * turn + 1) // (2 * rounds)
            pairs.append((self.clips[names[place]][0], driver[frame]))
        return pairs

    def frontal_groups(self, count: int, seed: int) -> list[tuple[str, list[str]]]:
        """For Cons.: each source with `count` drivers from other clips.

        The clips of the drivers all differ while there are enough.
        """
        groups = []
        for number, (clip, keys) in enumerate(self.clips.items()):
            others = [name for name in self.clips if name != clip]
            draw = rng(seed, "evaluate", "frontal", number)
            # A clip comes twice only where there are fewer clips than drivers.
            chosen = draw.choice(len(others), count, replace=count > len(others)) if others else []
            drivers = [self._any_frame(others[index], draw) for index in chosen]
            groups.append((keys[0], drivers))
        return groups

    def _any_frame(self, clip: str, draw: np.random.Generator) -> str:
        """The key of a random frame of a clip."""
        keys = self.clips[clip]
        return keys[draw.integers(len(keys))]


class CachedClips(HeldOutClips):
    """The frames in the cache that `render_views` made."""

    def __init__(
        self,
        views: Path,
        motion: str,
        split: str,
        device: torch.device | str = "cpu",
        bad: Collection[str] = (),
        most: int = 0,
    ) -> None:
        """`motion` is emot or flame; `bad` and `most` are those of all held-out clips."""
        # Only rows of this split become Python's: of the others there are millions.
        self.index, self.motion = ViewIndex(views), motion
        self.necks = necks_of(self.index)
        columns = self.index.columns(["key", "clip", "split"])
        mine = pc.equal(columns["split"].cast(pa.string()), split)
        frames = np.flatnonzero(mine.to_numpy())
        rows = columns.take(frames).to_pylist()
        self.place = {row["key"]: int(frame) for row, frame in zip(rows, frames, strict=True)}
        super().__init__(rows, split, device, bad, most)

    def read(self, key: str) -> Frame:
        fields = (Views.image, Views.mask, Views.motion, Views.cameras, Views.label)
        sample = self.index.read(self.place[key], {field.file for field in fields})
        label = Views.label.tensor(sample)
        label[Label.NECK] = torch.from_numpy(self.necks[self.place[key]])
        # Row 0 of motions and cameras is the frame itself; the others are rendered views.
        if self.motion == "flame":
            motion = Motion.of(label).pack()
        else:
            motion = Views.motion.tensor(sample)[0]
        return Frame(
            key=key,
            clip=self.clip_of[key],
            image=Views.image.tensor(sample),
            mask=Views.mask.tensor(sample),
            motion=motion,
            camera=Views.cameras.tensor(sample)[0],
            label=label,
        )


class IngestedClips(HeldOutClips):
    """The frames as ingest and fit_flame left them: before there is a cache, and without motion."""

    def __init__(
        self,
        ingest: Path,
        labels: Path,
        split: str,
        device: torch.device | str = "cpu",
    ) -> None:
        """`labels` is the table of the clips."""
        self.reader = ShardReader(ingest / "shards", Aligned.stage)
        columns = ["key", "clip", "split", "status", "label"]
        rows = pq.read_table(labels, columns=columns, filters=[("split", "=", split)]).to_pylist()
        # A frame whose fit failed has no label, and so no camera to be rendered from.
        fitted = [row for row in rows if row["status"] == "ok"]
        self.labels = {row["key"]: row["label"] for row in fitted}
        super().__init__(fitted, split, device)

    def read(self, key: str) -> Frame:
        sample, label = self.reader[key], torch.tensor(self.labels[key])
        return Frame(
            key=key,
            clip=self.clip_of[key],
            image=Aligned.image.tensor(sample),
            mask=Aligned.mask.tensor(sample),
            motion=label.new_zeros(0),
            camera=label[Label.CAMERA],
            label=label,
        )


def stack_frames(frames: Sequence[Frame], name: str) -> Tensor:
    """A field of some frames, with a first axis along them."""
    return torch.stack([getattr(frame, name) for frame in frames])
