"""A miniature of what the stages before `pretrain perception` and `evaluate` leave on disk.

Its faces are drawn, its networks untrained.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from model.psi.network import Psi
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import landmarks_70
from pipeline.networks.weights import save_weights
from pipeline.store.codecs import PNG
from pipeline.store.samples import Views
from pipeline.store.shards import encode_npy, write_shard
from pipeline.store.tables import write_table
from pipeline.store.view_index import write_index

FRAMES, PEOPLE, FPS = 5, 4, 12.5
FIVE = ((0.38, 0.46), (0.6, 0.46), (0.48, 0.59), (0.4, 0.69), (0.57, 0.69))

GOOD = {"psnr": 30.0, "coverage": 1.0, "identity": 1.0}  # quality of a frame


def params() -> Params:
    """Smoke scale, with even fewer steps."""
    own = scale_params("smoke")
    few = own.pretrain.perception.model_copy(update={"steps": 3, "batch": 4, "microbatch": 4})
    evaluation = own.evaluate.model_copy(
        update={"self_frames": 2, "cross_pairs": 2, "frontal_drivers": 2, "novel_views": 2, "videos": 2}
    )
    return own.model_copy(
        update={
            "pretrain": own.pretrain.model_copy(update={"perception": few}),
            "evaluate": evaluation,
            "threads": 1,
        }
    )


def picture(person: int, frame: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc with two eyes and a mouth that opens: (S, S, 3) and its mask (S, S), uint8."""
    # Colour tells people apart and the mouth the frames: enough for every network to have something to learn.
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    colour = np.array([90 + 40 * (person % 4), 120 + 20 * (person % 3), 200 - 30 * (person % 5)])
    mask = (x - 0.5) ** 2 + (y - 0.52) ** 2 < 0.14
    image = np.where(mask[..., None], colour, 40 + 5 * person)
    dark = ((x - 0.38) ** 2 + (y - 0.46) ** 2 < 0.003) | ((x - 0.6) ** 2 + (y - 0.46) ** 2 < 0.003)
    dark |= (abs(x - 0.48) < 0.09) & (abs(y - 0.69) < 0.01 + 0.01 * frame)
    return np.where(dark[..., None], 20, image).astype(np.uint8), (mask * 255).astype(np.uint8)


def label(person: int, frame: int) -> np.ndarray:
    draw = rng(1, "label", person, frame)
    parts = [
        look_at(0.1 * frame - 0.2, 0.05, 4.2, np.array([0, 0, 0.09])),
        rng(1, person).normal(size=300) * 0.3,
        draw.normal(size=100) * 0.3,
    ]
    eyes = draw.normal(size=3) * 0.1
    return np.concatenate([*parts, np.zeros(3), [0.03 * frame, 0, 0], eyes, eyes]).astype(np.float32)


def landmarks() -> list[float]:
    """478 points that have the five where they belong."""
    # Spread over the face, so that no region of it is empty.
    points = np.full((478, 3), 0.5, np.float32)
    points[:, :2] += rng(2, "mesh").normal(size=(478, 2)) * 0.05
    points[[468, 473, 4, 61, 291], :2] = FIVE
    points[[33, 160, 158, 133, 153, 144], :2] = FIVE[0]
    points[[362, 385, 387, 263, 373, 380], :2] = FIVE[1]
    return points.flatten().tolist()


def build(folder: Path, own: Params, truth: bool = True) -> None:
    """Write ingest, labels, views, psi3d and psi into `folder`, and the truth if there is one."""
    portraits, clips, frames = _rows()
    number = {clip["key"]: 10 + i for i, clip in enumerate(clips)}
    subjects = [(row["key"], row["person"], 0) for row in portraits]
    subjects += [(row["key"], number[row["clip"]], row["index"]) for row in frames]
    drawn = {key: picture(person, frame, own.networks.image) for key, person, frame in subjects}
    labels = {key: label(person, frame) for key, person, frame in subjects}
    _ingest(folder / "ingest", portraits, clips, frames, drawn)
    _labels(folder / "labels", portraits, frames, labels)
    _views(folder / "views", frames, labels, drawn, own.networks.motion.dims)
    _networks(folder, own)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    if truth:
        _truth(folder / "truth", portraits, clips, frames, labels, drawn)


def chosen(row: dict, *names: str) -> dict:
    """The part of a row that has these names."""
    return {name: value for name, value in row.items() if name in names}


