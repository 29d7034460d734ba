"""What the trainings of Psi and Psi_3d share: a synthesizer, its moving average and its discriminator."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from model.checkpointing import recompute, recompute_distance
from model.psi.network import Psi
from pipeline.config.params import Training
from pipeline.networks.judges import Judges
from pipeline.networks.weights import save_weights
from pipeline.train.adversary import Adversary
from pipeline.train.loop import Run
from pipeline.train.precision import allow_tf32, use_bfloat16
from pipeline.train.rates import synthesizer_optimiser
from pipeline.train.schedule import set_rates
from pipeline.train.task import Batch, Loss, Task
from pipeline.train.validation import Validation


class Data(Protocol[Batch]):
    """Where batches come from: `rows` of the `size` samples of a step."""

    def batch(self, step: int, size: int, rows: slice = ...) -> Batch: ...


class Objective(Protocol[Batch]):
    """What a batch asks of the synthesizer and then of the discriminator."""

    psi: Psi
    adversary: Adversary
    judges: Judges

    def __call__(self, step: int, microbatch: int, batch: Batch) -> Iterator[Loss]: ...


class SynthesizerTask(Task[Batch]):
    """Trains a synthesizer by `objective`; its average is what the stage writes in the end."""

    def __init__(
        self,
        objective: Objective[Batch],
        data: Data[Batch],
        validation: Validation,
        section: Training,
        facts: Mapping[str, Any],
        motion_scale: float = 0.0,
        recomputing: bool = False,
    ) -> None:
        """`facts` say what the weights are that come of it.

        `motion_scale` is that of `synthesizer_optimiser`; `recomputing` saves memory and costs time.
        """
        psi, adversary = objective.psi, objective.adversary
        self.objective, self.data, self.validation, self.section = objective, data, validation, section
        self.facts = facts
        self.average = copy.deepcopy(psi).requires_grad_(False)
        # Held-out people are judged in float32, by the networks that were given.
        objective.judges = copy.deepcopy(objective.judges)
        # Only now: a copy of a network whose parts are wrapped would call the parts of the original.
        if recomputing:
            recompute(psi)
            recompute_distance(objective.judges.trunk)
        allow_tf32(section.precision == "tf32")
        if section.precision == "bfloat16":
            use_bfloat16(psi, objective.judges)
        self.optimiser = synthesizer_optimiser(psi, section, motion_scale)
        self.networks = {"psi": psi, "discriminator": adversary.network}
        self.optimisers = {"psi": self.optimiser, "discriminator": adversary.optimiser}
        self.averages = {"psi": self.average}

    def batch(self, step: int, microbatch: int) -> Batch:
        # Dealt in turn: what a batch puts first is then spread evenly over its microbatches.
        microbatches = self.section.batch // self.section.microbatch
        return self.data.batch(step, self.section.batch, slice(microbatch, None, microbatches))

    def set_rates(self, step: int) -> None:
        # The discriminator's rate stays as it is.
        images = step * self.section.batch
        set_rates(self.optimiser, images, self.section.warmup, self.section.decay_until)

    def losses(self, step: int, microbatch: int, batch: Batch) -> Iterator[Loss]:
        return self.objective(step, microbatch, batch)

    def snapshot(self, path: Path, images: int) -> None:
        save_weights(path, self.average.state_dict(), {**self.facts, "images": images})


def what_counts(section: Training) -> dict[str, Any]:
    """What a run depends on, but for its length: one with more images goes on where a shorter one ended."""
    return section.model_dump(exclude={"images", "checkpoint_every", "snapshot_every"})


def synthesizer_run(
    label: str,
    folder: Path,
    section: Training,
    device: torch.device,
    curves: Path | None,
) -> Run:
    """The run that `section` describes, whose numbers count images."""
    return Run(
        label,
        folder,
        steps=section.images // section.batch,
        batch=section.batch,
        microbatches=section.batch // section.microbatch,
        half_life=section.ema_half_life,
        checkpoint_every=max(1, section.checkpoint_every // section.batch),
        preview_every=section.preview_every // section.batch,
        snapshot_every=-(-section.snapshot_every // section.batch),
        device=device,
        curves=curves,
    )
