"""Upright planes: what is local in the portrait is local in the planes, and lies where the picture has it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.fast.psi import FastPsi
from model.psi.network import Psi
from model.psi.reference import ReferencePsi
from model.volume.planes import lay_out, sample_planes_reference
from pipeline.config.scales import scale_params
from pipeline.geometry.camera import look_at

SIZES = scale_params("smoke").networks
LAYOUTS = ("published", "upright")


@pytest.mark.parametrize("row,column", [(1, 2), (5, 0), (7, 7)])
def test_a_pixel_of_the_map_lies_where_the_portrait_shows_it(row: int, column: int) -> None:
    """Column to the right is +x, row down is -y; z takes the columns of (y, z) and the rows of (z, x)."""
    side = 8
    right = (column + 0.5) / side - 0.5
    down = (row + 0.5) / side - 0.5
    places = [
        (right, -down, 0.0),
        (0.0, -down, right),
        (right, 0.0, down),
    ]
    for plane, place in enumerate(places):
        maps = torch.zeros(1, 3, side, side)
        maps[0, plane, row, column] = 3.0
        points = torch.tensor([[place]])
        upright = lay_out(maps, "upright")
        published = lay_out(maps, "published")
        features = sample_planes_reference(upright, points, box=1.0)
        # The mean over the planes.
        assert features.item() == pytest.approx(1.0, abs=1e-6), plane
        assert torch.equal(published[:, :, 0], maps)


def psi(layout: str, seed: int = 0) -> Psi:
    torch.manual_seed(seed)
    # Without projected features: what is looked at here are the tri-planes.
    sizes = replace(SIZES, planes=layout, psi=replace(SIZES.psi, projected=0))
    network = Psi(sizes).eval().requires_grad_(False)
    # There is something to see.
    torch.nn.init.normal_(network.decoder.out_sigma.weight, std=10.0)
    return network


def corner_of(
    picture: Tensor,
    down: int,
    right: int,
) -> Tensor:
    """One of the four corners of a picture (..., N, N), a view."""
    half = picture.shape[-1] // 2
    top = down * half
    left = right * half
    rows = slice(top, top + half)
    columns = slice(left, left + half)
    return picture[..., rows, columns]


def portraits(count: int, generator: torch.Generator) -> Tensor:
    image = (SIZES.image, SIZES.image)
    return torch.rand(count, 3, *image, generator=generator) * 2 - 1


def test_an_edit_of_the_source_changes_the_planes_where_it_was_made() -> None:
    """Before anything is learnt, in the mean over the four corners and three networks.

    A quarter of the change would be chance.
    """
    generator = torch.Generator().manual_seed(1)
    source = portraits(1, generator)
    near = {}
    for layout in LAYOUTS:
        shares = []
        for seed in range(3):
            network = psi(layout, seed)
            before = network.planes(source, None, None, 0).triplanes_B3CRR
            for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                edited = source.clone()
                corner_of(edited, down, right).neg_()
                after = network.planes(edited, None, None, 0).triplanes_B3CRR
                change = (after - before)[0, 0]
                # Rows of the plane (x, y) go up.
                as_a_picture = change.square().sum(0).flip(0)
                in_the_corner = corner_of(as_a_picture, down, right)
                share = in_the_corner.sum() / as_a_picture.sum()
                shares.append(share.item())
        near[layout] = np.mean(shares)
    assert near["upright"] > 0.37
    assert near["published"] < 0.3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_three_paths_agree(layout: str) -> None:
    network = psi(layout)
    generator = torch.Generator().manual_seed(2)
    source = portraits(2, generator)
    motions = torch.randn(2, 2, SIZES.motion.dims, generator=generator)
    centre = np.zeros(3)
    views = [look_at(yaw, 0.1, 4.2, centre) for yaw in (-0.3, 0.3)]
    cameras = torch.from_numpy(np.stack(views))
    cameras = cameras[:, None]
    wanted = network(source, *motions, cameras).image
    for other in (FastPsi(network), ReferencePsi(network)):
        found = other(source, *motions, cameras).image
        assert_close(found, wanted, atol=2e-3, rtol=0)
