"""Official files into safetensors and JSON, and from there into the stage pretrain."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch

from model.judges.trunk import PublishedTrunk
from model.psi.network import Psi
from model.weights import load_weights
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.doctor import examine
from pipeline.evaluate.instruments import FaceRecognition
from pipeline.evaluate.methods import Synthesizers
from pipeline.geometry.head_model import load
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


def psi_state() -> dict[str, torch.Tensor]:
    return random_state(Psi(SMOKE_SIZES).state_dict())


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Random numbers for a needed network, with its published names."""
    state = random_state(expected_state(lambda: NEEDED[name].build(SMOKE_SIZES)))
    if name != "trunk":
        return state
    layers = {key: value for key, value in state.items() if key.startswith("lpips.net.")}
    return {f"features.{key.split('.', 3)[3]}": value for key, value in layers.items()} | {
        "classifier.6.bias": torch.zeros(1000)
    }


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
    assert all(torch.equal(found[key], value) for key, value in state.items())
    told = facts["imported"]
    assert (facts["network"], facts["motion"]) == ("psi", "emot")
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (told["class"], told["entry"], told["init_args"]) == (NAME, "G_ema", [512])
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["psi.json", "psi.safetensors"]


def test_psi_and_psi3d_are_told_apart_by_what_training_moved(tmp_path):
    static = psi_state() | {
        key: value for key, value in Psi(SMOKE_SIZES).state_dict().items() if ".norm2." in key
    }
    for name, state in (("psi3d", static), ("psi", psi_state())):
        result = import_weights(write_pickle(tmp_path / "a.pkl", state, NAME), tmp_path, SMOKE_SIZES)
        assert (result.network, result.path.name) == (name, f"{name}.safetensors")
    assert Synthesizers(SMOKE_SIZES, tmp_path, tmp_path).motion == "emot"


def test_a_psi_that_flame_drives_says_so(tmp_path):
    state = random_state(Psi(SMOKE_SIZES.driven_by("flame")).state_dict())
    result = import_weights(write_pickle(tmp_path / "a.pkl", state, NAME), tmp_path, SMOKE_SIZES)
    assert load_weights(result.path)[1]["motion"] == "flame"


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
        assert torch.equal(
            found["lpips.lin2.model.1.weight"],
            lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).lin2.model[1].weight,
        )
    else:
        assert all(torch.equal(found[key], value) for key, value in state.items())
    assert facts["imported"]["file"] == file.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_the_published_trunk_is_lpips():
    trunk = PublishedTrunk().eval()
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    package.load_state_dict(trunk.lpips.state_dict(), strict=False)
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(trunk.distance(a, b), package(a, b).flatten(), atol=1e-5)
        assert trunk(a).shape == (2, trunk.num_features)


def test_everything_that_is_wrong_comes_at_once(tmp_path):
    state = psi_state()
    keys = list(state)
    del state[keys[3]], state[keys[7]]
    state[keys[9]] = torch.zeros(2, 3)
    state["background.more"] = torch.zeros(1)
    with pytest.raises(UserError) as error:
        import_weights(write_pickle(tmp_path / "psi.pkl", state, NAME), tmp_path / "out", SMOKE_SIZES)
    lines = {line.split("'")[1]: line for line in str(error.value).splitlines()[1:]}
    assert lines.keys() == {keys[3], keys[7], keys[9], "background.more"}
    assert "missing" in lines[keys[3]] and "missing" in lines[keys[7]]
    assert "has the shape [2, 3], expected" in lines[keys[9]]
    assert lines["background.more"].endswith("extra")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_none_are_refused(tmp_path):
    state = psi_state()
    state["w_avg"][3] = torch.nan
    with pytest.raises(UserError, match=r"'w_avg' unreadable: it has numbers that are not finite"):
        import_weights(write_pickle(tmp_path / "psi.pkl", state, NAME), tmp_path, SMOKE_SIZES)


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
    with pytest.raises(UserError, match=r"it has 1 tensors, among them 'weight'"):
        import_weights(write_state(tmp_path / "a.pth", {"weight": torch.zeros(2)}), tmp_path)
    with pytest.raises(UserError, match="No such file"):
        import_weights(tmp_path / "none.pth", tmp_path)
    np.save(tmp_path / "side.npy", np.array({"a": 1}), allow_pickle=True)
    with pytest.raises(UserError, match=r"beside generic_model\.pkl"):
        import_weights(tmp_path / "side.npy", tmp_path)


