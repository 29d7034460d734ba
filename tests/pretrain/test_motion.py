"""The motion encoder's teacher: what it is told to read, and a few steps of it.

They repeat, and leave what the other stages expect.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.head.flame import Flame
from model.psi.motion_encoder import MotionEncoder
from model.psi.reenact2d import Reenactor
from model.weights import load_weights
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.seeds import rng
from pipeline.geometry import head_model
from pipeline.geometry.camera_path import front
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import MESH_TO_70
from pipeline.geometry.motion_targets import MIRROR, motion_measures, motion_targets
from pipeline.pretrain.motion import pretrain_motion
from pipeline.pretrain.motion_faces import POSE, draw_batch, read_motion_faces
from pipeline.store.codecs import PNG
from pipeline.store.shards import write_shard
from pipeline.store.tables import write_table


def face(opening: float = 0.0, gaze: float = 0.0) -> np.ndarray:
    """The 70 points (70, 2) of a drawn face in image fractions."""
    # In the order of the 68 points of iBUG, and the pupils behind them.
    turn = 2 * np.pi * np.arange(12) / 12
    half_turn = np.linspace(0, np.pi, 17)
    contour = ellipse(0.5, 0.25, -0.3, half_turn)
    left_brow = np.linspace(0.3, 0.45, 5)
    right_brow = np.linspace(0.55, 0.7, 5)
    brows = level([*left_brow, *right_brow], 0.35)
    down = np.array([0.42, 0.46, 0.5, 0.54])
    bridge = np.stack([np.full(4, 0.5), down], axis=1)
    nostrils = level(np.linspace(0.46, 0.54, 5), 0.57)
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
    inner_turn = turn[[0, 2, 3, 4, 6, 8, 9, 10]]
    inner = ellipse(0.68, 0.06, opening, inner_turn)
    pupils = np.stack([left, right]) + np.array([gaze, 0.0])
    parts = (
        contour,
        brows,
        bridge,
        nostrils,
        left + lids,
        right + lids,
        outer,
        inner,
        pupils,
    )
    return np.concatenate(parts)


def level(across: Sequence[float], y: float) -> np.ndarray:
    """Points (N, 2) at one height."""
    return np.stack([across, np.full(len(across), y)], axis=1)


def ellipse(y: float, width: float, height: float, angles: np.ndarray) -> np.ndarray:
    """Points of an ellipse in the middle of the face, clockwise from its left end."""
    across = 0.5 - width * np.cos(angles)
    down = y - height * np.sin(angles)
    return np.stack([across, down], axis=1)


def test_targets_know_no_place_size_or_tilt() -> None:
    # An encoder that is taught by such targets cannot win by reading where in the picture a face is.
    points = face(0.03, 0.01)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    moved = points @ turn * 1.7 + [0.2, -0.1]
    before = motion_targets(points[None])
    after = motion_targets(moved[None])
    for name, value in before.items():
        assert np.allclose(value, after[name], atol=1e-5)
    # They do know what moves in the face, and in which direction.
    mouths = np.stack([face(0.0), face(0.05)])
    closed, opened = motion_measures(mouths)["mouth_opening"]
    assert closed == pytest.approx(0, abs=1e-9)
    assert opened > 0.2
    eyes = np.stack([face(gaze=-0.01), face(gaze=0.01)])
    left, right = motion_measures(eyes)["gaze"]
    assert left < 0 < right


def test_the_mirror_pairs_the_points() -> None:
    # One wrong pair would teach that a mirrored face looks or smiles to the side.
    assert np.array_equal(MIRROR[MIRROR], np.arange(70))
    points = face(0.03)
    mirrored = points * [-1, 1] + [1, 0]
    assert np.allclose(mirrored[MIRROR], points)


def test_the_reenactor_begins_as_a_copy() -> None:
    torch.manual_seed(0)
    network = Reenactor(motion=10, width=8)
    source = torch.rand(2, 3, 32, 32) * 2 - 1
    own, driving = torch.randn(2, 10), torch.randn(2, 10)
    made = network(source, own, driving)
    assert made.shape == source.shape
    change = (made - source).abs()
    # The mirror image has the same colours, so that a blur of the mean does not pass for a copy.
    mirrored = source.flip(3)
    other = (mirrored - source).abs()
    assert change.mean() < other.mean()
    # A copy that nothing of the motion reaches would stay one.
    motion = torch.zeros(2, 10, requires_grad=True)
    made = network(source, torch.zeros(2, 10), motion)
    made.square().sum().backward()
    assert motion.grad.abs().sum() > 0


def small() -> Params:
    """Sizes of scale smoke, and as few steps as show that they repeat."""
    own = scale_params("smoke")
    motion = own.pretrain.motion.model_copy(update={"steps": 3, "batch": 4})
    pretrain = own.pretrain.model_copy(update={"motion": motion})
    return own.model_copy(update={"pretrain": pretrain, "threads": 1})


def write_run(folder: Path, splits: tuple[str, ...] = ("train", "train", "validation")) -> None:
    """Clips of four frames, one per split, and two portraits, as ingest and fit_flame leave them.

    One frame is not fitted.
    """
    tables: dict[str, list[dict]] = {
        "frames": [],
        "portraits": [],
        "vfhq": [],
        "ffhq": [],
    }
    samples = []
    people = len(splits) + 2
    for person in range(people):
        of_a_clip = person < len(splits)
        frames = 4 if of_a_clip else 1
        for index in range(frames):
            key = f"p{person}-{index:06}"
            image = PNG.encode(picture(person, index))
            samples.append((key, {"image.png": image}))
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
            # A frame without a fit has no targets, and one NaN that is not masked would spoil all weights.
            status = "rejected" if key == "p0-000001" else "ok"
            fit = {
                "key": key,
                "clip": f"p{person}",
                "status": status,
                "label": label(index),
            }
            fits = tables["vfhq" if of_a_clip else "ffhq"]
            fits.append(fit)
    for name, rows in tables.items():
        place = "labels" if name in ("vfhq", "ffhq") else "ingest"
        path = folder / place / f"{name}.parquet"
        write_table(path, pa.Table.from_pylist(rows))
    write_shard(folder / "ingest/shards/all-000000.tar", samples)


def picture(person: int, index: int) -> np.ndarray:
    """The noise of a person, with a mouth that gets brighter from frame to frame."""
    noise = rng(0, "image", person).integers(0, 255, (32, 32, 3))
    image = noise.astype(np.uint8)
    image[20:24, 12:20] = 60 * index
    return image


def mesh(person: int, index: int) -> list[float]:
    """478 landmarks; those that are looked at have a place."""
    points = np.zeros((478, 3), np.float32)
    points[MESH_TO_70, :2] = face(0.01 * index, 0.005 * (person - 2))
    return points.reshape(-1).tolist()


def label(index: int) -> list[float]:
    """A head whose expression and jaw go further from frame to frame."""
    numbers = np.zeros(Label.SIZE, np.float32)
    numbers[Label.CAMERA] = front(1)[0]
    numbers[Label.EXPRESSION.start : Label.JAW.start + 1] = 0.1 * index
    return numbers.tolist()


def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    # Pieces of the tables that have no face of a split, as most of a large table have.
    monkeypatch.setattr("pipeline.store.tables.ROW_GROUP", 2)
    write_run(tmp_path)
    inputs = [tmp_path / name for name in ("ingest", "labels", "truth")]
    result = pretrain_motion(small(), *inputs, tmp_path / "a")
    again = pretrain_motion(small(), *inputs, tmp_path / "b")
    assert result == again
    wanted = {
        "mouth_opening_r2",
        "eye_opening_r2",
        "gaze_r2",
        "reenactment_l1",
        "copied_source_l1",
        "l1_loss",
    }
    assert wanted <= result.keys()
    history = result.pop("history")
    assert history[-1]["step"] == 3
    assert all(np.isfinite(value) for value in result.values())
    # DVC compares files: equal metrics would not save the later stages from a rerun.
    first = tmp_path / "a/motion.safetensors"
    second = tmp_path / "b/motion.safetensors"
    assert first.read_bytes() == second.read_bytes()
    # Later stages build the encoder from their params and load these weights without more ado.
    weights, facts = load_weights(first)
    sizes = small().networks.motion
    encoder = MotionEncoder(sizes)
    encoder.load_state_dict(weights)
    encoder.eval()
    crops = torch.zeros(2, 3, sizes.input, sizes.input)
    embedding = encoder.embedding(crops)
    assert embedding.shape == (2, sizes.dims)
    assert facts["trained_on"] == 10


def test_half_of_what_is_not_reenacted_is_seen_from_another_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write_run(tmp_path)
    flame = Flame(head_model.load("standin"))
    faces = read_motion_faces(flame, tmp_path / "ingest", tmp_path / "labels", "train", seed=0)
    batch = draw_batch(faces, 16, 32, rng(0, "batch"))
    fitted = ~batch.targets["eye"].isnan().any(1)
    # Of a turned face everything is known but the pose, which labels have for their own cameras alone.
    turned = fitted & batch.targets[POSE].isnan().any(1)
    assert not turned[: batch.reenacted].any()
    rest = fitted[batch.reenacted :]
    assert 0.25 < turned[batch.reenacted :].sum() / rest.sum() < 0.75
    # It is another picture of the same face.
    rows = faces.frames[faces.rows.fitted[faces.frames]][:1]
    _, own, own_places = faces.crops(rows, 32)
    _, other, other_places = faces.crops(rows, 32, turned=np.array([True]))
    assert not torch.equal(own, other) and not torch.equal(own_places, other_places)


def test_without_a_validation_clip_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    # So small a set of films, or so strict an ingest, that the split left none over.
    write_run(tmp_path, ("train", "train", "train"))
    inputs = [tmp_path / name for name in ("ingest", "labels", "truth")]
    with pytest.raises(UserError, match="no usable frame of a validation clip"):
        pretrain_motion(small(), *inputs, tmp_path / "out")
