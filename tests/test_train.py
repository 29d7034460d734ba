"""Cross-view self-reenactment: who stands in for whom, and which losses a sample meets."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.discriminator import Discriminator
from model.flame import Flame
from model.psi import Psi, is_motion
from model.sizes import IdentitySizes
from pipeline import camera, head_model
from pipeline.counter import rng
from pipeline.errors import UserError
from pipeline.files import write_table
from pipeline.frames import PseudoMultiView
from pipeline.objective import Adversary
from pipeline.perception import IdentityNet, Perception, Regressor, Trunk
from pipeline.scales import scale_params
from pipeline.shards import encode_npy, encode_png, write_shard
from pipeline.train_psi import ReenactmentObjective, start_from_static

PARAMS = scale_params("smoke")
SIZES = PARAMS.networks
CLIPS, FRAMES, VIEWS = 3, 4, 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of random pictures in the layout of render_views."""
    folder = tmp_path_factory.mktemp("views")
    draw, size = rng(0, "cache"), SIZES.image

    def picture(*shape):
        return encode_png(draw.integers(0, 256, shape, dtype=np.uint8))

    samples, rows = [], []
    for clip in range(CLIPS):
        for index in range(FRAMES):
            key = f"clip{clip}-{index:06d}"
            cameras = np.stack([camera.sample_look_at(draw) for _ in range(VIEWS + 1)])
            label = np.concatenate([cameras[0], np.zeros(412, np.float32)])
            motion = draw.normal(size=(VIEWS + 1, SIZES.motion.dims)).astype(np.float32)
            fields = {"image.png": picture(size, size, 3), "mask.png": picture(size, size), "uv.png": picture(size, size, 3)}
            for view in range(VIEWS):
                fields |= {f"view{view}.png": picture(size, size, 3), f"alpha{view}.png": picture(size, size)}
            samples.append((key, fields | {"cameras.npy": encode_npy(cameras), "motion.npy": encode_npy(motion), "label.npy": encode_npy(label)}))
            rows.append({"key": key, "clip": f"clip{clip}", "split": "train" if clip else "test"})
    write_shard(folder / "shards/views-000000.tar", samples)
    write_table(folder / "index.parquet", pa.Table.from_pylist(rows))
    return folder


def reader(cache, p=0.1, q=0.8, clips=0, motion="emot"):
    return PseudoMultiView(cache, seed=0, clips=clips, motion=motion, substitute_p=p, substitute_q=q)


def test_substitution_rates(cache):
    chosen = [choice for step in range(400) for choice in reader(cache).choose(step, 10)]
    assert np.mean([choice.p == 0 for choice in chosen]) == pytest.approx(0.1, abs=0.015)
    assert np.mean([choice.q == 0 for choice in chosen]) == pytest.approx(0.8, abs=0.02)
    assert {choice.p for choice in chosen} == {choice.q for choice in chosen} == set(range(VIEWS + 1))


@pytest.mark.parametrize(("p", "q", "rows"), [(0.0, 1.0, ({1, 2}, {0})), (1.0, 0.0, ({0}, {1, 2}))])
def test_substitution_at_the_ends(cache, p, q, rows):
    chosen = [choice for step in range(50) for choice in reader(cache, p, q).choose(step, 4)]
    assert ({choice.p for choice in chosen}, {choice.q for choice in chosen}) == rows


def test_both_frames_are_of_one_training_clip(cache):
    for step in range(50):
        for choice in reader(cache).choose(step, 4):
            assert choice.source.split("-")[0] == choice.driving.split("-")[0] != "clip0"


def test_batches_depend_on_the_step_alone(cache):
    first, again = reader(cache).batch(7, 5), reader(cache).batch(7, 5)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in first.__dataclass_fields__)
    assert not torch.equal(first.source, reader(cache).batch(8, 5).source)


def test_the_number_of_clips_is_a_limit(cache):
    assert reader(cache, clips=1).names == ["clip1"]
    with pytest.raises(UserError, match=r"train\.clips is 3, but only 2"):
        reader(cache, clips=3)


def test_flame_motion_has_109_numbers(cache):
    batch = reader(cache, motion="flame").batch(0, 3)
    assert batch.motion_driving.shape == (3, 109)
    planes = Psi(SIZES.driven_by("flame")).planes(batch.source, batch.motion_source, batch.motion_driving)
    assert planes.shape == (3, 3, SIZES.plane_channels, SIZES.plane_resolution, SIZES.plane_resolution)


def test_psi_starts_from_the_static_weights_but_for_the_motion_layers():
    torch.manual_seed(0)
    static, psi = Psi(SIZES).state_dict(), Psi(SIZES)
    before = {key: value.clone() for key, value in psi.state_dict().items()}
    start_from_static(psi, static)
    for key, value in psi.state_dict().items():
        assert torch.equal(value, before[key] if is_motion(key) else static[key]), key


@pytest.mark.parametrize(
    ("q", "terms"),
    [(1.0, {"l1", "lpips", "opacity", "identity", "adversarial"}), (0.0, {"lpips_pseudo"})],
)
def test_a_real_target_meets_every_loss_and_a_pseudo_view_lpips_alone(cache, q, terms):
    torch.manual_seed(1)
    section = PARAMS.train.model_copy(update={"adversarial_from": 0})
    params = PARAMS.model_copy(update={"train": section})
    perception = Perception(IdentityNet(IdentitySizes((1, 1, 1, 1), 8, 16)), Trunk(), Regressor())
    psi = Psi(SIZES)
    adversary = Adversary(Discriminator(SIZES), 1e-3)
    objective = ReenactmentObjective(params, psi, adversary, perception, Flame(head_model.standin()))
    loss, scalars, finish = objective(0, reader(cache, q=q).batch(0, 2))
    assert set(scalars) == terms
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in psi.motion_parameters())
    assert set(finish()) == ({"discriminator"} if q else set())
