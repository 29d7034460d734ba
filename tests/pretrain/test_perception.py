"""The frozen networks: what they promise to the losses and the metrics, and their training."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from torch.nn.functional import interpolate

from model.head.flame import rotation_matrices
from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.sizes import IdentitySizes
from pipeline.core.errors import UserError
from pipeline.engine.scratch import last_folder
from pipeline.evaluate.instruments import FaceRecognition
from pipeline.geometry.label import FIVE_POINTS
from pipeline.geometry.rotations import rotation_vectors
from pipeline.networks.judges import Judges
from pipeline.pretrain.alike import warn_of_alike
from pipeline.pretrain.faces import augment, read_faces
from pipeline.pretrain.onnx_export import export_identity
from pipeline.pretrain.perception import arcface_loss, pretrain_perception
from pipeline.store.tables import PEOPLE, write_table
from tests.support import small_run

FIVE = torch.tensor(small_run.FIVE)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    own = small_run.params()
    small_run.build(tmp_path, own)
    result = pretrain_perception(own, *inputs(tmp_path), tmp_path / "perception")
    return own, tmp_path, result


def inputs(folder):
    """What the training reads."""
    return folder / "ingest", folder / "labels", folder / "truth"


@pytest.mark.parametrize("size", [32, 64, 96])
def test_lpips_is_that_of_the_package(size):
    trunk = Trunk()
    a, b = torch.rand(2, 2, 3, size, size) * 2 - 1
    # Pictures below 64 pixels are enlarged twofold first.
    factor = 2 if size < 64 else 1
    big = []
    for image in (a, b):
        enlarged = interpolate(image, scale_factor=factor, mode="bilinear")
        big.append(enlarged)
    found = trunk.distance(a, b)
    wanted = trunk.lpips(*big).flatten()
    assert torch.allclose(found, wanted, atol=1e-5)
    of_itself = trunk.distance(a, a)
    assert of_itself.abs().max() == 0


def test_lpips_has_a_finite_gradient_where_a_layer_is_dead():
    """A black foreground can leave all channels of a layer at zero.

    There the normalisation of the package lpips has no gradient.
    """
    trunk = Trunk()
    trunk.lpips.net.slice1[0].bias.data.fill_(-10.0)
    image = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    grey = torch.zeros(1, 3, 64, 64)
    distance = trunk.distance(image, grey)
    distance.sum().backward()
    assert torch.isfinite(image.grad).all()


def test_equal_seeds_make_equal_trunks_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = Trunk(3).state_dict()
    second = Trunk(3).state_dict()
    after = torch.random.get_rng_state()
    assert torch.equal(before, after)
    for key, value in first.items():
        assert torch.equal(value, second[key])


def test_arcface_loss_by_hand():
    """Two people at right angles, a face at angle 0 to its own centre: logits s*cos(margin) and 0."""
    # The lengths are no 1, since angles alone may count.
    loss = arcface_loss(
        torch.tensor([[2.0, 0.0]]),
        torch.tensor([[3.0, 0.0], [0.0, 1.0]]),
        torch.tensor([0]),
        margin=0.3,
        scale=4.0,
    )
    own = 4 * math.cos(0.3)
    wanted = math.log(1 + math.exp(-own))
    # At angle 0 the cosine is clamped, which costs some digits.
    assert loss.item() == pytest.approx(wanted, abs=1e-3)


def test_rotation_vectors_undo_rotation_matrices():
    # No turn at all and one that is nearly none divide by a sine that is about zero.
    vectors = torch.tensor(
        [
            [0.3, -0.2, 0.1],
            [0.0, 0.0, 0.0],
            [0.0, 2.0, 0.0],
            [1e-5, 0.0, 0.0],
        ]
    )
    matrices = rotation_matrices(vectors)
    again = rotation_vectors(matrices.numpy())
    assert np.allclose(again, vectors.numpy(), atol=1e-5)


def test_augmented_landmarks_stay_on_their_pixels():
    """A white dot that marks a landmark is still there after shift and scale."""
    offsets = torch.linspace(-0.2, 0.2, 8)
    points = torch.full((8, 1, 2), 0.5) + offsets[:, None, None]
    grid = (torch.arange(64) + 0.5) / 64
    across = (grid - points[:, 0, :1]).square()
    down = (grid - points[:, 0, 1:]).square()
    distance = across[:, None, :] + down[:, :, None]
    dot = torch.exp(-distance / 0.002)
    image = 2 * dot - 1
    image = image[:, None].expand(-1, 3, -1, -1)
    draw = torch.Generator().manual_seed(0)
    moved, landmarks, damage = augment(image, points, draw, 0.1)
    # The centre of the brightest pixels is where the dot is now.
    brightness = moved.mean(1)
    dark = brightness.flatten(1).quantile(0.97, dim=1)
    weight = (brightness - dark[:, None, None]).clamp_min(0)
    weight = weight / weight.sum((1, 2), keepdim=True)
    x = (weight.sum(1) * grid).sum(1)
    y = (weight.sum(2) * grid).sum(1)
    found = torch.stack([x, y], dim=1)
    # 0.02 is a little more than a pixel of 64; with a wrong sign of the shift the dot is many pixels away.
    error = (found - landmarks[:, 0]).abs()
    assert error.max() < 0.02
    shift = (landmarks - points).abs()
    assert shift.max() > 0.03
    assert damage.min() >= 0
    assert damage.max() <= 1


def test_regressor_takes_images_of_any_size():
    network = Regressor(8).eval()
    for size in (32, 128):
        image = torch.zeros(2, 3, size, size)
        assert network(image).shape == (2, 109)


def test_onnx_agrees_with_the_module(tmp_path):
    network = IdentityNet(IdentitySizes((1, 1), 4, 16)).eval()
    export_identity(network, tmp_path / "identity.onnx")
    judges = Judges(network, Trunk(), Regressor(8))
    image = torch.rand(3, 3, 64, 64) * 2 - 1
    five = FIVE.expand(3, 5, 2)
    recognise = FaceRecognition(tmp_path / "identity.onnx")
    by_onnx = recognise(image, five)
    by_torch = judges.identity(image, five).numpy()
    by_onnx /= np.linalg.norm(by_onnx, axis=1, keepdims=True)
    # The recogniser takes 8-bit crops.
    cosine = (by_onnx * by_torch).sum(1)
    assert cosine.min() > 0.999


def test_training_writes_networks_that_load_and_stay_frozen(trained):
    own, folder, result = trained
    # A trainer calls train() on all that it holds; a judge whose BatchNorm moves is another judge each step.
    judges = Judges.load(folder / "perception").train()
    assert not judges.training
    assert not any(parameter.requires_grad for parameter in judges.parameters())
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    image.requires_grad_()
    five = FIVE.expand(2, 5, 2)
    features = judges.identity(image, five)
    assert features.shape == (2, own.networks.identity.embedding)
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-5)
    # Frozen weights must still let the gradient through to the picture: it is what a loss is for.
    other = image.detach().flip(0)
    distance = judges.lpips(image, other)
    estimate = judges.expression_pose(image)
    total = distance.sum() + features.sum() + estimate.sum()
    total.backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0
    recognise = FaceRecognition(folder / "perception/identity.onnx")
    assert recognise.model.taskname == "recognition"
    # Four identities of two portraits each, two training clips.
    assert result["people"] == 6
    history = result.pop("history")
    assert all(np.isfinite(value) for value in result.values())
    # While each of them trains, `psi4d status` reads its steps.
    for name in ("identity", "trunk", "regressor"):
        *_, last = json.loads((last_folder(f"pretrain_{name}") / "curves.json").read_bytes())
        assert last["step"] == max(
            1, round(own.pretrain.perception.steps * (1 / 3 if name == "identity" else 1))
        )
    named = {name for row in history for name in row}
    assert {"identity", "trunk", "regressor"} <= named


def test_training_twice_gives_the_same_bytes(trained, monkeypatch):
    own, folder, _ = trained
    # Another scratch folder, so that no checkpoint of the first training answers for the second one.
    monkeypatch.setenv("DVC_ROOT", str(folder / "elsewhere"))
    # The global generator must not matter.
    torch.rand(5)
    pretrain_perception(own, *inputs(folder), folder / "again")
    names = (
        "identity.safetensors",
        "identity.onnx",
        "trunk.safetensors",
        "regressor.safetensors",
    )
    for name in names:
        first = folder / "perception" / name
        second = folder / "again" / name
        assert first.read_bytes() == second.read_bytes()


def test_without_the_truth_every_portrait_is_a_person_of_its_own(tmp_path):
    # A folder of real portraits: file names say nothing of people. Eight portraits and two clips.
    small_run.build(tmp_path, small_run.params(), truth=False)
    faces = read_faces(*inputs(tmp_path), "train")
    assert len(set(faces.people)) == 8 + 2
    five = faces.landmarks[0, list(FIVE_POINTS)]
    assert np.allclose(five, small_run.FIVE)


def test_people_who_look_alike_are_named(trained):
    # Portraits 0 and 1 are one picture, so are 2 and 3, and so on.
    _, folder, _ = trained
    real = folder / "real"
    small_run.build(real, small_run.params(), truth=False)
    judges = Judges.load(folder / "perception")
    found = warn_of_alike(judges, *inputs(real), real)
    pairs = pyarrow.csv.read_csv(real / "alike.csv").to_pylist()
    assert found["alike_people"] == len(pairs)
    most = [(row["file"], row["other"]) for row in pairs if row["cosine"] > 0.9999]
    twins = {(f"p{number}.png", f"p{number + 1}.png") for number in (0, 2, 4, 6)}
    assert twins <= set(most)
    assert found["alike_across_splits"] == sum(row["split"] != row["other_split"] for row in pairs)
    # Folders that say it make one person of them, and of the pairs there is nothing left to say.
    people = [{"key": f"p{number}", "person": f"folder{number // 2}"} for number in range(8)]
    write_table(real / "ingest/people.parquet", pa.Table.from_pylist(people, PEOPLE))
    faces = read_faces(*inputs(real), "train")
    assert faces.names == ["clip c3", "clip c4", *(f"person folder{number}" for number in range(4))]
    warn_of_alike(judges, *inputs(real), real)
    pairs = pyarrow.csv.read_csv(real / "alike.csv").to_pylist()
    named = {row["file"] for row in pairs} | {row["other"] for row in pairs}
    assert not any(name.startswith("p") and name.endswith(".png") for name in named)
    # Of generated people the truth is known, and nothing is written.
    assert warn_of_alike(judges, *inputs(folder), folder / "none") == {}
    assert not (folder / "none").exists()


def test_missing_networks_end_in_a_clear_message(tmp_path):
    with pytest.raises(UserError, match="pretrain@perception"):
        Judges.load(tmp_path)
    with pytest.raises(UserError, match=r"identity\.onnx"):
        FaceRecognition(tmp_path / "identity.onnx")
