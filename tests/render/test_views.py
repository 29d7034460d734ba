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
from pipeline.core.errors import UserError
from pipeline.geometry import head_model
from pipeline.geometry.camera import project
from pipeline.geometry.label import Label, head_vertices
from pipeline.render.views import render_views
from pipeline.store.samples import Views
from pipeline.store.shards import ShardReader, read_sidecar
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
    assert (metrics["clips"], metrics["views"], metrics["shards"]) == (3, 20, 3)
    scratch = tmp_path / ".cache/psi4d/scratch/render_views"
    assert not scratch.exists() or not list(scratch.iterdir())


def test_what_the_index_says(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    reader = ShardReader(tmp_path / "out/shards")
    keys = [row["key"] for row in index]
    assert keys == reader.keys() == sorted(keys)
    assert "a-000001" not in reader and "b-000003" not in reader
    for row in index:
        assert row["shard"] == reader.shard(row["key"])
        assert 0 < row["psnr"] < 60
        assert 0 <= row["coverage"] <= 1
        assert -1 <= row["identity"] <= 1
        assert (row["kept"], row["reason"]) == (True, "")
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
            assert sample[field.file] == ingested.read(key, field.file)
        size = (SIZES.image, SIZES.image)
        assert Views.uv.array(sample).shape == (*size, 3)
        for view in range(2):
            assert Views.view.array(sample, view).shape == (*size, 3)
            assert Views.alpha.array(sample, view).shape == size
        cameras, motion = Views.cameras.array(sample), Views.motion.array(sample)
        assert (cameras.shape, cameras.dtype) == ((3, 25), np.float32)
        assert (motion.shape, motion.dtype) == ((3, SIZES.motion.dims), np.float32)
        assert np.isfinite(motion).all()
        assert np.array_equal(Views.label.array(sample), label(key))
        assert np.array_equal(cameras[0], label(key)[Label.CAMERA])


def test_no_camera_comes_twice(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    reader = ShardReader(tmp_path / "out/shards")
    cameras = [Views.cameras.array(reader[key])[1:] for key in reader]
    assert len(np.unique(np.concatenate(cameras), axis=0)) == 20


def test_landmarks_are_those_of_the_labelled_head_in_each_view(inputs, tmp_path):
    views(inputs, tmp_path / "out")
    reader = ShardReader(tmp_path / "out/shards")
    flame = Flame(head_model.load("standin"))
    for key in reader:
        vertices = head_vertices(flame, torch.from_numpy(label(key))[None])
        wanted = flame.landmarks(vertices)[0].numpy()
        points = Views.landmarks.array(reader[key])
        assert (points.shape, points.dtype) == ((3, 70, 2), np.float32)
        for view, camera in enumerate(Views.cameras.array(reader[key])):
            assert np.allclose(points[view], project(wanted, camera), atol=1e-5)


def test_a_frame_that_cannot_be_rendered_is_given_up(inputs, tmp_path):
    """A byte of an ingested picture has flipped: its frame is left out, its neighbours are not."""
    ingested = tmp_path / "ingest"
    shutil.copytree(inputs / "ingest", ingested)
    shard = ingested / "shards/clips-000000.tar"
    _, members = read_sidecar(shard)
    offset, _, _ = members["b-000001"]["image.png"]
    content = bytearray(shard.read_bytes())
    content[offset + 20] ^= 1
    shard.write_bytes(content)
    params = params_with(render_views={"views": 2, "shard_size": 4})
    others = [inputs / name for name in VIEW_INPUTS[1:]]
    metrics = render_views(params, ingested, *others, tmp_path / "out", tmp_path / "out.jpg")
    assert metrics["rejected"] == {
        "without_face": 1,
        "without_label": 1,
        "given_up": 1,
        "given_up_frames": ["b-000001"],
    }
    assert metrics["frames"] == {"train": 5, "validation": 0, "test": 4}
    assert metrics["views"] == 18
    keys = pq.read_table(tmp_path / "out/index.parquet")["key"].to_pylist()
    assert keys == ShardReader(tmp_path / "out/shards").keys()
    assert len(keys) == 9 and "b-000001" not in keys


def test_the_views_are_what_the_network_renders(inputs, tmp_path):
    """One frame, done again by hand: the same picture for the same camera, to half a grey level."""
    views(inputs, tmp_path / "out")
    sample = ShardReader(tmp_path / "out/shards")["b-000001"]
    psi = Psi(SIZES)
    weights, _ = load_weights(inputs / "psi3d/psi3d.safetensors")
    psi.load_state_dict(weights)
    source = Views.image.tensor(sample)[None]
    camera = Views.cameras.tensor(sample)[None, 2:3]
    with torch.no_grad():
        image = psi(source, None, None, camera, motion_scale=0.0).image[0]
    wanted = (image.clamp(-1, 1) + 1) * 127.5
    found = Views.view.array(sample, 1)
    assert np.abs(found - wanted.permute(1, 2, 0).numpy()).max() < 0.51


def test_frames_below_a_threshold_are_kept_out(inputs, tmp_path):
    everything = views(inputs, tmp_path / "one")
    nothing = dict.fromkeys(MEASURES, 0)
    assert everything["kept_out"] == {"frames": 0, "below": nothing, "clips": 0}
    rows = pq.read_table(tmp_path / "one/index.parquet").to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    # Two training frames are below the one threshold, all but the last of clip b may be below the other.
    third = sorted(row["psnr"] for row in train)[2]
    best = max(row["identity"] for row in train if row["clip"] == "b")
    least = {"psnr": third - 1e-4, "identity": best - 1e-5}
    gated = views(
        inputs,
        tmp_path / "two",
        min_psnr=least["psnr"],
        min_identity=least["identity"],
    )
    assert checksums(tmp_path / "one/shards") == checksums(tmp_path / "two/shards")

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
        assert out["below"][name] == sum(name in reasons(row) for row in kept_out)
    kept = [row["clip"] for row in train if not reasons(row)]
    assert out["clips"] == sum(kept.count(clip) < 2 for clip in "ab") >= 1
    lowest = min(row["psnr"] for row in rows)
    assert gated["psnr_least"] == pytest.approx(lowest, abs=1e-3)
    with Image.open(tmp_path / "two.jpg") as image:
        assert image.size == (6 * 128, 3 * (18 + 2 * 128))


def test_views_depend_on_the_inputs_alone(inputs, tmp_path):
    """On the size of shards, too, they do not. That two workers make the same bytes, test_end_to_end sees."""
    views(inputs, tmp_path / "one")
    first = checksums(tmp_path / "one")
    views(inputs, tmp_path / "one")
    assert checksums(tmp_path / "one") == first
    views(inputs, tmp_path / "other", shard_size=5)
    one = ShardReader(tmp_path / "one/shards")
    other = ShardReader(tmp_path / "other/shards")
    assert one.keys() == other.keys()
    for key in one:
        assert one.read(key, "cameras.npy") == other.read(key, "cameras.npy")


def test_views_say_what_is_missing(inputs, tmp_path):
    arguments = [inputs / name for name in VIEW_INPUTS]
    messages = ["frames.parquet is missing", "nowhere is missing", "missing", "missing", "missing"]
    for position, message in enumerate(messages):
        changed = arguments.copy()
        changed[position] = tmp_path / "nowhere"
        with pytest.raises(UserError, match=message):
            render_views(params_with(), *changed, tmp_path / "out", tmp_path / "out.jpg")
    assert not (tmp_path / "out").exists()
