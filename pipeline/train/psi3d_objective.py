"""Eq. 2: what a batch of synthetic heads asks of Psi_3d (paper section 4.2, facts 4.1 to 4.3)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from model.psi.network import Psi
from model.volume.planes import Planes
from pipeline.config.params import Params
from pipeline.core.seeds import torch_rng
from pipeline.geometry.label import FIVE_POINTS
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
from pipeline.train.sparse_rays import rays_of_step
from pipeline.train.synthetic_batches import HeadBatch
from pipeline.train.task import Loss

# Density regularisation (facts 4.3).
SMOOTH_EVERY, SMOOTH_POINTS, SMOOTH_STEP = 16, 1000, 0.004


class StaticObjective:
    """All seven losses with the schedule of facts 4.2, counted in images seen."""

    def __init__(
        self,
        params: Params,
        psi: Psi,
        adversary: Adversary,
        judges: Judges,
    ) -> None:
        self.section, self.seed = params.train_psi3d, params.seed
        self.psi, self.adversary, self.judges = psi, adversary, judges

    def __call__(self, step: int, microbatch: int, batch: HeadBatch) -> Iterator[Loss]:
        """The loss of Psi_3d, and that of the discriminator on the same rendering where it takes part."""
        section, images = self.section, step * self.section.batch
        share = len(batch.source) / section.batch
        jitter = torch_rng(self.seed, "psi3d-rays", step, microbatch)
        whole_from = section.whole_from // section.batch
        sparse = rays_of_step(self.seed, "psi3d-thin", step, section.whole_every, whole_from)
        adversarial = images >= section.adversarial_from and not sparse
        # Psi_3d is Psi whose motion counts nothing (paper section 4.2).
        planes = self.psi.planes(batch.source, None, None, 0.0, batch.camera_source)
        background = self.psi.background_feature(batch.source)
        # Fewer rays at first make the first million images cheaper; super-resolution enlarges what they see.
        side = self.rays_at(images)
        if side < background.shape[-1]:
            background = shrink(background, side)
            fewer = {name: shrink(getattr(batch, name), side) for name in ("opacity", "depth", "background")}
            batch = replace(batch, **fewer)
        target, opacity, depth = self._target(batch), batch.opacity, batch.depth

        if sparse:
            opacity, depth = sparse(opacity), sparse(depth)
            cameras = sparse.cameras(batch.camera, background.shape[-1])
            rendering = self.psi.volume(planes, sparse(background), cameras, generator=jitter)
            terms = sparse_terms(rendering, target, sparse)
        else:
            rendering = self.psi.render(planes, background, batch.camera, generator=jitter)
            terms = image_terms(rendering, target, self.judges)
        terms["thickness"] = thickness_term(rendering)
        if images >= section.identity_from and not sparse:
            terms["identity"] = identity_term(rendering, target, self.judges)
        # GenHead's depth and planes bring on the shape. Later they would hold it to GenHead's own mistakes.
        if images < section.depth_until:
            terms["depth"] = losses.depth_l1(rendering.depth, depth, opacity)
        if images < section.planes_until:
            features = self.psi.plane_features(planes, batch.points)
            terms["planes"] = losses.l1(features, batch.features)
        if adversarial:
            terms["adversarial"] = self.adversary.term(rendering, target)

        means = {name: share * value.mean() for name, value in terms.items()}
        weights = section.weights
        loss = Loss.weighted("psi", means, weights.model_dump())
        # Every so many steps, and then so many times as strong: the price of a second look at the density.
        if weights.roughness and step % SMOOTH_EVERY == 0:
            roughness = share * SMOOTH_EVERY * weights.roughness * self._roughness(planes, jitter)
            loss = replace(loss, total=loss.total + roughness)
        yield loss
        # R1 counts the steps in which the discriminator learns: whole ones.
        if adversarial:
            yield from self.adversary.losses(step // section.whole_every, rendering, target, share)

    def rays_at(self, images: int) -> int:
        """Rays a side after so many images (facts 4.1: 64 to one million, 128 from two millions on)."""
        section, all_rays = self.section, self.psi.sizes.rays
        if not section.rays_first or images >= section.rays_rise_until:
            return all_rays
        risen = max(images - section.rays_rise_from, 0)
        share = risen / (section.rays_rise_until - section.rays_rise_from)
        return round(section.rays_first + share * (all_rays - section.rays_first))

    def _target(self, batch: HeadBatch) -> Target:
        return Target(
            image=batch.target,
            opacity=batch.opacity,
            background=batch.background,
            # GenHead's background is known behind the head as well.
            background_mask=torch.ones_like(batch.opacity),
            five_points=batch.landmarks[:, list(FIVE_POINTS)],
            camera=batch.camera[:, 0],
            uv=batch.uv,
            weight=torch.ones_like(batch.target[:, :1]),
        )

    def _roughness(self, planes: Planes, jitter: torch.Generator) -> Tensor:
        """L1 between densities at random points and close by (facts 4.3)."""
        points = (
            torch.rand(
                len(planes.triplanes_B3CRR),
                SMOOTH_POINTS,
                3,
                generator=jitter,
            )
            * 2.0
            - 1.0
        )
        steps = torch.randn(points.shape, generator=jitter) * SMOOTH_STEP * self.psi.sizes.box
        both = torch.cat([points, points + steps], dim=1).to(planes.triplanes_B3CRR.device)
        density = self.psi.density(planes, both)
        return (density[:, :SMOOTH_POINTS] - density[:, SMOOTH_POINTS:]).abs().mean()
