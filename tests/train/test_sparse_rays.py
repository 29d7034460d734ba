"""Sparse steps see the same picture as whole steps.

Their rays are some of all rays, their losses those of some of the pixels.
"""

import numpy as np
import torch

from model.volume.renderer import Rendering, camera_rays
from pipeline.geometry.camera import look_at
from pipeline.train.image_terms import Target, sparse_terms
from pipeline.train.sparse_rays import STRIDE, SparseRays, rays_of_step


def test_thin_rays_are_some_of_all_rays():
    camera = torch.from_numpy(look_at(0.3, 0.1, 4.1, np.zeros(3)))[None, None].float()
    every = camera_rays(camera, 16)[1].view(16, 16, 3).permute(2, 0, 1)
    for row in range(STRIDE):
        for column in range(STRIDE):
            sparse = SparseRays(row, column)
            found = (
                camera_rays(sparse.cameras(camera, 16), 16 // STRIDE)[1]
                .view(16 // STRIDE, -1, 3)
                .permute(2, 0, 1)
            )
            assert (found - sparse(every)).abs().max() < 1e-6


def test_which_steps_are_thin():
    steps = [rays_of_step(0, "some", step, 4) for step in range(64)]
    assert [step for step, thin in enumerate(steps) if thin is None] == list(range(0, 64, 4))
    assert {(thin.row, thin.column) for thin in steps if thin} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert steps == [rays_of_step(0, "some", step, 4) for step in range(64)]
    assert steps != [rays_of_step(1, "some", step, 4) for step in range(64)]
    assert [rays_of_step(0, "some", step, 1) for step in range(8)] == [None] * 8
    whole = [step for step in range(16) if rays_of_step(0, "some", step, 4, 6) is None]
    assert whole == [8, 12]


def test_a_perfect_picture_costs_nothing_in_a_thin_step():
    draw, sparse = torch.Generator().manual_seed(0), SparseRays(1, 0)
    image = torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1
    opacity = torch.rand(2, 1, 16, 16, generator=draw)
    nothing = torch.zeros(2, 1)
    target = Target(
        image,
        opacity,
        image.flip(0),
        1.0 - opacity,
        nothing,
        nothing,
        nothing,
        torch.ones(2, 1, 16, 16),
    )
    raw, alpha = sparse(image), sparse(opacity)
    # Colours over black.
    foreground = (raw + 1) * alpha - 1
    perfect = Rendering(
        raw,
        raw,
        foreground,
        sparse(image.flip(0)),
        alpha,
        nothing,
        nothing,
    )
    for value in sparse_terms(perfect, target, sparse).values():
        assert value.abs().max() < 1e-6
    other = Rendering(
        -raw,
        -raw,
        foreground,
        sparse(image.flip(0)),
        1.0 - alpha,
        nothing,
        nothing,
    )
    terms = sparse_terms(other, target, sparse)
    expected = 2 * (2 * raw).abs().flatten(1).mean(1)
    assert torch.allclose(terms["l1"], expected)
    assert terms["opacity"].min() > 0.1
