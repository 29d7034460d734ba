"""Stage train: learning Psi by cross-view self-reenactment (paper section 4.3).

The losses are those of Eq. 5 (psi_objective), the batches those of the cache (view_batches).
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.head.flame import Flame
from model.psi.network import Psi, is_motion
from model.volume.renderer import Rendering
from model.weights import load_weights
from pipeline.clips.held_out import CachedClips
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.files import write_json
from pipeline.core.pictures import save_grid
from pipeline.core.seeds import derive_seed
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.neck import Neck, TurningNeck
from pipeline.networks.judges import Judges
from pipeline.networks.weights import save_weights
from pipeline.train.adversary import Adversary
from pipeline.train.blinks import BlinkCompensation
from pipeline.train.distributed import Group, only_first
from pipeline.train.loop import finish, train
from pipeline.train.psi_objective import ReenactmentObjective, reenacted
from pipeline.train.published import published_discriminator, published_weights, take_synthesizer
from pipeline.train.synthesizer import SynthesizerTask, synthesizer_run, what_counts
from pipeline.train.validation import Pairs, Validation
from pipeline.train.view_batches import FrameBatch, PseudoMultiView

PREVIEWED = 6  # samples


class ReenactmentTask(SynthesizerTask[FrameBatch]):
    """Psi, which moves a source frame like a driving frame."""

    objective: ReenactmentObjective

    def validate(self, group: Group) -> Mapping[str, float]:
        enlarge = self.average.superresolution.enlarge
        return self.validation(group, enlarge, self._moved, self._still)

    def preview(self, path: Path) -> None:
        """Source, target, and the source with the driving motion and with its own."""
        batch = to_device(self.data.batch(0, PREVIEWED), self.average.w_avg.device)
        with torch.no_grad():
            moved = self._moved(batch).image
            still = self._still(batch).image
        save_grid(path, [batch.source, batch.target, moved, still])

    def _moved(self, pairs: Pairs | FrameBatch) -> Rendering:
        return reenacted(self.average, self.objective.neck, pairs)

    def _still(self, pairs: Pairs | FrameBatch) -> Rendering:
        return draw_still(self.average, self.objective.neck, pairs)


def draw_still(psi: Psi, neck: Neck, pairs: Pairs | FrameBatch) -> Rendering:
    """What `reenacted` makes of the sources with the motion that they have themselves."""
    return reenacted(psi, neck, replace(pairs, motion_driving=pairs.motion_source))


def train_psi(
    params: Params,
    views: Path,
    perception: Path,
    psi3d: Path,
    out: Path,
    curves: Path | None = None,
    bad: Collection[str] = (),
    published: Path | None = None,
) -> dict[str, Any]:
    """Train Psi on the cache in `views` and write its average to `out`/psi.safetensors; returns the metrics.

    Frames of the cache with the keys in `bad` are left out. `psi3d` is the folder of Psi_3d, whose weights
    Psi starts from when train.init is psi3d. A killed run goes on from its last checkpoint. `curves` is
    where its history is shown meanwhile, if anywhere. `published` says which imported Psi it begins with, if
    train.init asks for one.
    """
    section, sizes, device = params.train, params.networks, choose_device(params.machine.device)
    head = params.flame.model if section.blink_compensation or section.neck == "field" else ""
    numbers = (what_counts(section), sizes, params.seed, head, sorted(bad))
    inputs = (*numbers, views, perception, psi3d, published)
    folder = scratch_folder("train", fingerprint(__file__, *inputs))

    torch.manual_seed(derive_seed(params.seed, "psi") % 2**63)
    # The order in which networks are made is part of what they are: all draw from one generator.
    psi = Psi(sizes.driven_by(section.motion)).to(device)
    adversary = Adversary(Discriminator(sizes).to(device), section)
    # Psi plays against the discriminator that has learnt with Psi_3d; a fresh one would know nothing.
    if section.init == "psi3d":
        start_from_static(psi, load_weights(psi3d / "psi3d.safetensors")[0])
        adversary.network.load_state_dict(load_weights(psi3d / "discriminator.safetensors")[0])
    if section.init == "official":
        psi.load_state_dict(published_weights(params, "psi")[0])
        known = published_discriminator(params, "psi")
        # Without its own one it goes on against that of Psi_3d.
        if known is None:
            known, _ = load_weights(psi3d / "discriminator.safetensors")
        adversary.network.load_state_dict(known)
    data = PseudoMultiView(
        views,
        seed=params.seed,
        clips=section.clips,
        motion=section.motion,
        substitute_p=section.substitute_p,
        substitute_q=section.substitute_q,
        bad=bad,
        blinks=blink_compensation(params),
        neck=section.neck,
    )
    judges = Judges.load(perception, device)
    objective = ReenactmentObjective(params, psi, adversary, judges, neck_in_training(params, device))
    validation = Validation(CachedClips(views, section.motion, "validation", device, bad), judges)
    task = ReenactmentTask(
        objective,
        data,
        validation,
        section,
        facts={
            "network": "psi",
            "sizes": asdict(sizes),
            "motion": section.motion,
            "neck": section.neck,
        },
        motion_scale=section.motion_learning_rate_scale,
        recomputing=params.machine.activation_checkpointing,
    )

    run = synthesizer_run("train", folder, section, device, curves)
    trained = train(task, run)
    only_first(trained.group)

    save_weights(out / "psi.safetensors", task.average.state_dict(), task.facts)
    write_json(out / "moved.json", trained.moved)
    finish(run)
    return {
        "history": trained.history,
        "clips": len(data.names),
        "clips_left_out": data.clips_left_out,
        "frames_left_out": data.frames_left_out,
        "frames_marked_bad": data.frames_marked_bad,
        "parameters": sum(parameter.numel() for parameter in psi.parameters()),
        **_real_shares(data, run.steps, section.batch),
    }


def take_psi(
    params: Params,
    views: Path,
    perception: Path,
    out: Path,
    bad: Collection[str] = (),
) -> dict[str, Any]:
    """Write the published Psi to `out`, as `train_psi` leaves one; returns the metrics.

    It is looked at with the validation clips. Raises UserError when it was not imported.
    """
    section, device = params.train, choose_device(params.machine.device)
    psi = Psi(params.networks.driven_by(section.motion)).to(device).requires_grad_(False)
    clips = CachedClips(views, section.motion, "validation", device, bad)
    validation = Validation(clips, Judges.load(perception, device))
    neck = neck_in_training(params, device)
    moved, still = partial(reenacted, psi, neck), partial(draw_still, psi, neck)
    return take_synthesizer(params, "psi", psi, validation, moved, out, still)


def blink_compensation(params: Params) -> BlinkCompensation | None:
    """What moves the cameras of pseudo targets, if train.blink_compensation asks for it."""
    if not params.train.blink_compensation:
        return None
    return BlinkCompensation(Flame(head_model.load(params.flame.model)))


def neck_in_training(params: Params, device: torch.device) -> Neck:
    """How necks turn in training."""
    if params.train.neck == "none":
        return Neck()
    flame = Flame(head_model.load(params.flame.model))
    return TurningNeck(flame.to(device))


def start_from_static(psi: Psi, static: Mapping[str, Tensor]) -> None:
    """Psi_3d's weights, but for the motion-related layers, which stay random (paper section 4.3)."""
    taken = {key: value for key, value in static.items() if not is_motion(key)}
    psi.load_state_dict(psi.state_dict() | taken)


def _real_shares(data: PseudoMultiView, steps: int, batch: int) -> dict[str, float]:
    """How often a real frame was the driving image (p) and the target (q), over the whole run."""
    # They follow from the seed, so that they need not be counted while training runs.
    real_p = real_q = 0
    for step in range(steps):
        for choice in data.choose(step, batch):
            real_p += choice.p == 0
            real_q += choice.q == 0
    return {
        "real_share_p": round(real_p / (steps * batch), 4),
        "real_share_q": round(real_q / (steps * batch), 4),
    }
