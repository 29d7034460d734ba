"""The published networks that the graph can use instead of training small ones: where they come from, and whether what was imported is it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.genhead import GenHead
from model.head.flame import Flame
from model.judges.identity import IdentityNet
from model.judges.trunk import PUBLISHED_TRUNK, PublishedTrunk
from model.psi.motion_encoder import MotionEncoder
from model.sizes import Sizes
from model.weights import load_weights
from pipeline.geometry import standin


@dataclass(frozen=True)
class Published:
    """A published network. `told` is what its JSON says it is; `build` makes ours, whose state dict has the published names."""

    item: str  # of the stage pretrain
    told: str
    original: str
    source: str
    build: Callable[[Sizes], nn.Module]
    sizes: Callable[[Sizes], Any] = lambda sizes: sizes
    sha256: str = ""  # how the file's hash begins, if that was ever published


NEEDED = {
    "genhead": Published(
        "genhead",
        "genhead",
        "the GenHead pickle of Portrait4D",
        "github.com/YuDeng/Portrait-4D, pre-trained models",
        lambda sizes: GenHead(
            sizes, Flame(standin.standin())
        ),  # the head model adds nothing to the state dict
    ),
    "motion": Published(
        "motion",
        "motion encoder",
        "motion_model.pth of PD-FGC",
        "github.com/YuDeng/Portrait-4D, preparation; the method is github.com/Dorniwang/PD-FGC-inference",
        lambda sizes: MotionEncoder(sizes.motion),
        lambda sizes: sizes.motion,
    ),
    "identity": Published(
        "perception",
        "identity",
        "backbone.pth of ArcFace iResNet-18, trained on MS1MV3",
        "github.com/deepinsight/insightface, recognition/arcface_torch, model zoo",
        lambda sizes: IdentityNet(sizes.identity),
        lambda sizes: sizes.identity,
    ),
    "trunk": Published(
        "perception",
        PUBLISHED_TRUNK,
        "vgg16-397923af.pth of torchvision",
        "download.pytorch.org/models, described as VGG16_Weights.IMAGENET1K_V1; LPIPS's linear layers come with the lpips package",
        lambda sizes: PublishedTrunk(),
        lambda sizes: None,
        "397923af",
    ),
}


def expected_state(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Names, shapes and dtypes of a network's state dict, as tensors without numbers."""
    with torch.device("meta"):
        return {name: value.to("meta") for name, value in build().state_dict().items()}


def facts_of(name: str, sizes: Sizes) -> dict[str, Any]:
    """What the JSON of an imported network says it is."""
    own = NEEDED[name].sizes(sizes)
    return {"network": NEEDED[name].told} | ({"sizes": asdict(own)} if own is not None else {})


def weights_path(folder: Path, name: str) -> Path:
    """Where the imported network lies."""
    return folder / f"{name}.safetensors"


def load_imported(folder: Path, name: str, sizes: Sizes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a published network as `psi4d import` wrote them, and their JSON.

    Raises ValueError, with what to do, when they are missing, damaged, of something else or of other sizes than `sizes`.
    """
    published, path = NEEDED[name], weights_path(folder, name)
    advice = f"get {published.original} ({published.source}) and run `psi4d import FILE --out {folder}`"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {advice}")
    try:
        state, facts = load_weights(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {advice}") from error
    if facts.get("network") != published.told or not isinstance(facts.get("imported"), dict):
        raise ValueError(f"{path} is no imported {published.told}: {advice}")
    wanted = expected_state(lambda: published.build(sizes))
    if {key: value.shape for key, value in state.items()} != {
        key: value.shape for key, value in wanted.items()
    }:
        raise ValueError(
            f"{path} has other sizes than `networks` of params.yaml; the published ones are those of `psi4d scale paper`"
        )
    return state, facts
