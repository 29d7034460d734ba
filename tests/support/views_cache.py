"""A small multi-view cache of random pictures."""

import numpy as np
import pytest
import torch

from pipeline.config.scales import scale_params
from pipeline.core.seeds import rng
from pipeline.geometry import camera
from pipeline.store.samples import Views
from pipeline.store.shards import write_shard
from pipeline.store.view_index import write_index
from pipeline.train.view_batches import PseudoMultiView

PARAMS = scale_params("smoke")
SIZES = PARAMS.networks
CLIPS, FRAMES, VIEWS = 3, 4, 2


def points_of(clip, index):
    """The 70 points (70, 3) in space whose places the landmarks of a frame are."""
    return rng(0, "points", clip, index).uniform(-0.3, 0.3, (70, 3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of random pictures in the layout of render_views."""
    folder = tmp_path_factory.mktemp("views")
    draw, size = rng(0, "cache"), SIZES.image

    def picture(*shape):
        return draw.integers(0, 256, shape, dtype=np.uint8)

    samples = []
    for clip in range(CLIPS):
        for index in range(FRAMES):
            seen_by = [camera.sample_look_at(draw) for _ in range(VIEWS + 1)]
            cameras = np.stack(seen_by)
            points = points_of(clip, index)
            quality = {"psnr": clip * 10 + index, "coverage": 1, "identity": 1}
            split = "train" if clip else "test"
            fields = Views.encode(
                cameras=cameras,
                landmarks=np.stack([camera.project(points, one) for one in cameras]).astype(np.float32),
                motion=draw.normal(size=(VIEWS + 1, SIZES.motion.dims)).astype(np.float32),
                label=np.concatenate([cameras[0], np.zeros(412, np.float32)]),
                image=picture(size, size, 3),
                mask=picture(size, size),
                uv=picture(size, size, 3),
                view=picture(VIEWS, size, size, 3),
                alpha=picture(VIEWS, size, size),
                frame={"clip": f"clip{clip}", "index": index, "split": split} | quality,
            )
            samples.append((f"clip{clip}-{index:06d}", fields))
    for number in range(2):  # clip 1 is in both
        write_shard(folder / f"shards/views-{number:06d}.tar", samples[number * 6 : number * 6 + 6])
    write_index(folder / "shards", folder / "index.parquet", lambda quality: "")
    return folder


def reader(cache, p=0.1, q=0.8, clips=0, motion="emot", **others):
    return PseudoMultiView(
        cache, seed=0, clips=clips, motion=motion, substitute_p=p, substitute_q=q, **others
    )


def same(one, other):
    """Whether two batches hold the same numbers."""
    mine, theirs = vars(one), vars(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)
