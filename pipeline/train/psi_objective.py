"""Eq. 5: what a batch of frames asks of Psi (paper section 4.3, facts 4.2)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from model.psi.network import Psi
from model.volume.renderer import Rendering
from pipeline.config.params import Params
from pipeline.core.seeds import torch_rng
from pipeline.geometry.label import FIVE_POINTS, moving_parts
from pipeline.geometry.neck import Neck
from pipeline.networks.judges import Judges
from pipeline.train import losses
from pipeline.train.adversary import Adversary
from pipeline.train.image_terms import Target, identity_term, image_terms, shrink, sparse_terms
from pipeline.train.sparse_rays import SparseRays, rays_of_step
from pipeline.train.task import Loss
from pipeline.train.validation import Pairs
from pipeline.train.view_batches import FrameBatch


def reenacted(
    psi: Psi,
    neck: Neck,
    batch: FrameBatch | Pairs,
    jitter: torch.Generator | None = None,
) -> Rendering:
    """The sources of a batch with the driving motion and the driving necks, seen by its cameras."""
    posed = neck.driven(batch.camera, batch.label_driving)
    taken_by = neck.source(batch.camera_source, batch.label_source)
    return psi(
        batch.source,
        batch.motion_source,
        batch.motion_driving,
        posed.camera,
        deform=posed.field,
        generator=jitter,
        camera_source_B25=taken_by.camera,
        posing_source=taken_by.field,
    )


class ReenactmentObjective:
    """All losses where the target is a real frame; on a pseudo view L_LPIPS of the foreground alone."""

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
                found = self._sparse_terms(batch, real, jitter, sparse)
                yield self._loss(self._share(found))
            return

        rendering = reenacted(self.psi, self.neck, batch, jitter)
        # A pseudo view shows Psi_3d's idea of the background and of the identity, which is not to be learnt.
        terms = {}
        if not real.all():
            terms |= self._share(self._pseudo_terms(rendering, batch, ~real))
        if not real.any():
            yield self._loss(terms)
            return

        shown, target = rendering[real], self._target(batch, real)
        found = image_terms(shown, target, self.judges)
        found["identity"] = identity_term(shown, target, self.judges)
        adversarial = step * section.batch >= section.adversarial_from
        if adversarial:
            found["adversarial"] = self.adversary.term(shown, target)
        yield self._loss(terms | self._share(found))
        # R1 counts the steps in which the discriminator learns: whole ones.
        if adversarial:
            share = int(real.sum()) / reals
            yield self.adversary.loss(step // section.whole_every, shown, target, share)

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
        real: Tensor,
        jitter: torch.Generator,
        sparse: SparseRays,
    ) -> dict[str, Tensor]:
        """What a sparse step asks of the samples whose target is a real frame."""
        source = batch.source[real]
        own, driving = batch.motion_source[real], batch.motion_driving[real]
        taken_by = self.neck.source(batch.camera_source[real], batch.label_source[real])
        planes = self.psi.planes(source, own, driving, 1.0, *taken_by)
        posed = self.neck.driven(batch.camera[real], batch.label_driving[real])
        cameras = sparse.cameras(posed.camera, self.psi.sizes.rays)
        background = sparse(self.psi.background_feature(source))
        rendering = self.psi.volume(planes, background, cameras, posed.field, jitter)
        return sparse_terms(rendering, self._target(batch, real), sparse)

    def _target(self, batch: FrameBatch, real: Tensor) -> Target:
        rays = self.psi.sizes.rays
        image, opacity = batch.target[real], shrink(batch.opacity[real], rays)
        points = batch.landmarks[real]
        weight = 1.0 + self.section.face_weight * moving_parts(points, image.shape[-1])
        return Target(
            image=image,
            opacity=opacity,
            background=shrink(image, rays),
            # The background of a real frame is not known behind the head (facts 4.2).
            background_mask=1.0 - opacity,
            five_points=points[:, list(FIVE_POINTS)],
            camera=batch.camera[real, 0],
            uv=batch.uv[real],
            weight=weight,
        )

    def _share(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms (B',) of some samples as their part of the mean over all samples of the batch."""
        return {name: value.sum() / self.section.batch for name, value in terms.items()}
