"""The published Psi_3d and Psi, as `psi4d import` left them: what a training begins with, or in its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.psi.network import Psi
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.imported import DISCRIMINATOR
from pipeline.core.paths import in_project
from pipeline.core.progress import say
from pipeline.core.seeds import derive_seed
from pipeline.networks.published import SYNTHESIZERS, load_imported, weights_path
from pipeline.networks.weights import save_weights
from pipeline.train.distributed import Group
from pipeline.train.validation import Draw, Validation

Weights = Mapping[str, Tensor]


def published_weights(params: Params, name: str) -> tuple[Weights, dict[str, Any]]:
    """The weights of the published synthesizer `name`, psi3d or psi, and their JSON.

    Raises UserError, with what to do, when they are missing, damaged or of other sizes.
    """
    stage, sizes = SYNTHESIZERS[name].item, params.networks
    if name == "psi":
        sizes = sizes.driven_by(params.train.motion)
    try:
        return load_imported(in_project(params.pretrain.official), name, sizes)
    except ValueError as error:
        section = getattr(params, stage)
        key = "source" if section.source == "official" else "init"
        raise UserError(f"{stage}.{key} is official, but {error}") from error


def published_discriminator(params: Params, name: str) -> Weights | None:
    """The discriminator that the published synthesizer `name` played against, if its file had one."""
    folder, own = in_project(params.pretrain.official), f"{name}{DISCRIMINATOR}"
    if not weights_path(folder, own).is_file():
        return None
    try:
        state, _ = load_imported(folder, own, params.networks)
    except ValueError as error:
        raise UserError(str(error)) from error
    return state


def take_discriminator(params: Params, out: Path) -> None:
    """Write the discriminator of Psi_3d, with which Psi begins, or a new one where there is none."""
    state = published_discriminator(params, "psi3d")
    if state is None:
        say("train_psi3d: no discriminator was imported with Psi_3d; Psi begins with a new one")
        torch.manual_seed(derive_seed(params.seed, "psi3d") % 2**63)
        state = Discriminator(params.networks).state_dict()
    save_weights(out / "discriminator.safetensors", state, {"network": "discriminator"})


def take_synthesizer(
    params: Params,
    name: str,
    psi: Psi,
    validation: Validation,
    draw: Draw,
    out: Path,
    draw_still: Draw | None = None,
) -> dict[str, Any]:
    """Write the published synthesizer `name` to `out` as a training would leave it; returns the metrics.

    `psi` gets its weights; `draw` and `draw_still` are its pictures of held-out people.
    """
    state, facts = published_weights(params, name)
    psi.load_state_dict(state)
    save_weights(out / f"{name}.safetensors", state, facts)
    # Nothing has moved.
    write_json(out / "moved.json", {})
    numbers = validation(Group(), psi.superresolution.enlarge, draw, draw_still)
    row = {f"validation_{key}": round(float(value), 6) for key, value in numbers.items()}
    return {
        "history": [{"step": 0, "images": 0, **row}],
        "source": "official",
        "parameters": sum(parameter.numel() for parameter in psi.parameters()),
    }
