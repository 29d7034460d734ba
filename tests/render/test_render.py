"""The two rendering stages on untrained networks: what they write depends on their inputs alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model.head.flame import Flame
from model.psi.network import Psi
from model.weights import load_weights
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.core.seeds import rng
from pipeline.geometry import head_model
from pipeline.geometry.camera import look_at, project
from pipeline.geometry.label import Label, head_vertices, landmarks
from pipeline.render.genhead import Pools, draw_head, render_genhead, sample_points
from pipeline.render.landmarks import view_landmarks
from pipeline.render.position_map import EXTENT, position_map
from pipeline.render.views import render_views
from pipeline.store.shards import ShardReader, decode_npy, decode_png, read_sidecar
from pipeline.train.synthetic_batches import SyntheticHeads
from tests.support.folders import checksums
from tests.support.render_inputs import inputs, label, write_labels

__all__ = ["inputs"]  # the fixture

VIEW_INPUTS = ("ingest", "labels/vfhq.parquet", "motion", "perception", "psi3d")


def params_with(**sections):
    params = scale_params("smoke")
    updated = {name: getattr(params, name).model_copy(update=values) for name, values in sections.items()}
    return params.model_copy(update=updated)


def views(inputs: Path, out: Path, **sections) -> dict:
    params = params_with(render_views={"views": 2, "shard_size": 4} | sections)
    return render_views(params, *(inputs / name for name in VIEW_INPUTS), out, out.with_suffix(".jpg"))


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def test_views_of_frames(inputs, tmp_path):
    metrics = views(inputs, tmp_path / "out")
    sizes = scale_params("smoke").networks
    assert metrics["frames"] == {"train": 6, "validation": 0, "test": 4}
    assert metrics["rejected"] == {
        "without_face": 1,
        "without_label": 1,
        "given_up": 0,
        "given_up_frames": [],
    }
    assert metrics["views"] == 20 and metrics["shards"] == 3 and metrics["clips"] == 3
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    reader = ShardReader(tmp_path / "out/shards")
    assert [row["key"] for row in index] == reader.keys() == sorted(reader.keys())
    assert not {"a-000001", "b-000003"} & set(reader.keys())
    ingested = ShardReader(inputs / "ingest/shards")
    face = Flame(head_model.load("standin"))
    for row in index:
        key = row["key"]
        fields = reader.read(key)
        assert (
            row["shard"] == reader.shard(key)
            and 0 < row["psnr"] < 60
            and 0 <= row["coverage"] <= 1
            and -1 <= row["identity"] <= 1
        )
        assert (row["kept"], row["reason"]) == (True, "")
        told = json.loads(fields["frame.json"])
        assert told == {
            name: pytest.approx(row[name])
            for name in ("clip", "split", "index", "psnr", "coverage", "identity")
        }
        assert {name: fields[name] for name in ("image.png", "mask.png")} == ingested.read(key)
        assert [decode_png(fields[f"view{v}.png"]).shape for v in range(2)] == [
            (sizes.image, sizes.image, 3)
        ] * 2
        assert [decode_png(fields[f"alpha{v}.png"]).shape for v in range(2)] == [
            (sizes.image, sizes.image)
        ] * 2
        assert decode_png(fields["uv.png"]).shape == (sizes.image, sizes.image, 3)
        assert np.array_equal(decode_npy(fields["label.npy"]), label(key))
        cameras, motion = decode_npy(fields["cameras.npy"]), decode_npy(fields["motion.npy"])
        points = decode_npy(fields["landmarks.npy"])
        assert points.shape == (3, 70, 2) and points.dtype == np.float32
        nose = face.landmarks(head_vertices(face, torch.from_numpy(label(key))[None]))[0, 30]
        for view, camera in enumerate(cameras):
            assert np.allclose(points[view, 30], project(nose[None].numpy(), camera)[0], atol=1e-5)
        assert (
            cameras.shape == (3, 25)
            and cameras.dtype == np.float32
            and np.array_equal(cameras[0], label(key)[Label.CAMERA])
        )
        assert (
            motion.shape == (3, sizes.motion.dims)
            and motion.dtype == np.float32
            and np.isfinite(motion).all()
        )
    everything = np.concatenate([decode_npy(reader.read(key, "cameras.npy"))[1:] for key in reader])
    assert len(np.unique(everything, axis=0)) == 20
    assert not (tmp_path / ".cache/psi4d/scratch/render_views").exists() or not list(
        (tmp_path / ".cache/psi4d/scratch/render_views").iterdir()
    )


def test_a_frame_that_cannot_be_rendered_is_given_up(inputs, tmp_path):
    """A byte of an ingested picture has flipped: the frame is in no shard and not in the index.

    Its neighbours are.
    """
    ingested = tmp_path / "ingest"
    shutil.copytree(inputs / "ingest", ingested)
    shard = ingested / "shards/clips-000000.tar"
    content = bytearray(shard.read_bytes())
    content[read_sidecar(shard)[1]["b-000001"]["image.png"][0] + 20] ^= 1
    shard.write_bytes(content)
    params = params_with(render_views={"views": 2, "shard_size": 4})
    metrics = render_views(
        params, ingested, *(inputs / name for name in VIEW_INPUTS[1:]), tmp_path / "out", tmp_path / "out.jpg"
    )
    assert metrics["rejected"] == {
        "without_face": 1,
        "without_label": 1,
        "given_up": 1,
        "given_up_frames": ["b-000001"],
    }
    assert metrics["frames"] == {"train": 5, "validation": 0, "test": 4} and metrics["views"] == 18
    keys = [row["key"] for row in pq.read_table(tmp_path / "out/index.parquet").to_pylist()]
    assert keys == ShardReader(tmp_path / "out/shards").keys() and len(keys) == 9 and "b-000001" not in keys


def test_the_views_are_what_the_network_renders(inputs, tmp_path):
    """One frame, done again by hand: the same picture for the same camera, to half a grey level."""
    views(inputs, tmp_path / "out")
    fields = ShardReader(tmp_path / "out/shards").read("b-000001")
    psi = Psi(scale_params("smoke").networks)
    psi.load_state_dict(load_weights(inputs / "psi3d/psi3d.safetensors")[0])
    source = (
        torch.from_numpy(decode_png(fields["image.png"]).astype(np.float32)).permute(2, 0, 1)[None] / 127.5
        - 1
    )
    with torch.no_grad():
        image = psi(
            source,
            None,
            None,
            torch.from_numpy(decode_npy(fields["cameras.npy"]))[None, 2:3],
            motion_scale=0.0,
        ).image
    wanted = (image[0].clamp(-1, 1) + 1).permute(1, 2, 0).numpy() * 127.5
    assert np.abs(decode_png(fields["view1.png"]) - wanted).max() < 0.51


def test_frames_below_a_threshold_are_kept_out(inputs, tmp_path):
    everything = views(inputs, tmp_path / "one")
    assert everything["kept_out"] == {
        "frames": 0,
        "below": {"psnr": 0, "coverage": 0, "identity": 0},
        "clips": 0,
    }
    rows = pq.read_table(tmp_path / "one/index.parquet").to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    psnr = sorted(row["psnr"] for row in train)[2]
    last = max(row["identity"] for row in train if row["clip"] == "b")
    gated = views(inputs, tmp_path / "two", min_psnr=psnr - 1e-4, min_identity=last - 1e-5)
    low = {
        name: [row["key"] for row in rows if row[name] < least]
        for name, least in (("psnr", psnr - 1e-4), ("identity", last - 1e-5))
    }
    found = pq.read_table(tmp_path / "two/index.parquet").to_pylist()
    for row in found:
        assert row["reason"] == ", ".join(name for name, keys in low.items() if row["key"] in keys) and row[
            "kept"
        ] == (not row["reason"])
    out = gated["kept_out"]
    assert out["frames"] == sum(not row["kept"] for row in found if row["split"] == "train") >= 2
    assert out["below"] == {
        name: sum(row["key"] in low.get(name, ()) for row in train)
        for name in ("psnr", "coverage", "identity")
    }
    kept = [row["clip"] for row in found if row["kept"] and row["split"] == "train"]
    assert out["clips"] == sum(kept.count(clip) < 2 for clip in "ab") >= 1
    assert checksums(tmp_path / "one/shards") == checksums(tmp_path / "two/shards")
    assert gated["psnr_least"] == pytest.approx(min(row["psnr"] for row in rows), abs=1e-3)
    with Image.open(tmp_path / "two.jpg") as image:
        assert image.size == (6 * 128, 3 * (18 + 2 * 128))


def test_views_depend_on_the_inputs_alone(inputs, tmp_path):
    """On the size of shards, too, they do not. That two workers make the same bytes, test_end_to_end sees."""
    views(inputs, tmp_path / "one")
    first = checksums(tmp_path / "one")
    views(inputs, tmp_path / "one")
    assert checksums(tmp_path / "one") == first
    views(inputs, tmp_path / "other", shard_size=5)
    one, other = ShardReader(tmp_path / "one/shards"), ShardReader(tmp_path / "other/shards")
    assert one.keys() == other.keys()
    for key in one:
        assert one.read(key, "cameras.npy") == other.read(key, "cameras.npy")


def test_views_say_what_is_missing(inputs, tmp_path):
    arguments = [inputs / name for name in VIEW_INPUTS]
    for position, message in (
        (0, "frames.parquet is missing"),
        (1, "nowhere is missing"),
        *((later, "missing") for later in (2, 3, 4)),
    ):
        changed = [*arguments[:position], tmp_path / "nowhere", *arguments[position + 1 :]]
        with pytest.raises(UserError, match=message):
            render_views(params_with(), *changed, tmp_path / "out", tmp_path / "out.jpg")
    assert not (tmp_path / "out").exists()


def heads(inputs: Path, out: Path, **section) -> dict:
    params = params_with(render_genhead={"heads": 5, "views": 3, "points": 40, "shard_size": 2} | section)
    return render_genhead(params, inputs / "labels", inputs / "genhead", out)


def test_heads(inputs, tmp_path):
    metrics = heads(inputs, tmp_path / "out")
    sizes = scale_params("smoke").networks
    assert (metrics["heads"], metrics["images"], metrics["shards"]) == (5, 15, 3) and 0.1 < metrics[
        "foreground"
    ] <= 1
    reader = ShardReader(tmp_path / "out")
    numbers = [int(key.removeprefix("head-").removeprefix("photo-")) for key in reader]
    assert numbers == list(range(5))
    for key in reader:
        fields = reader.read(key)
        pictures = {name: decode_png(data).shape for name, data in fields.items() if name.endswith("png")}
        image, rays = (sizes.image, sizes.image, 3), sizes.rays
        wanted = {f"{kind}{v}.png": image for kind in ("view", "uv") for v in range(3)}
        assert pictures == wanted | {"opacity.png": (3 * rays, rays), "background.png": (rays, rays, 3)}
        arrays = {name: decode_npy(data) for name, data in fields.items() if name.endswith("npy")}
        assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
            "cameras.npy": ((3, 25), "float32"),
            "label.npy": ((Label.SIZE,), "float32"),
            "landmarks.npy": ((3, 70, 2), "float32"),
            "depth.npy": ((3, rays, rays), "float16"),
            "points.npy": ((40, 3), "float16"),
            "features.npy": ((40, sizes.plane_channels), "float16"),
        }
        assert all(np.isfinite(array).all() for array in arrays.values())
        assert (
            np.array_equal(arrays["label.npy"][Label.CAMERA], arrays["cameras.npy"][0])
            and (arrays["label.npy"][Label.NECK] == 0).all()
        )


def test_portraits_among_the_heads(inputs, tmp_path):
    """View 0 of each is the photo with what is known of it.

    Training takes it as the source and any view as the target.
    """
    heads(inputs, tmp_path / "out", portrait_share=1.0)
    known = load_weights(inputs / "genhead/portraits.safetensors")[0]
    reader, rays = ShardReader(tmp_path / "out"), scale_params("smoke").networks.rays
    photos = {}
    for key in reader:
        fields = reader.read(key)
        photos[key], cameras = decode_png(fields["view0.png"]), decode_npy(fields["cameras.npy"])
        row = int((known["camera"].numpy() == cameras[0]).all(1).argmax())
        assert key.startswith("photo-") and np.array_equal(photos[key], known["image"][row].numpy())
        assert np.array_equal(
            decode_png(fields["opacity.png"])[:rays], 255 * known["opacity"][row, 0].numpy()
        )
        assert (decode_npy(fields["depth.npy"])[0][known["opacity"][row, 0].numpy() > 0] == 4.0).all()
    data, targets = SyntheticHeads(tmp_path / "out", 0), set()
    for step in range(12):
        batch = data.batch(step, 2)
        for source, camera in zip(batch.source, batch.camera, strict=True):
            key = next(key for key in photos if np.array_equal(photos[key], to_uint8(source[None])[0]))
            targets.add(int((decode_npy(reader.read(key, "cameras.npy")) == camera.numpy()).all(1).argmax()))
    assert targets == {0, 1, 2}


def test_heads_depend_on_the_inputs_alone(inputs, tmp_path):
    heads(inputs, tmp_path / "one")
    first = checksums(tmp_path / "one")
    heads(inputs, tmp_path / "one")
    assert checksums(tmp_path / "one") == first
    heads(inputs, tmp_path / "more", heads=7)
    one, more = ShardReader(tmp_path / "one"), ShardReader(tmp_path / "more")
    *first, last = one.keys()
    for key in first:
        assert one.read(key) == more.read(key)
    assert one.read(last, "label.npy") == more.read(
        last, "label.npy"
    )  # rendered with a neighbour now, which may change last bits


def test_the_draws_of_heads(inputs):
    """Facts 3.4: shares of opened jaws and look-at cameras, independent eyes, parts from the pools.

    No test clip is among them.
    """
    pools = Pools(inputs / "labels")
    assert len(pools.clips) == 2 and len(pools.frames_M437) == 7 and len(pools.appearance_N437) == 9
    section = params_with().render_genhead.model_copy(
        update={"look_at_share": 0.5, "jaw_share": 0.25, "views": 3, "z": "portraits", "portrait_share": 0.0}
    )
    draw = np.random.default_rng(0)
    known = {
        "z": draw.normal(size=(3, 512)).astype(np.float32),
        "label": np.stack([label(f"known {i}") for i in range(3)]),
    }
    known["camera"] = known["label"][:, Label.CAMERA]
    drawn = [draw_head(index, section, 0, pools, known) for index in range(600)]
    assert np.array_equal(drawn[7].z, draw_head(7, section, 0, pools, known).z)
    frames = pools.frames_M437
    matches = [
        int(np.flatnonzero((frames[:, Label.EXPRESSION] == head.label[Label.EXPRESSION]).all(1))[0])
        for head in drawn
    ]
    jaws = np.array(
        [
            head.label[Label.JAW.start] != frames[match, Label.JAW.start]
            for head, match in zip(drawn, matches, strict=True)
        ]
    )
    assert abs(jaws.mean() - 0.25) < 0.06 and max(head.label[Label.JAW.start] for head in drawn) <= 0.2
    assert (
        abs(
            np.mean(
                [
                    (frames[match, Label.EYES] == head.label[Label.EYES]).all()
                    for head, match in zip(drawn, matches, strict=True)
                ]
            )
            - 1 / 7
        )
        < 0.05
    )
    pool = pools.appearance_N437
    from_pool = np.array(
        [[(pool[:, Label.CAMERA] == camera).all(1).any() for camera in head.cameras] for head in drawn]
    )
    assert np.abs(from_pool.mean(0) - 0.5).max() < 0.08
    assert all(
        (pool[:, Label.CAMERA] == head.condition[Label.CAMERA]).all(1).any()
        and np.array_equal(head.condition[Label.SHAPE], head.label[Label.SHAPE])
        for head in drawn
    )
    people = [int(np.flatnonzero((known["z"] == head.z).all(1))[0]) for head in drawn]
    assert set(people) == {0, 1, 2} and all(
        np.array_equal(head.label[Label.SHAPE], known["label"][i, Label.SHAPE])
        for head, i in zip(drawn, people, strict=True)
    )
    none = {name: values[:0] for name, values in known.items()}  # as of an imported GenHead
    normal = draw_head(0, section.model_copy(update={"z": "normal"}), 0, pools, none)
    assert (pool[:, Label.SHAPE] == normal.label[Label.SHAPE]).all(1).any() and not (
        known["z"] == normal.z
    ).all(1).any()
    share = [
        draw_head(index, section.model_copy(update={"portrait_share": 0.4}), 0, pools, known)
        for index in range(300)
    ]
    appearance = slice(Label.SHAPE.start, Label.EXPRESSION.stop)
    photos = [head for head in share if head.photo is not None]
    assert abs(len(photos) / len(share) - 0.4) < 0.08
    assert all(
        np.array_equal(head.label[appearance], known["label"][head.photo, appearance])
        and not head.label[Label.NECK].any()
        and np.array_equal(head.z, known["z"][head.photo])
        for head in photos
    )
    assert all(np.array_equal(head.cameras[0], known["camera"][head.photo]) for head in photos)


def test_points_lie_on_rays_of_the_face():
    camera = look_at(0.0, 0.0, 4.0, np.zeros(3))
    face, opacity = np.zeros((1, 8, 8), bool), np.ones((1, 8, 8))
    face[0, 2, 5] = True
    points = sample_points(camera[None], face, opacity, np.full((1, 8, 8), 3.8), rng(0, "points"), 400, 1.3)
    assert np.allclose(project(points, camera), [5.5 / 8, 2.5 / 8], atol=1e-5)
    distance = np.linalg.norm(points - camera[[3, 7, 11]], axis=1)
    assert np.abs(distance[::2] - 3.8).std() < 0.1 and distance.min() > 3.3 and distance.max() < 4.7
    assert distance[1::2].min() < 3.5 and distance[1::2].max() > 4.5


def test_heads_say_what_is_missing(inputs, tmp_path):
    with pytest.raises(UserError, match=r"ffhq\.parquet is missing"):
        render_genhead(params_with(), tmp_path / "nowhere", inputs / "genhead", tmp_path / "out")
    with pytest.raises(UserError, match="nowhere is missing"):
        render_genhead(params_with(), inputs / "labels", tmp_path / "nowhere", tmp_path / "out")
    write_labels(tmp_path / "labels/ffhq.parquet", [("p0", "", "train")], rejected="p0")
    with pytest.raises(UserError, match="no label in"):
        render_genhead(params_with(), tmp_path / "labels", inputs / "genhead", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_landmarks_of_a_head_keep_their_bits_whatever_heads_come_with_it():
    flame = Flame(head_model.load("standin"))
    labels = torch.from_numpy(np.stack([label(f"head {i}") for i in range(9)]))
    cameras = torch.stack([labels[:, Label.CAMERA], labels.flip(0)[:, Label.CAMERA]], dim=1)
    # What training used to compute of a batch, one camera of each head.
    wanted = torch.stack([landmarks(flame, labels, cameras[:, v : v + 1])[:, 0] for v in range(2)], dim=1)
    for size in (1, 2, 3, 5, 9):
        batches = zip(labels.split(size), cameras.split(size), strict=True)
        assert torch.equal(torch.cat([view_landmarks(flame, *batch) for batch in batches]), wanted)


def test_the_position_map_shows_the_canonical_place_of_a_landmark():
    flame = Flame(head_model.load("standin"))
    tilted = torch.from_numpy(label("tilted"))[None]
    size = 128
    drawn = position_map(flame, tilted, tilted[:, Label.CAMERA], size)[0]
    nose_vertex = int(flame.landmark_vertices[30, flame.landmark_weights[30].argmax()])
    position = head_vertices(flame, tilted)[0, nose_vertex].numpy()
    column, row = (project(position[None], tilted[0, Label.CAMERA].numpy())[0] * size).astype(int)
    assert (drawn[:, row, column] * EXTENT - flame.canonical()[nose_vertex]).norm() < 0.03
    assert drawn.abs().max() <= 1 and (drawn[:, 0, 0] == 0).all()