def _rows() -> tuple[list[dict], list[dict], list[dict]]:
    """Portraits, clips and frames, as ingest has them; a portrait also has its person."""
    portraits = []
    for i in range(PEOPLE * 2):
        row = {"key": f"p{i}", "file": f"p{i}.png", "status": "ok", "landmarks": landmarks()}
        size = {"width": 256, "height": 256}
        portraits.append(row | size | {"crop": [1 / 256, 0.0, 0.0], "person": i // 2})
    # Three test clips, as drivers across people need others than their own.
    splits = ("test", "test", "test", "train", "train", "validation")
    clips = []
    for i, split in enumerate(splits):
        clips.append({"key": f"c{i}", "file": f"c{i}.mp4", "split": split, "fps": FPS})
    frames = []
    for clip in clips:
        for j in range(FRAMES):
            row = {"key": f"{clip['key']}-{j:06d}", "clip": clip["key"], "index": j, "seconds": j / FPS}
            row |= {"split": clip["split"], "status": "ok", "shard": "all.tar"}
            frames.append(row | {"landmarks": landmarks()})
    return portraits, clips, frames


def _ingest(folder: Path, portraits: list[dict], clips: list[dict], frames: list[dict], drawn: dict) -> None:
    # Ingest does not know who a portrait shows.
    names = ("key", "file", "width", "height", "status", "landmarks", "crop")
    public = [chosen(row, *names) for row in portraits]
    for name, rows in {"portraits": public, "clips": clips, "frames": frames}.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(rows))
    samples = []
    for key, (image, mask) in drawn.items():
        samples.append((key, {"image.png": PNG.encode(image), "mask.png": PNG.encode(mask)}))
    write_shard(folder / "shards/all.tar", samples)


def _labels(folder: Path, portraits: list[dict], frames: list[dict], labels: dict[str, np.ndarray]) -> None:
    for name, rows in (("ffhq", portraits), ("vfhq", frames)):
        fits = []
        for row in rows:
            known = {"clip": "", "split": "train"} | chosen(row, "key", "clip", "split", "status")
            fits.append(known | {"label": labels[row["key"]].astype(np.float32)})
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(fits))


def _views(folder: Path, frames: list[dict], labels: dict[str, np.ndarray], drawn: dict, motion: int) -> None:
    samples = []
    for row in frames:
        key = row["key"]
        image, mask = drawn[key]
        fields = {
            "image.png": PNG.encode(image),
            "mask.png": PNG.encode(mask),
            "cameras.npy": encode_npy(labels[key][None, Label.CAMERA]),
            "label.npy": encode_npy(labels[key]),
            "motion.npy": encode_npy(rng(3, key).normal(size=(1, motion)).astype(np.float32)),
            "frame.json": Views.frame.encode(chosen(row, "clip", "index", "split") | GOOD),
        }
        samples.append((key, fields))
    write_shard(folder / "shards/all.tar", samples)
    write_index(folder / "shards", folder / "index.parquet", lambda _: "")


def _networks(folder: Path, own: Params) -> None:
    for name in ("psi3d", "psi"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            psi = Psi(own.networks)
            # An untrained network adds nothing of the motion.
            for block in psi.encoder_canonical.trans_blocks_motion:
                torch.nn.init.normal_(block.attn2.proj.weight)
            save_weights(folder / name / f"{name}.safetensors", psi.state_dict(), {"motion": "emot"})


def _truth(
    folder: Path,
    portraits: list[dict],
    clips: list[dict],
    frames: list[dict],
    labels: dict[str, np.ndarray],
    drawn: dict,
) -> None:
    mesh = np.array(landmarks()).reshape(478, 3)
    raw = (landmarks_70(mesh) * 256).flatten().tolist()
    rows = [{"file": row["file"], "identity": row["person"], "landmarks": raw} for row in portraits]
    write_table(folder / "portraits.parquet", pa.Table.from_pylist(rows))
    files = {clip["key"]: clip["file"] for clip in clips}
    rows = []
    for row in frames:
        place = {"file": files[row["clip"]], "index": row["index"]}
        rows.append(place | {"label": labels[row["key"]].tolist(), "landmarks": raw})
    write_table(folder / "frames.parquet", pa.Table.from_pylist(rows))
    # True views are of the middle frames of test clips.
    middle = [row["key"] for row in frames if row["split"] == "test" and row["index"] == 2]
    samples = [(key, _true_views(*drawn[key], drawn[key.replace("000002", "000000")][0])) for key in middle]
    write_shard(folder / "views-000000.tar", samples)


def _true_views(image: np.ndarray, mask: np.ndarray, unmoved: np.ndarray) -> dict[str, bytes]:
    """The same picture from two sides, at a constant depth."""
    sides = np.stack([look_at(yaw, 0.0, 4.2, np.zeros(3)) for yaw in (-0.4, 0.4)])
    depth = np.where(mask > 0, 4.1, np.inf).astype(np.float32)
    fields = {"cameras.npy": encode_npy(sides), "unmoved.png": PNG.encode(unmoved)}
    for i in range(len(sides)):
        fields |= {
            f"view{i}.png": PNG.encode(image),
            f"alpha{i}.png": PNG.encode(mask),
            f"depth{i}.npy": encode_npy(depth),
        }
    return fields
