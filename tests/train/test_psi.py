"""Cross-view self-reenactment: who stands in for whom, and which losses a sample meets."""

import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.adversary.discriminator import Discriminator
from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.psi.network import Psi, is_motion
from model.sizes import IdentitySizes
from pipeline.core.batches import take
from pipeline.core.errors import UserError
from pipeline.networks.judges import Judges
from pipeline.store.samples import image_tensor
from pipeline.store.shards import ShardReader, decode_npy, read_sidecar
from pipeline.store.tables import write_table
from pipeline.store.view_index import write_index
from pipeline.train.adversary import Adversary
from pipeline.train.psi import start_from_static
from pipeline.train.psi_objective import ReenactmentObjective
from tests.support.views_cache import PARAMS, SIZES, VIEWS, cache, reader, same

__all__ = ["cache"]  # the fixture


def test_substitution_rates(cache):
    chosen = [choice for step in range(400) for choice in reader(cache).choose(step, 10)]
    p = np.array([choice.p for choice in chosen])
    q = np.array([choice.q for choice in chosen])
    assert np.mean(p == 0) == pytest.approx(0.1, abs=0.015)
    assert np.mean(q == 0) == pytest.approx(0.8, abs=0.02)
    assert set(p) == set(q) == set(range(VIEWS + 1))


@pytest.mark.parametrize(("p", "q", "rows"), [(0.0, 1.0, ({1, 2}, {0})), (1.0, 0.0, ({0}, {1, 2}))])
def test_substitution_at_the_ends(cache, p, q, rows):
    chosen = [choice for step in range(50) for choice in reader(cache, p, q).choose(step, 4)]
    p = {choice.p for choice in chosen}
    q = {choice.q for choice in chosen}
    assert (p, q) == rows


def test_both_frames_are_of_one_training_clip(cache):
    data = reader(cache)
    for step in range(20):
        for choice in data.choose(step, 4):
            source = data.index.key(choice.source).split("-")[0]
            driving = data.index.key(choice.driving).split("-")[0]
            assert source == driving != "clip0"


def test_batches_depend_on_the_step_alone(cache):
    first, again = reader(cache).batch(7, 5), reader(cache).batch(7, 5)
    assert same(first, again)
    assert not torch.equal(first.source, reader(cache).batch(8, 5).source)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_read_disjoint_parts_of_the_same_batches(cache, world):
    """Put together in turn, the parts are the batch.

    Another process makes them as well: the data is pickled, as a worker of a DataLoader has it.
    """
    whole = reader(cache).batch(5, 8)
    for rank in range(world):
        rows = slice(rank, None, world)
        data = pickle.loads(pickle.dumps(reader(cache)))
        assert same(data.batch(5, 8, rows), take(whole, rows))


def test_real_targets_are_dealt_evenly(cache):
    """A process whose microbatch had more of the dear samples would let the others wait."""
    data, uneven = reader(cache, q=0.5), 0
    for step in range(40):
        real = [choice.q == 0 for choice in data.choose(step, 8)]
        counts = [sum(real[microbatch::4]) for microbatch in range(4)]
        assert max(counts) - min(counts) <= 1
        uneven += max(counts) != min(counts)
    assert uneven


@pytest.mark.process
def test_a_position_is_a_number(cache):
    """Workers of a DataLoader, each with its own steps, see what one undisturbed run sees.

    So does a run that begins in the middle.
    """
    data = reader(cache)
    steps = torch.utils.data.DataLoader(
        StepsOf(data),
        batch_size=None,
        num_workers=2,
        sampler=range(3, 9),
        multiprocessing_context="spawn",
    )
    for step, batch in enumerate(steps, start=3):
        assert same(batch, data.batch(step, 4))
    assert step == 8


