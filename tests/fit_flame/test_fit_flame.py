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
from pipeline.fit_flame.landmark_model import LandmarkModel
from pipeline.fit_flame.solver import fit
from pipeline.fit_flame.table import fit_table
from pipeline.geometry.camera import INTRINSICS, project
from pipeline.geometry.label import Label, head_vertices, landmarks
from pipeline.geometry.landmarks import MESH_TO_70, interocular, landmarks_70
from pipeline.geometry.standin import standin
from pipeline.store.tables import write_table

SETTINGS = FitFlame(
    camera_steps=3, steps=6, shape_weight=1e-3, expression_weight=1e-3, temporal_weight=0.1, max_error=0.1
)


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
    labels[:, 16:25] = INTRINSICS.reshape(9)
    labels[:, Label.SHAPE] = np.repeat(random.normal(size=(count, 300)), frames, axis=0)
    labels[:, Label.EXPRESSION] = moving(0.7, 100)
    labels[:, Label.NECK] = moving([0.15, 0.3, 0.1], 3)
    labels[:, Label.JAW.start] = np.abs(moving(0.15, 1))[:, 0]
    labels[:, Label.EYES] = np.tile(moving([0.15, 0.15, 0.0], 3), 2)
    rotation = rotation_matrices(torch.as_tensor(labels[:, Label.NECK])).numpy()
    cam2world = np.tile(np.eye(4), (total, 1, 1))
    cam2world[:, :3, :3] = rotation.transpose(0, 2, 1)
    cam2world[:, :3, 3] = -np.einsum("nij,ni->nj", rotation, np.array([0, 0.05, -4.2]) + moving(0.03, 3))
    labels[:, :16] = cam2world.reshape(total, 16)
    tensor = torch.as_tensor(labels)
    points = landmarks(Flame(standin()), tensor, tensor[:, None, Label.CAMERA])[:, 0]
    return labels, points.numpy().astype(np.float64)


def people(count: int, frames: int = 1) -> list[str]:
    return [f"person {i // frames}" for i in range(count * frames)]


def test_the_landmark_model_is_the_head_model() -> None:
    labels, points = known(6)
    model = LandmarkModel(standin())
    head = Label.split(labels)
    coefficients = join(head.shape @ model.shape_basis, head.expression @ model.expression_basis)
    places = np.linalg.inv(labels[:, :16].reshape(-1, 4, 4).astype(np.float64))[:, :3, 3]
    poses = join(head.neck, head.jaw, head.eyes[:, :3], places)
    pose = torch.as_tensor(poses.astype(np.float64))
    groups = model.groups(torch.as_tensor(coefficients.astype(np.float64)))
    assert (
        np.abs(model.project(groups, pose).numpy() - points).max() < 3e-3
    )  # what the short basis leaves out: 1.5 pixels of 512

    def at(flat: torch.Tensor) -> torch.Tensor:
        return model.project(model.groups(flat[:, :-12]), flat[:, -12:])

    flat = torch.cat([torch.as_tensor(coefficients.astype(np.float64)), pose], dim=1)
    slopes = torch.cat([model.by_coefficients(groups, pose).double(), model.by_pose(groups, pose)[1]], dim=-1)
    for column in (0, 5, model.shapes + 3, *range(flat.shape[1] - 12, flat.shape[1])):
        step = torch.zeros_like(flat)
        step[:, column] = 1e-6
        assert torch.allclose((at(flat + step) - at(flat - step)) / 2e-6, slopes[..., column], atol=1e-6)


def test_known_heads_come_back() -> None:
    labels, points = known(24)
    result = fit(standin(), points, people(24), SETTINGS)
    assert np.median(result.errors) < 0.01
    errors = label_errors(Flame(standin()), torch.as_tensor(result.labels), torch.as_tensor(labels))
    assert errors["rotation_degrees"] < 2.5
    assert errors["jaw_degrees"] < 2
    assert errors["vertices_mm"] < 10


def test_a_label_says_the_rotation_twice_and_projects_to_the_fit() -> None:
    _, points = known(4)
    result = fit(standin(), points, people(4), SETTINGS)
    for label in result.labels:
        world2cam = np.linalg.inv(label[:16].reshape(4, 4))
        assert np.allclose(
            world2cam[:3, :3], rotation_matrices(torch.as_tensor(label[Label.NECK])).numpy(), atol=1e-5
        )
        left, right = np.split(label[Label.EYES], 2)
        assert np.array_equal(left, right)
    label = torch.as_tensor(result.labels[:1])
    flame = Flame(standin())
    again = project(flame.landmarks(head_vertices(flame, label))[0].numpy(), result.labels[0, Label.CAMERA])
    assert np.allclose(again, result.points[0], atol=1e-5)
    assert result.errors[0] == pytest.approx(
        np.linalg.norm(again - points[0], axis=1).mean() / interocular(points[0]), abs=1e-4
    )


