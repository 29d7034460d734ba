"""Cross-view self-reenactment: who stands in for whom, and which losses a sample meets."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.adversary.discriminator import Discriminator
from model.head.flame import Flame
from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.psi.network import Psi, is_motion
from model.sizes import IdentitySizes
from pipeline.core.batches import take
from pipeline.core.errors import UserError
from pipeline.geometry.camera import project
from pipeline.geometry.head_model import load
from pipeline.geometry.label import Label
from pipeline.geometry.neck import Neck, TurningNeck, clip_necks
from pipeline.geometry.standin import standin
from pipeline.networks.judges import Judges
from pipeline.store.samples import Views, image_tensor
from pipeline.store.shards import ShardReader, decode_npy, read_sidecar
from pipeline.store.tables import write_table
from pipeline.store.view_index import write_index
from pipeline.train.adversary import Adversary
from pipeline.train.blinks import BlinkCompensation, head_scale
from pipeline.train.psi import start_from_static
from pipeline.train.psi_objective import ReenactmentObjective, driven
from pipeline.train.view_batches import PseudoMultiView
from tests.support.views_cache import PARAMS, SIZES, VIEWS, cache, points_of, reader, same

__all__ = ["cache"]  # the fixture


def test_substitution_rates(cache):
    p, q = substitutes(reader(cache), steps=400, batch=10)
    # Row 0 is the frame itself; 0.1 and 0.8 are the rates of PARAMS.
    own_motion = np.mean(p == 0)
    own_target = np.mean(q == 0)
    assert own_motion == pytest.approx(0.1, abs=0.015)
    assert own_target == pytest.approx(0.8, abs=0.02)
    rows = set(range(VIEWS + 1))
    assert set(p) == rows
    assert set(q) == rows
    # A pseudo target never tells the motion as well. The frame itself may be both, as published (facts 4.4).
    assert set(p[p == q]) == {0}


def substitutes(data: PseudoMultiView, steps: int, batch: int) -> np.ndarray:
    """The rows (2, N) of the motion and of the target of all samples of some steps."""
    rows = []
    for step in range(steps):
        for choice in data.choose(step, batch):
            rows.append((choice.p, choice.q))
    return np.transpose(rows)


@pytest.mark.parametrize(
    ("p", "q", "of_motion", "of_target"),
    [
        (0.0, 1.0, {1, 2}, {0}),
        (1.0, 0.0, {0}, {1, 2}),
    ],
)
def test_substitution_at_the_ends(cache, p, q, of_motion, of_target):
    motions, targets = substitutes(reader(cache, p, q), steps=50, batch=4)
    assert set(motions) == of_motion
    assert set(targets) == of_target


def test_both_frames_are_of_one_training_clip(cache):
    data = reader(cache)
    for step in range(20):
        for choice in data.choose(step, 4):
            source, _, _ = data.index.key(choice.source).partition("-")
            driving, _, _ = data.index.key(choice.driving).partition("-")
            assert source == driving
            # It is held out.
            assert source != "clip0"


def test_batches_depend_on_the_step_alone(cache):
    first = reader(cache).batch(7, 5)
    again = reader(cache).batch(7, 5)
    assert same(first, again)
    other = reader(cache).batch(8, 5)
    assert not torch.equal(first.source, other.source)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_read_disjoint_parts_of_the_same_batches(cache, world):
    """Put together in turn, the parts are the batch.

    Another process makes them as well: the data is pickled, as a worker of a DataLoader has it.
    """
    whole = reader(cache).batch(5, 8)
    for rank in range(world):
        rows = slice(rank, None, world)
        pickled = pickle.dumps(reader(cache))
        data = pickle.loads(pickled)
        part = data.batch(5, 8, rows)
        assert same(part, take(whole, rows))


def test_real_targets_are_dealt_evenly(cache):
    """A process whose microbatch had more of the dear samples would let the others wait."""
    data = reader(cache, q=0.5)
    differences = set()
    for step in range(40):
        chosen = data.choose(step, 8)
        real = np.array([choice.q == 0 for choice in chosen])
        # Samples of four microbatches in turn.
        counts = real.reshape(-1, 4).sum(axis=0)
        differences.add(np.ptp(counts))
    # Where their number does not divide, some microbatches have one more.
    assert differences == {0, 1}


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
    data = reader(cache)
    shards = ShardReader(cache / "shards")
    for step in range(6):
        batch = data.batch(step, 3)
        for i, choice in enumerate(data.choose(step, 3)):
            source = shards.read(data.index.key(choice.source))
            driving = shards.read(data.index.key(choice.driving))
            target = "image.png"
            mask = "mask.png"
            # Rows of arrays begin with the frame itself, files of views with the first view.
            if choice.q:
                view = choice.q - 1
                target = f"view{view}.png"
                mask = f"alpha{view}.png"
            pictures = {
                "source": source["image.png"],
                "target": driving[target],
                "opacity": driving[mask],
            }
            for name, png in pictures.items():
                found = getattr(batch, name)[i]
                assert torch.equal(found, image_tensor(png)), name
            arrays = {
                "motion_source": (source["motion.npy"], 0),
                "motion_driving": (driving["motion.npy"], choice.p),
                "camera": (driving["cameras.npy"], choice.q),
                "landmarks": (driving["landmarks.npy"], choice.q),
            }
            for name, (npy, row) in arrays.items():
                expected = decode_npy(npy)[row]
                found = getattr(batch, name)[i]
                assert np.array_equal(found.reshape(expected.shape), expected), name
            assert batch.real[i] == (choice.q == 0)


def test_landmarks_of_the_driving_expression_are_those_that_the_source_would_show(cache):
    data = reader(cache)
    for step in range(3):
        batch = data.batch(step, 3)
        for i, choice in enumerate(data.choose(step, 3)):
            camera = batch.camera_source[i].numpy()
            places = [batch.landmarks_source[i], batch.landmarks_reenacted[i]]
            for frame, found in zip((choice.source, choice.driving), places, strict=True):
                clip, index = data.index.key(frame).split("-")
                points = points_of(int(clip.removeprefix("clip")), int(index))
                assert np.allclose(found, project(points, camera), atol=1e-5)


def test_the_flow_is_asked_to_take_landmarks_from_the_source(cache):
    batch = reader(cache).batch(0, 4)
    judges = Judges(IdentityNet(IdentitySizes((1, 1, 1, 1), 8, 16)), Trunk(), Regressor())
    adversary = Adversary(Discriminator(SIZES), PARAMS.train)
    objective = ReenactmentObjective(PARAMS, Psi(SIZES), adversary, judges, Neck())
    side = SIZES.image
    right = torch.zeros(4, 2, side, side)
    right[:, 0] = 0.02
    # Landmarks that all lie 0.02 further right in the source are what such a flow is right about.
    shifted = replace(batch, landmarks_source=batch.landmarks_reenacted + torch.tensor([0.02, 0.0]))
    planes = replace(driven(objective.psi, objective.neck, batch), flow_B2SS=right)
    assert objective._flow_terms(planes, shifted)["flow"] == pytest.approx([0.0] * 4, abs=1e-4)
    # Half of two percent, the mean over both directions; of 44 landmarks 12 count three times, 2 eight times.
    resting = replace(planes, flow_B2SS=torch.zeros_like(right))
    wanted = (44 + 2 * 12 + 7 * 2) / 44
    assert objective._flow_terms(resting, shifted)["flow"] == pytest.approx([wanted] * 4, abs=1e-4)
    assert objective._flow_terms(replace(planes, flow_B2SS=None), shifted) == {}


def test_blinks_make_heads_of_pseudo_targets_smaller(cache):
    # The published numbers (facts 4.3): 0.97 with closed eyes, 1 from an opening of 0.3 of the width on.
    found = [head_scale(opening) for opening in (-0.1, 0.0, 0.15, 0.3, 0.5)]
    assert found == pytest.approx([0.97, 0.97, 0.985, 1.0, 1.0])
    blinks = BlinkCompensation(Flame(load("standin")))
    plain = reader(cache, q=0.0)
    moved = PseudoMultiView(
        cache,
        seed=plain.seed,
        clips=0,
        motion="emot",
        substitute_p=plain.substitute_p,
        substitute_q=0.0,
        blinks=blinks,
    )
    before, after = plain.batch(0, 4), moved.batch(0, 4)
    assert same(replace(after, camera=before.camera), before)
    labels = [
        Views.label.tensor(plain.index.read(choice.driving, {"label.npy"})) for choice in plain.choose(0, 4)
    ]
    scales = torch.tensor([head_scale(blinks.opening(label)) for label in labels])
    assert (scales < 1).any()
    places = before.camera[:, 0, [3, 7, 11]] * scales[:, None]
    assert torch.allclose(after.camera[:, 0, [3, 7, 11]], places)
    # A point of the smaller head as the published camera sees it, and of the head as ours does.
    point = np.array([[0.1, -0.2, 0.3]])
    for camera, cached, scale in zip(after.camera[:, 0], before.camera[:, 0], scales, strict=True):
        here = project(float(scale) * point, camera.numpy())
        assert np.allclose(here, project(point, cached.numpy()), atol=1e-6)
    # Real targets are what they are.
    real = reader(cache, q=1.0)
    real.blinks = blinks
    assert same(real.batch(0, 4), reader(cache, q=1.0).batch(0, 4))


@pytest.mark.parametrize(
    ("least", "names", "gated", "usable"),
    [
        (12, ["clip1", "clip2"], 2, 6),
        # Of the fifth usable frame there is no second one in its clip.
        (13, ["clip2"], 3, 4),
    ],
)
def test_gated_frames_are_not_drawn_and_a_clip_with_one_left_is_left_out(
    cache,
    tmp_path,
    least,
    names,
    gated,
    usable,
):
    folder = tmp_path / "views"
    shutil.copytree(cache, folder)
    write_index(
        cache / "shards",
        folder / "index.parquet",
        lambda quality: "psnr" if quality["psnr"] < least else "",
    )
    data = reader(folder)
    assert data.names == names
    assert data.clips_left_out == 2 - len(names)
    assert data.frames_left_out == gated
    drawn: set[int] = set()
    for step in range(40):
        for choice in data.choose(step, 4):
            drawn |= {choice.source, choice.driving}
    assert len(drawn) == usable


def test_frames_marked_as_bad_are_not_drawn(cache):
    # Of clip 2 a single frame is left, which has no second one; one mark is of a test frame, one of none.
    bad = ["clip1-000002", *(f"clip2-{index:06d}" for index in range(3)), "clip0-000001", "gone-000001"]
    data = reader(cache, bad=bad)
    assert data.names == ["clip1"]
    assert (data.frames_marked_bad, data.clips_left_out, data.frames_left_out) == (4, 1, 0)
    drawn: set[str] = set()
    for step in range(40):
        for choice in data.choose(step, 4):
            drawn |= {data.index.key(choice.source), data.index.key(choice.driving)}
    assert drawn == {"clip1-000000", "clip1-000001", "clip1-000003"}
    # Without a mark everything is drawn as before.
    assert reader(cache, bad=[]).choose(3, 4) == reader(cache).choose(3, 4)


def test_a_cache_without_usable_frames_is_refused(cache, tmp_path):
    folder = tmp_path / "views"
    shutil.copytree(cache, folder)
    write_index(
        cache / "shards",
        folder / "index.parquet",
        lambda quality: "identity",
    )
    with pytest.raises(UserError, match=r"no training clip with 2 usable frames.*render_views\.min_"):
        reader(folder)


def test_a_damaged_sample_is_refused_by_name(cache, tmp_path):
    folder = tmp_path / "views"
    shutil.copytree(cache, folder)
    data = reader(folder, q=1.0)
    (choice,) = data.choose(0, 1)
    key = data.index.key(choice.driving)
    shards = folder / "shards"
    shard = shards / ShardReader(shards).shard(key)
    _, places = read_sidecar(shard)
    begin = places[key]["uv.png"][0]
    field = rf"{shard.name}: the field uv\.png of the sample {key}"
    whole = shard.read_bytes()
    # One bit in the middle of a picture, which a decoder would not see.
    flipped = bytearray(whole)
    flipped[begin + 50] ^= 4
    shard.write_bytes(flipped)
    with pytest.raises(UserError, match=f"{field} is altered"):
        data.batch(0, 1)
    cut = whole[: begin + 5]
    shard.write_bytes(cut)
    with pytest.raises(UserError, match=f"{field} is cut short"):
        data.batch(0, 1)
    shard.unlink()
    with pytest.raises(UserError, match=rf"cannot read .*{shard.name}: No such file"):
        data.batch(0, 1)
    # Nothing of the damage is remembered.
    shard.write_bytes(whole)
    undamaged = reader(cache, q=1.0)
    assert same(data.batch(0, 1), undamaged.batch(0, 1))


def test_an_index_that_is_damaged_or_old_is_refused(cache, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*index\.parquet: No such file"):
        reader(tmp_path)
    index = tmp_path / "index.parquet"
    whole = (cache / "index.parquet").read_bytes()
    # A Parquet file ends with the place of all else in it.
    index.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"index\.parquet is damaged"):
        reader(tmp_path)
    columns = {"key": ["a"], "clip": ["a"], "split": ["train"]}
    write_table(index, pa.table(columns))
    with pytest.raises(UserError, match="older than all formats"):
        reader(tmp_path)


def test_the_number_of_clips_is_a_limit(cache):
    assert reader(cache, clips=1).names == ["clip1"]
    with pytest.raises(UserError, match=r"train\.clips is 3, but only 2"):
        reader(cache, clips=3)


def test_flame_motion_has_109_numbers(cache):
    batch = reader(cache, motion="flame").batch(0, 3)
    assert batch.motion_driving.shape == (3, 109)
    psi = Psi(SIZES.driven_by("flame"))
    planes = psi.planes(
        batch.source,
        batch.motion_source,
        batch.motion_driving,
        camera_source_B25=batch.camera_source,
    )
    # Three planes for each of three samples.
    side = SIZES.plane_resolution
    assert planes.triplanes_B3CRR.shape == (3, 3, SIZES.plane_channels, side, side)


def test_psi_starts_from_the_static_weights_but_for_the_motion_layers():
    torch.manual_seed(0)
    static = Psi(SIZES).state_dict()
    psi = Psi(SIZES)
    before = {key: value.clone() for key, value in psi.state_dict().items()}
    start_from_static(psi, static)
    for key, value in psi.state_dict().items():
        # Psi_3d has no motion to learn from, so that these layers would be as they were initialised.
        expected = before if is_motion(key) else static
        assert torch.equal(value, expected[key]), key


def test_necks_turn_by_what_the_clips_rotation_leaves(cache):
    data = reader(cache, q=0.5, neck="field")
    batch, choices = data.batch(0, 8), data.choose(0, 8)
    cameras = data.index.cameras()[:, 0]
    assert np.array_equal(data.index.own_cameras(), cameras)
    # All of the cache's keys begin with the names of their clips.
    keys = [data.index.key(frame) for frame in range(len(data.index))]
    for row, choice in enumerate(choices):
        clip, _, _ = keys[choice.driving].partition("-")
        frames = [frame for frame, key in enumerate(keys) if key.startswith(clip)]
        necks = dict(zip(frames, clip_necks(cameras[frames]), strict=True))
        assert np.allclose(batch.label_source[row, Label.NECK], necks[choice.source])
        # Pseudo views show a neck at rest.
        wanted = np.zeros(3) if choice.q else necks[choice.driving]
        assert np.allclose(batch.label_driving[row, Label.NECK], wanted)
        assert torch.equal(batch.label_source[row, Label.CAMERA], batch.camera_source[row])
    assert 0 < batch.real.sum() < len(choices)
    # Without a field labels are not even read.
    assert reader(cache).batch(0, 8).label_source.shape == (8, 0)


@pytest.mark.parametrize("sparse", [False, True])
def test_psi_learns_with_a_neck_field(cache, sparse):
    torch.manual_seed(1)
    section = PARAMS.train.model_copy(update={"whole_from": 4000 if sparse else 0})
    params = PARAMS.model_copy(update={"train": section})
    judges = Judges(IdentityNet(IdentitySizes((1, 1, 1, 1), 8, 16)), Trunk(), Regressor())
    psi, adversary = Psi(SIZES), Adversary(Discriminator(SIZES), section)
    necks = {"none": Neck(), "field": TurningNeck(Flame(standin()))}
    totals = {}
    for kind, neck in necks.items():
        objective = ReenactmentObjective(params, psi, adversary, judges, neck)
        (loss,) = objective(0, 0, reader(cache, q=1.0, neck=kind).batch(0, 2))
        loss.total.backward()
        totals[kind] = float(loss.total.detach())
    assert np.isfinite(totals["field"])
    assert totals["field"] != totals["none"]
    for name, parameter in psi.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("q", "terms"),
    [
        (1.0, {"l1", "lpips", "opacity", "identity", "adversarial", "flow", "thickness"}),
        # A pseudo view has what Psi_3d thinks of identity and background, which is not to be learnt.
        (0.0, {"lpips_pseudo", "flow", "thickness"}),
    ],
)
def test_a_real_target_meets_every_loss_and_a_pseudo_view_no_loss_on_colours_but_lpips(
    cache,
    q,
    terms,
):
    torch.manual_seed(1)
    # Every loss is on from the first step, which has all rays.
    from_the_start = {"adversarial_from": 0, "whole_from": 0}
    section = PARAMS.train.model_copy(update=from_the_start)
    params = PARAMS.model_copy(update={"train": section})
    sizes = IdentitySizes((1, 1, 1, 1), 8, 16)
    judges = Judges(IdentityNet(sizes), Trunk(), Regressor())
    psi = Psi(SIZES)
    adversary = Adversary(Discriminator(SIZES), section)
    objective = ReenactmentObjective(params, psi, adversary, judges, Neck())
    met: dict[str, set[str]] = {}
    batch = reader(cache, q=q).batch(0, 2)
    for loss in objective(0, 0, batch):
        met[loss.optimiser] = set(loss.terms)
        loss.total.backward()
    expected = {"psi": terms}
    # The discriminator learns from real targets alone.
    if q:
        expected["discriminator"] = {"discriminator"}
    assert met == expected
    for parameter in psi.motion_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
