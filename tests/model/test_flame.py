"""The head model as a function, and reading it from a licensed file without executing the file."""

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix

from model.foreign.pickled_arrays import read_mapping
from model.foreign.safe_pickle import read_part
from model.head.flame import Flame, HeadModel, rotation_matrices
from model.head.flame_file import ADDITIONS, EMBEDDING, SIMPLIFIED, read_flame
from model.head.label import Label
from pipeline.geometry.head_model import load
from pipeline.geometry.standin import standin
from tests.support.flame_files import write_flame
from tests.support.reference import REFERENCE, needs_reference


def read_pickle(data: bytes) -> object:
    """The object in a pickle that is read as data."""
    found, _ = read_part(data)
    return found


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin())


def zeros(*sizes: int) -> list[torch.Tensor]:
    return [torch.zeros(1, size) for size in sizes]


def test_rotation_about_an_axis_by_hand() -> None:
    quarter = rotation_matrices(torch.tensor([0.0, 0.0, torch.pi / 2]))
    assert torch.allclose(quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    assert torch.equal(rotation_matrices(torch.zeros(3)), torch.eye(3))


def test_neck_joint_of_the_canonical_head_is_the_origin(flame: Flame) -> None:
    assert flame.joints(*zeros(300, 100, 6, 6))[0, 1].abs().max() < 1e-6
    size = flame.canonical().amax(0) - flame.canonical().amin(0)
    assert (size > 0.5).all() and (size < 2.0).all()


def test_turning_the_neck_moves_the_head_rigidly(flame: Flame) -> None:
    pose = torch.tensor([[0.0, 0.4, 0.0, 0.0, 0.0, 0.0]])
    rest, turned = (
        flame.vertices(*zeros(300, 100), p, torch.zeros(1, 6))[0] for p in (torch.zeros(1, 6), pose)
    )
    rigid = torch.as_tensor(flame.head.regions["eyes"])
    correctives = 3 * 36 * np.abs(flame.head.pose_directions).max()
    wanted = rest[rigid] @ rotation_matrices(pose[0, :3]).T  # the joint is the origin
    assert (turned[rigid] - wanted).norm(dim=1).max() < 1e-5 + correctives


def test_gradients_reach_every_parameter_also_at_rest(flame: Flame) -> None:
    parameters = [value.requires_grad_() for value in zeros(300, 100, 6, 6)]
    flame.landmarks(flame.vertices(*parameters)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in parameters)


def test_the_state_dict_holds_nothing_of_the_head_model(flame: Flame) -> None:
    assert not flame.state_dict()


def test_a_label_falls_apart_in_its_order() -> None:
    label = torch.arange(437.0)[None]
    split = Label.split(label)
    parts = [split.camera, split.shape, split.expression, split.neck, split.jaw, split.eyes]
    assert [part.shape[1] for part in parts] == [25, 300, 100, 3, 3, 6]
    assert [part[0, 0].item() for part in parts] == [0, 25, 325, 425, 428, 431]
    assert torch.equal(split.pack(), label)


def test_arrays_that_do_not_fit_are_refused() -> None:
    head = standin()
    with pytest.raises(ValueError, match="skin_weights"):
        replace(head, skin_weights=head.skin_weights[1:])
    with pytest.raises(ValueError, match="faces_F3"):
        replace(head, faces_F3=head.faces_F3 + len(head.template_V3))
    with pytest.raises(ValueError, match="lips"):
        replace(head, regions={key: value for key, value in head.regions.items() if key != "lips"})


def test_a_head_model_survives_its_files(tmp_path: Path) -> None:
    head = standin()
    for found in (read_flame(write_flame(head, tmp_path)), load(str(tmp_path / "generic_model.pkl"))):
        assert found.name == "generic_model"
        for field in fields(HeadModel):
            wanted = getattr(head, field.name)
            if isinstance(wanted, np.ndarray):
                assert np.allclose(getattr(found, field.name), wanted, atol=1e-6), field.name
        for key in ("face", "eyes", "left_eye", "right_eye", "eyelids"):
            assert set(found.regions[key]) == set(head.regions[key]), key
        mouth = Flame(head).landmarks(torch.from_numpy(np.float32(head.template_V3))[None])[0, 48:68].numpy()
        assert (
            np.linalg.norm(found.template_V3[found.regions["lips"]][:, None] - mouth, axis=2).min(1).max()
            < 0.02
        )


@pytest.mark.parametrize("name", ["generic_model.pkl", ADDITIONS[0], SIMPLIFIED, EMBEDDING])
def test_a_missing_or_cut_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_flame(standin(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
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
    assert found == again and found[1] is found[0]["a"]
    assert read_pickle(pickle.dumps({1, 2}, protocol)) == [1, 2]


def test_an_array_must_hold_what_its_shape_says(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.zeros(4)}, 2)
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    assert read_mapping(path)["a"].shape == (4,)
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
    old = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray").replace(
        b"cnumpy._core.", b"cnumpy.core."
    )
    for content in (data, old.replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")):
        path.write_bytes(content)
        for key, array in read_mapping(path).items():
            assert np.array_equal(array, value[key]) and array.dtype == value[key].dtype, key


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    small = {"a": np.zeros(4), "J_regressor": csc_matrix(np.eye(3)), "s": "text", "n": [1, 2.5, (None, True)]}
    np.save(tmp_path / "whole.npy", small, allow_pickle=True)
    for name, whole in (("a.pkl", pickle.dumps(small, 2)), ("a.npy", (tmp_path / "whole.npy").read_bytes())):
        for _ in range(150):
            data = bytearray(whole)
            for place in draw.integers(len(data), size=draw.integers(1, 4)):
                data[place] = draw.integers(256)
            (tmp_path / name).write_bytes(bytes(data))
            try:
                read_mapping(tmp_path / name)
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
