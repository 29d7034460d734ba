"""Stage train_psi3d: learning the static 3D head synthesizer from GenHead's images (paper section 4.2).

The losses are those of Eq. 2 (psi3d_objective), the batches those of the synthetic heads (synthetic_batches).
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.psi.network import EQUALISED, Psi
from model.volume.renderer import Rendering
from model.weights import load_weights
from pipeline.clips.held_out import IngestedClips
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.paths import OFFICIAL
from pipeline.core.pictures import save_grid
from pipeline.core.seeds import derive_seed
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.networks.instruments import encoder_path, missing
from pipeline.networks.judges import Judges
from pipeline.networks.weights import save_weights
from pipeline.train.adversary import Adversary
from pipeline.train.distributed import Group, only_first
from pipeline.train.loop import finish, train
from pipeline.train.psi3d_objective import StaticObjective
from pipeline.train.published import (
    published_discriminator,
    published_weights,
    take_discriminator,
    take_synthesizer,
)
from pipeline.train.synthesizer import SynthesizerTask, synthesizer_run, what_counts
from pipeline.train.synthetic_batches import HeadBatch, SyntheticHeads, wanted_in
from pipeline.train.validation import Pairs, Validation

PREVIEWED = 6  # samples


class StaticTask(SynthesizerTask[HeadBatch]):
    """Psi_3d, which shows a head from elsewhere."""

    def validate(self, group: Group) -> Mapping[str, float]:
        return self.validation(group, self.average.superresolution.enlarge, self._drawn)

    def preview(self, path: Path) -> None:
        """Source, target, the picture from there, and its foreground alone."""
        batch = to_device(self.data.batch(0, PREVIEWED), self.average.w_avg.device)
        with torch.no_grad():
            rendering = self._drawn(batch)
        save_grid(path, [batch.source, batch.target, rendering.image, rendering.foreground])

    def _drawn(self, pairs: Pairs | HeadBatch) -> Rendering:
        return draw_static(self.average, pairs)


def draw_static(psi: Psi, pairs: Pairs | HeadBatch) -> Rendering:
    """What Psi_3d makes of the sources at the cameras of the targets."""
    return psi(
        pairs.source,
        None,
        None,
        pairs.camera,
        motion_scale=0.0,
        camera_source_B25=pairs.camera_source,
    )


def train_psi3d(
    params: Params,
    heads: Path,
    perception: Path,
    genhead: Path,
    ingest: Path,
    labels: Path,
    out: Path,
    curves: Path | None = None,
    published: Path | None = None,
) -> dict[str, Any]:
    """Train Psi_3d on `heads` and write its average to `out`/psi3d.safetensors; returns the metrics.

    `perception` and `genhead` are the folders of the pretrained networks. The validation clips in
    `ingest`, with their fitted `labels`, are what it is looked at with. A killed run goes on from its
    last checkpoint. `published` says which imported Psi_3d it begins with, if train_psi3d.init asks for one.
    """
    section, sizes, device = params.train_psi3d, params.networks, choose_device(params.machine.device)
    inputs = (heads, perception, genhead, ingest, labels, published)
    mark = fingerprint(__file__, what_counts(section), sizes, params.seed, *inputs)
    folder = scratch_folder("train_psi3d", mark)

    torch.manual_seed(derive_seed(params.seed, "psi3d") % 2**63)
    # The order in which networks are made is part of what they are: all draw from one generator.
    psi = Psi(sizes)
    if section.init == "genhead":
        take_over_decoder(psi, load_weights(genhead / "genhead.safetensors")[0])
    if section.init == "imagenet":
        take_over_encoder(psi, encoder_path(genhead))
    if section.init == "official":
        psi.load_state_dict(published_weights(params, "psi3d")[0])
    psi.to(device)
    adversary = Adversary(Discriminator(sizes).to(device), section)
    if section.init == "official" and (known := published_discriminator(params, "psi3d")):
        adversary.network.load_state_dict(known)
    share = params.render_genhead.geometry_share
    data = SyntheticHeads(heads, params.seed, share, partial(wanted_in, section))
    judges = Judges.load(perception, device)
    objective = StaticObjective(params, psi, adversary, judges)
    validation = Validation(IngestedClips(ingest, labels, "validation", device), judges)
    recomputing = params.machine.activation_checkpointing
    task = StaticTask(
        objective,
        data,
        validation,
        section,
        facts={"network": "psi3d", "sizes": asdict(sizes)},
        recomputing=recomputing,
    )

    run = synthesizer_run("train_psi3d", folder, section, device, curves)
    trained = train(task, run)
    only_first(trained.group)

    task.snapshot(out / "psi3d.safetensors", section.images)
    facts = {"network": "discriminator", "sizes": asdict(sizes)}
    save_weights(out / "discriminator.safetensors", adversary.network.state_dict(), facts)
    write_json(out / "moved.json", trained.moved)
    finish(run)
    return {
        "history": trained.history,
        "heads": len(data.keys),
        "parameters": sum(parameter.numel() for parameter in psi.parameters()),
    }


def take_psi3d(
    params: Params,
    perception: Path,
    ingest: Path,
    labels: Path,
    out: Path,
) -> dict[str, Any]:
    """Write the published Psi_3d to `out`, as `train_psi3d` leaves one; returns the metrics.

    It is looked at with the validation clips. Raises UserError when it was not imported.
    """
    device = choose_device(params.machine.device)
    take_discriminator(params, out)
    psi = Psi(params.networks).to(device).requires_grad_(False)
    clips = IngestedClips(ingest, labels, "validation", device)
    validation = Validation(clips, Judges.load(perception, device))
    return take_synthesizer(params, "psi3d", psi, validation, partial(draw_static, psi), out)


def take_over_decoder(psi: Psi, genhead: Mapping[str, Tensor]) -> None:
    """Start from GenHead's tri-plane decoder and super-resolution.

    L_T asks for GenHead's planes, so its decoder already reads them. The weights of super-resolution mean
    something with the style alone that they were trained with, which comes along: ones (facts 3.1).
    """
    taken = {key: value for key, value in genhead.items() if key.startswith(EQUALISED)}
    psi.load_state_dict(psi.state_dict() | taken | {"w_avg": torch.ones_like(psi.w_avg)})


def take_over_encoder(psi: Psi, path: Path) -> None:
    """Start the global encoder from ImageNet's ResNet-34.

    Raises UserError when it was not imported or has other sizes.
    """
    advice = missing("resnet34", OFFICIAL)
    if not path.is_file():
        raise UserError(f"train_psi3d.init is imagenet, but {path} is not there: ResNet-34 is {advice}")
    state, _ = load_weights(path)
    try:
        psi.encoder_global.encoder.load_state_dict(state)
    except RuntimeError as error:
        sizes = "networks.psi has encoder_width 64 and encoder_blocks 3, 4, 6, 3 then"
        raise UserError(f"train_psi3d.init is imagenet, but the encoder has other sizes: {sizes}") from error
