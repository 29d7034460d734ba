"""The head model as a function, and reading it from a licensed file without executing the file."""

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from torch import Tensor

from model.foreign.pickled_arrays import read_mapping
from model.foreign.safe_pickle import read_part
from model.head.flame import Flame, HeadModel, rotation_matrices
from model.head.flame_file import ADDITIONS, EMBEDDING, SIMPLIFIED, read_flame
from model.head.label import Label
from pipeline.geometry.head_model import load
from pipeline.geometry.standin import standin
from tests.support.flame_files import write_flame
from tests.support.reference import REFERENCE, needs_reference

# Place and size of each (facts 5.4).
PARTS_OF_A_LABEL = {
    "camera": (0, 25),
    "shape": (25, 300),
    "expression": (325, 100),
    "neck": (425, 3),
    "jaw": (428, 3),
    "eyes": (431, 6),
}


def read_pickle(data: bytes) -> object:
    """The object in a pickle that is read as data."""
    found, _ = read_part(data)
    return found


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin())


def zeros(*sizes: int) -> list[Tensor]:
    return [torch.zeros(1, size) for size in sizes]


def test_rotation_about_an_axis_by_hand() -> None:
    x, y, z = torch.eye(3)
    quarter = rotation_matrices(torch.pi / 2 * z)
    assert torch.allclose(quarter @ x, y, atol=1e-6)
    # Exactly, although the formula divides by the angle.
    still = rotation_matrices(torch.zeros(3))
    assert torch.equal(still, torch.eye(3))


def test_neck_joint_of_the_canonical_head_is_the_origin(flame: Flame) -> None:
    (joints,) = flame.joints(*zeros(300, 100, 6, 6))
    neck = joints[1]
    assert neck.abs().max() < 1e-6
    # World units are such that a head has about the size 1.
    canonical = flame.canonical()
    size = canonical.amax(0) - canonical.amin(0)
    assert size.min() > 0.5
    assert size.max() < 2.0


def test_turning_the_neck_moves_the_head_rigidly(flame: Flame) -> None:
    shape, expression, rest_pose, eyes = zeros(300, 100, 6, 6)
    pose = rest_pose.clone()
    pose[0, 1] = 0.4
    (rest,) = flame.vertices(shape, expression, rest_pose, eyes)
    (turned,) = flame.vertices(shape, expression, pose, eyes)
    rigid = torch.as_tensor(flame.head.regions["eyes"])
    # 36 linear correctives in three coordinates, world units.
    largest = np.abs(flame.head.pose_directions).max()
    correctives = 3 * 36 * largest
    # The joint is the origin.
    turn = rotation_matrices(pose[0, :3])
    wanted = rest[rigid] @ turn.T
    error = (turned[rigid] - wanted).norm(dim=1)
    assert error.max() < 1e-5 + correctives


def test_gradients_reach_every_parameter_also_at_rest(flame: Flame) -> None:
    parameters = [value.requires_grad_() for value in zeros(300, 100, 6, 6)]
    vertices = flame.vertices(*parameters)
    landmarks = flame.landmarks(vertices)
    landmarks.square().sum().backward()
    for parameter in parameters:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_the_state_dict_holds_nothing_of_the_head_model(flame: Flame) -> None:
    assert not flame.state_dict()


def test_a_label_falls_apart_in_its_order() -> None:
    label = torch.arange(437.0)[None]
    split = Label.split(label)
    # The numbers of a label are their places in it.
    assert vars(split).keys() == PARTS_OF_A_LABEL.keys()
    for name, (first, count) in PARTS_OF_A_LABEL.items():
        (found,) = getattr(split, name)
        wanted = range(first, first + count)
        assert found.tolist() == list(wanted), name
    assert torch.equal(split.pack(), label)


def test_arrays_that_do_not_fit_are_refused() -> None:
    head = standin()
    with pytest.raises(ValueError, match="skin_weights"):
        replace(head, skin_weights=head.skin_weights[1:])
    beyond = head.faces_F3 + len(head.template_V3)
    with pytest.raises(ValueError, match="faces_F3"):
        replace(head, faces_F3=beyond)
    others = head.regions.copy()
    del others["lips"]
    with pytest.raises(ValueError, match="lips"):
        replace(head, regions=others)


def test_a_head_model_survives_its_files(tmp_path: Path) -> None:
    head = standin()
    path = write_flame(head, tmp_path)
    template = torch.from_numpy(np.float32(head.template_V3))
    (landmarks,) = Flame(head).landmarks(template[None]).numpy()
    mouth = landmarks[48:68]
    # As params.yaml names it, and directly.
    for found in (read_flame(path), load(str(path))):
        assert found.name == "generic_model"
        for field in fields(HeadModel):
            wanted = getattr(head, field.name)
            if isinstance(wanted, np.ndarray):
                array = getattr(found, field.name)
                assert np.allclose(array, wanted, atol=1e-6), field.name
        for key in ("face", "eyes", "left_eye", "right_eye", "eyelids"):
            region = set(found.regions[key])
            assert region == set(head.regions[key]), key
        # No file names the lips: they are what is close to their landmarks.
        lips = found.template_V3[found.regions["lips"]]
        to_landmark = lips[:, None] - mouth
        distance = np.linalg.norm(to_landmark, axis=2)
        assert distance.min(1).max() < 0.02


