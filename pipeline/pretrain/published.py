"""Stage pretrain with pretrain.source official: the published networks, as `psi4d import` left them.

They are written under the names that later stages read. What has no published counterpart of our form,
the estimator of expression and head pose, is trained here on the fitted labels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.judges.identity import IdentityNet
from model.judges.trunk import PublishedTrunk
from model.psi.imagenet import encoder_start
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.engine.fingerprint import fingerprint
from pipeline.networks.instruments import encoder_path, load_instrument
from pipeline.networks.judges import Judges
from pipeline.networks.published import NEEDED, load_imported, weights_path
from pipeline.networks.weights import save_weights
from pipeline.pretrain.alike import warn_of_alike
from pipeline.pretrain.faces import read_faces
from pipeline.pretrain.onnx_export import export_identity
from pipeline.pretrain.perception import PerceptionTrainer
from pipeline.pretrain.unseen import measure_unseen
from pipeline.train.distributed import only_first

Weights = dict[str, Tensor]


def take(params: Params, item: str, out: Path) -> dict[str, Weights]:
    """Write the networks of an item of the matrix to `out` and return their weights by name.

    Raises UserError that lists all imported networks that are missing, and those of this item that are
    not what they should be.
    """
    folder = Path(params.pretrain.official)
    loaded, problems = {}, []
    # All problems are collected: an import takes a while, and a person should see at once what is left to do.
    for name, published in NEEDED.items():
        # Those of other items are only looked for, so that one message names all that is missing.
        if published.item != item and weights_path(folder, name).is_file():
            continue
        if name == "genhead" and spares_genhead(folder):
            continue
        try:
            loaded[name] = load_imported(folder, name, params.networks)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        first = "pretrain.source is official, but imported weights are not as they should be:"
        last = "or set pretrain.source to generated to train small networks"
        raise UserError("\n  ".join([first, *problems, last]))
    for name, (state, facts) in loaded.items():
        save_weights(weights_path(out, name), state, facts)
    return {name: state for name, (state, _) in loaded.items()}


def spares_genhead(folder: Path) -> bool:
    """Whether GenHead is not there and need not be: a published Psi_3d has learnt from it already."""
    return weights_path(folder, "psi3d").is_file() and not weights_path(folder, "genhead").is_file()


def genhead(
    params: Params,
    _ingest: Path,
    _labels: Path,
    _truth: Path,
    out: Path,
    _curves: Path | None = None,
) -> dict[str, Any]:
    """Write `out`/genhead.safetensors, and portraits.safetensors without any.

    The codes of the portraits that the published GenHead was trained on are not known. Of GenHead there is
    nothing where a published Psi_3d makes it needless. An imported ResNet-34 becomes encoder.safetensors.
    """
    states = take(params, "genhead", out)
    none = {"z": torch.zeros(0, params.networks.genhead.z_dim)}
    save_weights(out / "portraits.safetensors", none, {"network": "portraits that genhead knows"})
    take_encoder(Path(params.pretrain.official), out)
    return _report(states)


def take_encoder(folder: Path, out: Path) -> None:
    """Write what Psi_3d's global encoder starts from to `out`, if ResNet-34 was imported.

    It goes this way so that a training depends on this file alone and on no other import.
    """
    loaded = load_instrument(folder, "resnet34")
    if loaded is not None:
        start = encoder_start(loaded.network.state_dict())
        save_weights(encoder_path(out), start, {"network": "encoder", "imported": loaded.facts["imported"]})


def motion(
    params: Params,
    _ingest: Path,
    _labels: Path,
    _truth: Path,
    out: Path,
    _curves: Path | None = None,
) -> dict[str, Any]:
    """Write `out`/motion.safetensors."""
    return _report(take(params, "motion", out))


def perception(
    params: Params,
    ingest: Path,
    labels: Path,
    truth: Path,
    out: Path,
    curves: Path | None = None,
) -> dict[str, Any]:
    """Write what `pretrain_perception` writes, with the published face recognition and LPIPS.

    Returns its measures as well.
    """
    states = take(params, "perception", out)
    identity, trunk = IdentityNet(params.networks.identity), PublishedTrunk()
    identity.load_state_dict(states["identity"])
    trunk.load_state_dict(states["trunk"])
    export_identity(identity, out / "identity.onnx")

    section = params.pretrain.perception
    inputs = (section, params.flame, params.seed, "official", ingest, labels, truth)
    mark = fingerprint(__file__, *inputs)
    faces = read_faces(ingest, labels, truth, "train")
    unseen = read_faces(ingest, labels, truth, "validation")
    trainer = PerceptionTrainer(params, faces, unseen, mark, curves)
    regressor = trainer.regressor()
    only_first(trainer.group)
    note = {"trained_on": len(faces), "image": faces.size}
    facts = note | {"network": "regressor"}
    save_weights(out / "regressor.safetensors", regressor.state_dict(), facts)
    trainer.finish()
    judges = Judges(identity, trunk, regressor)
    measured = measure_unseen(judges, unseen) | warn_of_alike(judges, ingest, labels, truth, out)
    return _report(states) | note | trainer.losses | measured | {"history": trainer.history}


def _report(states: dict[str, Weights]) -> dict[str, Any]:
    """Metrics of what was only taken: numbers in each network, and curves without points."""
    report: dict[str, Any] = {"history": []}
    for name, state in states.items():
        counts = [value.numel() for value in state.values()]
        report[f"{name}_values"] = sum(counts)
    return report


PUBLISHED: dict[str, Callable[..., dict[str, Any]]] = {
    "perception": perception,
    "motion": motion,
    "genhead": genhead,
}
