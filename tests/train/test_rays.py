"""Psi_3d begins with fewer rays (facts 4.1)."""

import pytest
import torch
from torch import Tensor, nn

from model.adversary.discriminator import Discriminator
from model.psi.network import Psi
from pipeline.config.params import Params, check_params
from pipeline.config.scales import scale_data, scale_params
from pipeline.core.errors import UserError
from pipeline.train.adversary import Adversary
from pipeline.train.psi3d_objective import StaticObjective
from pipeline.train.synthetic_batches import SyntheticHeads
from tests.evaluate.world import small_judges
from tests.support.training_inputs import write_inputs

BATCH = 2


def objective(params: Params) -> StaticObjective:
    torch.manual_seed(0)
    psi = Psi(params.networks)
    adversary = Adversary(Discriminator(params.networks), params.train_psi3d)
    return StaticObjective(params, psi, adversary, small_judges())


def rising() -> Params:
    """Scale demo, whose rays rise from a half of them to all within eight images."""
    own = scale_params("demo")
    half = own.networks.rays // 2
    changes = {"rays_first": half, "rays_rise_from": 4, "rays_rise_until": 8, "whole_every": 1}
    changes |= {"batch": BATCH, "microbatch": BATCH, "adversarial_from": 0, "identity_from": 100}
    return own.model_copy(update={"train_psi3d": own.train_psi3d.model_copy(update=changes)})


def test_the_published_rays() -> None:
    own = scale_params("paper")
    found = StaticObjective.rays_at
    with torch.device("meta"):
        psi = Psi(own.networks)
    static = StaticObjective(own, psi, nn.Module(), nn.Module())
    wanted = {0: 64, 1_000_000: 64, 1_250_000: 80, 1_500_000: 96, 2_000_000: 128, 9_000_000: 128}
    assert {images: found(static, images) for images in wanted} == wanted


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_a_step_renders_the_rays_of_its_time(tmp_path) -> None:
    params = rising()
    rays = params.networks.rays
    write_inputs(tmp_path, params.networks, heads=2, clips=1)
    heads = SyntheticHeads(tmp_path / "data/genhead/shards", 0)
    static = objective(params)
    seen: list[tuple[int, ...]] = []

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        feature, raw, *_ = inputs
        seen.append((feature.shape[-1], raw.shape[-1]))

    static.psi.superresolution.register_forward_pre_hook(look)
    for step in (0, 3, 4):
        losses = list(static(step, 0, heads.batch(step, BATCH)))
        # The discriminator takes part, too.
        assert len(losses) == 2
        assert all(torch.isfinite(loss.total) for loss in losses)
    sides = (rays // 2, rays * 3 // 4, rays)
    assert seen == [(side, side) for side in sides]


def test_rays_that_cannot_rise_are_refused() -> None:
    data = scale_data("paper")
    data["train_psi3d"] |= {"rays_first": 256, "rays_rise_from": 5, "rays_rise_until": 5, "whole_every": 2}
    with pytest.raises(UserError) as error:
        check_params(data, "here")
    for key in ("rays_first is 256", "rays_rise_from is 5", "whole_every is 2"):
        assert f"train_psi3d.{key}" in str(error.value)
    data = scale_data("demo")
    data["train_psi3d"]["init"] = "imagenet"
    with pytest.raises(UserError, match=r"unless pretrain\.source is official"):
        check_params(data, "here")
