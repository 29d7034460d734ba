"""The motion encoder's teacher: what it is told to read, and a few steps of it.

They repeat, and leave what the other stages expect.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.psi.motion_encoder import MotionEncoder
from model.psi.reenact2d import Reenactor
from model.weights import load_weights
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.seeds import rng
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import MESH_TO_70
from pipeline.geometry.motion_targets import MIRROR, motion_measures, motion_targets
from pipeline.pretrain.motion import pretrain_motion
from pipeline.store.shards import encode_png, write_shard
from pipeline.store.tables import write_table


def face(opening: float = 0.0, gaze: float = 0.0) -> np.ndarray:
    """The 70 points (70, 2) of a drawn face in image fractions."""
    turn = 2 * np.pi * np.arange(12) / 12
    contour = ellipse(0.5, 0.25, -0.3, np.linspace(0, np.pi, 17))
    brows = np.stack([[*np.linspace(0.3, 0.45, 5), *np.linspace(0.55, 0.7, 5)], [0.35] * 10], axis=1)
    bridge = np.stack([[0.5] * 4, [0.42, 0.46, 0.5, 0.54]], axis=1)
    nostrils = np.stack([np.linspace(0.46, 0.54, 5), [0.57] * 5], axis=1)
    lids = np.array(
        [
            (-0.05, 0.0),
            (-0.02, -0.02),
            (0.02, -0.02),
            (0.05, 0.0),
            (0.02, 0.02),
            (-0.02, 0.02),
        ]
    )
    left, right = np.array([0.38, 0.43]), np.array([0.62, 0.43])
    outer = ellipse(0.68, 0.08, 0.03 + opening, turn)
    inner = ellipse(0.68, 0.06, opening, turn[[0, 2, 3, 4, 6, 8, 9, 10]])
    pupils = np.stack([left, right]) + np.array([gaze, 0.0])
    parts = (contour, brows, bridge, nostrils, left + lids, right + lids, outer, inner, pupils)
    return np.concatenate(parts)


def ellipse(y: float, width: float, height: float, angles: np.ndarray) -> np.ndarray:
    """Points of an ellipse in the middle of the face, clockwise from its left end."""
    return np.stack([0.5 - width * np.cos(angles), y - height * np.sin(angles)], axis=1)


def test_targets_know_no_place_size_or_tilt() -> None:
    points = face(0.03, 0.01)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    moved = points @ turn * 1.7 + [0.2, -0.1]
    targets = motion_targets(moved[None])
    for name, value in motion_targets(points[None]).items():
        assert np.allclose(value, targets[name], atol=1e-5)
    closed, opened = motion_measures(np.stack([face(0.0), face(0.05)]))["mouth_opening"]
    assert closed == pytest.approx(0, abs=1e-9)
    assert opened > 0.2
    left, right = motion_measures(np.stack([face(gaze=-0.01), face(gaze=0.01)]))["gaze"]
    assert left < 0 < right


def test_the_mirror_pairs_the_points() -> None:
    assert np.array_equal(MIRROR[MIRROR], np.arange(70))
    points = face(0.03)
    assert np.allclose((points * [-1, 1] + [1, 0])[MIRROR], points)


def test_the_reenactor_begins_as_a_copy() -> None:
    torch.manual_seed(0)
    network = Reenactor(motion=10, width=8)
    source = torch.rand(2, 3, 32, 32) * 2 - 1
    made = network(source, torch.randn(2, 10), torch.randn(2, 10))
    assert made.shape == source.shape
    change = (made - source).abs().mean()
    assert change < (source.flip(3) - source).abs().mean()
    motion = torch.zeros(2, 10, requires_grad=True)
    network(source, torch.zeros(2, 10), motion).square().sum().backward()
    assert motion.grad.abs().sum() > 0


def small() -> Params:
    own = scale_params("smoke")
    motion = own.pretrain.motion.model_copy(update={"steps": 3, "batch": 4})
    return own.model_copy(
        update={"pretrain": own.pretrain.model_copy(update={"motion": motion}), "threads": 1}
    )


def write_run(folder: Path, splits: tuple[str, ...] = ("train", "train", "validation")) -> None:
    """Clips of four frames, one per split, and two portraits, as ingest and fit_flame leave them.

    One frame is not fitted.
    """
    tables: dict[str, list[dict]] = {"frames": [], "portraits": [], "vfhq": [], "ffhq": []}
    samples = []
    for person in range(len(splits) + 2):
        of_a_clip = person < len(splits)
        for index in range(4 if of_a_clip else 1):
            key = f"p{person}-{index:06}"
            samples.append((key, {"image.png": encode_png(picture(person, index))}))
            row = {
                "key": key,
                "status": "ok",
                "reason": "",
                "landmarks": mesh(person, index),
            }
            if of_a_clip:
                place = {"clip": f"p{person}", "index": index, "split": splits[person]}
                tables["frames"].append(row | place)
            else:
                tables["portraits"].append(row)
            fit = {
                "key": key,
                "clip": f"p{person}",
                "status": "rejected" if key == "p0-000001" else "ok",
                "label": label(index),
            }
            tables["vfhq" if of_a_clip else "ffhq"].append(fit)
    for name, rows in tables.items():
        place = "labels" if name in ("vfhq", "ffhq") else "ingest"
        write_table(folder / place / f"{name}.parquet", pa.Table.from_pylist(rows))
    write_shard(folder / "ingest" / "shards" / "all-000000.tar", samples)


def picture(person: int, index: int) -> np.ndarray:
    """The noise of a person, with a mouth that gets brighter from frame to frame."""
    noise = rng(0, "image", person).integers(0, 255, (32, 32, 3))
    image = noise.astype(np.uint8)
    image[20:24, 12:20] = 60 * index
    return image


def mesh(person: int, index: int) -> list[float]:
    """478 landmarks, of which those are placed that are looked at."""
    points = np.zeros((478, 3), np.float32)
    points[MESH_TO_70, :2] = face(0.01 * index, 0.005 * (person - 2))
    return points.reshape(-1).tolist()


def label(index: int) -> list[float]:
    """A head whose expression and jaw go further from frame to frame."""
    numbers = np.zeros(Label.SIZE, np.float32)
    numbers[:16] = np.eye(4).reshape(16)
    numbers[16:25] = 1
    numbers[Label.EXPRESSION.start : Label.JAW.start + 1] = 0.1 * index
    return numbers.tolist()


def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write_run(tmp_path)
    inputs = [tmp_path / name for name in ("ingest", "labels", "truth")]
    runs = [pretrain_motion(small(), *inputs, tmp_path / out) for out in ("a", "b")]
    assert runs[0] == runs[1]
    assert {
        "mouth_opening_r2",
        "eye_opening_r2",
        "gaze_r2",
        "reenactment_l1",
        "copied_source_l1",
        "l1_loss",
    } <= runs[0].keys()
    assert runs[0].pop("history")[-1]["step"] == 3
    assert all(np.isfinite(value) for value in runs[0].values())
    first, second = (tmp_path / out / "motion.safetensors" for out in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    weights, facts = load_weights(first)
    sizes = small().networks.motion
    encoder = MotionEncoder(sizes)
    encoder.load_state_dict(weights)
    crops = torch.zeros(2, 3, sizes.input, sizes.input)
    assert encoder.eval().embedding(crops).shape == (2, sizes.dims)
    assert facts["trained_on"] == 10


def test_without_a_validation_clip_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write_run(tmp_path, ("train", "train", "train"))
    with pytest.raises(UserError, match="no usable frame of a validation clip"):
        pretrain_motion(
            small(), tmp_path / "ingest", tmp_path / "labels", tmp_path / "truth", tmp_path / "out"
        )
