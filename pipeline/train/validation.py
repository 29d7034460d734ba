"""Looking at people whom no network is trained or tested on, while training runs: how near a picture comes, and how far the motion moves it."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model.volume.renderer import Rendering
from pipeline.clips.held_out import Frame, HeldOutClips, stack_frames
from pipeline.networks.judges import Judges
from pipeline.train import losses

PAIRS = 32  # about so many, the same every time
BATCH = 8


@dataclass(frozen=True)
class Pairs:
    """B pairs of frames of one clip each."""

    source: Tensor  # (B, 3, S, S) in [-1, 1]: the first frame of the clip
    target: Tensor  # (B, 3, S, S): another one
    motion_source: Tensor  # (B, M)
    motion_driving: Tensor  # (B, M) of the target
    camera: Tensor  # (B, 1, 25) of the target

    @classmethod
    def of(cls, sources: list[Frame], drivings: list[Frame]) -> "Pairs":
        cameras = stack_frames(drivings, "camera")[:, None]
        return cls(
            stack_frames(sources, "image"),
            stack_frames(drivings, "image"),
            stack_frames(sources, "motion"),
            stack_frames(drivings, "motion"),
            cameras,
        )

    def rows(self, part: slice) -> "Pairs":
        return Pairs(*(getattr(self, field.name)[part] for field in fields(self)))


Draw = Callable[[Pairs], Rendering]


class Validation:
    """The same pairs each time, at the target's fitted camera."""

    def __init__(self, clips: HeldOutClips, judges: Judges, enlarge: Callable[[Tensor], Tensor]) -> None:
        """`enlarge` brings raw pictures to the size of the targets without super-resolution."""
        self.judges, self.enlarge = judges, enlarge
        keys = clips.self_pairs(-(-PAIRS // len(clips.clips)))[:PAIRS]
        frames = {key: clips.frame(key) for key in sorted({key for pair in keys for key in pair})}
        self.pairs = Pairs.of(
            [frames[source] for source, _ in keys], [frames[driving] for _, driving in keys]
        )

    @torch.no_grad()
    def __call__(self, draw: Draw, draw_still: Draw | None = None) -> dict[str, float]:
        """Means over the pairs: L1 and LPIPS of the pictures to the targets, and `l1_enlarged` and `lpips_enlarged`, those of the raw pictures
        enlarged without super-resolution, which has to be better than that.

        With `draw_still`, which draws with the source's own motion in place of the driving one, also `response`: the root mean square by
        which the driving motion changes a picture, in [-1, 1].
        """
        count = len(self.pairs.source)
        rows = [
            self._measure(self.pairs.rows(slice(start, start + BATCH)), draw, draw_still)
            for start in range(0, count, BATCH)
        ]
        means = {name: float(torch.cat([row[name] for row in rows]).mean()) for name in rows[0]}
        if "response" in means:
            means["response"] **= 0.5
        return means

    def _measure(self, pairs: Pairs, draw: Draw, draw_still: Draw | None) -> dict[str, Tensor]:
        """Each number for each pair, (B,); the response still squared."""
        drawn, target = draw(pairs), pairs.target
        enlarged = self.enlarge(drawn.raw)
        found = {
            "l1": losses.l1(drawn.image, target),
            "lpips": self.judges.lpips(drawn.image, target),
            "l1_enlarged": losses.l1(enlarged, target),
            "lpips_enlarged": self.judges.lpips(enlarged, target),
        }
        if draw_still:
            found["response"] = losses.per_sample((drawn.image - draw_still(pairs).image).square())
        return found
