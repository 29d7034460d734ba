"""Landmarks of known heads, fitted: the camera, the pose and the error must come back."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

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

Known = tuple[np.ndarray, np.ndarray]
Reduced = tuple[Tensor, Tensor]

PARAMS = scale_params("smoke").model_copy(update={"fit_flame": SETTINGS})
HEAD = standin()
FLAME = Flame(HEAD)
PLACE = np.array([0, 0.05, -4.2])  # of the head before the camera


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder whose scratch files are in it, too."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@cache
def known(count: int, frames: int = 1) -> Known:
    """Labels (N, 437) of random heads, `frames` of each person, and their landmarks (N, 70, 2)."""
    random = rng(0, "fit", count, frames)
    total = count * frames
    time = np.linspace(0, 1, frames)
    time = time[None, :, None]

    def moving(scale: list[float] | float, width: int) -> np.ndarray:
        """Goes from one random value to another in the course of a clip."""
        ends = random.normal(size=(2, count, 1, width))
        first, last = ends * scale
        change = last - first
        values = first + change * time
        return values.reshape(total, width)

    size = (total, Label.SIZE)
    labels = np.zeros(size, np.float32)
    shapes = random.normal(size=(count, 300))
    label = Label.split(labels)
    label.shape[:] = np.repeat(shapes, frames, axis=0)
    label.expression[:] = moving(0.7, 100)
    label.neck[:] = moving([0.15, 0.3, 0.1], 3)
    # A jaw opens to one side of zero alone.
    opening = moving(0.15, 1)
    label.jaw[:, :1] = np.abs(opening)
    one_eye = moving([0.15, 0.15, 0.0], 3)
    label.eyes[:] = np.tile(one_eye, 2)
    shift = moving(0.03, 3)
    label.camera[:] = cameras(label.neck, PLACE + shift)
    heads = torch.as_tensor(labels)
    each_camera = heads[:, None, Label.CAMERA]
    points = landmarks(FLAME, heads, each_camera)
    by_head = points[:, 0].double()
    return labels, by_head.numpy()


def cameras(neck: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Cameras (N, 25) with the rotation of the neck once more, which see the head at `place`."""
    total = len(neck)
    turn = matrices(neck)
    identity = np.eye(4)
    cam2world = np.tile(identity, (total, 1, 1))
    back = turn.transpose(0, 2, 1)
    cam2world[:, :3, :3] = back
    # A camera that sees the origin at t is itself at -R^T t.
    origin = -np.einsum("nij,ni->nj", turn, place)
    cam2world[:, :3, 3] = origin
    intrinsics = INTRINSICS.reshape(1, 9)
    same_lens = np.tile(intrinsics, (total, 1))
    matrix = cam2world.reshape(total, 16)
    return join(matrix, same_lens)


def matrices(vectors: np.ndarray) -> np.ndarray:
    """Rotation vectors (N, 3) to matrices (N, 3, 3)."""
    tensor = torch.as_tensor(vectors)
    rotations = rotation_matrices(tensor)
    return rotations.numpy()


def people(count: int, frames: int = 1) -> list[str]:
    total = count * frames
    return [f"person {i // frames}" for i in range(total)]


def reduced(model: LandmarkModel, labels: np.ndarray) -> Reduced:
    """Coefficients in the bases of the model and poses of labels."""
    head = Label.split(labels)
    coefficients = join(
        head.shape @ model.shape_basis,
        head.expression @ model.expression_basis,
    )
    numbers = labels[:, :16]
    matrix = numbers.reshape(-1, 4, 4)
    cam2world = matrix.astype(np.float64)
    world2cam = np.linalg.inv(cam2world)
    translation = world2cam[:, :3, 3]
    one_eye = head.eyes[:, :3]
    pose = join(head.neck, head.jaw, one_eye, translation)
    coefficients = torch.as_tensor(coefficients)
    pose = torch.as_tensor(pose)
    # The solver works in float64: differences of float32 would have three digits.
    return coefficients.double(), pose.double()


def test_the_landmark_model_is_the_head_model() -> None:
    labels, points = known(6)
    model = LandmarkModel(HEAD)
    coefficients, pose = reduced(model, labels)
    groups = model.groups(coefficients)
    found = model.project(groups, pose).numpy()
    distances = np.abs(found - points)
    # What the short basis leaves out: 1.5 pixels of 512.
    assert distances.max() < 3e-3


def test_derivatives_of_the_landmark_model_are_differences() -> None:
    labels, _ = known(6)
    model = LandmarkModel(HEAD)
    coefficients, pose = reduced(model, labels)
    flat = torch.cat([coefficients, pose], dim=1)

    def at(numbers: Tensor) -> Tensor:
        coefficients = numbers[:, :-POSE]
        pose = numbers[:, -POSE:]
        groups = model.groups(coefficients)
        return model.project(groups, pose)

    groups = model.groups(coefficients)
    by_coefficients = model.by_coefficients(groups, pose)
    _, by_pose = model.by_pose(groups, pose)
    both = [by_coefficients.double(), by_pose]
    slopes = torch.cat(both, dim=-1)
    # Some of shape and expression, and the whole pose.
    last = flat.shape[1]
    of_pose = range(last - POSE, last)
    for column in (0, 5, model.shapes + 3, *of_pose):
        step = torch.zeros_like(flat)
        step[:, column] = 1e-6
        forwards = at(flat + step)
        backwards = at(flat - step)
        change = forwards - backwards
        slope = slopes[..., column]
        assert torch.allclose(change / 2e-6, slope, atol=1e-6)