class StepsOf(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __getitem__(self, step):
        return self.data.batch(step, 4)


def test_a_batch_has_what_the_shards_have(cache):
    data, shards = reader(cache), ShardReader(cache / "shards")
    for step in range(6):
        batch = data.batch(step, 3)
        for i, choice in enumerate(data.choose(step, 3)):
            source = shards.read(data.index.key(choice.source))
            driving = shards.read(data.index.key(choice.driving))
            target, mask = "image.png", "mask.png"
            if choice.q:
                target, mask = f"view{choice.q - 1}.png", f"alpha{choice.q - 1}.png"
            assert torch.equal(batch.source[i], image_tensor(source["image.png"]))
            assert torch.equal(batch.target[i], image_tensor(driving[target]))
            assert torch.equal(batch.opacity[i], image_tensor(driving[mask]))
            assert np.array_equal(batch.motion_source[i], decode_npy(source["motion.npy"])[0])
            of_p = {"motion_driving": "motion.npy"}
            of_q = {"camera": "cameras.npy", "landmarks": "landmarks.npy"}
            for name, field in (of_p | of_q).items():
                row = choice.p if name in of_p else choice.q
                expected = decode_npy(driving[field])[row]
                assert np.array_equal(getattr(batch, name)[i].reshape(expected.shape), expected)
            assert batch.real[i] == (choice.q == 0)


def test_gated_frames_are_not_drawn_and_a_clip_with_one_left_is_left_out(cache, tmp_path):
    for psnr, names, frames in ((12, ["clip1", "clip2"], 2), (13, ["clip2"], 3)):
        shutil.copytree(cache, tmp_path / str(psnr))
        write_index(
            cache / "shards",
            tmp_path / str(psnr) / "index.parquet",
            lambda quality, least=psnr: "psnr" if quality["psnr"] < least else "",
        )
        data = reader(tmp_path / str(psnr))
        assert (data.names, data.clips_left_out, data.frames_left_out) == (names, 2 - len(names), frames)
        drawn: set[int] = set()
        for step in range(40):
            for choice in data.choose(step, 4):
                drawn |= {choice.source, choice.driving}
        assert len(drawn) == 8 - frames - (1 if len(names) == 1 else 0)
    write_index(cache / "shards", tmp_path / "12/index.parquet", lambda quality: "identity")
    with pytest.raises(UserError, match=r"no training clip with 2 usable frames.*render_views\.min_"):
        reader(tmp_path / "12")


def test_a_damaged_sample_is_refused_by_name(cache, tmp_path):
    folder = tmp_path / "views"
    shutil.copytree(cache, folder)
    data = reader(folder, q=1.0)
    key = data.index.key(data.choose(0, 1)[0].driving)
    shard = folder / "shards" / ShardReader(folder / "shards").shard(key)
    whole, place = shard.read_bytes(), read_sidecar(shard)[1][key]["uv.png"]
    flipped = bytearray(whole)
    flipped[place[0] + 50] ^= 4
    shard.write_bytes(flipped)
    with pytest.raises(UserError, match=rf"{shard.name}: the field uv\.png of the sample {key} is altered"):
        data.batch(0, 1)
    shard.write_bytes(whole[: place[0] + 5])
    with pytest.raises(UserError, match=rf"{shard.name}: the field uv\.png of the sample {key} is cut short"):
        data.batch(0, 1)
    shard.unlink()
    with pytest.raises(UserError, match=rf"cannot read .*{shard.name}: No such file"):
        data.batch(0, 1)
    shard.write_bytes(whole)
    assert same(data.batch(0, 1), reader(cache, q=1.0).batch(0, 1))


def test_an_index_that_is_damaged_or_old_is_refused(cache, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*index\.parquet: No such file"):
        reader(tmp_path)
    (tmp_path / "index.parquet").write_bytes((cache / "index.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"index\.parquet is damaged"):
        reader(tmp_path)
    write_table(
        tmp_path / "index.parquet",
        pa.table(
            {
                "key": ["a"],
                "clip": ["a"],
                "split": ["train"],
            }
        ),
    )
    with pytest.raises(UserError, match="older than all formats"):
        reader(tmp_path)


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
def test_a_real_target_meets_every_loss_and_a_pseudo_view_lpips_alone(
    cache,
    q,
    terms,
):
    torch.manual_seed(1)
    section = PARAMS.train.model_copy(update={"adversarial_from": 0, "whole_from": 0})
    params = PARAMS.model_copy(update={"train": section})
    judges = Judges(IdentityNet(IdentitySizes((1, 1, 1, 1), 8, 16)), Trunk(), Regressor())
    psi = Psi(SIZES)
    adversary = Adversary(Discriminator(SIZES), section)
    objective = ReenactmentObjective(params, psi, adversary, judges)
    met: dict[str, set[str]] = {}
    for loss in objective(0, 0, reader(cache, q=q).batch(0, 2)):
        met[loss.optimiser] = set(loss.terms)
        loss.total.backward()
    assert met == {"psi": terms} | ({"discriminator": {"discriminator"}} if q else {})
    for parameter in psi.motion_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
