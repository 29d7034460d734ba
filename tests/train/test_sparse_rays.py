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
    aside = look_at(0.3, 0.1, 4.1, np.zeros(3))
    camera = torch.from_numpy(aside).float()[None, None]
    every = directions(camera, 16)
    for row in range(STRIDE):
        for column in range(STRIDE):
            sparse = SparseRays(row, column)
            # Its cameras look through the middles of the pixels that it keeps.
            cameras = sparse.cameras(camera, 16)
            found = directions(cameras, 16 // STRIDE)
            apart = (found - sparse(every)).abs()
            assert apart.max() < 1e-6


def directions(camera: torch.Tensor, side: int) -> torch.Tensor:
    """Directions of the rays of one camera as a picture, (3, side, side)."""
    _, rays = camera_rays(camera, side)
    picture = rays.view(side, side, 3)
    return picture.permute(2, 0, 1)


def test_which_steps_are_thin():
    def drawn(seed: int, *settings: int) -> list[SparseRays | None]:
        return [rays_of_step(seed, "some", step, *settings) for step in range(64)]

    def whole(steps: list[SparseRays | None]) -> list[int]:
        return [step for step, thin in enumerate(steps) if thin is None]

    steps = drawn(0, 4)
    assert whole(steps) == list(range(0, 64, 4))
    places = {(thin.row, thin.column) for thin in steps if thin}
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}
    # The seed and the step decide, and nothing else.
    assert steps == drawn(0, 4)
    assert steps != drawn(1, 4)
    every_one = drawn(0, 1)
    assert whole(every_one) == list(range(64))
    # None is whole before the sixth.
    late = drawn(0, 4, 6)
    assert whole(late) == list(range(8, 64, 4))


def test_a_perfect_picture_costs_nothing_in_a_thin_step():
    draw = torch.Generator().manual_seed(0)
    sparse = SparseRays(1, 0)
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
    thickness = torch.zeros_like(alpha)
    perfect = Rendering(
        raw,
        raw,
        foreground,
        sparse(image.flip(0)),
        alpha,
        nothing,
        thickness,
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
        thickness + 0.1,
        nothing,
    )
    terms = sparse_terms(other, target, sparse)
    # Every value is off by twice itself, and the raw picture stands for the final one, too.
    error = (2 * raw).abs().flatten(1)
    expected = 2 * error.mean(1)
    assert torch.allclose(terms["l1"], expected)
    assert terms["opacity"].min() > 0.1
