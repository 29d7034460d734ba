"""The face recognition network and ArcFace's crop. Layout and parity: test_parity."""

import torch

from model.judges.identity import INPUT, TEMPLATE, IdentityNet, identity_crop
from model.sizes import IdentitySizes


def test_points_on_the_template_give_the_picture_itself() -> None:
    picture = torch.rand(2, 3, INPUT, INPUT)
    # The template counts pixels by their centres, fractions count from the edge.
    points = (torch.tensor(TEMPLATE) + 0.5) / INPUT
    crop = identity_crop(picture, points.expand(2, -1, -1))
    assert torch.allclose(crop, picture, atol=1e-3)


def test_gradients_pass_through_the_crop() -> None:
    picture = torch.rand(1, 3, 64, 64, requires_grad=True)
    points = torch.tensor(TEMPLATE)[None] / INPUT
    points.requires_grad_()
    sizes = IdentitySizes(blocks=(1, 1, 1, 1), width=8, embedding=32)
    network = IdentityNet(sizes).eval()
    crop = identity_crop(picture, points)
    found = network(crop)
    assert found.shape == (1, 32)
    found.square().sum().backward()
    assert picture.grad.any()
    assert points.grad.isfinite().all()
