"""Looking at people, while training runs, on whom no network is trained or tested.

How near a picture comes, and how far the motion moves it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from model.volume.renderer import Rendering
from pipeline.clips.held_out import Frame, HeldOutClips
from pipeline.core.batches import collate, take
from pipeline.networks.judges import Judges
from pipeline.train import losses
from pipeline.train.distributed import Group

PAIRS = 32  # about so many, the same every time
BATCH = 8


@dataclass(frozen=True)
class Pairs:
    """B pairs of frames of one clip each."""

    source: Tensor  # (B, 3, S, S) in [-1, 1]: the first frame of the clip
    camera_source: Tensor  # (B, 25)
    target: Tensor  # (B, 3, S, S): another one
    motion_source: Tensor  # (B, M)
    motion_driving: Tensor  # (B, M) of the target
    camera: Tensor  # (B, 1, 25) of the target
    label_source: Tensor  # (B, 437), as that of a `Frame`
    label_driving: Tensor  # (B, 437) of the target

    @classmethod
    def one(cls, source: Frame, driving: Frame) -> "Pairs":
        """A pair, without the axis of the batch."""
        return cls(
            source=source.image,
            camera_source=source.camera,
            target=driving.image,
            motion_source=source.motion,
            motion_driving=driving.motion,
            camera=driving.camera[None],
            label_source=source.label,
            label_driving=driving.label,
        )


Draw = Callable[[Pairs], Rendering]


class Validation:
    """The same pairs each time, at the target's fitted camera."""

    def __init__(self, clips: HeldOutClips, judges: Judges) -> None:
        self.judges = judges
        per_clip = -(-PAIRS // len(clips.clips))
        keys = clips.self_pairs(per_clip)[:PAIRS]
        # A source is in several pairs, and is read once.
        needed = sorted(set(chain.from_iterable(keys)))
        frames = {key: clips.frame(key) for key in needed}
        pairs = []
        for source, driving in keys:
            pairs.append(Pairs.one(frames[source], frames[driving]))
        self.pairs = collate(pairs)

    @torch.no_grad()
    def __call__(
        self,
        group: Group,
        enlarge: Callable[[Tensor], Tensor],
        draw: Draw,
        draw_still: Draw | None = None,
    ) -> dict[str, float]:
        """Means over the pairs: `l1` and `lpips` of the pictures to the targets, and how good they had to be.

        `l1_enlarged` and `lpips_enlarged` are those of the raw pictures, brought to the size of the
        targets by `enlarge`: super-resolution has to be better than that. With `draw_still`, which draws
        with the source's own motion in place of the driving one, also `response`: the root mean square
        by which the driving motion changes a picture, in [-1, 1]. The processes of `group` share the work.
        """

        # A few at a time: whole pictures of all pairs at once would need more memory than a training step.
        def measure(start: int) -> dict[str, Tensor]:
            part = take(self.pairs, slice(start, start + BATCH))
            return self._measure(part, enlarge, draw, draw_still)

        rows = group.deal(measure, range(0, len(self.pairs.source), BATCH))
        means = {}
        for name in rows[0]:
            values = torch.cat([row[name] for row in rows])
            means[name] = float(values.mean())
        # The root of the mean, not the mean of the roots.
        if "response" in means:
            means["response"] **= 0.5
        return means

    def _measure(
        self,
        pairs: Pairs,
        enlarge: Callable[[Tensor], Tensor],
        draw: Draw,
        draw_still: Draw | None,
    ) -> dict[str, Tensor]:
        """Each number for each pair, (B,); the response still squared."""
        drawn = draw(pairs)
        target = pairs.target
        enlarged = enlarge(drawn.raw)
        found = {
            "l1": losses.l1(drawn.image, target),
            "lpips": self.judges.lpips(drawn.image, target),
            "l1_enlarged": losses.l1(enlarged, target),
            "lpips_enlarged": self.judges.lpips(enlarged, target),
        }
        if draw_still:
            change = drawn.image - draw_still(pairs).image
            found["response"] = losses.per_sample(change.square())
        # Other processes may have other devices.
        return {name: value.cpu() for name, value in found.items()}
