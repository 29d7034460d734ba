"""The published Psi_3d and Psi, from made-up files of their layout: taken as they are, or trained further."""

import json
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.head.flame import Flame
from model.psi.network import Psi, is_motion
from model.weights import load_weights
from pipeline.config.params import load_params
from pipeline.core.errors import UserError
from pipeline.core.imported import write_wanted
from pipeline.doctor import examine
from pipeline.evaluate.methods import Synthesizers
from pipeline.geometry.head_model import load
from pipeline.networks.import_weights import import_weights
from pipeline.pretrain.published import genhead
from pipeline.train.psi import take_psi, train_psi
from pipeline.train.psi3d import take_psi3d, train_psi3d
from stages.render_genhead import main as render_genhead
from tests.support.published_files import random_state, write_pickle
from tests.support.sizes import SMOKE_SIZES
from tests.support.training_inputs import build

CLASS = "TriPlaneReconstructorNeutralize"


def small_numbers(network: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Random weights that make finite pictures."""
    state = random_state(network.state_dict(), seed)
    return {key: 0.05 * value for key, value in state.items()}


def import_both(folder: Path, with_judge: bool) -> dict[str, dict[str, Tensor]]:
    """Import a Psi_3d and a Psi from pickles of the published layout; returns their weights."""
    static = small_numbers(Psi(SMOKE_SIZES), 0)
    # No training of Psi_3d moves the norms of motion.
    for key, value in Psi(SMOKE_SIZES).state_dict().items():
        if ".norm2." in key:
            static[key] = value
    states = {"psi3d": static, "psi": small_numbers(Psi(SMOKE_SIZES), 1)}
    judge = small_numbers(Discriminator(SMOKE_SIZES), 2) if with_judge else None
    for name, state in states.items():
        file = write_pickle(folder / f"{name}.pkl", state, CLASS, judge=judge)
        import_weights(file, folder, SMOKE_SIZES)
    return states | ({"discriminator": judge} if judge else {})


def project(folder: Path, **changes: str) -> None:
    """A project of scale smoke with the published networks; `changes` are those of both trainings."""
    build(folder, 1)
    path = folder / "params.yaml"
    data = YAML(typ="safe", pure=True).load(path.read_text())
    data["pretrain"] |= {"source": "official", "official": str(folder / "official")}
    data["render_genhead"] |= {"z": "normal", "portrait_share": 0.0}
    for name in ("train_psi3d", "train"):
        data[name] |= changes
    YAML().dump(data, path)
    (folder / "official").mkdir()


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_published_synthesizer_is_the_result_of_its_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    project(tmp_path, source="official")
    states = import_both(tmp_path / "official", with_judge=True)
    params, data = load_params(tmp_path / "params.yaml"), tmp_path / "data"
    perception = data / "pretrain/perception"
    places = (perception, data / "ingest", data / "labels/vfhq.parquet", data / "psi3d")
    metrics = {
        "psi3d": take_psi3d(params, *places),
        "psi": take_psi(params, data / "views", perception, data / "psi"),
    }
    for name, found in metrics.items():
        state, facts = load_weights(data / name / f"{name}.safetensors")
        assert same(state, states[name])
        assert facts["imported"]["file"] == f"{name}.pkl"
        assert found["source"] == "official"
        [row] = found["history"]
        assert row["validation_lpips"] > 0
        assert json.loads((data / name / "moved.json").read_text()) == {}
    judge, _ = load_weights(data / "psi3d/discriminator.safetensors")
    assert same(judge, states["discriminator"])
    # It is what evaluate and animate read.
    flame = Flame(load(params.flame.model))
    assert Synthesizers(params.networks, data / "psi", data / "psi3d", flame).motion == "emot"
    # What only a training of Psi_3d needs is not asked for, nor made.
    assert not any(finding.what == "genhead" for finding in examine(params))
    monkeypatch.chdir(tmp_path)
    render_genhead(params)
    assert json.loads((tmp_path / "metrics/render_genhead.json").read_text())["heads"] == 0
    for name in ("motion", "identity", "trunk"):
        (tmp_path / f"official/{name}.safetensors").touch()
    assert genhead(params, data, data, data, tmp_path / "out") == {"history": []}


def test_what_is_not_imported_is_said(tmp_path):
    project(tmp_path, source="official")
    params, data = load_params(tmp_path / "params.yaml"), tmp_path / "data"
    with pytest.raises(
        UserError, match=r"train\.source is official, but .*psi\.safetensors is missing: get the"
    ):
        take_psi(params, data / "views", data / "pretrain/perception", data / "psi")
    found = {finding.what: finding for finding in examine(params)}
    for name in ("psi3d", "psi"):
        assert found[name].state == "missing"
        assert "psi4d import FILE" in found[name].detail
    # Of other sizes they are no good, either.
    import_both(tmp_path / "official", with_judge=False)
    other = params.networks.__class__()
    with pytest.raises(UserError, match="has other sizes"):
        take_psi(
            params.model_copy(update={"networks": other}),
            *[data / "views", data / "pretrain/perception", data],
        )


@pytest.mark.slow
def test_a_published_synthesizer_is_trained_further(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    project(tmp_path, init="official", images=8, learning_rate=1e-9)
    states = import_both(tmp_path / "official", with_judge=True)
    params, data = load_params(tmp_path / "params.yaml"), tmp_path / "data"
    perception, wanted = data / "pretrain/perception", tmp_path / "psi.json"
    write_wanted(wanted, tmp_path / "official", wanted=True)
    train_psi(params, data / "views", perception, data / "psi3d", data / "psi", published=wanted)
    labels = data / "labels/vfhq.parquet"
    places = (data / "genhead/shards", perception, data / "pretrain/genhead", data / "ingest", labels)
    train_psi3d(params, *places, data / "psi3d", published=wanted)
    for name in ("psi", "psi3d"):
        state, _ = load_weights(data / name / f"{name}.safetensors")
        for key, value in states[name].items():
            assert torch.allclose(state[key], value, atol=1e-6), key
    # The motion layers come along, which a Psi that begins with Psi_3d draws anew.
    assert any(is_motion(key) for key in states["psi"])
    judge, _ = load_weights(data / "psi3d/discriminator.safetensors")
    assert same(judge, states["discriminator"])


def test_another_import_changes_nothing_that_a_training_depends_on(tmp_path):
    out = tmp_path / "out/psi.json"
    write_wanted(out, tmp_path, wanted=True)
    assert json.loads(out.read_text()) == {}
    states = import_both(tmp_path, with_judge=False)
    write_wanted(out, tmp_path, wanted=False)
    assert json.loads(out.read_text()) == {}
    write_wanted(out, tmp_path, wanted=True)
    told = json.loads(out.read_text())
    _, facts = load_weights(tmp_path / "psi.safetensors")
    assert told == {"psi": facts["sha256"]}
    assert states.keys() == {"psi3d", "psi"}