def test_known_heads_come_back() -> None:
    labels, points = known(24)
    result = fit(HEAD, points, people(24), SETTINGS)
    assert np.median(result.errors) < 0.01
    # Landmarks do not tell everything: the rest is what the priors hold at the mean.
    errors = label_errors(
        FLAME,
        fitted_N437=torch.as_tensor(result.labels),
        true_N437=torch.as_tensor(labels),
    )
    assert errors["rotation_degrees"] < 2.5
    assert errors["jaw_degrees"] < 2
    assert errors["vertices_mm"] < 10


def test_a_label_says_the_rotation_twice_and_projects_to_the_fit() -> None:
    _, points = known(4)
    result = fit(HEAD, points, people(4), SETTINGS)
    labels = torch.as_tensor(result.labels)
    # The neck turns the head before the camera: the camera turns the other way.
    neck = result.labels[:, Label.NECK]
    head_turns = matrices(neck)
    turns = rotation(result.labels)
    camera_turns = turns.transpose(0, 2, 1)
    assert np.allclose(camera_turns, head_turns, atol=1e-5)
    # Landmarks see one pair of eyes: both turn alike.
    eyes = labels[:, Label.EYES]
    left, right = eyes.chunk(2, dim=1)
    assert torch.equal(left, right)
    first = labels[:1]
    vertices = head_vertices(FLAME, first)
    in_space = FLAME.landmarks(vertices)[0]
    camera = result.labels[0, Label.CAMERA]
    again = project(in_space.numpy(), camera)
    assert np.allclose(again, result.points[0], atol=1e-5)
    difference = again - points[0]
    distances = np.linalg.norm(difference, axis=1)
    between_eyes = interocular(points[0])
    expected = distances.mean() / between_eyes
    found = result.errors[0]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_clip_has_one_shape_and_moves_smoothly() -> None:
    _, points = known(2, 16)
    # Noise from frame to frame is what smoothing has to take away.
    noise = rng(0, "noise").normal(size=points.shape)
    noisy = points + noise * 0.003
    bends = {}
    for weight in (0.0, 0.1):
        settings = SETTINGS.model_copy(update={"temporal_weight": weight})
        result = fit(HEAD, noisy, people(2, 16), settings)
        assert np.median(result.errors) < 0.03
        clips = result.labels.reshape(2, 16, -1)
        shapes = clips[..., Label.SHAPE]
        first = shapes[:, :1]
        assert (shapes == first).all()
        turns = clips[..., Label.NECK]
        second_differences = np.diff(turns, n=2, axis=1)
        bends[weight] = np.abs(second_differences).mean()
    assert bends[0.1] < 0.7 * bends[0.0]


def test_a_fit_does_not_depend_on_the_other_people() -> None:
    _, points = known(24)
    names = people(24)
    together = fit(HEAD, points, names, SETTINGS)
    alone = fit(HEAD, points[:1], names[:1], SETTINGS)
    # Products of other sizes round otherwise, so that a chunk's neighbours change last bits alone.
    difference = together.points[0] - alone.points[0]
    assert np.abs(difference).max() < 1e-4
    again = fit(HEAD, points, names, SETTINGS)
    assert np.array_equal(together.labels, again.labels)


def test_the_frames_of_a_person_must_follow_one_another() -> None:
    _, points = known(6)
    three = points[:3]
    with pytest.raises(ValueError, match="follow one another"):
        fit(HEAD, three, ["a", "b", "a"], SETTINGS)


def test_mesh_mapping() -> None:
    random = rng(0, "mesh")
    mesh = random.uniform(size=(3, 478, 3))
    points = landmarks_70(mesh)
    assert points.shape == (3, 70, 2)
    different = np.unique(MESH_TO_70)
    assert len(different) == 70
    # The pupil of the person's right eye, left in the image.
    pupil = mesh[:, 468, :2]
    assert np.array_equal(points[:, 68], pupil)


def write_frames(folder: Path, points: np.ndarray, **columns: list) -> pa.Table:
    """A table of ingest whose 478-point meshes hold these 70 points."""
    count = len(points)
    mesh = np.zeros((count, 478, 3), np.float32)
    mesh[:, MESH_TO_70, :2] = points
    flat = mesh.reshape(count, -1)
    table = pa.table(
        {
            "landmarks": flat.tolist(),
            "reason": [""] * count,
            **columns,
        }
    )
    write_table(folder / "frames.parquet", table)
    return table


