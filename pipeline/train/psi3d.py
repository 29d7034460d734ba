"""Stage train_psi3d: learning the static 3D head synthesizer from GenHead's images (paper section 4.2, Eq. 2; facts 4.1 to 4.3)."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.psi.checkpointing import recompute
from model.psi.network import EQUALISED, Psi
from model.weights import load_weights, save_weights
from pipeline.clips.held_out import IngestedClips
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.files import write_json
from pipeline.core.pictures import save_grid
from pipeline.core.seeds import derive_seed, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry.label import FIVE_POINTS
from pipeline.networks.judges import Judges
from pipeline.train import losses
from pipeline.train.adversary import Adversary
from pipeline.train.image_terms import Target, identity_term, image_terms, sparse_terms
from pipeline.train.loop import TrainingLoop, update
from pipeline.train.rates import synthesizer_optimiser
from pipeline.train.schedule import set_rates
from pipeline.train.sparse_rays import rays_of_step
from pipeline.train.synthetic_batches import HeadBatch, SyntheticHeads
from pipeline.train.validation import Validation

SMOOTH_EVERY, SMOOTH_POINTS, SMOOTH_STEP, SMOOTH_WEIGHT = (
    16,
    1000,
    0.004,
    0.25,
)  # density regularisation (facts 4.3)


def train_psi3d(
    params: Params, heads: Path, perception: Path, genhead: Path, ingest: Path, labels: Path, out: Path
) -> dict[str, Any]:
    """Train Psi_3d on the shards in `heads` and write its moving average to `out`/psi3d.safetensors; returns the metrics.

    `perception` and `genhead` are the folders of the pretrained networks; the validation clips in `ingest`, with their fitted `labels`, are
    what it is looked at with. Picks up a killed run at its last checkpoint.
    """
    section, sizes, device = params.train_psi3d, params.networks, choose_device(params.machine.device)
    inputs = (heads, perception, genhead, ingest, labels)
    torch.manual_seed(derive_seed(params.seed, "psi3d") % 2**63)
    psi = Psi(sizes)
    if section.init == "genhead":
        take_over_decoder(psi, load_weights(genhead / "genhead.safetensors")[0])
    psi.to(device)
    average = copy.deepcopy(psi).requires_grad_(False)
    if params.machine.activation_checkpointing:
        recompute(psi)
    optimiser = synthesizer_optimiser(psi, section)
    adversary = Adversary(Discriminator(sizes).to(device), section)
    data = SyntheticHeads(heads, params.seed)
    judges = Judges.load(perception, device)
    objective = StaticObjective(params, psi, adversary, judges)
    validation = Validation(
        IngestedClips(ingest, labels, "validation", device), judges, average.superresolution.enlarge
    )

    def step(i: int, batch: HeadBatch) -> dict[str, Tensor | float]:
        loss, scalars, finish = objective(i, batch)
        set_rates(optimiser, i * section.batch, section.warmup, section.decay_until)
        update(optimiser, loss)
        return scalars | finish()

    def preview(done: int) -> None:
        batch = to_device(data.batch(0, 6), device)
        with torch.no_grad():
            rendering = average(batch.source, None, None, batch.camera, motion_scale=0.0)
        save_grid(
            training.folder / f"preview-{done:07d}.jpg",
            [batch.source, batch.target, rendering.image, rendering.foreground],
        )

    def validate() -> dict[str, float]:
        return validation(lambda pairs: average(pairs.source, None, None, pairs.camera, motion_scale=0.0))

    training = TrainingLoop(
        label="train_psi3d",
        folder=scratch_folder(
            "train_psi3d", fingerprint(__file__, section, sizes, params.seed, params.threads, *inputs)
        ),
        steps=section.images // section.batch,
        batch=section.batch,
        modules={"psi": psi, "discriminator": adversary.network},
        optimisers={"psi": optimiser, "discriminator": adversary.optimiser},
        averages={"psi": average},
        half_life=section.ema_half_life,
        checkpoint_every=section.checkpoint_every // section.batch,
        device=device,
    )
    history = training.run(
        lambda i: data.batch(i, section.batch),
        step,
        preview,
        section.preview_every // section.batch,
        validate,
    )
    save_weights(
        out / "psi3d.safetensors",
        average.state_dict(),
        {"network": "psi3d", "sizes": asdict(sizes), "images": section.images},
    )
    save_weights(
        out / "discriminator.safetensors",
        adversary.network.state_dict(),
        {"network": "discriminator", "sizes": asdict(sizes)},
    )
    training.finish()
    write_json(out / "moved.json", training.moved)
    return {
        "history": history,
        "heads": len(data.keys),
        "parameters": sum(p.numel() for p in psi.parameters()),
    }


def take_over_decoder(psi: Psi, genhead: dict[str, Tensor]) -> None:
    """Start from GenHead's tri-plane decoder and super-resolution: L_T asks for its planes, so its decoder already reads them.

    The weights of super-resolution mean something with the style alone that they were trained with, which comes along: ones (facts 3.1).
    """
    taken = {key: value for key, value in genhead.items() if key.startswith(EQUALISED)}
    psi.load_state_dict(psi.state_dict() | taken | {"w_avg": torch.ones_like(psi.w_avg)})


class StaticObjective:
    """Eq. 2: all seven losses with the schedule of facts 4.2, counted in images seen."""

    def __init__(self, params: Params, psi: Psi, adversary: Adversary, judges: Judges) -> None:
        self.section, self.seed = params.train_psi3d, params.seed
        self.psi, self.adversary, self.judges = psi, adversary, judges

    def __call__(self, step: int, batch: HeadBatch):
        """The loss, its terms as scalars, and a function that trains the discriminator on the same rendering and returns its scalars."""
        section, weights = self.section, self.section.weights
        images = step * section.batch
        jitter = torch_rng(self.seed, "psi3d-rays", step)
        sparse = rays_of_step(
            self.seed, "psi3d-thin", step, section.whole_every, section.whole_from // section.batch
        )
        planes, background = (
            self.psi.planes(batch.source, None, None, motion_scale=0.0),
            self.psi.background_feature(batch.source),
        )
        target, opacity, depth = self._target(batch), batch.opacity, batch.depth
        if sparse:
            opacity, depth = sparse(opacity), sparse(depth)
            rendering = self.psi.volume(
                planes,
                sparse(background),
                sparse.cameras(batch.camera, background.shape[-1]),
                generator=jitter,
            )
            terms = sparse_terms(rendering, target, sparse)
        else:
            rendering = self.psi.render(planes, background, batch.camera, generator=jitter)
            terms = image_terms(rendering, target, self.judges)
            if images >= section.identity_from:
                terms["identity"] = identity_term(rendering, target, self.judges)
        if images < section.depth_until:
            terms["depth"] = losses.depth_l1(rendering.depth, depth, opacity)
        if images < section.planes_until:
            terms["planes"] = losses.l1(self.psi.plane_features(planes, batch.points), batch.features)
        adversarial = images >= section.adversarial_from and not sparse
        if adversarial:
            terms["adversarial"] = self.adversary.term(rendering, target)
        terms = {name: value.mean() for name, value in terms.items()}
        loss = sum(getattr(weights, name) * value for name, value in terms.items())
        if step % SMOOTH_EVERY == 0:
            loss = loss + SMOOTH_EVERY * SMOOTH_WEIGHT * self._roughness(planes, jitter)
        scalars = {name: value.detach() for name, value in terms.items()}
        return (
            loss,
            scalars,
            lambda: (
                self.adversary.train(step // section.whole_every, rendering, target) if adversarial else {}
            ),
        )

    def _target(self, batch: HeadBatch) -> Target:
        everywhere = torch.ones_like(batch.opacity)  # GenHead's background is known behind the head as well
        evenly = torch.ones_like(batch.target[:, :1])
        return Target(
            batch.target,
            batch.opacity,
            batch.background,
            everywhere,
            batch.landmarks[:, list(FIVE_POINTS)],
            batch.camera[:, 0],
            batch.uv,
            evenly,
        )

    def _roughness(self, planes: Tensor, jitter: torch.Generator) -> Tensor:
        """L1 between densities at random points and close by (facts 4.3)."""
        points = torch.rand(len(planes), SMOOTH_POINTS, 3, generator=jitter) * 2.0 - 1.0
        nearby = points + torch.randn(points.shape, generator=jitter) * SMOOTH_STEP * self.psi.sizes.box
        both = self.psi.density(planes, torch.cat([points, nearby], dim=1).to(planes.device))
        return (both[:, :SMOOTH_POINTS] - both[:, SMOOTH_POINTS:]).abs().mean()
