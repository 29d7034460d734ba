"""Batches of synthetic heads for Psi_3d, from the shards that `render_genhead` made (paper section 4.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config.params import TrainPsi3d
from pipeline.core.batches import collate
from pipeline.core.seeds import rng
from pipeline.store.samples import PHOTO, Heads, has_geometry, head_number
from pipeline.store.shards import ShardReader


@dataclass(frozen=True)
class HeadBatch:
    """B heads, each seen from theta_p (the input) and from theta_q (the target)."""

    source: Tensor  # (B, 3, S, S) in [-1, 1]: the image at theta_p
    camera_source: Tensor  # (B, 25) theta_p
    target: Tensor  # (B, 3, S, S) at theta_q
    opacity: Tensor  # (B, 1, n, n) of the target, in [0, 1]
    depth: Tensor  # (B, 1, n, n) of the target, world units along the ray
    background: Tensor  # (B, 3, n, n) in [-1, 1]
    uv: Tensor  # (B, 3, S, S) of the target
    camera: Tensor  # (B, 1, 25) theta_q
    landmarks: Tensor  # (B, 70, 2) of the head seen by `camera`, fractions of the image
    points: Tensor  # (B, P, 3) world units
    features: Tensor  # (B, P, C) GenHead's tri-plane features there


@dataclass(frozen=True)
class Wanted:
    """What of a head the losses of a step look at, beside its pictures."""

    geometry: bool  # depth, and features at points
    uv: bool


EVERYTHING = Wanted(geometry=True, uv=True)
NOTHING = torch.zeros(0)


def wanted_in(section: TrainPsi3d, step: int) -> Wanted:
    """What a step of the stage train_psi3d looks at: half of a head's bytes are for its beginning alone."""
    images = step * section.batch
    geometry = images < max(section.depth_until, section.planes_until)
    return Wanted(geometry, uv=images >= section.adversarial_from)


class SyntheticHeads:
    """Draws batches by step number: (seed, step) alone decides on the heads and on their views.

    p and q are two different views. Of a portrait p is the photo, as Psi_3d will be given photos and never
    GenHead's blurred idea of one, and q any view, the photo itself among them, as it alone is sharp.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        geometry_share: float = 1.0,
        wanted: Callable[[int], Wanted] = lambda step: EVERYTHING,
    ) -> None:
        """`geometry_share` is that of `render_genhead`; `wanted` says what the losses of a step look at."""
        self.reader = ShardReader(folder, Heads.stage)
        self.keys = self.reader.keys()
        self.with_geometry = [key for key in self.keys if has_geometry(head_number(key), geometry_share)]
        self.seed, self.wanted = seed, wanted

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> HeadBatch:
        """Some rows of the batch of `step`. Where there are heads enough, none is twice in the batch."""
        wanted = self.wanted(step)
        keys = self.with_geometry if wanted.geometry else self.keys
        draw = rng(self.seed, "psi3d", step)
        chosen = draw.choice(len(keys), size, replace=size > len(keys))
        samples = []
        for place in range(size)[rows]:
            # A head's views are drawn for its place: they do not depend on which rows are read.
            own = rng(self.seed, "psi3d-views", step, place)
            samples.append(self._sample(keys[chosen[place]], own, wanted))
        return collate(samples)

    def _sample(
        self,
        key: str,
        draw: np.random.Generator,
        wanted: Wanted,
    ) -> HeadBatch:
        """A head without the axis of the batch; what is not `wanted` is not read, and empty or zero."""
        head = self.reader[key]
        cameras = Heads.cameras.tensor(head)
        views = len(cameras)
        p, q = _two_views(key, views, draw)
        # The opacities of all views are one picture, a view below the other.
        opacity = Heads.opacity.tensor(head).unflatten(1, (views, -1))[:, q]
        depth, points, features, uv = torch.zeros_like(opacity), NOTHING, NOTHING, NOTHING
        if wanted.geometry:
            depth = Heads.depth.tensor(head)[q : q + 1]
            points = Heads.points.tensor(head)
            features = Heads.features.tensor(head)
        if wanted.uv:
            uv = Heads.uv.tensor(head, q)
        return HeadBatch(
            source=Heads.view.tensor(head, p),
            camera_source=cameras[p],
            target=Heads.view.tensor(head, q),
            opacity=opacity,
            depth=depth,
            background=Heads.background.tensor(head),
            uv=uv,
            camera=cameras[q : q + 1],
            landmarks=Heads.landmarks.tensor(head)[q],
            points=points,
            features=features,
        )


def _two_views(key: str, views: int, draw: np.random.Generator) -> tuple[int, int]:
    """p and q of a head."""
    if key.startswith(PHOTO):
        return 0, draw.integers(views)
    p, q = draw.choice(views, 2, replace=views < 2)
    return p, q
