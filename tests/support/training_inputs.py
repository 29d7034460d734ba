"""What the two training stages read, in the layout of the graph: noise and untrained networks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from ruamel.yaml import YAML

from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import PUBLISHED_TRUNK, PublishedTrunk, Trunk
from model.sizes import Sizes
from model.weights import save_weights
from pipeline.config.scales import scale_data, scale_params
from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at
from pipeline.store.shards import encode_npy, encode_png, write_shard
from pipeline.store.tables import write_table
from pipeline.store.view_index import describe_frame, write_index

OUT = {"train_psi3d": "psi3d", "train": "psi"}
POINTS = 4000
QUALITY = {"psnr": 20.0, "coverage": 0.9, "identity": 0.5}


def cameras(count: int) -> np.ndarray:
    return np.stack([look_at(0.3 * i, 0.1, 4.2, np.zeros(3)) for i in range(count)])


class Noise:
    """Fields of samples, drawn one after the other."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.draw = sizes, rng(0, "training inputs")

    def picture(self, *shape: int) -> bytes:
        return encode_png(self.draw.integers(0, 256, shape, dtype=np.uint8))

    def shared(self) -> dict[str, bytes]:
        """What heads and frames have in common: two cameras and what is seen from them."""
        label = np.concatenate([cameras(1)[0], np.zeros(412)]).astype(np.float32)
        landmarks = self.draw.uniform(0.3, 0.7, (2, 70, 2)).astype(np.float32)
        return {
            "cameras.npy": encode_npy(cameras(2)),
            "label.npy": encode_npy(label),
            "landmarks.npy": encode_npy(landmarks),
        }

    def head(self) -> dict[str, bytes]:
        image, rays = self.sizes.image, self.sizes.rays
        arrays = {
            "depth": 4.2 + self.draw.normal(size=(2, rays, rays)),
            "points": self.draw.normal(size=(POINTS, 3)) / 4,
            "features": self.draw.normal(size=(POINTS, self.sizes.plane_channels)),
        }
        fields = {f"{name}.npy": encode_npy(values.astype(np.float16)) for name, values in arrays.items()}
        for name in ("view0.png", "view1.png", "uv0.png", "uv1.png"):
            fields[name] = self.picture(image, image, 3)
        fields["opacity.png"] = self.picture(2 * rays, rays)
        fields["background.png"] = self.picture(rays, rays, 3)
        return fields | self.shared()

    def frame(self, clip: str, number: int, split: str) -> dict[str, bytes]:
        image, dims = self.sizes.image, self.sizes.motion.dims
        fields = {name: self.picture(image, image, 3) for name in ("image.png", "uv.png", "view0.png")}
        fields |= {name: self.picture(image, image) for name in ("mask.png", "alpha0.png")}
        fields["motion.npy"] = encode_npy(self.draw.normal(size=(2, dims)).astype(np.float32))
        fields["frame.json"] = describe_frame(clip, number, split, QUALITY)
        return fields | self.shared()


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
    pictures = [(key, {name: fields[name] for name in ("image.png", "mask.png")}) for key, fields in unseen]
    write_shard(folder / "data/ingest/shards/clips-000000.tar", pictures)
    label = [*cameras(1)[0].tolist(), *[0.0] * 412]
    known = {"clip": "validation", "split": "validation", "status": "ok", "label": label}
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
    YAML().dump(data, folder / "params.yaml")
