"""Stage train: learning Psi by cross-view self-reenactment on the pseudo multi-view cache (paper section 4.3, Eq. 4 and 5; facts 4.1 to 4.4)."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.psi.checkpointing import recompute
from model.psi.network import Psi, is_motion
from model.volume.renderer import Rendering
from model.weights import load_weights, save_weights
from pipeline.clips.held_out import CachedClips
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.files import write_json
from pipeline.core.pictures import save_grid
from pipeline.core.seeds import derive_seed, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry.label import FIVE_POINTS, moving_parts
from pipeline.networks.judges import Judges
from pipeline.train import losses
from pipeline.train.adversary import Adversary
from pipeline.train.image_terms import Target, identity_term, image_terms, shrink, sparse_terms
from pipeline.train.loop import TrainingLoop, update
from pipeline.train.rates import synthesizer_optimiser
from pipeline.train.schedule import set_rates
from pipeline.train.sparse_rays import SparseRays, rays_of_step
from pipeline.train.validation import Pairs, Validation
from pipeline.train.view_batches import FrameBatch, PseudoMultiView


def train_psi(params: Params, views: Path, perception: Path, psi3d: Path, out: Path) -> dict[str, Any]:
    """Train Psi on the cache in `views` and write its moving average to `out`/psi.safetensors; returns the metrics.

    `psi3d` is the folder of Psi_3d, whose weights Psi starts from when train.init is psi3d. Picks up a killed run at its last checkpoint.
    """
    section, sizes, device = params.train, params.networks, choose_device(params.machine.device)
    torch.manual_seed(derive_seed(params.seed, "psi") % 2**63)
    psi = Psi(sizes.driven_by(section.motion)).to(device)
    adversary = Adversary(Discriminator(sizes).to(device), section)
    if section.init == "psi3d":
        start_from_static(psi, load_weights(psi3d / "psi3d.safetensors")[0])
        adversary.network.load_state_dict(load_weights(psi3d / "discriminator.safetensors")[0])
    average = copy.deepcopy(psi).requires_grad_(False)
    if params.machine.activation_checkpointing:
        recompute(psi)
    optimiser = synthesizer_optimiser(psi, section, section.motion_learning_rate_scale)
    data = PseudoMultiView(
        views,
        seed=params.seed,
        clips=section.clips,
        motion=section.motion,
        substitute_p=section.substitute_p,
        substitute_q=section.substitute_q,
    )
    judges = Judges.load(perception, device)
    objective = ReenactmentObjective(params, psi, adversary, judges)
    validation = Validation(
        CachedClips(views, section.motion, "validation", device), judges, average.superresolution.enlarge
    )

    def step(i: int, batch: FrameBatch) -> dict[str, Tensor | float]:
        loss, scalars, finish = objective(i, batch)
        set_rates(optimiser, i * section.batch, section.warmup, section.decay_until)
        update(optimiser, loss)
        return scalars | finish()

    def preview(done: int) -> None:
        batch = to_device(data.batch(0, 6), device)
        with torch.no_grad():
            moved = average(batch.source, batch.motion_source, batch.motion_driving, batch.camera)
            still = average(batch.source, batch.motion_source, batch.motion_source, batch.camera)
        save_grid(
            training.folder / f"preview-{done:07d}.jpg",
            [batch.source, batch.target, moved.image, still.image],
        )

    def validate() -> dict[str, float]:
        def draw(pairs: Pairs) -> Rendering:
            return average(pairs.source, pairs.motion_source, pairs.motion_driving, pairs.camera)

        return validation(draw, lambda pairs: draw(replace(pairs, motion_driving=pairs.motion_source)))

    training = TrainingLoop(
        label="train",
        folder=scratch_folder(
            "train",
            fingerprint(__file__, section, sizes, params.seed, params.threads, views, perception, psi3d),
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
        out / "psi.safetensors",
        average.state_dict(),
        {"network": "psi", "sizes": asdict(sizes), "motion": section.motion},
    )
    write_json(out / "moved.json", training.moved)
    training.finish()
    drawn = [choice for i in range(training.steps) for choice in data.choose(i, section.batch)]
    return {
        "history": history,
        "clips": len(data.names),
        "clips_left_out": data.clips_left_out,
        "frames_left_out": data.frames_left_out,
        "parameters": sum(p.numel() for p in psi.parameters()),
        "real_share_p": round(sum(choice.p == 0 for choice in drawn) / len(drawn), 4),
        "real_share_q": round(sum(choice.q == 0 for choice in drawn) / len(drawn), 4),
    }


def start_from_static(psi: Psi, static: dict[str, Tensor]) -> None:
    """Psi_3d's weights, but for the motion-related layers, which keep their random values (paper section 4.3)."""
    psi.load_state_dict(
        psi.state_dict() | {key: value for key, value in static.items() if not is_motion(key)}
    )


