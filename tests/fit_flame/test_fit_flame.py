"""Landmarks of known heads, fitted: the camera, the pose and the error must come back."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.head.flame import Flame, rotation_matrices
from model.head.label import join
from pipeline.config.params import FitFlame
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.seeds import rng
from pipeline.evaluate.truth import label_errors
from pipeline.fit_flame.landmark_model import POSE, LandmarkModel
from pipeline.fit_flame.solver import fit
from pipeline.fit_flame.table import fit_table
from pipeline.geometry.camera import INTRINSICS, project, rotation
from pipeline.geometry.label import Label, head_vertices, landmarks
from pipeline.geometry.landmarks import MESH_TO_70, interocular, landmarks_70
from pipeline.geometry.standin import standin
from pipeline.store.tables import labels_of, write_table

SETTINGS = FitFlame(
    camera_steps=3,
    steps=6,
    shape_weight=1e-3,
    expression_weight=1e-3,
    temporal_weight=0.1,
    max_error=0.1,
)

PARAMS = scale_params("smoke").model_copy(update={"fit_flame": SETTINGS})


@cache
def known(count: int, frames: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N, 437) of random heads, `frames` of each person, and their landmarks (N, 70, 2)."""
    random, total = rng(0, "fit", count, frames), count * frames
    time = np.linspace(0, 1, frames)[None, :, None]

    def moving(scale: list[float] | float, width: int) -> np.ndarray:
        """Goes from one random value to another in the course of a clip."""
        first, last = random.normal(size=(2, count, 1, width)) * scale
        return (first + (last - first) * time).reshape(total, width)

    labels = np.zeros((total, Label.SIZE), np.float32)
    labels[:, Label.SHAPE] = np.repeat(random.normal(size=(count, 300)), frames, axis=0)
    labels[:, Label.EXPRESSION] = moving(0.7, 100)
    labels[:, Label.NECK] = moving([0.15, 0.3, 0.1], 3)
    labels[:, Label.JAW.start] = np.abs(moving(0.15, 1))[:, 0]
    labels[:, Label.EYES] = np.tile(moving([0.15, 0.15, 0.0], 3), 2)
    # The camera has the rotation of the neck once more, and stands where it sees the head at `place`.
    turn = rotation_matrices(torch.as_tensor(labels[:, Label.NECK])).numpy()
    place = np.array([0, 0.05, -4.2]) + moving(0.03, 3)
    cam2world = np.tile(np.eye(4), (total, 1, 1))
    cam2world[:, :3, :3] = turn.transpose(0, 2, 1)
    cam2world[:, :3, 3] = -np.einsum("nij,ni->nj", turn, place)
    labels[:, :16] = cam2world.reshape(total, 16)
    labels[:, 16:25] = INTRINSICS.reshape(9)
    tensor = torch.as_tensor(labels)
    points = landmarks(Flame(standin()), tensor, tensor[:, None, Label.CAMERA])[:, 0]
    return labels, points.numpy().astype(np.float64)


def people(count: int, frames: int = 1) -> list[str]:
    return [f"person {i // frames}" for i in range(count * frames)]


