"""render_views on networks that know nothing: what it writes, and that this depends on its inputs alone."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model.head.flame import Flame
from model.psi.network import Psi
from model.weights import load_weights
from pipeline.caches.verify import verify
from pipeline.config.params import ViewPictures
from pipeline.core.errors import UserError
from pipeline.geometry import head_model
from pipeline.geometry.camera import project
from pipeline.geometry.label import Label, head_vertices
from pipeline.networks.weights import save_weights
from pipeline.render.views import render_views, usable_frames, wanted_frames
from pipeline.store.samples import Views
from pipeline.store.shards import ShardReader, read_sidecar
from pipeline.train.view_batches import PseudoMultiView
from tests.render.stages import SIZES, VIEW_INPUTS, params_with, views
from tests.support.folders import checksums
from tests.support.render_inputs import inputs, label

__all__ = ["inputs"]  # the fixture

MEASURES = ("psnr", "coverage", "identity")


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def test_what_is_counted(inputs, tmp_path):
    metrics = views(inputs, tmp_path / "out")
    assert metrics["frames"] == {"train": 6, "validation": 0, "test": 4}
    assert metrics["rejected"] == {
        "without_face": 1,
        "without_label": 1,
        "given_up": 0,
        "given_up_frames": [],
    }
    assert metrics["clips"] == 3
    assert metrics["views"] == 20
    assert metrics["shards"] == 3
    # What would be kept for a run that was killed is gone.
    scratch = tmp_path / ".cache/psi4d/scratch/render_views"
    assert not scratch.exists() or not list(scratch.iterdir())


def test_of_a_training_clip_so_many_frames_are_drawn(inputs):
    params = params_with(render_views={"views": 2, "frames": 2})
    tables = (inputs / "ingest/frames.parquet", inputs / "labels/vfhq.parquet")
    drawn, counts = wanted_frames(params, *tables)
    # All frames of the test clips stay.
    assert counts["frames"] == {"train": 4, "validation": 0, "test": 4}
    everything, _ = usable_frames(*tables)
    assert [row for row in everything if row in drawn] == drawn
    again, _ = wanted_frames(params, *tables)
    assert again == drawn
    others = [wanted_frames(params.model_copy(update={"seed": seed}), *tables)[0] for seed in range(1, 6)]
    assert any(other != drawn for other in others)


def test_what_the_index_says(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    reader = ShardReader(tmp_path / "out/shards")
    keys = [row["key"] for row in index]
    assert keys == reader.keys() == sorted(keys)
    assert "a-000001" not in reader
    assert "b-000003" not in reader
    for row in index:
        assert row["shard"] == reader.shard(row["key"])
        assert 0 < row["psnr"] < 60
        assert 0 <= row["coverage"] <= 1
        assert -1 <= row["identity"] <= 1
        assert row["kept"]
        assert row["reason"] == ""
        # A sample says of itself what the index says of it.
        told = Views.frame.facts(reader[row["key"]])
        assert told.keys() == {"clip", "split", "index", *MEASURES}
        for name, value in told.items():
            assert value == pytest.approx(row[name])


def test_what_a_sample_holds(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    reader = ShardReader(tmp_path / "out/shards")
    ingested = ShardReader(inputs / "ingest/shards")
    for key in reader:
        sample = reader.read(key)
        for field in (Views.image, Views.mask):
            before = ingested.read(key, field.file)
            assert sample[field.file] == before
        size = (SIZES.image, SIZES.image)
        uv = Views.uv.array(sample)
        assert uv.shape == (*size, 3)
        for number in range(2):
            view = Views.view.array(sample, number)
            alpha = Views.alpha.array(sample, number)
            assert view.shape == (*size, 3)
            assert alpha.shape == size
        cameras = Views.cameras.array(sample)
        motion = Views.motion.array(sample)
        assert cameras.shape == (3, 25)
        assert cameras.dtype == np.float32
        assert motion.shape == (3, SIZES.motion.dims)
        assert motion.dtype == np.float32
        assert np.isfinite(motion).all()
        # The first camera is the fitted one, of the frame itself.
        fitted = label(key)
        assert np.array_equal(Views.label.array(sample), fitted)
        assert np.array_equal(cameras[0], fitted[Label.CAMERA])


def test_pictures_in_other_codecs(inputs, tmp_path):
    codecs = {"image": "webp", "mask": "png", "view": "webp-90", "alpha": "avif-95", "uv": "webp"}
    views(inputs, tmp_path / "plain")
    views(inputs, tmp_path / "out", pictures=ViewPictures(**codecs), alpha_size="rays")
    plain, other = (ShardReader(tmp_path / name / "shards") for name in ("plain", "out"))
    key = plain.keys()[0]
    names = set(other.fields(key))
    assert {"image.webp", "mask.png", "view1.webp", "alpha1.avif", "uv.webp"} < names
    before, after = plain.read(key), other.read(key)
    for field in (Views.image, Views.mask, Views.uv):
        assert np.array_equal(field.array(before), field.array(after))
    lost = Views.view.array(before, 1).astype(float) - Views.view.array(after, 1)
    assert 0 < np.abs(lost).mean() < 20
    assert Views.alpha.array(after, 1).shape == (SIZES.rays, SIZES.rays)
    assert not verify(tmp_path / "out").findings
    # A trainer sees opacities at the size of the pictures, and nearly those of before.
    drawn = [
        PseudoMultiView(tmp_path / name, seed=0, clips=0, motion="emot", substitute_p=0.5, substitute_q=0.0)
        for name in ("plain", "out")
    ]
    first, second = (data.batch(0, 4) for data in drawn)
    assert first.opacity.shape == second.opacity.shape
    assert (first.opacity - second.opacity).abs().mean() < 0.02
    assert (first.target - second.target).abs().mean() < 0.2
    assert torch.equal(first.source, second.source)
    assert torch.equal(first.camera, second.camera)


def test_no_camera_comes_twice(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    reader = ShardReader(tmp_path / "out/shards")
    drawn = []
    for key in reader:
        _, *others = Views.cameras.array(reader[key])
        drawn += others
    different = np.unique(drawn, axis=0)
    assert len(different) == 20


def test_landmarks_are_those_of_the_labelled_head_in_each_view(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    reader = ShardReader(tmp_path / "out/shards")
    flame = Flame(head_model.load("standin"))
    for key in reader:
        sample = reader[key]
        own = torch.from_numpy(label(key))
        vertices = head_vertices(flame, own[None])
        (in_space,) = flame.landmarks(vertices).numpy()
        points = Views.landmarks.array(sample)
        cameras = Views.cameras.array(sample)
        assert points.shape == (3, 70, 2)
        assert points.dtype == np.float32
        for found, camera in zip(points, cameras, strict=True):
            wanted = project(in_space, camera)
            assert np.allclose(found, wanted, atol=1e-5)


def test_a_frame_that_cannot_be_rendered_is_given_up(inputs, tmp_path):
    """A byte of an ingested picture has flipped: its frame is left out, its neighbours are not."""
    ingested = tmp_path / "ingest"
    shutil.copytree(inputs / "ingest", ingested)
    shard = ingested / "shards/clips-000000.tar"
    _, members = read_sidecar(shard)
    offset, _, _ = members["b-000001"]["image.png"]
    content = bytearray(shard.read_bytes())
    # Beyond the signature of the PNG, so that it is still taken for one.
    content[offset + 20] ^= 1
    shard.write_bytes(content)
    params = params_with(render_views={"views": 2, "shard_size": 4})
    others = [inputs / name for name in VIEW_INPUTS[1:]]
    out = tmp_path / "out"
    metrics = render_views(params, ingested, *others, out, tmp_path / "out.jpg")
    assert metrics["rejected"] == {
        "without_face": 1,
        "without_label": 1,
        "given_up": 1,
        "given_up_frames": ["b-000001"],
    }
    assert metrics["frames"] == {"train": 5, "validation": 0, "test": 4}
    assert metrics["views"] == 18
    index = pq.read_table(out / "index.parquet")
    keys = index["key"].to_pylist()
    assert keys == ShardReader(out / "shards").keys()
    assert len(keys) == 9
    assert "b-000001" not in keys


def test_the_views_are_what_the_network_renders(inputs, tmp_path):
    """One frame, done again by hand: the same picture for the same camera, to half a grey level."""
    views(inputs, tmp_path / "out")
    sample = ShardReader(tmp_path / "out/shards")["b-000001"]
    psi = Psi(SIZES)
    weights, _ = load_weights(inputs / "psi3d/psi3d.safetensors")
    psi.load_state_dict(weights)
    source = Views.image.tensor(sample)[None]
    cameras = Views.cameras.tensor(sample)[None]
    camera = cameras[:, 2:3]
    with torch.no_grad():
        rendering = psi(source, None, None, camera, 0.0, camera_source_B25=cameras[:, 0])
    (image,) = rendering.image.clamp(-1, 1)
    grey_levels = (image + 1) * 127.5
    wanted = grey_levels.permute(1, 2, 0).numpy()
    # Stored as PNG, without loss beyond the rounding to whole levels.
    found = Views.view.array(sample, 1)
    assert np.abs(found - wanted).max() < 0.51


def test_frames_below_a_threshold_are_kept_out(inputs, tmp_path):
    everything = views(inputs, tmp_path / "one")
    nothing = dict.fromkeys(MEASURES, 0)
    assert everything["kept_out"] == {"frames": 0, "below": nothing, "clips": 0}
    rows = pq.read_table(tmp_path / "one/index.parquet").to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    # Two training frames are below the one threshold, all but the last of clip b may be below the other.
    _, _, third, *_ = sorted(row["psnr"] for row in train)
    best = max(row["identity"] for row in train if row["clip"] == "b")
    least = {"psnr": third - 1e-4, "identity": best - 1e-5}
    gated = views(
        inputs,
        tmp_path / "two",
        min_psnr=least["psnr"],
        min_identity=least["identity"],
    )
    # The gate keeps frames out of training, not out of the cache.
    before = checksums(tmp_path / "one/shards")
    after = checksums(tmp_path / "two/shards")
    assert before == after

    def reasons(row):
        return [name for name, number in least.items() if row[name] < number]

    found = pq.read_table(tmp_path / "two/index.parquet").to_pylist()
    for row in found:
        assert row["reason"] == ", ".join(reasons(row))
        assert row["kept"] == (not row["reason"])
    kept_out = [row for row in train if reasons(row)]
    out = gated["kept_out"]
    assert out["frames"] == len(kept_out) >= 2
    for name in MEASURES:
        below = [row for row in kept_out if name in reasons(row)]
        assert out["below"][name] == len(below)
    # A clip of which less than two frames are left is of no use.
    kept = [row["clip"] for row in train if not reasons(row)]
    lost = [clip for clip in "ab" if kept.count(clip) < 2]
    assert out["clips"] == len(lost) >= 1
    lowest = min(row["psnr"] for row in rows)
    assert gated["psnr_least"] == pytest.approx(lowest, abs=1e-3)
    # Six frames in a row, three rows, each with its words and two pictures.
    height = 18 + 2 * 128
    with Image.open(tmp_path / "two.jpg") as image:
        assert image.size == (6 * 128, 3 * height)


def test_views_depend_on_the_inputs_alone(inputs, tmp_path, monkeypatch):
    """On the size of shards, too, they do not. That two workers make the same bytes, test_end_to_end sees."""
    views(inputs, tmp_path / "one")
    first = checksums(tmp_path / "one")
    # Elsewhere, where no unit is done yet.
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    views(inputs, tmp_path / "one")
    assert checksums(tmp_path / "one") == first
    views(inputs, tmp_path / "other", shard_size=2)
    one = ShardReader(tmp_path / "one/shards")
    other = ShardReader(tmp_path / "other/shards")
    assert one.keys() == other.keys()
    for key in one:
        cameras = one.read(key, "cameras.npy")
        assert other.read(key, "cameras.npy") == cameras


def test_views_say_what_is_missing(inputs, tmp_path):
    params = params_with()
    out = tmp_path / "out"
    arguments = [inputs / name for name in VIEW_INPUTS]
    messages = ["frames.parquet is missing", "nowhere is missing", "missing", "missing", "missing"]
    for position, message in enumerate(messages):
        changed = arguments.copy()
        changed[position] = tmp_path / "nowhere"
        with pytest.raises(UserError, match=message):
            render_views(params, *changed, out, tmp_path / "out.jpg")
    assert not out.exists()


def test_weights_of_another_version_stop_the_run_and_are_named(inputs, tmp_path):
    arguments = {name: inputs / name for name in VIEW_INPUTS}
    shutil.copytree(arguments["psi3d"], tmp_path / "psi3d")
    weights, facts = load_weights(tmp_path / "psi3d/psi3d.safetensors")
    del weights["projection.facing.weight"]
    save_weights(tmp_path / "psi3d/psi3d.safetensors", weights, facts)
    changed = arguments | {"psi3d": tmp_path / "psi3d"}
    with pytest.raises(UserError, match=r"psi3d\.safetensors are of other sizes .*facing.weight"):
        render_views(params_with(), *changed.values(), tmp_path / "out", tmp_path / "out.jpg")
