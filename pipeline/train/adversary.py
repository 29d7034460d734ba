"""L_adv of Eq. 2 and Eq. 5: the discriminator as a loss of the synthesizer, and its own training."""

from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.volume.renderer import Rendering
from pipeline.config.params import Training
from pipeline.train import losses
from pipeline.train.image_terms import Target, shrink
from pipeline.train.loop import update
from pipeline.train.rates import adam

R1_EVERY = 16  # lazy regularisation (facts 4.1)
R1_GAMMA = {
    "image": 1.0,
    "raw": 1.0,
    "uv": 10.0,
    "opacity": 0.25,
}  # facts 4.5; opacity in [0, 1] has twice the official gradient


class Adversary:
    """L_adv of Eq. 2 and 5: the dual discriminator of facts 4.5 and its own training."""

    def __init__(self, discriminator: Discriminator, section: Training) -> None:
        self.network = discriminator
        self.optimiser = adam([(discriminator.parameters(), 1.0)], section)

    def term(self, rendering: Rendering, target: Target) -> Tensor:
        """The loss of the synthesizer, (B,)."""
        self.network.requires_grad_(False)
        logits = self.network(rendering.image, rendering.raw, rendering.opacity, target.uv, target.camera)
        self.network.requires_grad_(True)
        return losses.generator_adversarial(logits)

    def train(self, step: int, rendering: Rendering, target: Target) -> dict[str, Tensor]:
        """One step of the discriminator on the same samples, with R1 every 16 steps (times 16); returns its scalars."""
        real = {
            "image": target.image,
            "raw": shrink(target.image, rendering.raw.shape[-1]),
            "opacity": target.opacity,
            "uv": target.uv,
        }
        regular = step % R1_EVERY == 0
        if regular:
            real = {name: value.detach().requires_grad_(True) for name, value in real.items()}
        fake = self.network(
            rendering.image.detach(),
            rendering.raw.detach(),
            rendering.opacity.detach(),
            target.uv,
            target.camera,
        )
        judged = self.network(real["image"], real["raw"], real["opacity"], real["uv"], target.camera)
        loss = losses.discriminator_adversarial(fake, judged)
        scalars = {"discriminator": loss.detach()}
        if regular:
            penalty = losses.r1_penalty(
                judged, {name: (value, R1_GAMMA[name]) for name, value in real.items()}
            )
            loss = loss + R1_EVERY * penalty
        update(self.optimiser, loss)
        return scalars
