"""What a camera keeps of a head's turn, and the field that undoes what the neck does (facts 2.7, 4.7)."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.testing import assert_close

from model.head.flame import NECK, Flame, rotation_matrices
from model.head.label import Label
from model.head.vectors import turned
from pipeline.core.seeds import rng
from pipeline.geometry import camera
from pipeline.geometry.label import head_vertices, project_batch
from pipeline.geometry.neck import Neck, TurningNeck, clip_necks, clip_rotation, with_necks
from pipeline.geometry.standin import standin


@pytest.fixture(scope="module")
def neck() -> TurningNeck:
    return TurningNeck(Flame(standin()))


def clip_cameras(angles_F3: np.ndarray) -> np.ndarray:
    """Cameras (F, 25) whose world-to-camera rotations have these extrinsic x, y, z angles."""
    cameras = []
    for turn in Rotation.from_euler("xyz", angles_F3).as_matrix():
        cam2world = np.eye(4)
        cam2world[:3, :3] = turn.T
        cam2world[:3, 3] = turn.T @ [0.02, -0.01, 4.2]
        cameras.append(camera.pack(cam2world))
    return np.stack(cameras)


def clip_labels(count: int) -> np.ndarray:
    """Labels (F, 437) of one person, whose necks say the turn of the head once more (facts 5.4)."""
    draw = rng(0, "neck")
    angles = draw.normal([0.15, 0.2, 0.05], [0.1, 0.3, 0.1], (count, 3))
    cameras = clip_cameras(angles)
    label = Label(
        camera=cameras,
        shape=np.tile(draw.normal(size=300), (count, 1)),
        expression=draw.normal(0, 0.3, (count, 100)),
        neck=Rotation.from_matrix(camera.rotation(cameras).transpose(0, 2, 1)).as_rotvec(),
        jaw=np.abs(draw.normal(0, 0.05, (count, 3))) * [1, 0, 0],
        eyes=np.tile(draw.normal(0, 0.1, (count, 3)), (1, 2)),
    )
    return label.pack().astype(np.float32)


def posed_vertices(flame: Flame, labels_B437: Tensor) -> Tensor:
    """Vertices (B, V, 3) of heads with their necks turned."""
    parts = Label.split(labels_B437)
    pose = torch.cat([parts.neck, parts.jaw], 1)
    return flame.vertices(parts.shape, parts.expression, pose, parts.eyes)


def test_a_clip_gives_its_mean_yaw_and_roll_to_the_camera():
    angles = np.array([[0.2, 0.5, 0.1], [-0.1, 0.1, -0.3]])
    turns = Rotation.from_euler("xyz", angles).as_matrix()
    wanted = Rotation.from_euler("xyz", [0.0, 0.3, -0.1]).as_matrix()
    assert np.allclose(clip_rotation(turns), wanted)
    # What is left turns the neck: R_c^T R.
    necks = Rotation.from_rotvec(clip_necks(clip_cameras(angles))).as_matrix()
    assert np.allclose(wanted @ necks, turns, atol=1e-6)


def test_a_photo_is_a_clip_of_one_frame():
    # Without a roll, yaw and pitch come apart, and the pitch alone is the neck's.
    necks = clip_necks(clip_cameras(np.array([[0.2, 0.5, 0.0]])))
    assert necks == pytest.approx(np.array([[0.2, 0.0, 0.0]]), abs=1e-6)


def test_all_frames_of_a_clip_get_the_clips_rotation_and_the_same_view(neck: TurningNeck):
    labels = clip_labels(6)
    kept = clip_rotation(camera.rotation(labels).transpose(0, 2, 1).astype(np.float64))
    turning = torch.from_numpy(with_necks(labels))
    cameras = turning[:, None, Label.CAMERA]
    decomposed = neck.decomposed(cameras, turning)[:, 0]
    left = camera.rotation(decomposed).mT
    assert_close(left, torch.from_numpy(kept).float().expand_as(left), atol=1e-5, rtol=0)
    assert torch.equal(decomposed[:, 16:], cameras[:, 0, 16:])

    # The posed head of the new camera and the head at rest of the old one are one picture.
    before = project_batch(head_vertices(neck.flame, turning), cameras[:, 0])
    after = project_batch(posed_vertices(neck.flame, turning), decomposed)
    face = torch.as_tensor(neck.flame.head.skin_weights[:, [0, NECK]])
    head = face[:, 0] == 0
    assert_close(after[:, head], before[:, head], atol=1e-5, rtol=0)
    # Shoulders turned with the head before, and stay where they are now.
    bust = face[:, 0] == 1
    assert (after[:, bust] - before[:, bust]).abs().amax() > 0.01
    # The neck joint keeps its place in the camera's frame, and so does its picture.
    parts = Label.split(turning)
    joint = neck.flame.joints(parts.shape, parts.expression, torch.zeros(len(turning), 6), parts.eyes)[
        :, NECK : NECK + 1
    ]
    assert_close(project_batch(joint, decomposed), project_batch(joint, cameras[:, 0]), atol=1e-5, rtol=0)


def turning_labels(count: int = 2) -> Tensor:
    labels = torch.from_numpy(clip_labels(count))
    labels[:, Label.NECK] = torch.tensor([0.1, 0.4, -0.1])
    return labels


@pytest.mark.parametrize("posing", [False, True])
def test_a_neck_at_rest_moves_nothing(neck: TurningNeck, posing: bool):
    labels = turning_labels()
    labels[1, Label.NECK] = 0.0
    points = torch.rand(2, 500, 3) * 2 - 1
    moved = neck.field(labels, posing)(points)
    assert torch.equal(moved[1], points[1])
    assert not torch.equal(moved[0], points[0])
    # What no memory serves is the same: offsets of nothing.
    field = neck._between(labels[1:], posing)
    assert_close(field(points[1:]), points[1:], atol=1e-6, rtol=0)


def test_the_field_takes_the_posed_mesh_to_the_mesh_at_rest_and_back(neck: TurningNeck):
    labels = turning_labels()
    posed = neck.flame.simplified(posed_vertices(neck.flame, labels))
    resting = neck.flame.simplified(head_vertices(neck.flame, labels))
    inside = (posed.abs() < 0.6).all(-1) & (resting.abs() < 0.6).all(-1)
    turn = (posed - resting)[inside].norm(dim=-1)
    assert turn.max() > 0.1
    for first, last, posing in ((posed, resting, False), (resting, posed, True)):
        error = (neck.field(labels, posing)(first) - last)[inside].norm(dim=-1)
        # A grid of 0.054 world units smooths the seam between neck and shoulders.
        assert error.median() < 0.004
        assert error.quantile(0.95) < 0.03


def test_points_about_the_head_turn_rigidly_and_shoulders_stay(neck: TurningNeck):
    labels = turning_labels(1)
    parts = Label.split(labels)
    joint = neck.flame.joints(parts.shape, parts.expression, torch.zeros(1, 6), parts.eyes)[:, NECK]
    posed = posed_vertices(neck.flame, labels)
    weights = neck.flame.skin_weights
    back = rotation_matrices(-parts.neck)
    field = neck.field(labels)

    face = torch.as_tensor(neck.flame.head.regions["face"])
    upper = face[(weights[face, 0] == 0) & (posed[0, face, 1] > 0.15) & (posed[0, face].abs() < 0.55).all(-1)]
    # Also a little before the skin, where hair and noses of others are.
    points = joint + 1.05 * (posed[:, upper] - joint)
    wanted = joint + turned(back[:, None], points - joint)
    assert_close(field(points), wanted, atol=0.01, rtol=0)

    shoulders = (weights[:, 0] == 1) & (posed[0].abs() < 0.6).all(-1)
    assert shoulders.any()
    moved = (field(posed[:, shoulders]) - posed[:, shoulders]).norm(dim=-1)
    assert moved.median() < 0.005


def test_known_fields_are_kept_and_fields_of_others_are_not_taken_for_them(neck: TurningNeck):
    labels = turning_labels()
    points = torch.rand(2, 100, 3) - 0.5
    first = neck.field(labels)(points)
    assert torch.equal(neck.field(labels)(points), first)
    assert torch.equal(neck.field(labels.flip(0))(points.flip(0)).flip(0), first)
    # Half precision costs a ten-thousandth of a world unit.
    assert_close(neck._between(labels, False)(points), first, atol=3e-4, rtol=0)


def test_without_a_field_cameras_stay_as_they_are():
    labels = turning_labels()
    cameras = labels[:, None, Label.CAMERA]
    assert Neck().driven(cameras, labels) == (cameras, None)
    assert Neck().source(cameras[:, 0], labels).field is None