def test_flame_survives_its_import(tmp_path):
    path = write_flame(standin(), tmp_path)
    result = import_weights(path, tmp_path / "out")
    before = load(str(path))
    after = load(str(result.path))
    for field in before.__dataclass_fields__:
        a, b = getattr(before, field), getattr(after, field)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), field
    assert all(np.array_equal(before.regions[key], after.regions[key]) for key in before.regions)
    facts = json.loads((tmp_path / "out/flame.json").read_text())
    assert facts["imported"]["sha256"]["generic_model.pkl"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(facts["imported"]["sha256"]) == 4


def official_params(folder: Path) -> Params:
    own = small_run.params()
    return own.model_copy(
        update={"pretrain": own.pretrain.model_copy(update={"source": "official", "official": str(folder)})}
    )


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
        for name in (name for name, published in NEEDED.items() if published.item == item):
            wanted, facts = load_weights(imported / f"{name}.safetensors")
            found, told = load_weights(tmp_path / item / f"{name}.safetensors")
            assert all(torch.equal(found[key], value) for key, value in wanted.items())
            assert told == facts and told["imported"]["sha256"]
            assert metrics[f"{name}_values"] == sum(value.numel() for value in wanted.values())
    networks = Judges.load(tmp_path / "perception")
    assert isinstance(networks.trunk, PublishedTrunk)
    assert FaceRecognition(tmp_path / "perception/identity.onnx")(
        torch.zeros(1, 3, 64, 64), torch.tensor([small_run.FIVE])
    ).shape == (1, 32)
    assert load_weights(tmp_path / "genhead/portraits.safetensors")[0]["z"].shape == (
        0,
        SMOKE_SIZES.genhead.z_dim,
    )


def test_the_stage_reports_what_it_took(
    imported,
    tmp_path,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    main(official_params(imported), "motion")
    assert load_imported(Path("data/pretrain/motion"), "motion", SMOKE_SIZES)
    assert json.loads(Path("metrics/pretrain_motion.json").read_text()).keys() == {"motion_values"}
    assert json.loads(Path("metrics/plots/pretrain_motion.json").read_text()) == []


def test_pretrain_lists_all_that_is_missing(imported, tmp_path):
    with pytest.raises(UserError) as error:
        motion(official_params(tmp_path), tmp_path, tmp_path, tmp_path, tmp_path / "out")
    for name, published in NEEDED.items():
        assert f"{name}.safetensors is missing: get {published.original}" in str(error.value)


def test_a_damaged_or_foreign_import_is_refused(imported, tmp_path):
    own = official_params(imported)
    larger = own.model_copy(
        update={"networks": replace(SMOKE_SIZES, motion=scale_params("demo").networks.motion)}
    )
    with pytest.raises(UserError, match="has other sizes"):
        motion(larger, tmp_path, tmp_path, tmp_path, tmp_path / "out")
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"motion{suffix}").write_bytes((imported / f"genhead{suffix}").read_bytes())
    with pytest.raises(ValueError, match="no imported motion encoder"):
        load_imported(tmp_path, "motion", SMOKE_SIZES)
    (tmp_path / "motion.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        load_imported(tmp_path, "motion", SMOKE_SIZES)


def test_doctor_says_what_is_there_and_what_is_not(imported, tmp_path):
    findings = {finding.what: finding for finding in examine(official_params(imported))}
    assert all(findings[name].state == "ok" for name in ("genhead", "motion", "identity"))
    assert "no published hash is known" in findings["motion"].detail
    assert findings["trunk"].state == "note" and "NOT as published" in findings["trunk"].detail
    findings = {finding.what: finding for finding in examine(official_params(tmp_path))}
    for name, published in NEEDED.items():
        assert findings[name].state == "missing" and published.source in findings[name].detail


def test_doctor_reads_the_head_model(tmp_path):
    path = write_flame(standin(), tmp_path)
    own = small_run.params()

    def states(model: Path) -> list[str]:
        found = examine(own.model_copy(update={"flame": own.flame.model_copy(update={"model": str(model)})}))
        return [finding.state for finding in found if "FLAME" in finding.what or finding.what == "head model"]

    assert states(path) == ["ok"] * 4
    assert states(import_weights(path, tmp_path / "out").path) == ["ok"]
    path.write_bytes(b"no pickle")
    assert states(path) == ["ok"] * 4 + ["missing"]
