"""Eq. 5: what a batch of frames asks of Psi (paper section 4.3, facts 4.2)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from model.psi.network import Psi
from model.volume.planes import Planes
from model.volume.renderer import Rendering
from pipeline.config.params import Params
from pipeline.core.batches import take
from pipeline.core.seeds import torch_rng
from pipeline.geometry.label import FIVE_POINTS, MOVING, moving_parts
from pipeline.geometry.landmarks import LEFT_EYE, PUPILS, RIGHT_EYE
from pipeline.geometry.neck import Neck
from pipeline.networks.judges import Judges
from pipeline.train import losses
from pipeline.train.adversary import Adversary
from pipeline.train.image_terms import (
    Target,
    identity_term,
    image_terms,
    shrink,
    sparse_terms,
    thickness_term,
)
from pipeline.train.sparse_rays import SparseRays, rays_of_step
from pipeline.train.task import Loss
from pipeline.train.validation import Pairs
from pipeline.train.view_batches import FrameBatch

# Of the landmarks that move: how much the error of the flow counts there. Lids and pupils move least, and
# over few pixels.
FLOW_WEIGHTS = torch.ones(70)
FLOW_WEIGHTS[RIGHT_EYE] = FLOW_WEIGHTS[LEFT_EYE] = 3.0
FLOW_WEIGHTS[PUPILS] = 8.0


def driven(psi: Psi, neck: Neck, batch: FrameBatch | Pairs) -> Planes:
    """The sources of a batch with the driving motion."""
    taken_by = neck.source(batch.camera_source, batch.label_source)
    return psi.planes(batch.source, batch.motion_source, batch.motion_driving, 1.0, *taken_by)


def drawn(
    psi: Psi,
    neck: Neck,
    planes: Planes,
    batch: FrameBatch | Pairs,
    jitter: torch.Generator | None = None,
) -> Rendering:
    """What `driven` made of a batch, with the driving necks, seen by its cameras."""
    posed = neck.driven(batch.camera, batch.label_driving)
    background = psi.background_feature(batch.source)
    return psi.render(planes, background, posed.camera, posed.field, jitter)


def reenacted(psi: Psi, neck: Neck, batch: FrameBatch | Pairs) -> Rendering:
    """`driven` and `drawn` in one call, with fixed samples along the rays."""
    return drawn(psi, neck, driven(psi, neck, batch), batch)


class ReenactmentObjective:
    """All losses where the target is a real frame; on a pseudo view L_LPIPS of the foreground alone.

    Both ask for thin surfaces as well and, where source features are projected, for the flow.
    """

    def __init__(
        self,
        params: Params,
        psi: Psi,
        adversary: Adversary,
        judges: Judges,
        neck: Neck,
    ) -> None:
        self.section, self.seed = params.train, params.seed
        self.psi, self.adversary, self.judges, self.neck = psi, adversary, judges, neck

    def __call__(self, step: int, microbatch: int, batch: FrameBatch) -> Iterator[Loss]:
        """The loss of Psi, and that of the discriminator where it takes part."""
        section, real = self.section, batch.real > 0
        reals = int(batch.reals[0])
        jitter = torch_rng(self.seed, "psi-rays", step, microbatch)
        whole_from = section.whole_from // section.batch
        sparse = rays_of_step(self.seed, "psi-thin", step, section.whole_every, whole_from)

        # L_LPIPS needs whole pictures, so that pseudo targets have no part in a sparse step.
        if sparse and reals:
            if real.any():
                found = self._sparse_terms(take(batch, real), jitter, sparse)
                yield self._loss(self._share(found))
            return

        planes = driven(self.psi, self.neck, batch)
        rendering = drawn(self.psi, self.neck, planes, batch, jitter)
        terms = self._share(self._flow_terms(planes, batch) | {"thickness": thickness_term(rendering)})
        # A pseudo view shows Psi_3d's idea of the background and of the identity, which is not to be learnt.
        if not real.all():
            terms |= self._share(self._pseudo_terms(rendering, batch, ~real))
        if not real.any():
            yield self._loss(terms)
            return

        shown, target = rendering[real], self._target(take(batch, real))
        found = image_terms(shown, target, self.judges)
        found["identity"] = identity_term(shown, target, self.judges)
        adversarial = step * section.batch >= section.adversarial_from
        if adversarial:
            found["adversarial"] = self.adversary.term(shown, target)
        yield self._loss(terms | self._share(found))
        # R1 counts the steps in which the discriminator learns: whole ones.
        if adversarial:
            share = int(real.sum()) / reals
            yield from self.adversary.losses(step // section.whole_every, shown, target, share)

    def _loss(self, terms: Mapping[str, Tensor]) -> Loss:
        """The weighted sum of scalars."""
        weights = self.section.weights.model_dump()
        weights["lpips_pseudo"] = weights["lpips"]
        return Loss.weighted("psi", terms, weights)

    def _pseudo_terms(
        self,
        rendering: Rendering,
        batch: FrameBatch,
        pseudo: Tensor,
    ) -> dict[str, Tensor]:
        """What the samples are asked whose target is a pseudo view."""
        drawn = losses.over_black(rendering.image[pseudo], rendering.opacity[pseudo])
        wanted = losses.over_black(batch.target[pseudo], batch.opacity[pseudo])
        return {"lpips_pseudo": self.judges.lpips(drawn, wanted)}

    def _sparse_terms(
        self,
        batch: FrameBatch,
        jitter: torch.Generator,
        sparse: SparseRays,
    ) -> dict[str, Tensor]:
        """What a sparse step asks of samples whose targets are real frames."""
        planes = driven(self.psi, self.neck, batch)
        posed = self.neck.driven(batch.camera, batch.label_driving)
        cameras = sparse.cameras(posed.camera, self.psi.sizes.rays)
        background = sparse(self.psi.background_feature(batch.source))
        rendering = self.psi.volume(planes, background, cameras, posed.field, jitter)
        found = sparse_terms(rendering, self._target(batch), sparse)
        found["thickness"] = thickness_term(rendering)
        return found | self._flow_terms(planes, batch)

    def _flow_terms(self, planes: Planes, batch: FrameBatch) -> dict[str, Tensor]:
        """What is asked of the flow of projected features: to take landmarks from where the source has them.

        The fitted heads of source and driving frame say where that is. Nothing where there is no flow.
        """
        if planes.flow_B2SS is None:
            return {}
        places = batch.landmarks_reenacted[:, MOVING]
        wanted = batch.landmarks_source[:, MOVING] - places
        return {"flow": losses.flow_error(planes.flow_B2SS, places, wanted, FLOW_WEIGHTS[MOVING].to(places))}

    def _target(self, batch: FrameBatch) -> Target:
        """What samples are compared with whose targets are real frames."""
        rays = self.psi.sizes.rays
        image, opacity = batch.target, shrink(batch.opacity, rays)
        weight = 1.0 + self.section.face_weight * moving_parts(batch.landmarks, image.shape[-1])
        return Target(
            image=image,
            opacity=opacity,
            background=shrink(image, rays),
            # The background of a real frame is not known behind the head (facts 4.2).
            background_mask=1.0 - opacity,
            five_points=batch.landmarks[:, list(FIVE_POINTS)],
            camera=batch.camera[:, 0],
            uv=batch.uv,
            weight=weight,
        )

    def _share(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms (B',) of some samples as their part of the mean over all samples of the batch."""
        return {name: value.sum() / self.section.batch for name, value in terms.items()}
