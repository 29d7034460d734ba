"""What the stages before rendering leave on disk, with networks that know nothing."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.genhead import GenHead
from model.head.flame import Flame
from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.psi.motion_encoder import MotionEncoder
from model.psi.network import Psi
from model.sizes import Sizes
from pipeline.config.scales import scale_params
from pipeline.core.seeds import rng
from pipeline.geometry import head_model
from pipeline.geometry.camera import look_at
from pipeline.geometry.label import Label
from pipeline.networks.weights import save_weights
from pipeline.store.codecs import PNG
from pipeline.store.shards import write_shard
from pipeline.store.tables import write_table


def label(name: str) -> np.ndarray:
    draw = rng(1, name)
    values = np.zeros(Label.SIZE, np.float32)
    values[Label.CAMERA] = look_at(draw.uniform(-0.3, 0.3), 0.1, 4.2, np.array([0.0, 0.0, 0.1]))
    values[Label.SHAPE][:10] = draw.normal(size=10)
    values[Label.EXPRESSION][:10] = draw.normal(size=10)
    values[Label.JAW.start] = draw.uniform(0, 0.2)
    values[Label.EYES] = np.tile(draw.normal(0, 0.1, 3), 2)
    # The fitted head rotation, which rendering has to leave to the camera.
    values[Label.NECK] = 0.3
    return values


def write_labels(path: Path, names: list[tuple[str, str, str]], rejected: str = "") -> None:
    rows = [
        {
            "key": key,
            "clip": clip,
            "split": split,
            "status": "rejected" if key == rejected else "ok",
            "label": label(key),
        }
        for key, clip, split in names
    ]
    schema = pa.schema(
        {
            "key": pa.string(),
            "clip": pa.string(),
            "split": pa.string(),
            "status": pa.string(),
            "label": pa.list_(pa.float32()),
        }
    )
    write_table(path, pa.Table.from_pylist(rows, schema))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """What earlier stages would have left.

    There are three clips of four frames, one without face and one without label, two portraits, raw networks.
    """
    folder = tmp_path_factory.mktemp("inputs")
    sizes = scale_params("smoke").networks
    # Neither clips nor frames are in their order, which no stage may rely on.
    names = [
        (f"{clip}-{index:06d}", clip, "test" if clip == "c" else "train")
        for clip in "cab"
        for index in (2, 0, 1, 3)
    ]
    write_labels(folder / "labels/vfhq.parquet", names, rejected="a-000001")
    write_labels(folder / "labels/ffhq.parquet", [(f"p{index}", "", "train") for index in range(2)])
    samples, rows = [], []
    for key, clip, split in names:
        draw = rng(2, key)
        image = draw.integers(0, 255, (sizes.image, sizes.image, 3), np.uint8)
        samples.append((key, {"image.png": PNG.encode(image), "mask.png": PNG.encode(image[..., 0])}))
        mesh = draw.uniform(0.3, 0.7, (478, 3)).astype(np.float32)
        status = "rejected" if key == "b-000003" else "ok"
        rows.append(
            {
                "key": key,
                "clip": clip,
                "index": int(key[-6:]),
                "split": split,
                "shard": "clips-000000.tar",
                "status": status,
                "landmarks": mesh.ravel().tolist(),
            }
        )
    write_shard(folder / "ingest/shards/clips-000000.tar", samples)
    write_table(folder / "ingest/frames.parquet", pa.Table.from_pylist(rows))
    torch.manual_seed(0)
    save_weights(folder / "psi3d/psi3d.safetensors", Psi(sizes).state_dict(), {"network": "psi3d"})
    genhead = GenHead(sizes, Flame(head_model.load("standin")))
    # So that there is a surface.
    torch.nn.init.constant_(genhead.decoder.out_sigma.bias, 8.0)
    save_weights(folder / "genhead/genhead.safetensors", genhead.state_dict(), {"network": "genhead"})
    known = {
        "z": torch.randn(5, sizes.genhead.z_dim),
        "label": torch.from_numpy(np.stack([label(f"known {i}") for i in range(5)])),
    }
    known |= {
        "camera": known["label"][:, Label.CAMERA],
        "image": torch.randint(256, (5, sizes.image, sizes.image, 3), dtype=torch.uint8),
    }
    # As the portraits' truth: a depth where there is a head, and infinity elsewhere.
    known["opacity"] = torch.randint(2, (5, 1, sizes.rays, sizes.rays)).float()
    known["depth"] = torch.where(known["opacity"] > 0, 4.0, torch.inf)
    save_weights(folder / "genhead/portraits.safetensors", known, {"network": "portraits"})
    save_weights(
        folder / "motion/motion.safetensors", MotionEncoder(sizes.motion).state_dict(), {"network": "motion"}
    )
    save_judges(folder / "perception", sizes)
    return folder


def save_judges(folder: Path, sizes: Sizes) -> None:
    """The networks of perception, untrained."""
    judges = {"identity": IdentityNet(sizes.identity), "trunk": Trunk(), "regressor": Regressor()}
    for name, network in judges.items():
        save_weights(folder / f"{name}.safetensors", network.state_dict(), {"sizes": asdict(sizes.identity)})