class ReenactmentObjective:
    """Eq. 5: all losses where the target is a real frame, L_LPIPS on the foreground alone where it is a pseudo view."""

    def __init__(self, params: Params, psi: Psi, adversary: Adversary, judges: Judges) -> None:
        self.section, self.seed = params.train, params.seed
        self.psi, self.adversary, self.judges = psi, adversary, judges

    def __call__(self, step: int, batch: FrameBatch):
        """The loss, its terms as scalars, and a function that trains the discriminator on the real samples and returns its scalars."""
        section, real = self.section, batch.real > 0
        weights, count, terms = section.weights, len(real), {}
        jitter = torch_rng(self.seed, "psi-rays", step)
        sparse = rays_of_step(
            self.seed, "psi-thin", step, section.whole_every, section.whole_from // section.batch
        )
        adversarial = bool(real.any()) and step * section.batch >= section.adversarial_from and not sparse
        if (
            sparse and real.any()
        ):  # L_LPIPS needs whole pictures, so that pseudo targets have no part in a sparse step
            found = self._thin(batch, real, jitter, sparse)
            terms = {name: value.sum() / count for name, value in found.items()}
        else:
            rendering = self.psi(
                batch.source, batch.motion_source, batch.motion_driving, batch.camera, generator=jitter
            )
            pseudo = ~real
            if pseudo.any():
                drawn = losses.over_black(rendering.image[pseudo], rendering.opacity[pseudo])
                wanted = losses.over_black(batch.target[pseudo], batch.opacity[pseudo])
                terms["lpips_pseudo"] = self.judges.lpips(drawn, wanted).sum() / count
            if real.any():
                shown, target = rendering[real], self._target(batch, real)
                found = image_terms(shown, target, self.judges) | {
                    "identity": identity_term(shown, target, self.judges)
                }
                if adversarial:
                    found["adversarial"] = self.adversary.term(shown, target)
                terms |= {name: value.sum() / count for name, value in found.items()}
        factors = weights.model_dump() | {"lpips_pseudo": weights.lpips}
        loss = sum(factors[name] * value for name, value in terms.items())
        scalars = {name: value.detach() for name, value in terms.items()}
        return (
            loss,
            scalars,
            lambda: self.adversary.train(step // section.whole_every, shown, target) if adversarial else {},
        )

    def _thin(
        self, batch: FrameBatch, real: Tensor, jitter: torch.Generator, sparse: SparseRays
    ) -> dict[str, Tensor]:
        """What a sparse step asks of the samples whose target is a real frame."""
        source = batch.source[real]
        planes = self.psi.planes(source, batch.motion_source[real], batch.motion_driving[real])
        cameras = sparse.cameras(batch.camera[real], self.psi.sizes.rays)
        rendering = self.psi.volume(
            planes, sparse(self.psi.background_feature(source)), cameras, generator=jitter
        )
        return sparse_terms(rendering, self._target(batch, real), sparse)

    def _target(self, batch: FrameBatch, real: Tensor) -> Target:
        rays = self.psi.sizes.rays
        image, opacity = batch.target[real], shrink(batch.opacity[real], rays)
        points = batch.landmarks[real]
        weight = 1.0 + self.section.face_weight * moving_parts(points, image.shape[-1])
        # Behind the head nobody knows the background of a real frame (facts 4.2).
        return Target(
            image,
            opacity,
            shrink(image, rays),
            1.0 - opacity,
            points[:, list(FIVE_POINTS)],
            batch.camera[real, 0],
            batch.uv[real],
            weight,
        )
