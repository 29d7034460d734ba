"""The stand-in head model: FLAME's format, size and behaviour."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from model.head.flame import Flame, rotation_matrices
from model.head.flame_file import read_flame
from pipeline.geometry import head_model, standin, standin_surface
from pipeline.geometry.camera import look_at, project
from pipeline.geometry.standin_directions import EXPRESSION_NAMES

# Pixels of 512 (facts 5.2).
OFFICIAL = {
    "right eye": (191, 236),
    "left eye": (303, 235),
    "nose": (243, 300),
}


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin.standin())


def vertices(flame: Flame, expression: str | None = None, jaw: float = 0.0, eye: float = 0.0) -> torch.Tensor:
    """One head (1, V, 3): one expression of 1, the jaw open about x, the eyes turned about y, radians."""
    shape, coefficients = torch.zeros(1, 300), torch.zeros(1, 100)
    pose, eyes = torch.zeros(1, 6), torch.zeros(1, 6)
    if expression:
        coefficients[0, EXPRESSION_NAMES.index(expression)] = 1.0
    pose[0, 3] = jaw
    eyes[0, [1, 4]] = eye
    return flame.vertices(shape, coefficients, pose, eyes)


def landmarks(flame: Flame, **motion) -> torch.Tensor:
    """The 70 landmarks (70, 3) of one head."""
    return flame.landmarks(vertices(flame, **motion))[0]


def test_size_and_origin_are_those_of_flame(flame):
    head, model = vertices(flame)[0], flame.head
    joints = flame.joints(torch.zeros(1, 300), torch.zeros(1, 100), torch.zeros(1, 6), torch.zeros(1, 6))[0]
    assert torch.allclose(joints[1], torch.zeros(3), atol=1e-5)
    assert 1500 <= len(model.template_V3) <= 3000
    assert 300 <= len(model.simple_vertices) <= 700
    # The bust is the only part that follows the root.
    skull = head[model.skin_weights[:, 0] == 0]
    metres = np.ptp(skull[:, 1].numpy()) / 3
    assert 0.17 < metres < 0.25
    assert head[:, 2].max() < 0.65
    assert head[:, 1].max() < 0.65
    assert np.allclose(model.skin_weights.sum(1), 1)


def test_the_official_camera_sees_the_official_framing(flame):
    points = landmarks(flame).numpy()
    # Official heads are held like this.
    pitch = rotation_matrices(torch.tensor([0.17, 0.0, 0.0])).numpy()
    seen = 512 * project(points @ pitch.T, look_at(0.0, 0.0, 4.2, np.zeros(3)))
    assert np.abs(seen[[68, 69, 30]] - list(OFFICIAL.values())).max() < 20


def test_landmarks_are_mirror_images(flame):
    points = landmarks(flame).numpy()
    for right, left in ((0, 16), (17, 26), (36, 45), (39, 42), (48, 54), (60, 64), (68, 69)):
        assert np.allclose(points[right] * [-1, 1, 1], points[left], atol=2e-3)
    # The person's right eye is on the left of the image.
    assert points[68, 0] < 0


def test_an_open_jaw_parts_the_lips(flame):
    shut = landmarks(flame)
    wide = landmarks(flame, jaw=0.25)
    assert (shut[62] - shut[66]).norm() < 0.005
    assert wide[62, 1] - wide[66, 1] > 0.04
    # The nose stays.
    assert torch.allclose(wide[27:36], shut[27:36], atol=2e-3)


def test_a_lid_direction_shuts_its_own_eye(flame):
    still = landmarks(flame)
    shut = landmarks(flame, expression="lid close left")
    gap = (still[43] - still[47]).norm()
    assert (shut[43] - shut[47]).norm() < 0.15 * gap
    assert torch.allclose(still[36:42], shut[36:42])


def test_eyes_turn_about_their_centres(flame):
    still, turned = vertices(flame), vertices(flame, eye=0.3)
    ball = flame.head.regions["left_eye"]
    assert torch.allclose(still[0, ball].mean(0), turned[0, ball].mean(0), atol=1e-5)
    # Towards +x.
    pupil, looking = flame.landmarks(still)[0, 69], flame.landmarks(turned)[0, 69]
    assert looking[0] > pupil[0] + 0.008


def test_random_shapes_look_like_heads(flame):
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(16, 300, generator=generator)
    zero = torch.zeros(16, 6)
    points = flame.landmarks(flame.vertices(shape, torch.zeros(16, 100), zero, zero))
    between_eyes = (points[:, 68] - points[:, 69]).norm(dim=1)
    assert between_eyes.min() > 0.14
    assert between_eyes.max() < 0.23
    # No shape opens the mouth.
    assert (points[:, 62] - points[:, 66]).norm(dim=1).max() < 0.012
    chin, lip, nose = points[:, 8, 1], points[:, 57, 1], points[:, 30, 1]
    assert (chin < lip).all()
    assert (lip < nose).all()


def test_the_mesh_is_whole():
    model = standin.standin()
    count = len(model.template_V3)
    assert set(np.unique(model.faces_F3)) == set(range(count))
    corner = model.template_V3[model.faces_F3]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    assert np.linalg.norm(normal, axis=1).min() > 0
    # Outwards: away from the origin, about which the skull is star-shaped.
    skull = np.isin(model.faces_F3, standin.standin_mesh().part["skull"]).all(axis=1)
    towards = np.einsum("fc,fc->f", normal[skull], corner[skull].mean(1))
    assert (towards > 0).mean() > 0.97
    assert (model.neighbours[:, 0] == np.arange(count)).all()


def test_it_is_the_same_in_every_process():
    mesh = standin_surface.build()
    first = np.concatenate(standin.standin_mesh().points)
    assert np.array_equal(np.concatenate(mesh.points), first)
    assert head_model.load("standin") is standin.standin()


def np_save(path: Path, content: dict) -> None:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def test_it_can_be_written_as_flame_and_read_back(tmp_path):
    model = standin.standin()
    count = len(model.template_V3)

    model_file = tmp_path / "generic_model.pkl"
    content = {
        "v_template": model.template_V3,
        "f": model.faces_F3.astype(np.uint32),
        "shapedirs": model.directions_V3K,
        "posedirs": model.pose_directions.T.reshape(count, 3, 36),
        "J_regressor": model.joint_regressor,
        "weights": model.skin_weights,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
    }
    model_file.write_bytes(pickle.dumps(content))
    embedding = {
        "full_lmk_faces_idx": model.landmark_faces[None],
        "full_lmk_bary_coords": model.landmark_weights[None],
    }
    np_save(tmp_path / "landmark_embedding_with_eyes.npy", embedding)
    np_save(
        tmp_path / "simplify_baricentric2.npy",
        {"idxs": model.simple_vertices, "baris": model.simple_weights, "faces": model.simple_faces},
    )
    addition = {
        "eye_idxs": model.regions["eyes"],
        "face_idxs": model.regions["face"],
        "eyelids_idxs": model.regions["eyelids"],
    }
    np_save(
        tmp_path / "flame_addition_info_new_smallface.npy",
        addition | {"vertices_region_idxs": model.neighbours},
    )
    read = head_model.load(str(model_file))
    for key in (
        "template_V3",
        "directions_V3K",
        "pose_directions",
        "joint_regressor",
        "skin_weights",
        "faces_F3",
        "landmark_faces",
        "simple_faces",
    ):
        assert np.allclose(getattr(read, key), getattr(model, key), atol=1e-6), key
    assert read_flame(model_file).name != "standin"
