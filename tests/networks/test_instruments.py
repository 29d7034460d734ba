"""Published instruments from their files to networks, and what doctor says of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import inception_v3

from model.instruments.arcface import RESNETS
from model.judges.identity import IdentityNet
from model.psi.encoders import ResNet
from model.psi.network import Psi
from model.sizes import IdentitySizes
from model.weights import load_weights
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.doctor import examine
from pipeline.networks.import_weights import import_weights, recognised
from pipeline.networks.instruments import COUNTER, INSTRUMENTS, encoder_path, load_instrument
from pipeline.networks.published import NEEDED, expected_state
from pipeline.networks.weights import save_weights
from pipeline.pretrain.onnx_export import export_identity
from pipeline.pretrain.published import take_encoder
from pipeline.train.psi3d import take_over_encoder
from tests.support.published_files import random_state
from tests.support.sizes import SMOKE_SIZES

# Entries of the files below which the weights lie.
ENTRIES = {"deep3d": "net_recon", "emotion": "state_dict"}
QUICK = ("syncnet",)
CASES = []
for instrument in INSTRUMENTS:
    marks = () if instrument in QUICK else pytest.mark.slow
    CASES.append(pytest.param(instrument, marks=marks))


def state_of(name: str) -> dict[str, Tensor]:
    return random_state(expected_state(INSTRUMENTS[name].build))


def write_original(folder: Path, name: str, state: dict[str, Tensor]) -> Path:
    """The file as it is published: some have an entry for the weights, none needs the counters."""
    own = INSTRUMENTS[name]
    kept = {key: value for key, value in state.items() if not key.endswith(COUNTER)}
    for beginning in own.spare:
        kept[f"{beginning}weight"] = torch.zeros(3, 2)
    # What training leaves beside the weights is of classes that nothing here knows.
    entry = ENTRIES.get(name)
    content = {"epoch": 3, "config": Path("somewhere"), entry: kept} if entry else kept
    path = folder / f"{name}.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_an_instrument_survives_its_file(tmp_path, name):
    state = state_of(name)
    file = write_original(tmp_path, name, state)
    assert load_instrument(tmp_path / "out", name) is None
    result = import_weights(file, tmp_path / "out")
    loaded = load_instrument(tmp_path / "out", name)
    found = loaded.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert not any(value.requires_grad for value in loaded.network.parameters())
    assert not loaded.network.training
    assert loaded.facts["instrument"] == name
    assert loaded.facts["imported"]["sha256"] == sha256(file)
    assert result.dropped == [f"{beginning}weight" for beginning in INSTRUMENTS[name].spare]


@pytest.mark.slow
def test_resnet_34_becomes_the_start_of_psi_3ds_encoder(tmp_path):
    take_encoder(tmp_path, tmp_path / "out")
    assert not encoder_path(tmp_path / "out").exists()
    state = state_of("resnet34")
    import_weights(write_original(tmp_path, "resnet34", state), tmp_path)
    take_encoder(tmp_path, tmp_path / "out")
    start, facts = load_weights(encoder_path(tmp_path / "out"))
    psi = scale_params("paper").networks.psi
    encoder = ResNet(psi.encoder_width, psi.encoder_blocks)
    encoder.load_state_dict(start)
    assert torch.equal(encoder.layer3[5].conv2.weight, state["layer3.5.conv2.weight"])
    # The planes of coordinates see with the kernels of red and green.
    assert torch.equal(encoder.conv1.weight[:, 3:], encoder.conv1.weight[:, :2])
    assert facts["imported"]["file"] == "resnet34.pth"


def test_the_start_of_the_encoder_is_taken_over(tmp_path):
    torch.manual_seed(0)
    psi, other = Psi(SMOKE_SIZES), Psi(SMOKE_SIZES)
    path = encoder_path(tmp_path)
    with pytest.raises(UserError, match=r"ResNet-34 is not imported; .* get resnet34-b627a593\.pth"):
        take_over_encoder(psi, path)
    encoder = other.encoder_global.encoder
    save_weights(path, encoder.state_dict(), {})
    take_over_encoder(psi, path)
    found = psi.encoder_global.encoder.state_dict()
    assert all(torch.equal(found[key], value) for key, value in encoder.state_dict().items())
    save_weights(path, {"conv1.weight": torch.zeros(64, 5, 7, 7)}, {})
    with pytest.raises(UserError, match="other sizes"):
        take_over_encoder(psi, path)


def test_no_two_networks_have_a_mark_in_common():
    layouts = {name: expected_state(own.build) for name, own in INSTRUMENTS.items()}
    for name, own in INSTRUMENTS.items():
        # What is left out is in the file all the same.
        layout = layouts[name] | dict.fromkeys(own.mark for _ in own.spare)
        assert recognised(layout) == (name, "")
        wrapped = dict.fromkeys(f"module.{key}" for key in layout)
        assert recognised(wrapped) == (name, "module.")
    # The loss's own face recognition is no instrument.
    sizes = scale_params("paper").networks
    identity = expected_state(lambda: NEEDED["identity"].build(sizes))
    assert recognised(identity) == ("identity", "")


@pytest.mark.parametrize("network", RESNETS)
def test_the_depth_of_face_recognition_is_read_from_its_blocks(tmp_path, network):
    # Without numbers the file is no good, but what it looks like is said all the same.
    build = lambda: IdentityNet(RESNETS[network])  # noqa: E731
    with pytest.raises(UserError, match=f"looks like {network}, but is damaged"):
        import_weights(write_layout(tmp_path, build()), tmp_path / "out")


def write_layout(folder: Path, network: nn.Module) -> Path:
    """A file with all names and shapes, and a single number for each tensor."""
    state = {}
    for key, value in network.state_dict().items():
        state[key] = torch.zeros((), dtype=value.dtype).expand(value.shape)
    path = folder / "layout.pth"
    torch.save(state, path)
    return path


def test_the_inception_of_torchvision_is_refused(tmp_path):
    """It has the names of the one that FID takes, and other weights."""
    with torch.device("meta"):
        network = inception_v3(init_weights=False, aux_logits=True)
    with pytest.raises(UserError, match=r"looks like inception") as error:
        import_weights(write_layout(tmp_path, network), tmp_path / "out")
    assert "'fc.weight' has the shape [1000, 2048], expected [1008, 2048]" in str(error.value)
    assert "'AuxLogits.fc.weight' extra" in str(error.value)


def test_a_damaged_instrument_says_what_to_do(tmp_path):
    import_weights(write_original(tmp_path, "syncnet", state_of("syncnet")), tmp_path)
    path = tmp_path / "syncnet.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"get syncnet_v2\.model .* `psi4d import FILE"):
        load_instrument(tmp_path, "syncnet")


def export(folder: Path, embedding: int) -> Path:
    path = folder / f"w600k_{embedding}.onnx"
    export_identity(IdentityNet(IdentitySizes((1, 1), 4, embedding)).eval(), path)
    return path


def test_a_model_of_insightfaces_packs_is_taken_as_it_is(tmp_path):
    file = export(tmp_path, 512)
    result = import_weights(file, tmp_path / "out")
    assert result.network == "w600k_512"
    assert result.path.read_bytes() == file.read_bytes()
    assert result.values > 512
    with pytest.raises(UserError, match="no face recognition network"):
        import_weights(export(tmp_path, 128), tmp_path / "out")
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="nothing was imported"):
        import_weights(tmp_path / "a.onnx", tmp_path / "out")


def test_doctor_lists_the_instruments(tmp_path):
    own = scale_params("paper")
    folder = {"official": str(tmp_path)}

    def found() -> dict[str, tuple[str, str]]:
        pretrain = own.pretrain.model_copy(update=folder)
        findings = examine(own.model_copy(update={"pretrain": pretrain}))
        return {finding.what: (finding.state, finding.detail) for finding in findings}

    for name, instrument in INSTRUMENTS.items():
        state, detail = found()[name]
        # Psi_3d starts from it.
        assert state == ("missing" if name == "resnet34" else "note")
        assert instrument.source in detail
        assert instrument.licence in detail
    import_weights(export(tmp_path, 512), tmp_path)
    assert found()["arcface"][0] == "ok"
    # At generated scale our own networks do.
    lines = {finding.what: finding for finding in examine(scale_params("demo"))}
    assert lines["instruments"].state == "ok"
