"""The published networks that the graph can use instead of training small ones.

Where they come from, and whether what was imported is what it should be.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.adversary.discriminator import Discriminator
from model.genhead import GenHead
from model.head.flame import Flame
from model.judges.identity import IdentityNet
from model.judges.trunk import PUBLISHED_TRUNK, PublishedTrunk
from model.psi.motion_encoder import MotionEncoder
from model.psi.network import Psi
from model.sizes import Sizes
from model.weights import load_weights
from pipeline.core.imported import DISCRIMINATOR
from pipeline.core.readable import readable_bytes
from pipeline.geometry import standin


@dataclass(frozen=True)
class Published:
    """A published network."""

    item: str  # of the stage pretrain
    told: str  # what its JSON says it is
    original: str
    source: str
    build: Callable[[Sizes], nn.Module]  # makes ours, whose state dict has the published names
    sizes: Callable[[Sizes], Any] = lambda sizes: sizes
    sha256: str = ""  # how the file's hash begins, if that was ever published


NEEDED = {
    "genhead": Published(
        item="genhead",
        told="genhead",
        original="the GenHead pickle of Portrait4D",
        source="github.com/YuDeng/Portrait-4D, pre-trained models",
        # The head model adds nothing to the state dict.
        build=lambda sizes: GenHead(sizes, Flame(standin.standin())),
    ),
    "motion": Published(
        item="motion",
        told="motion encoder",
        original="motion_model.pth of PD-FGC",
        source="github.com/YuDeng/Portrait-4D, preparation; the method is "
        "github.com/Dorniwang/PD-FGC-inference",
        build=lambda sizes: MotionEncoder(sizes.motion),
        sizes=lambda sizes: sizes.motion,
    ),
    "identity": Published(
        item="perception",
        told="identity",
        original="backbone.pth of ArcFace iResNet-18, trained on MS1MV3",
        source="github.com/deepinsight/insightface, recognition/arcface_torch, model zoo",
        build=lambda sizes: IdentityNet(sizes.identity),
        sizes=lambda sizes: sizes.identity,
    ),
    "trunk": Published(
        item="perception",
        told=PUBLISHED_TRUNK,
        original="vgg16-397923af.pth of torchvision",
        source="download.pytorch.org/models, described as VGG16_Weights.IMAGENET1K_V1; "
        "LPIPS's linear layers come with the lpips package",
        build=lambda sizes: PublishedTrunk(),
        sizes=lambda sizes: None,
        sha256="397923af",
    ),
}
SINGLE = 4  # bytes of a number
PAGE = "github.com/YuDeng/Portrait-4D, pre-trained models"
# Synthesizers that a training begins with or that take its place, and the discriminators in their files.
SYNTHESIZERS = {
    "psi3d": Published(
        item="train_psi3d",
        told="psi3d",
        original="the pickle of Portrait4D's static stage (portrait4d-static-genhead512)",
        source=PAGE,
        build=Psi,
    ),
    "psi": Published(
        item="train",
        told="psi",
        original="the pickle of Portrait4D-v2 (portrait4d-v2-vfhq512)",
        source=PAGE,
        build=Psi,
    ),
}
for name, own in tuple(SYNTHESIZERS.items()):
    SYNTHESIZERS[name + DISCRIMINATOR] = replace(own, told="discriminator", build=Discriminator)


def expected_state(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Names, shapes and dtypes of a network's state dict, as tensors without numbers."""
    # Tensors on the device meta have no memory: the published Psi would take a gigabyte and seconds.
    with torch.device("meta"):
        state = build().state_dict()
    # What a network makes of arrays is on the CPU all the same.
    return {name: value.to("meta") for name, value in state.items()}


def weights_size(state: dict[str, Tensor]) -> str:
    """How many bytes the weights of a network are, in words; its file may hold more than them."""
    numbers = sum(value.numel() for value in state.values())
    return f"weights of {readable_bytes(SINGLE * numbers)}"


def facts_of(name: str, sizes: Sizes) -> dict[str, Any]:
    """What the JSON of an imported network says it is."""
    own = NEEDED[name].sizes(sizes)
    facts: dict[str, Any] = {"network": NEEDED[name].told}
    if own is not None:
        facts["sizes"] = asdict(own)
    return facts


def weights_path(folder: Path, name: str) -> Path:
    """Where the imported network lies."""
    return folder / f"{name}.safetensors"


def load_imported(
    folder: Path,
    name: str,
    sizes: Sizes,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a published network as `psi4d import` wrote them, and their JSON.

    Raises ValueError, with what to do, when they are missing, damaged, of something else or of other sizes
    than `sizes`.
    """
    published, path = (NEEDED | SYNTHESIZERS)[name], weights_path(folder, name)
    expected = expected_state(lambda: published.build(sizes))
    source = f"{published.source}; {weights_size(expected)}"
    advice = f"get {published.original} ({source}) and run `psi4d import FILE --out {folder}`"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {advice}")
    try:
        state, facts = load_weights(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {advice}") from error
    # A network that was trained here has the same name, but was not imported.
    if facts.get("network") != published.told or not isinstance(facts.get("imported"), dict):
        raise ValueError(f"{path} is no imported {published.told}: {advice}")
    if _shapes(state) != _shapes(expected):
        sizes_of = "the published ones are those of `psi4d scale paper`"
        raise ValueError(f"{path} has other sizes than `networks` of params.yaml; {sizes_of}")
    return state, facts


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}
