"""Stage train: learning Psi by cross-view self-reenactment on the pseudo multi-view cache (paper section 4.3, Eq. 4 and 5; facts 4.1 to 4.4)."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import losses
from model.checkpointing import recompute
from model.discriminator import Discriminator
from model.flame import Flame
from model.psi import Psi, is_motion
from model.renderer import Rendering
from model.weights import load_weights, save_weights
from pipeline import head_model
from pipeline.counter import counter_seed, torch_rng
from pipeline.device import choose_device, to_device
from pipeline.files import write_json
from pipeline.fingerprint import fingerprint
from pipeline.frames import FrameBatch, PseudoMultiView
from pipeline.held_out import CachedClips
from pipeline.labels import FIVE_POINTS, landmarks, moving_parts
from pipeline.objective import Adversary, Target, identity_term, image_terms, shrink, thin_terms
from pipeline.params import Params
from pipeline.perception import Perception
from pipeline.pictures import save_grid
from pipeline.rates import synthesizer_optimiser
from pipeline.scratch import scratch_folder
from pipeline.thin import Thin, thin_step
from pipeline.trainer import Training, set_rates, update
from pipeline.validation import Pairs, Validation


def train_psi(params: Params, views: Path, perception: Path, psi3d: Path, out: Path) -> dict[str, Any]:
    """Train Psi on the cache in `views` and write its moving average to `out`/psi.safetensors; returns the metrics.

    `psi3d` is the folder of Psi_3d, whose weights Psi starts from when train.init is psi3d. Picks up a killed run at its last checkpoint.
    """
    section, sizes, device = params.train, params.networks, choose_device(params.machine.device)
    torch.manual_seed(counter_seed(params.seed, "psi") % 2**63)
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
    flame = Flame(head_model.load(params.flame.model)).to(device)
    judges = Perception.load(perception, device)
    objective = ReenactmentObjective(params, psi, adversary, judges, flame)
    validation = Validation(CachedClips(views, section.motion, "validation", device), judges, average.superresolution.enlarge)

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
        save_grid(training.folder / f"preview-{done:07d}.jpg", [batch.source, batch.target, moved.image, still.image])

    def validate() -> dict[str, float]:
        def draw(pairs: Pairs) -> Rendering:
            return average(pairs.source, pairs.motion_source, pairs.motion_driving, pairs.camera)

        return validation(draw, lambda pairs: draw(replace(pairs, motion_driving=pairs.motion_source)))

    training = Training(
        label="train",
        folder=scratch_folder("train", fingerprint(__file__, section, sizes, params.flame, params.seed, params.threads, views, perception, psi3d)),
        steps=section.images // section.batch,
        batch=section.batch,
        modules={"psi": psi, "discriminator": adversary.network},
        optimisers={"psi": optimiser, "discriminator": adversary.optimiser},
        averages={"psi": average},
        half_life=section.ema_half_life,
        checkpoint_every=section.checkpoint_every // section.batch,
        device=device,
    )
    history = training.run(lambda i: data.batch(i, section.batch), step, preview, section.preview_every // section.batch, validate)
    save_weights(out / "psi.safetensors", average.state_dict(), {"network": "psi", "sizes": asdict(sizes), "motion": section.motion})
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
    psi.load_state_dict(psi.state_dict() | {key: value for key, value in static.items() if not is_motion(key)})


class ReenactmentObjective:
    """Eq. 5: all losses where the target is a real frame, L_LPIPS on the foreground alone where it is a pseudo view."""

    def __init__(self, params: Params, psi: Psi, adversary: Adversary, perception: Perception, flame: Flame) -> None:
        self.section, self.seed = params.train, params.seed
        self.psi, self.adversary, self.perception, self.flame = psi, adversary, perception, flame

    def __call__(self, step: int, batch: FrameBatch):
        """The loss, its terms as scalars, and a function that trains the discriminator on the real samples and returns its scalars."""
        section, real = self.section, batch.real > 0
        weights, count, terms = section.weights, len(real), {}
        jitter = torch_rng(self.seed, "psi-rays", step)
        thin = thin_step(self.seed, "psi-thin", step, section.whole_every, section.whole_from // section.batch)
        adversarial = bool(real.any()) and step * section.batch >= section.adversarial_from and not thin
        if thin and real.any():  # L_LPIPS needs whole pictures, so that pseudo targets have no part in a thin step
            found = self._thin(batch, real, jitter, thin)
            terms = {name: value.sum() / count for name, value in found.items()}
        else:
            rendering = self.psi(batch.source, batch.motion_source, batch.motion_driving, batch.camera, generator=jitter)
            pseudo = ~real
            if pseudo.any():
                drawn = losses.over_black(rendering.image[pseudo], rendering.opacity[pseudo])
                wanted = losses.over_black(batch.target[pseudo], batch.opacity[pseudo])
                terms["lpips_pseudo"] = self.perception.lpips(drawn, wanted).sum() / count
            if real.any():
                shown, target = rendering[real], self._target(batch, real)
                found = image_terms(shown, target, self.perception) | {"identity": identity_term(shown, target, self.perception)}
                if adversarial:
                    found["adversarial"] = self.adversary.term(shown, target)
                terms |= {name: value.sum() / count for name, value in found.items()}
        factors = weights.model_dump() | {"lpips_pseudo": weights.lpips}
        loss = sum(factors[name] * value for name, value in terms.items())
        scalars = {name: value.detach() for name, value in terms.items()}
        return loss, scalars, lambda: self.adversary.train(step // section.whole_every, shown, target) if adversarial else {}

    def _thin(self, batch: FrameBatch, real: Tensor, jitter: torch.Generator, thin: Thin) -> dict[str, Tensor]:
        """What a thin step asks of the samples whose target is a real frame."""
        source = batch.source[real]
        planes = self.psi.planes(source, batch.motion_source[real], batch.motion_driving[real])
        cameras = thin.cameras(batch.camera[real], self.psi.sizes.rays)
        rendering = self.psi.volume(planes, thin(self.psi.background_feature(source)), cameras, generator=jitter)
        return thin_terms(rendering, self._target(batch, real), thin)

    def _target(self, batch: FrameBatch, real: Tensor) -> Target:
        rays = self.psi.sizes.rays
        image, opacity = batch.target[real], shrink(batch.opacity[real], rays)
        with torch.no_grad():
            points = landmarks(self.flame, batch.label[real], batch.camera[real])[:, 0]
            weight = 1.0 + self.section.face_weight * moving_parts(points, image.shape[-1])
        # Behind the head nobody knows the background of a real frame (facts 4.2).
        return Target(image, opacity, shrink(image, rays), 1.0 - opacity, points[:, list(FIVE_POINTS)], batch.camera[real, 0], batch.uv[real], weight)
