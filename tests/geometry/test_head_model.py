"""The stand-in head model: FLAME's format, size and behaviour."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from model.head.flame import Flame, HeadModel, rotation_matrices
from model.head.flame_file import read_flame
from pipeline.geometry import head_model, standin, standin_surface
from pipeline.geometry.camera import look_at, project
from pipeline.geometry.landmarks import RIGHT_EYE
from pipeline.geometry.motion_targets import MIRROR
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


def vertices(
    flame: Flame,
    expression: str | None = None,
    jaw: float = 0.0,
    eye: float = 0.0,
) -> torch.Tensor:
    """One head (1, V, 3): one expression of 1, the jaw open about x, the eyes turned about y, radians."""
    shape = torch.zeros(1, 300)
    coefficients = torch.zeros(1, 100)
    pose = torch.zeros(1, 6)
    eyes = torch.zeros(1, 6)
    if expression:
        number = EXPRESSION_NAMES.index(expression)
        coefficients[0, number] = 1.0
    pose[0, 3] = jaw
    eyes[0, [1, 4]] = eye
    return flame.vertices(shape, coefficients, pose, eyes)


def landmarks(flame: Flame, **motion) -> torch.Tensor:
    """The 70 landmarks (70, 3) of one head."""
    head = vertices(flame, **motion)
    return flame.landmarks(head)[0]


def test_the_origin_is_the_neck_joint(flame):
    no_pose = torch.zeros(1, 6)
    no_eyes = torch.zeros(1, 6)
    joints = flame.joints(torch.zeros(1, 300), torch.zeros(1, 100), no_pose, no_eyes)
    neck = joints[0, 1]
    assert torch.allclose(neck, torch.zeros(3), atol=1e-5)


def test_size_is_that_of_flame(flame):
    model = flame.head
    assert 1500 <= len(model.template_V3) <= 3000
    assert 300 <= len(model.simple_vertices) <= 700
    (head,) = vertices(flame)
    # The bust is the only part that follows the root.
    is_skull = model.skin_weights[:, 0] == 0
    height = head[is_skull, 1].numpy()
    metres = np.ptp(height) / standin.UNIT
    assert 0.17 < metres < 0.25
    assert head[:, 2].max() < 0.65
    assert head[:, 1].max() < 0.65


def test_the_skin_weights_of_a_vertex_sum_to_one(flame):
    sums = flame.head.skin_weights.sum(1)
    assert np.allclose(sums, 1)


def test_the_official_camera_sees_the_official_framing(flame):
    points = landmarks(flame).numpy()
    # Official heads are held like this.
    down = torch.tensor([0.17, 0.0, 0.0])
    pitch = rotation_matrices(down).numpy()
    camera = look_at(0.0, 0.0, 4.2, np.zeros(3))
    seen = 512 * project(points @ pitch.T, camera)
    official = np.array(list(OFFICIAL.values()))
    deviation = seen[[68, 69, 30]] - official
    assert np.abs(deviation).max() < 20


def test_landmarks_are_mirror_images(flame):
    points = landmarks(flame).numpy()
    seen_in_a_mirror = points[MIRROR] * [-1, 1, 1]
    assert np.allclose(seen_in_a_mirror, points, atol=2e-3)
    # The person's right eye is on the left of the image.
    assert points[68, 0] < 0


def test_an_open_jaw_parts_the_lips(flame):
    shut = landmarks(flame)
    wide = landmarks(flame, jaw=0.25)
    before = shut[62] - shut[66]
    after = wide[62] - wide[66]
    assert before.norm() < 0.005
    assert after[1] > 0.04
    # The nose stays.
    nose = slice(27, 36)
    assert torch.allclose(wide[nose], shut[nose], atol=2e-3)


def test_a_lid_direction_shuts_its_own_eye(flame):
    still = landmarks(flame)
    shut = landmarks(flame, expression="lid close left")
    before = still[43] - still[47]
    after = shut[43] - shut[47]
    assert after.norm() < 0.15 * before.norm()
    assert torch.allclose(still[RIGHT_EYE], shut[RIGHT_EYE])


def test_eyes_turn_about_their_centres(flame):
    ball = flame.head.regions["left_eye"]
    centres = []
    pupils = []
    for angle in (0.0, 0.3):
        head = vertices(flame, eye=angle)
        centres.append(head[0, ball].mean(0))
        pupils.append(flame.landmarks(head)[0, 69])
    assert torch.allclose(*centres, atol=1e-5)
    # A positive angle looks towards +x.
    moved = pupils[1] - pupils[0]
    assert moved[0] > 0.008


def test_random_shapes_look_like_heads(flame):
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(16, 300, generator=generator)
    neutral = torch.zeros(16, 100)
    still = torch.zeros(16, 6)
    heads = flame.vertices(shape, neutral, still, still)
    points = flame.landmarks(heads)
    eyes = points[:, 68] - points[:, 69]
    between_eyes = eyes.norm(dim=1)
    assert between_eyes.min() > 0.14
    assert between_eyes.max() < 0.23
    # No shape opens the mouth.
    gap = points[:, 62] - points[:, 66]
    assert gap.norm(dim=1).max() < 0.012
    y = points[:, :, 1]
    chin = y[:, 8]
    lip = y[:, 57]
    nose = y[:, 30]
    assert (chin < lip).all()
    assert (lip < nose).all()


def normals() -> np.ndarray:
    """Across each triangle of the stand-in (F, 3), twice its area long."""
    model = standin.standin()
    corners = model.template_V3[model.faces_F3]
    a, b, c = corners.swapaxes(0, 1)
    return np.cross(b - a, c - a)


def test_the_mesh_is_whole():
    model = standin.standin()
    count = len(model.template_V3)
    used = np.unique(model.faces_F3)
    assert np.array_equal(used, np.arange(count))
    areas = np.linalg.norm(normals(), axis=1)
    assert areas.min() > 0


def test_the_triangles_of_the_skull_look_outwards():
    # That is away from the origin, about which the skull is star-shaped.
    model = standin.standin()
    skull = standin.standin_mesh().part["skull"]
    chosen = np.isin(model.faces_F3, skull).all(axis=1)
    corners = model.template_V3[model.faces_F3]
    middles = corners.mean(1)
    outwards = (normals() * middles).sum(1) > 0
    assert outwards[chosen].mean() > 0.97


def test_the_nearest_neighbour_of_a_vertex_is_itself():
    model = standin.standin()
    count = len(model.template_V3)
    nearest = model.neighbours[:, 0]
    assert np.array_equal(nearest, np.arange(count))


def test_it_is_the_same_in_every_process():
    first = standin.standin_mesh()
    again = standin_surface.build()
    assert first is not again
    for mine, other in zip(first.points, again.points, strict=True):
        assert np.array_equal(mine, other)
    assert head_model.load("standin") is standin.standin()


FIELDS = (
    "template_V3",
    "directions_V3K",
    "pose_directions",
    "joint_regressor",
    "skin_weights",
    "faces_F3",
    "landmark_faces",
    "simple_faces",
)


def np_save(path: Path, content: dict) -> None:
    packed = np.array(content, dtype=object)
    np.save(path, packed, allow_pickle=True)


def write_flame(folder: Path, model: HeadModel) -> Path:
    """The four files of FLAME with the content of a model; returns the path of the first."""
    count = len(model.template_V3)
    # The root has no parent, which FLAME's file says as -1 in 32 bits without a sign.
    tree = [
        [2**32 - 1, 0, 1, 1, 1],
        [0, 1, 2, 3, 4],
    ]
    model_file = folder / "generic_model.pkl"
    content = {
        "v_template": model.template_V3,
        "f": model.faces_F3.astype(np.uint32),
        "shapedirs": model.directions_V3K,
        "posedirs": model.pose_directions.T.reshape(count, 3, 36),
        "J_regressor": model.joint_regressor,
        "weights": model.skin_weights,
        "kintree_table": np.array(tree, np.uint32),
    }
    model_file.write_bytes(pickle.dumps(content))
    embedding = {
        "full_lmk_faces_idx": model.landmark_faces[None],
        "full_lmk_bary_coords": model.landmark_weights[None],
    }
    simple = {
        "idxs": model.simple_vertices,
        "baris": model.simple_weights,
        "faces": model.simple_faces,
    }
    addition = {
        "eye_idxs": model.regions["eyes"],
        "face_idxs": model.regions["face"],
        "eyelids_idxs": model.regions["eyelids"],
        "vertices_region_idxs": model.neighbours,
    }
    np_save(folder / "landmark_embedding_with_eyes.npy", embedding)
    np_save(folder / "simplify_baricentric2.npy", simple)
    np_save(folder / "flame_addition_info_new_smallface.npy", addition)
    return model_file


def test_it_can_be_written_as_flame_and_read_back(tmp_path):
    model = standin.standin()
    model_file = write_flame(tmp_path, model)
    read = head_model.load(str(model_file))
    for name in FIELDS:
        found = getattr(read, name)
        wanted = getattr(model, name)
        assert np.allclose(found, wanted, atol=1e-6), name
    assert read_flame(model_file).name != "standin"