def test_a_clip_has_one_shape_and_moves_smoothly() -> None:
    _, points = known(2, 16)
    noisy = points + rng(0, "noise").normal(size=points.shape) * 0.003
    bends = {}
    for weight in (0.0, 0.1):
        result = fit(standin(), noisy, people(2, 16), SETTINGS.model_copy(update={"temporal_weight": weight}))
        shapes = result.labels[:, Label.SHAPE].reshape(2, 16, 300)
        assert np.array_equal(shapes, np.repeat(shapes[:, :1], 16, axis=1))
        bends[weight] = np.abs(np.diff(result.labels[:, Label.NECK].reshape(2, 16, 3), n=2, axis=1)).mean()
        assert np.median(result.errors) < 0.03
    assert bends[0.1] < 0.7 * bends[0.0]


def test_a_fit_does_not_depend_on_the_other_people() -> None:
    _, points = known(24)
    together = fit(standin(), points, people(24), SETTINGS)
    alone = fit(standin(), points[5:6], ["person 5"], SETTINGS)
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
    assert np.array_equal(
        points[:, 68], mesh[:, 468, :2]
    )  # the pupil of the person's right eye, left in the image


def table(points: np.ndarray, **columns: list) -> pa.Table:
    """A table of ingest whose 478-point meshes hold these 70 points."""
    mesh = np.zeros((len(points), 478, 3), np.float32)
    mesh[:, MESH_TO_70, :2] = points
    rows = [{"landmarks": points.reshape(-1).tolist(), "reason": ""} for points in mesh]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return pa.Table.from_pylist(rows)


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, points = known(2, 16)
    spoiled = points.copy()
    spoiled[3] = spoiled[3, ::-1]  # a face upside down inside out
    status = ["ok"] * 30 + ["rejected"] * 2
    indices = list(range(16)) * 2
    keys = [f"f{i:02}" for i in range(32)]
    clips = ["b"] * 16 + ["a"] * 16
    frames = table(
        spoiled, key=keys, clip=clips, split=["train"] * 16 + ["test"] * 16, index=indices, status=status
    )
    write_table(tmp_path / "frames.parquet", frames)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = scale_params("smoke").model_copy(update={"fit_flame": SETTINGS})
    out, metrics = fit_table(params, "vfhq", tmp_path)
    rows = {row["key"]: row for row in out.to_pylist()}
    assert len(rows) == 30 and rows["f00"]["clip"] == "b" and len(rows["f00"]["label"]) == Label.SIZE
    assert rows["f03"]["status"] == "rejected" and "landmark error" in rows["f03"]["reason"]
    assert rows["f20"]["status"] == "ok" and rows["f20"]["split"] == "test" and rows["f20"]["error"] < 0.03
    assert metrics["faces"] == 30 and metrics["fitted"] == sum(row["status"] == "ok" for row in rows.values())


def test_clips_are_fitted_in_units_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of six clips and of two; a clip without numbers costs no other one.

    That two workers make the same bytes, test_end_to_end sees.
    """
    _, points = known(8, 16)
    keys = [f"f{i:03}" for i in range(len(points))]
    clips = [f"c{i // 16}" for i in range(len(points))]
    ingested = table(
        points,
        key=keys,
        clip=clips,
        split=["train"] * len(points),
        index=list(range(16)) * 8,
        status=["ok"] * len(points),
    )
    write_table(tmp_path / "frames.parquet", ingested)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = scale_params("smoke").model_copy(update={"fit_flame": SETTINGS})
    fitted, _ = fit_table(params, "vfhq", tmp_path)
    mesh = np.array(ingested["landmarks"].to_pylist(), np.float64).reshape(len(points), 478, 3)
    result = fit(standin(), landmarks_70(mesh), clips, SETTINGS)
    assert np.array_equal(np.array(fitted["label"].to_pylist(), np.float32), result.labels)
    assert np.array_equal(fitted["error"].to_numpy(), result.errors.astype(np.float32))
    monkeypatch.setattr("pipeline.store.tables.ROW_GROUP", 50)
    spoiled = points.copy()
    spoiled[20] = np.nan
    bad = table(
        spoiled,
        key=keys,
        clip=clips,
        split=["train"] * len(points),
        index=list(range(16)) * 8,
        status=["ok"] * len(points),
    )
    write_table(tmp_path / "frames.parquet", bad)
    rows = fit_table(params, "vfhq", tmp_path)[0].to_pylist()
    reasons = {row["clip"]: row["reason"] for row in rows if row["status"] != "ok"}
    assert set(reasons) == {"c1"} and len(rows) == len(points)


def test_nothing_to_fit_is_said(tmp_path: Path) -> None:
    _, points = known(6)
    write_table(tmp_path / "portraits.parquet", table(points[:1], key=["a"], status=["rejected"]))
    with pytest.raises(UserError, match="no face that ingest accepted"):
        fit_table(scale_params("smoke"), "ffhq", tmp_path)
