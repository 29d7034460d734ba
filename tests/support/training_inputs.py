"""What the two training stages read, in the layout of the graph: noise and untrained networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ruamel.yaml import YAML

from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import PUBLISHED_TRUNK, PublishedTrunk, Trunk
from model.sizes import Sizes
from pipeline.config.params import load_params
from pipeline.config.scales import scale_data, scale_params
from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at
from pipeline.networks.weights import save_weights
from pipeline.store.samples import Aligned, Heads, Views
from pipeline.store.shards import write_shard
from pipeline.store.tables import write_table
from pipeline.store.view_index import write_index
from pipeline.train.psi import train_psi
from pipeline.train.psi3d import train_psi3d

OUT = {"train_psi3d": "psi3d", "train": "psi"}
POINTS = 4000
QUALITY = {"psnr": 20.0, "coverage": 0.9, "identity": 0.5}


def cameras(count: int) -> np.ndarray:
    return np.stack([look_at(0.3 * i, 0.1, 4.2, np.zeros(3)) for i in range(count)])


LABEL = np.concatenate([cameras(1)[0], np.zeros(412)]).astype(np.float32)


class Noise:
    """Samples of noise, drawn one after the other."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.draw = sizes, rng(0, "training inputs")

    def head(self) -> dict[str, bytes]:
        image, rays = self.sizes.image, self.sizes.rays
        return Heads.encode(
            view=self._picture(2, image, image, 3),
            uv=self._picture(2, image, image, 3),
            opacity=self._picture(2 * rays, rays),
            depth=np.float16(4.2) + self._array(2, rays, rays),
            background=self._picture(rays, rays, 3),
            points=self._array(POINTS, 3) / np.float16(4),
            features=self._array(POINTS, self.sizes.plane_channels),
            **self._shared(),
        )

    def frame(self, clip: str, number: int, split: str) -> dict[str, bytes]:
        image = self.sizes.image
        told = {"clip": clip, "index": number, "split": split} | QUALITY
        return Views.encode(
            frame=told,
            image=self._picture(image, image, 3),
            mask=self._picture(image, image),
            view=self._picture(1, image, image, 3),
            alpha=self._picture(1, image, image),
            uv=self._picture(image, image, 3),
            motion=self._array(2, self.sizes.motion.dims, kind="float32"),
            **self._shared(),
        )

    def _picture(self, *shape: int) -> np.ndarray:
        return self.draw.integers(0, 256, shape, dtype=np.uint8)

    def _array(self, *shape: int, kind: str = "float16") -> np.ndarray:
        return self.draw.normal(size=shape).astype(kind)

    def _shared(self) -> dict[str, np.ndarray]:
        """What heads and frames have in common: two cameras, and what is seen from them."""
        landmarks = self.draw.uniform(0.3, 0.7, (2, 70, 2)).astype(np.float32)
        return {"cameras": cameras(2), "label": LABEL, "landmarks": landmarks}


def write_inputs(folder: Path, sizes: Sizes, heads: int, clips: int) -> None:
    """`heads` synthetic heads, `clips` clips of two frames to train on and one to look at, and the judges."""
    noise = Noise(sizes)
    shard = folder / "data/genhead/shards/heads-000000.tar"
    write_shard(shard, [(f"head{number}", noise.head()) for number in range(heads)])

    splits = {f"train{number}": "train" for number in range(clips)} | {"validation": "validation"}
    frames = []
    for clip, split in splits.items():
        for number in range(2):
            frames.append((f"{clip}-{number:06d}", noise.frame(clip, number, split)))
    write_shard(folder / "data/views/shards/views-000000.tar", frames)
    write_index(folder / "data/views/shards", folder / "data/views/index.parquet", lambda quality: "")

    unseen = [(key, fields) for key, fields in frames if key.startswith("validation")]
    aligned = []
    for key, fields in unseen:
        pictures = {"image": fields[Views.image.file], "mask": fields[Views.mask.file]}
        aligned.append((key, Aligned.encode(**pictures)))
    write_shard(folder / "data/ingest/shards/clips-000000.tar", aligned)
    known = {"clip": "validation", "split": "validation", "status": "ok", "label": LABEL.tolist()}
    fits = [{"key": key} | known for key, _ in unseen]
    write_table(folder / "data/labels/vfhq.parquet", pa.Table.from_pylist(fits))
    _write_judges(folder / "data/pretrain", sizes)


def _write_judges(folder: Path, sizes: Sizes) -> None:
    torch.manual_seed(0)
    (folder / "genhead").mkdir(parents=True)
    published = sizes == Sizes()
    trunk = PublishedTrunk() if published else Trunk(0)
    networks = {"identity": IdentityNet(sizes.identity), "trunk": trunk, "regressor": Regressor()}
    facts = {
        "identity": {"sizes": vars(sizes.identity)},
        "trunk": {"network": PUBLISHED_TRUNK if published else "trunk"},
        "regressor": {},
    }
    for name, network in networks.items():
        path = folder / f"perception/{name}.safetensors"
        save_weights(path, network.state_dict(), facts[name])


def build(folder: Path, processes: int, **changes: object) -> None:
    """A project at scale smoke in which every loss is met within 6 steps of 4 microbatches.

    `changes` are those of both training sections.
    """
    data = scale_data("smoke")
    data["machine"] |= {"device": "cpu", "processes": processes}
    few = {"images": 48, "batch": 8, "microbatch": 2, "warmup": 4, "decay_until": 0, "ema_half_life": 4}
    few |= {"adversarial_from": 16, "checkpoint_every": 16, "preview_every": 24, "whole_from": 0}
    data["train_psi3d"] |= few | {"init": "scratch", "identity_from": 8, "depth_until": 40} | changes
    data["train_psi3d"] |= {"planes_until": 40}
    data["train"] |= few | {"init": "random"} | changes
    write_inputs(folder, scale_params("smoke").networks, heads=12, clips=5)
    # The stage train looks at the folder, though it starts from random weights.
    (folder / "data/psi3d").mkdir()
    YAML().dump(data, folder / "params.yaml")


def train_stage(stage: str, folder: Path) -> dict[str, Any]:
    """Run the training of a stage on what `build` wrote; returns its metrics.

    `train` starts from random weights and needs nothing of `train_psi3d`.
    """
    params, data = load_params(folder / "params.yaml"), folder / "data"
    perception, psi3d = data / "pretrain/perception", data / "psi3d"
    if stage == "train":
        return train_psi(params, data / "views", perception, psi3d, data / "psi")
    return train_psi3d(
        params,
        data / "genhead/shards",
        perception,
        data / "pretrain/genhead",
        data / "ingest",
        data / "labels/vfhq.parquet",
        psi3d,
    )
