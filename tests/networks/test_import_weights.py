"""Official files into safetensors and JSON, and from there into the stage pretrain."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.foreign.checkpoint_file import CheckpointFile
from model.foreign.pickled_arrays import read_mapping
from model.head.flame import Flame
from model.judges.trunk import PublishedTrunk
from model.psi.network import Psi
from model.weights import load_weights
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.doctor import examine
from pipeline.evaluate.instruments import FaceRecognition
from pipeline.evaluate.methods import Synthesizers
from pipeline.geometry.head_model import load
from pipeline.geometry.neck import TurningNeck
from pipeline.geometry.standin import standin
from pipeline.networks.import_weights import import_weights
from pipeline.networks.judges import Judges
from pipeline.networks.published import NEEDED, expected_state, load_imported
from pipeline.pretrain.published import PUBLISHED, genhead, motion, perception
from stages.pretrain import main
from tests.support import small_run
from tests.support.flame_files import write_flame
from tests.support.published_files import random_state, write_pickle, write_state
from tests.support.sizes import SMOKE_SIZES

NAME = "TriPlaneReconstructorNeutralize"


def psi_state() -> dict[str, Tensor]:
    return random_state(Psi(SMOKE_SIZES).state_dict())


def state_of(name: str) -> dict[str, Tensor]:
    """Random numbers for a needed network, with its published names."""
    layout = expected_state(lambda: NEEDED[name].build(SMOKE_SIZES))
    state = random_state(layout)
    if name != "trunk":
        return state
    # VGG16's file counts its layers; LPIPS has them in slices and needs no classifier.
    published = {"classifier.6.bias": torch.zeros(1000)}
    for key, value in state.items():
        if key.startswith("lpips.net."):
            _, _, _, layer = key.split(".", 3)
            published[f"features.{layer}"] = value
    return published


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[key], value) for key, value in wanted.items())


def original(
    folder: Path,
    name: str,
    legacy: bool = False,
) -> Path:
    if name == "genhead":
        return write_pickle(
            folder / "genhead.pkl",
            state_of(name),
            "PartTriPlaneGeneratorDeform",
            use_ws_ones=True,
        )
    return write_state(folder / f"{name}.pth", state_of(name), legacy)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_psi_survives_its_file(tmp_path, protocol):
    state = psi_state()
    file = write_pickle(tmp_path / "psi.pkl", state, NAME, protocol, mot_dims=548)
    result = import_weights(file, tmp_path / "out", SMOKE_SIZES)
    found, facts = load_weights(result.path)
    assert result.path == tmp_path / "out/psi.safetensors"
    assert found.keys() == state.keys()
    assert same(found, state)
    told = facts["imported"]
    assert (facts["network"], facts["motion"]) == ("psi", "emot")
    assert told["sha256"] == sha256(file)
    assert told["class"] == NAME
    assert told["entry"] == "G_ema"
    assert told["init_args"] == [512]
    assert told["init_kwargs"] == {
        "mot_dims": 548,
        "rendering_kwargs": {"box_warp": 1.3, "depth_resolution": 48, "scale": 2.0},
    }
    assert told["training_set_kwargs"] == {"path": "data/vfhq_512_100/", "size": 3}
    assert (
        told["dropped"]
        == ["dataset_label_std", "deformer.flame.faces", "deformer.flame.v_template"]
        == result.dropped
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"psi.json", "psi.safetensors"}


def test_psi_and_psi3d_are_told_apart_by_what_training_moved(tmp_path):
    # Training of Psi_3d moves no motion related layer: its norms are as they began.
    static = psi_state()
    for key, value in Psi(SMOKE_SIZES).state_dict().items():
        if ".norm2." in key:
            static[key] = value
    for name, state in (("psi3d", static), ("psi", psi_state())):
        file = write_pickle(tmp_path / "a.pkl", state, NAME)
        result = import_weights(file, tmp_path, SMOKE_SIZES)
        assert (result.network, result.path.name) == (name, f"{name}.safetensors")
    synthesizers = Synthesizers(SMOKE_SIZES, tmp_path, tmp_path, Flame(standin()))
    assert synthesizers.motion == "emot"
    # The published Psi learnt with necks that turn.
    assert isinstance(synthesizers.neck, TurningNeck)


def test_a_psi_that_flame_drives_says_so(tmp_path):
    # The width of its input tells it.
    network = Psi(SMOKE_SIZES.driven_by("flame"))
    file = write_pickle(tmp_path / "a.pkl", random_state(network.state_dict()), NAME)
    result = import_weights(file, tmp_path, SMOKE_SIZES)
    _, facts = load_weights(result.path)
    assert facts["motion"] == "flame"


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "trunk" else ()) for name in NEEDED]
)
def test_every_needed_network_survives_its_file(
    tmp_path,
    name,
    legacy,
):
    file = original(tmp_path, name, legacy)
    result = import_weights(file, tmp_path / "out", SMOKE_SIZES)
    found, facts = load_imported(tmp_path / "out", name, SMOKE_SIZES)
    NEEDED[name].build(SMOKE_SIZES).load_state_dict(found)
    state = state_of(name)
    if name == "trunk":
        assert result.dropped == ["classifier.6.bias"]
        assert torch.equal(found["lpips.net.slice5.28.weight"], state["features.28.weight"])
        # The linear layers come with the package.
        package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        linear = package.lin2.model[1].weight
        assert torch.equal(found["lpips.lin2.model.1.weight"], linear)
    else:
        assert same(found, state)
    assert facts["imported"]["file"] == file.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_the_published_trunk_is_lpips():
    trunk = PublishedTrunk().eval()
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    package.load_state_dict(trunk.lpips.state_dict(), strict=False)
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        wanted = package(a, b).flatten()
        assert torch.allclose(trunk.distance(a, b), wanted, atol=1e-5)
        assert trunk(a).shape == (2, trunk.num_features)


def test_everything_that_is_wrong_comes_at_once(tmp_path):
    state = psi_state()
    first, second, third, *_ = state
    del state[first]
    del state[second]
    state[third] = torch.zeros(2, 3)
    state["background.more"] = torch.zeros(1)
    file = write_pickle(tmp_path / "psi.pkl", state, NAME)
    with pytest.raises(UserError) as error:
        import_weights(file, tmp_path / "out", SMOKE_SIZES)
    # The first line says what the file looks like; each of the others names a tensor.
    _, *problems = str(error.value).splitlines()
    lines = {line.split("'")[1]: line for line in problems}
    assert lines.keys() == {first, second, third, "background.more"}
    assert "missing" in lines[first]
    assert "missing" in lines[second]
    assert "has the shape [2, 3], expected" in lines[third]
    assert lines["background.more"].endswith("extra")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_none_are_refused(tmp_path):
    state = psi_state()
    # As a training that diverged leaves it.
    state["w_avg"][3] = torch.nan
    file = write_pickle(tmp_path / "psi.pkl", state, NAME)
    with pytest.raises(UserError, match=r"'w_avg' unreadable: it has numbers that are not finite"):
        import_weights(file, tmp_path, SMOKE_SIZES)


def test_a_genhead_of_another_style_is_refused(tmp_path):
    file = write_pickle(
        tmp_path / "genhead.pkl",
        state_of("genhead"),
        "PartTriPlaneGeneratorDeform",
        use_ws_ones=False,
    )
    with pytest.raises(UserError, match="use_ws_ones False"):
        import_weights(file, tmp_path, SMOKE_SIZES)


def test_a_file_of_nothing_known_is_described(tmp_path):
    unknown = write_state(tmp_path / "a.pth", {"weight": torch.zeros(2)})
    with pytest.raises(UserError, match=r"it has 1 tensors, among them 'weight'"):
        import_weights(unknown, tmp_path)
    with pytest.raises(UserError, match="No such file"):
        import_weights(tmp_path / "none.pth", tmp_path)
    # A side file of FLAME is what users take for the head model.
    np.save(tmp_path / "side.npy", np.array({"a": 1}), allow_pickle=True)
    with pytest.raises(UserError, match=r"beside generic_model\.pkl"):
        import_weights(tmp_path / "side.npy", tmp_path)


def wrapped(state: dict[str, Tensor]) -> dict[str, object]:
    """A state dict as people have it: for several GPUs, one or two levels deeper, under another name."""
    several = {f"module.{key}": value for key, value in state.items()}
    beside = {"optimizer": {"step": torch.zeros(2)}, "epoch": 3}
    return {
        "module": several,
        "deeper": {"state_dict": state, **beside},
        "both": {"checkpoint": {"model": several}, **beside},
        "other": {"net": {f"backbone.{key}": value for key, value in state.items()}},
    }


def test_wrapped_weights_are_found(tmp_path):
    state = state_of("identity")
    for name, content in wrapped(state).items():
        torch.save(content, tmp_path / f"{name}.pth")
    save_file(state, tmp_path / "plain.safetensors")
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "renamed.pth")
    for path in sorted(tmp_path.iterdir()):
        if path.is_file():
            result = import_weights(path, tmp_path / "out", SMOKE_SIZES)
            found, _ = load_weights(result.path)
            assert result.network == "identity"
            assert same(found, state), path.name


def test_what_is_no_file_of_weights_is_told(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "whole.pth")
    save_file({"a": torch.zeros(9)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.pth").read_bytes()
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("backbone.pth", whole)
    files = {
        b"<!DOCTYPE html><html><title>Sign in</title>": "web page",
        b"\n<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>": "web page",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "Git LFS",
        b'{"message": "Bad credentials"}': 'a text, which begins with "{"message',
        b"7z\xbc\xaf\x27\x1c" + bytes(50): "7-Zip; unpack it",
        b"\x08\x07\x12\x07pytorch" + bytes(50): "ONNX",
        whole[: len(whole) // 2]: "cut off",
        tensors[: len(tensors) - 4]: "cut off",
        (tmp_path / "packed.zip").read_bytes(): r"zip file with 'backbone\.pth' in it",
    }
    path = tmp_path / "backbone.pth"
    for data, reason in files.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=reason) as caught:
            import_weights(path, tmp_path, SMOKE_SIZES)
        assert len(str(caught.value).splitlines()) == 1


def test_flame_with_other_line_ends_is_mended_or_told(tmp_path):
    content = {"v_template": np.arange(300.0).reshape(100, 3), "f": np.zeros((40, 3), np.int64)}
    path = tmp_path / "FLAME_NEUTRAL.pkl"
    # A text can be mended, as it has no other ends of lines: what is missed then is the rest of the model.
    path.write_bytes(pickle.dumps(content, 0).replace(b"\n", b"\r\n"))
    assert np.array_equal(read_mapping(path)["v_template"], content["v_template"])
    noise = np.random.default_rng(0).integers(0, 256, 9000, np.uint8)
    path.write_bytes(pickle.dumps(content | {"x": noise}, 2).replace(b"\n", b"\r\n"))
    for read in (read_mapping, CheckpointFile):
        with pytest.raises(ValueError, match="its ends of lines were changed"):
            read(path)


def test_flame_survives_its_import(tmp_path):
    path = write_flame(standin(), tmp_path)
    result = import_weights(path, tmp_path / "out")
    before = load(str(path))
    after = load(str(result.path))
    for field in before.__dataclass_fields__:
        a = getattr(before, field)
        b = getattr(after, field)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), field
    for key, region in before.regions.items():
        assert np.array_equal(region, after.regions[key]), key
    facts = json.loads((tmp_path / "out/flame.json").read_text())
    # The model and its three side files.
    hashes = facts["imported"]["sha256"]
    assert hashes["generic_model.pkl"] == sha256(path)
    assert len(hashes) == 4


def official_params(folder: Path) -> Params:
    own = small_run.params()
    source = {"source": "official", "official": str(folder)}
    pretrain = own.pretrain.model_copy(update=source)
    return own.model_copy(update={"pretrain": pretrain})


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    for name in NEEDED:
        import_weights(original(folder, name), folder / "out", SMOKE_SIZES)
    return folder / "out"


@pytest.mark.slow
def test_pretrain_takes_what_was_imported(
    imported,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    own = official_params(imported)
    small_run.build(tmp_path, own)
    places = [tmp_path / name for name in ("ingest", "labels", "truth")]
    for item, take in (("genhead", genhead), ("motion", motion), ("perception", perception)):
        assert PUBLISHED[item] is take
        metrics = take(own, *places, tmp_path / item)
        names = [name for name, published in NEEDED.items() if published.item == item]
        for name in names:
            wanted, facts = load_weights(imported / f"{name}.safetensors")
            found, told = load_weights(tmp_path / item / f"{name}.safetensors")
            assert same(found, wanted)
            assert told == facts
            assert told["imported"]["sha256"]
            count = sum(value.numel() for value in wanted.values())
            assert metrics[f"{name}_values"] == count
    networks = Judges.load(tmp_path / "perception")
    assert isinstance(networks.trunk, PublishedTrunk)
    # What evaluate measures with is made of the same weights.
    instrument = FaceRecognition(tmp_path / "perception/identity.onnx")
    embedding = instrument(torch.zeros(1, 3, 64, 64), torch.tensor([small_run.FIVE]))
    assert embedding.shape == (1, 32)
    # An imported GenHead knows no portraits.
    portraits, _ = load_weights(tmp_path / "genhead/portraits.safetensors")
    assert portraits["z"].shape == (0, SMOKE_SIZES.genhead.z_dim)


def test_the_stage_reports_what_it_took(
    imported,
    tmp_path,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    main(official_params(imported), "motion")
    assert load_imported(Path("data/pretrain/motion"), "motion", SMOKE_SIZES)
    metrics = Path("metrics/pretrain_motion.json").read_text()
    curves = Path("metrics/plots/pretrain_motion.json").read_text()
    assert json.loads(metrics).keys() == {"motion_values"}
    assert json.loads(curves) == []


def test_pretrain_lists_all_that_is_missing(imported, tmp_path):
    with pytest.raises(UserError) as error:
        motion(official_params(tmp_path), tmp_path, tmp_path, tmp_path, tmp_path / "out")
    for name, published in NEEDED.items():
        assert f"{name}.safetensors is missing: get {published.original}" in str(error.value)


def test_a_damaged_or_foreign_import_is_refused(imported, tmp_path):
    own = official_params(imported)
    demo = scale_params("demo").networks
    sizes = replace(SMOKE_SIZES, motion=demo.motion)
    larger = own.model_copy(update={"networks": sizes})
    with pytest.raises(UserError, match="has other sizes"):
        motion(larger, tmp_path, tmp_path, tmp_path, tmp_path / "out")
    for suffix in (".safetensors", ".json"):
        other = imported / f"genhead{suffix}"
        (tmp_path / f"motion{suffix}").write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="no imported motion encoder"):
        load_imported(tmp_path, "motion", SMOKE_SIZES)
    (tmp_path / "motion.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        load_imported(tmp_path, "motion", SMOKE_SIZES)


def test_doctor_says_what_is_there_and_what_is_not(imported, tmp_path):
    # The trunk's file has a published hash, and random weights do not have it.
    findings = {finding.what: finding for finding in examine(official_params(imported))}
    assert all(findings[name].state == "ok" for name in ("genhead", "motion", "identity"))
    assert "no published hash is known" in findings["motion"].detail
    assert findings["trunk"].state == "note"
    assert "NOT as published" in findings["trunk"].detail
    findings = {finding.what: finding for finding in examine(official_params(tmp_path))}
    for name, published in NEEDED.items():
        assert findings[name].state == "missing"
        assert published.source in findings[name].detail


def test_doctor_reads_the_head_model(tmp_path):
    path = write_flame(standin(), tmp_path)
    own = small_run.params()

    def states(model: Path) -> list[str]:
        section = own.flame.model_copy(update={"model": str(model)})
        found = examine(own.model_copy(update={"flame": section}))
        return [finding.state for finding in found if "FLAME" in finding.what or finding.what == "head model"]

    # One of each file; what was imported is one file.
    assert states(path) == ["ok"] * 4
    imported = import_weights(path, tmp_path / "out")
    assert states(imported.path) == ["ok"]
    path.write_bytes(b"no pickle")
    assert states(path) == ["ok"] * 4 + ["missing"]