@pytest.mark.parametrize("name", ["generic_model.pkl", ADDITIONS[0], SIMPLIFIED, EMBEDDING])
def test_a_missing_or_cut_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_flame(standin(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        size = int(len(whole) * share)
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=name):
            read_flame(path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=name):
        read_flame(path)


class _Run:
    def __init__(self, function: object, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = write_flame(standin(), tmp_path)
    for attack in (
        _Run(open, str(mark), "w"),
        {"v_template": _Run(open, str(mark), "w")},
        [_Run(eval, f"open({str(mark)!r}, 'w')")],
    ):
        for protocol in (0, 2, 4):
            path.write_bytes(pickle.dumps(attack, protocol))
            with pytest.raises(ValueError, match=r"generic_model\.pkl"):
                read_flame(path)
    assert not mark.exists()


def test_hostile_pickles_end_in_a_clear_error() -> None:
    array = pickle.dumps(np.zeros(4), 2)
    hostile = [
        b"",
        b"\x80\x02.",
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo index of four thousand millions
        b"\x80\x02]Pabc\n.",  # a persistent identifier
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02B\xff\xff\xff\x7fab.",  # two bytes that claim to be two thousand millions
        array[:-8],
    ]
    for data in hostile:
        with pytest.raises(ValueError, match="pickle"):
            read_pickle(data)
    # Tuples within tuples are odd, but harmless as long as no code looks inside.
    nested = b"\x80\x02)" + b"\x85" * 100_000 + b"."
    assert read_pickle(nested)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_as_python_reads_it(protocol: int) -> None:
    value = {
        "a": [1, (2.5, "é", b"bytes" * 500)],
        3: [[], {}, {"b": None}],
        "long": -(1 << 70),
        "flags": [True, False],
        "empty": (),
    }
    again = [value, value["a"]]
    found = read_pickle(pickle.dumps(again, protocol))
    assert found == again
    assert found[1] is found[0]["a"]
    # Sets are read as lists.
    numbers = pickle.dumps({1, 2}, protocol)
    assert read_pickle(numbers) == [1, 2]


def test_an_array_must_hold_what_its_shape_says(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.zeros(4)}, 2)
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    array = read_mapping(path)["a"]
    assert array.shape == (4,)
    # The shape in the file becomes one of two thousand millions.
    path.write_bytes(data.replace(b"K\x04\x85", b"J\x00\x00\x00\x70\x85"))
    with pytest.raises(ValueError, match="does not hold that many numbers"):
        read_mapping(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_old_and_new_numpy_are_read(tmp_path: Path, protocol: int) -> None:
    value = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array([1, 2], ">i2"),
    }
    path = tmp_path / "a.pkl"
    data = pickle.dumps(value, protocol)
    # Names are preceded by their lengths, in the oldest protocol by a letter.
    old = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    old = old.replace(b"cnumpy._core.", b"cnumpy.core.")
    old = old.replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
    for content in (data, old):
        path.write_bytes(content)
        for key, array in read_mapping(path).items():
            wanted = value[key]
            assert np.array_equal(array, wanted), key
            assert array.dtype == wanted.dtype, key


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    small = {
        "a": np.zeros(4),
        "J_regressor": csc_matrix(np.eye(3)),
        "s": "text",
        "n": [1, 2.5, (None, True)],
    }
    np.save(tmp_path / "a.npy", small, allow_pickle=True)
    files = {
        "a.pkl": pickle.dumps(small, 2),
        "a.npy": (tmp_path / "a.npy").read_bytes(),
    }
    for name, whole in files.items():
        for _ in range(150):
            data = bytearray(whole)
            count = draw.integers(1, 4)
            for place in draw.integers(len(data), size=count):
                data[place] = draw.integers(256)
            path = tmp_path / name
            path.write_bytes(bytes(data))
            try:
                read_mapping(path)
            except ValueError as error:
                assert name in str(error)


@needs_reference
def test_the_official_side_files_are_read_like_numpy_does() -> None:
    for name in (ADDITIONS[0], SIMPLIFIED, EMBEDDING):
        path = REFERENCE / "flame_side" / name
        wanted = np.load(path, allow_pickle=True)[()]
        for key, value in read_mapping(path).items():
            if isinstance(wanted[key], np.ndarray):
                assert np.array_equal(value, wanted[key]), key