def test_tables(folder: Path) -> None:
    _, points = known(2, 16)
    spoiled = points.copy()
    # The numbers of the landmarks the other way round: nothing that a head can look like.
    spoiled[3] = spoiled[3, ::-1]
    write_frames(
        folder,
        spoiled,
        key=[f"f{i:02}" for i in range(32)],
        clip=["b"] * 16 + ["a"] * 16,
        split=["train"] * 16 + ["test"] * 16,
        index=list(range(16)) * 2,
        status=["ok"] * 30 + ["rejected"] * 2,
    )
    out, metrics = fit_table(PARAMS, "vfhq", folder)
    keys = out["key"].to_pylist()
    rows = dict(zip(keys, out.to_pylist(), strict=True))
    assert len(rows) == 30
    first = rows["f00"]
    assert first["clip"] == "b"
    assert len(first["label"]) == Label.SIZE
    rejected = rows["f03"]
    assert rejected["status"] == "rejected"
    assert "landmark error" in rejected["reason"]
    fitted = rows["f20"]
    assert fitted["status"] == "ok"
    assert fitted["split"] == "test"
    assert fitted["error"] < 0.03
    assert metrics["faces"] == 30
    statuses = out["status"].to_pylist()
    assert metrics["fitted"] == statuses.count("ok")


def labels_by_key(table: pa.Table) -> dict[str, np.ndarray]:
    rows = table.to_pylist()
    keys = [row["key"] for row in rows]
    return dict(zip(keys, labels_of(rows), strict=True))


def test_photos_of_a_person_share_a_shape(folder: Path) -> None:
    """The folders put photos 0 and 2 together, which do not follow each other in the table."""
    _, points = known(4)
    meshes = np.zeros((4, 478, 3), np.float32)
    meshes[:, MESH_TO_70, :2] = points
    keys = [f"p{number}" for number in range(4)]
    columns = {"key": keys, "status": ["ok"] * 4, "landmarks": list(meshes.reshape(4, -1))}
    write_table(folder / "portraits.parquet", pa.table(columns))
    apart, _ = fit_table(PARAMS, "ffhq", folder)
    people = {"key": keys, "person": ["a", "b", "a", "c"]}
    write_table(folder / "people.parquet", pa.table(people))
    together, _ = fit_table(PARAMS, "ffhq", folder)
    before = labels_by_key(apart)
    after = labels_by_key(together)
    shapes = {key: label[Label.SHAPE] for key, label in after.items()}
    assert np.array_equal(shapes["p0"], shapes["p2"])
    assert not np.allclose(before["p0"][Label.SHAPE], before["p2"][Label.SHAPE], atol=1e-3)
    # Nothing is smoothed over time, and people of one photo stay as they are.
    assert not np.allclose(after["p0"][Label.CAMERA], after["p2"][Label.CAMERA], atol=1e-3)
    assert np.allclose(before["p1"], after["p1"], atol=1e-4)


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


def test_clips_are_fitted_in_units_as_each_alone(folder: Path) -> None:
    """That two workers make the same bytes, test_end_to_end sees."""
    _, points = known(8, 16)
    ingested = eight_clips(folder, points)
    fitted, _ = fit_table(PARAMS, "vfhq", folder)
    numbers = ingested["landmarks"].to_pylist()
    flat = np.array(numbers, np.float64)
    meshes = flat.reshape(-1, 478, 3)
    labels = labels_of(fitted.to_pylist())
    errors = fitted["error"].to_numpy()
    assert ingested["clip"].to_pylist()[:17] == ["c0"] * 16 + ["c1"]
    for start in range(0, len(meshes), 16):
        clip = slice(start, start + 16)
        alone = fit(HEAD, landmarks_70(meshes[clip]), ["one"] * 16, SETTINGS)
        assert np.array_equal(labels[clip], alone.labels)
        # Tables hold float32.
        assert np.array_equal(errors[clip], alone.errors.astype(np.float32))


def test_a_clip_without_numbers_costs_no_other_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, points = known(8, 16)
    spoiled = points.copy()
    spoiled[20] = np.nan
    # Row groups that end within clips, as those of a large table do.
    monkeypatch.setattr("pipeline.store.tables.ROW_GROUP", 50)
    eight_clips(folder, spoiled)
    table, _ = fit_table(PARAMS, "vfhq", folder)
    assert len(table) == len(points)
    failed = pc.field("status") != "ok"
    given_up = table.filter(failed)
    assert given_up["clip"].unique().to_pylist() == ["c1"]


def test_nothing_to_fit_is_said(tmp_path: Path) -> None:
    _, points = known(6)
    write_frames(
        tmp_path,
        points[:1],
        # One face, which ingest gave up.
        key=["a"],
        clip=["a"],
        split=["train"],
        index=[0],
        status=["rejected"],
    )
    with pytest.raises(UserError, match="no face that ingest accepted"):
        fit_table(PARAMS, "vfhq", tmp_path)
