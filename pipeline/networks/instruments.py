"""The published instruments of papers: which files they are, and whether what was imported is one of them.

None is needed: without its file the metric of an instrument is that of our own small network, or not there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet34

from model.instruments.arcface import RESNETS
from model.instruments.deep3d import Deep3D
from model.instruments.emotion import EmotionNet
from model.instruments.inception import FidInception
from model.instruments.syncnet import SyncNet
from model.judges.identity import IdentityNet
from model.weights import load_weights
from pipeline.networks.published import expected_state, weights_size

COUNTER = "num_batches_tracked"  # of norms: no use outside of training, and not in every file


@dataclass(frozen=True)
class Instrument:
    """A published network that measures, or that another starts from."""

    serves: str  # what it is for
    original: str
    source: str
    licence: str
    # The name of a tensor that no other network has.
    mark: str
    build: Callable[[], nn.Module]
    spare: tuple[str, ...] = ()  # beginnings of names that are left out
    sha256: str = ""  # how the file's hash begins, if that was ever published


INSTRUMENTS = {
    "deep3d": Instrument(
        serves="AED and APD",
        original="epoch_20.pth of Deep3DFaceRecon_pytorch",
        source="github.com/sicxu/Deep3DFaceRecon_pytorch, two releases that must not be mixed",
        licence="code MIT, weights without a text of their own",
        mark="final_layers.0.weight",
        build=Deep3D,
    ),
    "inception": Instrument(
        serves="FID",
        original="pt_inception-2015-12-05-6726825d.pth of pytorch-fid",
        source="github.com/mseitzer/pytorch-fid, releases; torch-fidelity has the same file",
        licence="Apache-2.0",
        mark="Mixed_7c.branch_pool.conv.weight",
        build=FidInception,
        sha256="6726825d",
    ),
    "emotion": Instrument(
        serves="AED_f",
        original="the checkpoint of EMOCA's EmotionRecognition/image_based_networks/ResNet50",
        source="emoca.is.tue.mpg.de, after registration",
        licence="Max Planck: research that is not commercial, no redistribution",
        # Face recognition within a `backbone` has no third convolution in its blocks.
        mark="backbone.layer1.0.conv3.weight",
        build=EmotionNet,
        spare=("backbone.fc.",),
    ),
    "syncnet": Instrument(
        serves="LSE-C and LSE-D",
        original="syncnet_v2.model of syncnet_python",
        source="github.com/joonson/syncnet_python",
        licence="code MIT, weights without a text of their own",
        mark="netcnnlip.0.weight",
        build=SyncNet,
    ),
    "arcface": Instrument(
        serves="ID and Cons. by another network than the loss's",
        original="w600k_r50.onnx of the pack buffalo_l, or backbone.pth of an IResNet-50 or -100",
        source="github.com/deepinsight/insightface, model packs and model zoo",
        licence="research that is not commercial",
        mark="layer1.2.prelu.weight",
        build=partial(IdentityNet, RESNETS["iresnet50"]),
    ),
    "resnet34": Instrument(
        serves="the start of Psi_3d's global encoder",
        original="resnet34-b627a593.pth of torchvision",
        source="download.pytorch.org/models, described as ResNet34_Weights.IMAGENET1K_V1",
        licence="BSD-3, trained on ImageNet",
        mark="layer4.2.bn2.weight",
        build=resnet34,
        sha256="b627a593",
    ),
}
# Instruments of evaluation: the last one starts a training.
MEASURING = tuple(name for name in INSTRUMENTS if name != "resnet34")


def network_of(name: str, tensors: Mapping[str, Any]) -> tuple[str, Callable[[], nn.Module]]:
    """What the network calls itself, and what builds it: of face recognition the blocks tell the depth."""
    if name != "arcface":
        return name, INSTRUMENTS[name].build
    depths = {}
    for network, sizes in RESNETS.items():
        # The last block of the third layer, which is as deep in no two of them.
        depths[f"layer3.{sizes.blocks[2] - 1}.prelu.weight"] = network
    # A deeper network has the blocks of the shallower ones, too.
    found = [network for block, network in depths.items() if block in tensors]
    network = found[-1] if found else "iresnet50"
    return network, partial(IdentityNet, RESNETS[network])


def instrument_path(folder: Path, name: str) -> Path:
    """Where an imported instrument lies."""
    return folder / f"{name}.safetensors"


def encoder_path(genhead: Path) -> Path:
    """Where the stage pretrain puts what Psi_3d's encoder starts from: beside GenHead."""
    return genhead / "encoder.safetensors"


@dataclass(frozen=True)
class Loaded:
    """An imported instrument, frozen, and what its JSON says of it."""

    network: nn.Module
    facts: dict[str, Any]


def load_instrument(
    folder: Path,
    name: str,
    device: torch.device | str = "cpu",
) -> Loaded | None:
    """An instrument as `psi4d import` wrote it, in eval mode; None where it was not imported.

    Raises ValueError, with what to do, when it is damaged or something else.
    """
    path = instrument_path(folder, name)
    if not path.is_file():
        return None
    advice = f"get {INSTRUMENTS[name].original} and run `psi4d import FILE --out {folder}` again"
    try:
        state, facts = load_weights(path)
        if facts["instrument"] != name:
            raise ValueError(f"it is {facts['instrument']}")
        _, build = network_of(name, state)
        # Without memory of its own, as the weights bring theirs; nothing is drawn from the global generator.
        with torch.device("meta"):
            network = build()
        network.load_state_dict(state, assign=True)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be used ({reason:.300}): {advice}") from error
    return Loaded(network.to(device).requires_grad_(False).eval(), facts)


def described(facts: Mapping[str, Any]) -> str:
    """An instrument in words: its network, its file and the beginning of its hash."""
    origin = facts["imported"]
    return f"{facts['network']}, {origin['file']}, sha256 {origin['sha256'][:12]}..."


def missing(name: str, folder: Path) -> str:
    """What to do about an instrument that was not imported."""
    own = INSTRUMENTS[name]
    terms = f"{own.source}; {own.licence}; {weights_size(expected_state(own.build))}"
    get = f"get {own.original} ({terms}) and run `psi4d import FILE --out {folder}`"
    return f"not imported; for {own.serves} {get}"


def with_counters(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the counters that its file does not have."""
    for name, tensor in expected.items():
        if name.endswith(COUNTER) and name not in state:
            state[name] = torch.zeros((), dtype=tensor.dtype)
    return state
