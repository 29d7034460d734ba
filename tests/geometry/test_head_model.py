"""The stand-in head model: FLAME's format, size and behaviour."""

import pickle

import numpy as np
import pytest
import torch

from model.head.flame import Flame
from model.head.flame_file import read_flame
from pipeline.geometry import head_model, standin, standin_surface
from pipeline.geometry.camera import look_at, project
from pipeline.geometry.standin_directions import EXPRESSION_NAMES

OFFICIAL = {"right eye": (191, 236), "left eye": (303, 235), "nose": (243, 300)}  # pixels of 512 (facts 5.2)


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin.standin())


def vertices(flame: Flame, shape=(), expression=(), jaw: float = 0.0, eye: float = 0.0) -> torch.Tensor:
    """One head; shape and expression as (index, value) pairs."""
    parts = torch.zeros(1, 300), torch.zeros(1, 100), torch.zeros(1, 6), torch.zeros(1, 6)
    for part, pairs in zip(parts[:2], (shape, expression), strict=True):
        for index, value in pairs:
            part[0, index] = value
    parts[2][0, 3] = jaw
    parts[3][0, [1, 4]] = eye
    return flame.vertices(*parts)


def test_size_and_origin_are_those_of_flame(flame):
    head = vertices(flame)[0]
    joints = flame.joints(torch.zeros(1, 300), torch.zeros(1, 100), torch.zeros(1, 6), torch.zeros(1, 6))[0]
    assert torch.allclose(joints[1], torch.zeros(3), atol=1e-5)
    model = flame.head
    assert 1500 <= len(model.template_V3) <= 3000 and 300 <= len(model.simple_vertices) <= 700
    skull = head[model.skin_weights[:, 0] == 0]
    assert 0.17 < np.ptp(skull[:, 1].numpy()) / 3 < 0.25  # metres
    assert head[:, 2].max() < 0.65 and head[:, 1].max() < 0.65
    assert np.allclose(model.skin_weights.sum(1), 1)


def test_the_official_camera_sees_the_official_framing(flame):
    points = flame.landmarks(vertices(flame))[0].numpy()
    pitch = np.array(
        [[1, 0, 0], [0, np.cos(0.17), -np.sin(0.17)], [0, np.sin(0.17), np.cos(0.17)]]
    )  # how official heads are held
    seen = 512 * project(points @ pitch.T, look_at(0.0, 0.0, 4.2, np.zeros(3)))
    wanted = [OFFICIAL["right eye"], OFFICIAL["left eye"], OFFICIAL["nose"]]
    assert np.abs(seen[[68, 69, 30]] - wanted).max() < 20


def test_landmarks_are_mirror_images(flame):
    points = flame.landmarks(vertices(flame))[0].numpy()
    for right, left in ((0, 16), (17, 26), (36, 45), (39, 42), (48, 54), (60, 64), (68, 69)):
        assert np.allclose(points[right] * [-1, 1, 1], points[left], atol=2e-3)
    assert points[68, 0] < 0  # the person's right eye is on the left of the image


def test_an_open_jaw_parts_the_lips(flame):
    shut, wide = (flame.landmarks(vertices(flame, jaw=jaw))[0] for jaw in (0.0, 0.25))
    assert (shut[62] - shut[66]).norm() < 0.005
    assert wide[62, 1] - wide[66, 1] > 0.04
    assert torch.allclose(wide[27:36], shut[27:36], atol=2e-3)  # the nose stays


def test_a_lid_direction_shuts_its_own_eye(flame):
    index = EXPRESSION_NAMES.index("lid close left")
    open_, shut = (flame.landmarks(vertices(flame, expression=[(index, value)]))[0] for value in (0.0, 1.0))
    gap = [(points[43] - points[47]).norm() for points in (open_, shut)]
    assert gap[1] < 0.15 * gap[0]
    assert torch.allclose(open_[36:42], shut[36:42])


def test_eyes_turn_about_their_centres(flame):
    still, turned = vertices(flame)[0], vertices(flame, eye=0.3)[0]
    ball = flame.head.regions["left_eye"]
    assert torch.allclose(still[ball].mean(0), turned[ball].mean(0), atol=1e-5)
    assert (
        flame.landmarks(turned[None])[0, 69, 0] > flame.landmarks(still[None])[0, 69, 0] + 0.008
    )  # towards +x


def test_random_shapes_look_like_heads(flame):
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(16, 300, generator=generator)
    zero = torch.zeros(16, 6)
    points = flame.landmarks(flame.vertices(shape, torch.zeros(16, 100), zero, zero))
    eyes = (points[:, 68] - points[:, 69]).norm(dim=1)
    assert eyes.min() > 0.14 and eyes.max() < 0.23
    assert (points[:, 62] - points[:, 66]).norm(dim=1).max() < 0.012  # no shape opens the mouth
    assert (points[:, 8, 1] < points[:, 57, 1]).all() and (points[:, 57, 1] < points[:, 30, 1]).all()


def test_the_mesh_is_whole():
    model = standin.standin()
    assert set(np.unique(model.faces_F3)) == set(range(len(model.template_V3)))
    corner = model.template_V3[model.faces_F3]
    assert (
        np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1).min() > 0
    )
    skull = np.isin(model.faces_F3, standin.standin_mesh().part["skull"]).all(axis=1)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])[skull]
    assert (np.einsum("fc,fc->f", normal, corner[skull].mean(1)) > 0).mean() > 0.97  # outwards
    assert (model.neighbours[:, 0] == np.arange(len(model.template_V3))).all()


def test_it_is_the_same_in_every_process():
    mesh = standin_surface.build()
    assert np.array_equal(np.concatenate(mesh.points), np.concatenate(standin.standin_mesh().points))
    assert head_model.load("standin") is standin.standin()


def test_it_can_be_written_as_flame_and_read_back(tmp_path):
    model = standin.standin()
    count = len(model.template_V3)

    def np_save(name: str, content: dict) -> None:
        np.save(tmp_path / name, np.array(content, dtype=object), allow_pickle=True)

    content = {
        "v_template": model.template_V3,
        "f": model.faces_F3.astype(np.uint32),
        "shapedirs": model.directions_V3K,
        "posedirs": model.pose_directions.T.reshape(count, 3, 36),
        "J_regressor": model.joint_regressor,
        "weights": model.skin_weights,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
    }
    (tmp_path / "generic_model.pkl").write_bytes(pickle.dumps(content))
    embedding = {
        "full_lmk_faces_idx": model.landmark_faces[None],
        "full_lmk_bary_coords": model.landmark_weights[None],
    }
    np_save("landmark_embedding_with_eyes.npy", embedding)
    np_save(
        "simplify_baricentric2.npy",
        {"idxs": model.simple_vertices, "baris": model.simple_weights, "faces": model.simple_faces},
    )
    addition = {
        "eye_idxs": model.regions["eyes"],
        "face_idxs": model.regions["face"],
        "eyelids_idxs": model.regions["eyelids"],
    }
    np_save("flame_addition_info_new_smallface.npy", addition | {"vertices_region_idxs": model.neighbours})
    read = head_model.load(str(tmp_path / "generic_model.pkl"))
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
    assert read_flame(tmp_path / "generic_model.pkl").name != "standin"
