"""The face recognition network: layout, parity with the published one, and ArcFace's crop."""

import json

import torch

from model.identity import FIVE_OF_70, INPUT, TEMPLATE, IdentityNet, identity_crop
from model.sizes import IdentitySizes
from model.warp import similarity
from tests.number_rule import REFERENCE, error, fill, fixture, image, needs_reference


@needs_reference
def test_parity_with_the_published_network() -> None:
    net = IdentityNet(IdentitySizes())
    manifest = json.loads((REFERENCE / "manifests" / "arcface_iresnet18.json").read_text())
    assert [(key, list(value.shape)) for key, value in net.state_dict().items()] == [(key, shape) for key, shape, _ in manifest]
    found = fill(net, equalised=False)(image("input:face112", 112))
    assert error(found[0], fixture("arcface_iresnet18")["embedding"]) < 1e-4


@needs_reference
def test_crop_parity() -> None:
    wanted = fixture("preprocess")
    points = torch.from_numpy(wanted["landmarks"])[None, list(FIVE_OF_70)]
    flipped = torch.stack([points[..., 0], 511 - points[..., 1]], -1)  # the fixture's landmarks count as y up here
    assert error(similarity(flipped, torch.tensor(TEMPLATE))[0], wanted["arcface_matrix"]) < 1e-5


def test_points_on_the_template_give_the_picture_itself() -> None:
    picture = torch.rand(2, 3, INPUT, INPUT)
    points = (torch.tensor(TEMPLATE) + 0.5) / INPUT
    assert torch.allclose(identity_crop(picture, points.expand(2, -1, -1)), picture, atol=1e-3)


def test_gradients_pass_through_the_crop() -> None:
    picture = torch.rand(1, 3, 64, 64, requires_grad=True)
    points = (torch.tensor(TEMPLATE)[None] / INPUT).requires_grad_()
    net = IdentityNet(IdentitySizes(blocks=(1, 1, 1, 1), width=8, embedding=32)).eval()
    found = net(identity_crop(picture, points))
    assert found.shape == (1, 32)
    found.square().sum().backward()
    assert picture.grad.abs().sum() > 0 and points.grad.isfinite().all()
