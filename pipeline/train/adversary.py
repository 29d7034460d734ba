"""L_adv of Eq. 2 and Eq. 5: the discriminator as a loss of the synthesizer, and its own loss."""

from collections.abc import Iterator

from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.volume.renderer import Rendering
from pipeline.config.params import Training
from pipeline.core.batches import take
from pipeline.train import losses
from pipeline.train.image_terms import Target, shrink
from pipeline.train.precision import autocast
from pipeline.train.rates import adam
from pipeline.train.task import Loss

# Lazy regularisation (facts 4.1).
R1_EVERY = 16
# Facts 4.5. Opacity lies in [0, 1] here and in [-1, 1] in the official code: its gradient is twice as large.
R1_GAMMA = {"image": 1.0, "raw": 1.0, "uv": 10.0, "opacity": 0.25}


class Adversary:
    """The dual discriminator of facts 4.5 with its optimiser."""

    def __init__(self, discriminator: Discriminator, section: Training) -> None:
        self.network, self.precision = discriminator, section.precision
        self.optimiser = adam([(discriminator.parameters(), 1.0)], section)

    def term(self, rendering: Rendering, target: Target) -> Tensor:
        """The loss of the synthesizer, (B,)."""
        # Its weights do not learn from this loss: their gradients would be computed for nothing.
        self.network.requires_grad_(False)
        with autocast(self.precision, target.image.device):
            logits = self.network(rendering.image, rendering.raw, rendering.opacity, target.uv, target.camera)
        self.network.requires_grad_(True)
        return losses.generator_adversarial(logits.float())

    def losses(
        self,
        step: int,
        rendering: Rendering,
        target: Target,
        share: float,
    ) -> Iterator[Loss]:
        """The discriminator's own loss on the same samples; every 16 steps with R1, times 16.

        `share` is how many of the samples of the whole batch these are. What is judged together makes a part
        of the loss: two parts are never in memory at once, of which R1 needs a lot.
        """
        count = len(target.image)
        for rows in self.network.groups(count):
            some = take(target, rows)
            yield self._loss(step, take(rendering, rows), some, share * len(some.image) / count)

    def _loss(self, step: int, rendering: Rendering, target: Target, share: float) -> Loss:
        # In the order in which the discriminator takes them.
        real = {
            "image": target.image,
            "raw": shrink(target.image, rendering.raw.shape[-1]),
            "opacity": target.opacity,
            "uv": target.uv,
        }
        regular = step % R1_EVERY == 0
        if regular:
            real = {name: value.detach().requires_grad_(True) for name, value in real.items()}
        # R1 differentiates a gradient: short numbers would be felt twice. Both sides are judged alike.
        with autocast("float32" if regular else self.precision, target.image.device):
            fake = self.network(
                rendering.image.detach(),
                rendering.raw.detach(),
                rendering.opacity.detach(),
                target.uv,
                target.camera,
            )
            judged = self.network(*real.values(), target.camera)
        total = losses.discriminator_adversarial(fake.float(), judged.float())
        terms = {"discriminator": share * total.detach()}
        if regular:
            inputs = {name: (value, R1_GAMMA[name]) for name, value in real.items()}
            total = total + R1_EVERY * losses.r1_penalty(judged, inputs)
        return Loss("discriminator", share * total, terms)