def reduced(model: LandmarkModel, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients in the bases of the model and poses of labels."""
    head = Label.split(labels)
    coefficients = join(head.shape @ model.shape_basis, head.expression @ model.expression_basis)
    world2cam = np.linalg.inv(labels[:, :16].reshape(-1, 4, 4).astype(np.float64))
    pose = join(head.neck, head.jaw, head.eyes[:, :3], world2cam[:, :3, 3])
    return torch.as_tensor(coefficients.astype(np.float64)), torch.as_tensor(pose.astype(np.float64))


def test_the_landmark_model_is_the_head_model() -> None:
    labels, points = known(6)
    model = LandmarkModel(standin())
    coefficients, pose = reduced(model, labels)
    found = model.project(model.groups(coefficients), pose).numpy()
    # What the short basis leaves out: 1.5 pixels of 512.
    assert np.abs(found - points).max() < 3e-3


def test_derivatives_of_the_landmark_model_are_differences() -> None:
    labels, _ = known(6)
    model = LandmarkModel(standin())
    coefficients, pose = reduced(model, labels)
    flat = torch.cat([coefficients, pose], dim=1)

    def at(numbers: torch.Tensor) -> torch.Tensor:
        return model.project(model.groups(numbers[:, :-POSE]), numbers[:, -POSE:])

    groups = model.groups(coefficients)
    by_coefficients = model.by_coefficients(groups, pose).double()
    slopes = torch.cat([by_coefficients, model.by_pose(groups, pose)[1]], dim=-1)
    # Some of shape and expression, and the whole pose.
    last = flat.shape[1]
    for column in (0, 5, model.shapes + 3, *range(last - POSE, last)):
        step = torch.zeros_like(flat)
        step[:, column] = 1e-6
        difference = (at(flat + step) - at(flat - step)) / 2e-6
        assert torch.allclose(difference, slopes[..., column], atol=1e-6)


def test_known_heads_come_back() -> None:
    labels, points = known(24)
    result = fit(standin(), points, people(24), SETTINGS)
    assert np.median(result.errors) < 0.01
    # Landmarks do not tell everything: the rest is what the priors hold at the mean.
    errors = label_errors(Flame(standin()), torch.as_tensor(result.labels), torch.as_tensor(labels))
    assert errors["rotation_degrees"] < 2.5
    assert errors["jaw_degrees"] < 2
    assert errors["vertices_mm"] < 10


def test_a_label_says_the_rotation_twice_and_projects_to_the_fit() -> None:
    _, points = known(4)
    result = fit(standin(), points, people(4), SETTINGS)
    neck = rotation_matrices(torch.as_tensor(result.labels[:, Label.NECK])).numpy()
    assert np.allclose(rotation(result.labels).transpose(0, 2, 1), neck, atol=1e-5)
    # Landmarks see one pair of eyes: both turn alike.
    left, right = np.split(result.labels[:, Label.EYES], 2, axis=1)
    assert np.array_equal(left, right)
    flame = Flame(standin())
    vertices = head_vertices(flame, torch.as_tensor(result.labels[:1]))
    again = project(flame.landmarks(vertices)[0].numpy(), result.labels[0, Label.CAMERA])
    assert np.allclose(again, result.points[0], atol=1e-5)
    distance = np.linalg.norm(again - points[0], axis=1).mean()
    assert result.errors[0] == pytest.approx(distance / interocular(points[0]), abs=1e-4)


def test_a_clip_has_one_shape_and_moves_smoothly() -> None:
    _, points = known(2, 16)
    # Noise from frame to frame is what smoothing has to take away.
    noisy = points + rng(0, "noise").normal(size=points.shape) * 0.003
    bends = {}
    for weight in (0.0, 0.1):
        settings = SETTINGS.model_copy(update={"temporal_weight": weight})
        result = fit(standin(), noisy, people(2, 16), settings)
        assert np.median(result.errors) < 0.03
        shapes = result.labels[:, Label.SHAPE].reshape(2, 16, 300)
        assert np.array_equal(shapes, np.repeat(shapes[:, :1], 16, axis=1))
        turns = result.labels[:, Label.NECK].reshape(2, 16, 3)
        bends[weight] = np.abs(np.diff(turns, n=2, axis=1)).mean()
    assert bends[0.1] < 0.7 * bends[0.0]


def test_a_fit_does_not_depend_on_the_other_people() -> None:
    _, points = known(24)
    together = fit(standin(), points, people(24), SETTINGS)
    alone = fit(standin(), points[5:6], ["person 5"], SETTINGS)
    # Products of other sizes round otherwise, so that a chunk's neighbours change last bits alone.
    assert np.allclose(together.points[5], alone.points[0], atol=1e-4)
    again = fit(standin(), points, people(24), SETTINGS)
    assert np.array_equal(together.labels, again.labels)


def test_the_frames_of_a_person_must_follow_one_another() -> None:
    _, points = known(6)
    with pytest.raises(ValueError, match="follow one another"):
        fit(standin(), points[:3], ["a", "b", "a"], SETTINGS)


def test_mesh_mapping() -> None:
    mesh = rng(0, "mesh").uniform(size=(3, 478, 3))
    points = landmarks_70(mesh)
    assert points.shape == (3, 70, 2)
    assert len(set(MESH_TO_70.tolist())) == 70
    # The pupil of the person's right eye, left in the image.
    assert np.array_equal(points[:, 68], mesh[:, 468, :2])


def write_frames(folder: Path, points: np.ndarray, **columns: list) -> pa.Table:
    """A table of ingest whose 478-point meshes hold these 70 points."""
    mesh = np.zeros((len(points), 478, 3), np.float32)
    mesh[:, MESH_TO_70, :2] = points
    rows = [{"landmarks": face.reshape(-1).tolist(), "reason": ""} for face in mesh]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    table = pa.Table.from_pylist(rows)
    write_table(folder / "frames.parquet", table)
    return table


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, points = known(2, 16)
    spoiled = points.copy()
    # A face upside down inside out.
    spoiled[3] = spoiled[3, ::-1]
    write_frames(
        tmp_path,
        spoiled,
        key=[f"f{i:02}" for i in range(32)],
        clip=["b"] * 16 + ["a"] * 16,
        split=["train"] * 16 + ["test"] * 16,
        index=list(range(16)) * 2,
        status=["ok"] * 30 + ["rejected"] * 2,
    )
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    out, metrics = fit_table(PARAMS, "vfhq", tmp_path)
    rows = {row["key"]: row for row in out.to_pylist()}
    assert len(rows) == 30
    assert rows["f00"]["clip"] == "b"
    assert len(rows["f00"]["label"]) == Label.SIZE
    assert rows["f03"]["status"] == "rejected"
    assert "landmark error" in rows["f03"]["reason"]
    assert rows["f20"]["status"] == "ok"
    assert rows["f20"]["split"] == "test"
    assert rows["f20"]["error"] < 0.03
    assert metrics["faces"] == 30
    assert metrics["fitted"] == sum(row["status"] == "ok" for row in rows.values())


def eight_clips(folder: Path, points: np.ndarray) -> pa.Table:
    count = len(points)
    return write_frames(
        folder,
        points,
        key=[f"f{i:03}" for i in range(count)],
        clip=[f"c{i // 16}" for i in range(count)],
        split=["train"] * count,
        index=list(range(16)) * 8,
        status=["ok"] * count,
    )


def test_clips_are_fitted_in_units_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of six clips and of two. That two workers make the same bytes, test_end_to_end sees."""
    _, points = known(8, 16)
    ingested = eight_clips(tmp_path, points)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    fitted, _ = fit_table(PARAMS, "vfhq", tmp_path)
    mesh = np.array(ingested["landmarks"].to_pylist(), np.float64).reshape(len(points), 478, 3)
    result = fit(standin(), landmarks_70(mesh), ingested["clip"].to_pylist(), SETTINGS)
    assert np.array_equal(labels_of(fitted.to_pylist()), result.labels)
    assert np.array_equal(fitted["error"].to_numpy(), result.errors.astype(np.float32))


def test_a_clip_without_numbers_costs_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, points = known(8, 16)
    spoiled = points.copy()
    spoiled[20] = np.nan
    # Row groups that end within clips, as those of a large table do.
    monkeypatch.setattr("pipeline.store.tables.ROW_GROUP", 50)
    eight_clips(tmp_path, spoiled)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    table, _ = fit_table(PARAMS, "vfhq", tmp_path)
    rows = table.to_pylist()
    assert len(rows) == len(points)
    assert {row["clip"] for row in rows if row["status"] != "ok"} == {"c1"}


def test_nothing_to_fit_is_said(tmp_path: Path) -> None:
    _, points = known(6)
    write_frames(
        tmp_path,
        points[:1],
        key=["a"],
        clip=["a"],
        split=["train"],
        index=[0],
        status=["rejected"],
    )
    with pytest.raises(UserError, match="no face that ingest accepted"):
        fit_table(PARAMS, "vfhq", tmp_path)
