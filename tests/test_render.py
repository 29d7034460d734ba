"""The two rendering stages on networks that know nothing: what they write, and that it depends on their inputs alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.flame import Flame
from model.motion_encoder import MotionEncoder
from model.psi import Psi
from model.weights import load_weights, save_weights
from pipeline import head_model
from pipeline.camera import look_at, project
from pipeline.counter import rng
from pipeline.errors import UserError
from pipeline.files import sha256, write_table
from pipeline.labels import head_vertices
from pipeline.position_map import EXTENT, position_map
from pipeline.render_views import render_views
from pipeline.scales import scale_params
from pipeline.shards import ShardReader, decode_npy, decode_png, encode_png, write_shard


def params_with(workers: int = 0, **sections):
    params = scale_params("smoke")
    updated = {name: getattr(params, name).model_copy(update=values) for name, values in sections.items()}
    return params.model_copy(update=updated | {"machine": params.machine.model_copy(update={"workers": workers})})


def label(name: str) -> np.ndarray:
    draw = rng(1, name)
    values = np.zeros(437, np.float32)
    values[:25] = look_at(draw.uniform(-0.3, 0.3), 0.1, 4.2, np.array([0.0, 0.0, 0.1]))
    values[25:35], values[325:335], values[428] = draw.normal(size=10), draw.normal(size=10), draw.uniform(0, 0.2)
    values[431:437] = np.tile(draw.normal(0, 0.1, 3), 2)
    values[425:428] = 0.3  # the fitted head rotation, which rendering has to leave to the camera
    return values


def write_labels(path: Path, names: list[tuple[str, str, str]], rejected: str = "") -> None:
    rows = [{"key": key, "clip": clip, "split": split, "status": "rejected" if key == rejected else "ok", "label": label(key)} for key, clip, split in names]
    schema = pa.schema({"key": pa.string(), "clip": pa.string(), "split": pa.string(), "status": pa.string(), "label": pa.list_(pa.float32())})
    write_table(path, pa.Table.from_pylist(rows, schema))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """What earlier stages would have left: three clips of four frames, one without a face and one without a label, two portraits, raw networks."""
    folder = tmp_path_factory.mktemp("inputs")
    sizes = scale_params("smoke").networks
    names = [(f"{clip}-{index:06d}", clip, "test" if clip == "c" else "train") for clip in "cab" for index in (2, 0, 1, 3)]
    write_labels(folder / "labels/vfhq.parquet", names, rejected="a-000001")
    write_labels(folder / "labels/ffhq.parquet", [(f"p{index}", "", "train") for index in range(2)])
    samples, rows = [], []
    for key, clip, split in names:
        draw = rng(2, key)
        image = draw.integers(0, 255, (sizes.image, sizes.image, 3), np.uint8)
        samples.append((key, {"image.png": encode_png(image), "mask.png": encode_png(image[..., 0])}))
        mesh = draw.uniform(0.3, 0.7, (478, 3)).astype(np.float32)
        status = "rejected" if key == "b-000003" else "ok"
        rows.append({"key": key, "clip": clip, "index": int(key[-6:]), "split": split, "status": status, "landmarks": mesh.ravel().tolist()})
    write_shard(folder / "ingest/shards/clips-000000.tar", samples)
    write_table(folder / "ingest/frames.parquet", pa.Table.from_pylist(rows))
    torch.manual_seed(0)
    save_weights(folder / "psi3d/psi3d.safetensors", Psi(sizes).state_dict(), {"network": "psi3d"})
    save_weights(folder / "motion/motion.safetensors", MotionEncoder(sizes.motion).state_dict(), {"network": "motion"})
    return folder


def views(inputs: Path, out: Path, workers: int = 0, **sections) -> dict:
    params = params_with(workers, render_views={"views": 2, "shard_size": 4} | sections)
    return render_views(params, inputs / "ingest", inputs / "labels/vfhq.parquet", inputs / "motion", inputs / "psi3d", out)


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def checksums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_views_of_frames(inputs, tmp_path):
    metrics = views(inputs, tmp_path / "out")
    sizes = scale_params("smoke").networks
    assert metrics["frames"] == {"train": 6, "test": 4} and metrics["rejected"] == {"without_face": 1, "without_label": 1}
    assert metrics["views"] == 20 and metrics["shards"] == 3 and metrics["clips"] == 3
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    reader = ShardReader(tmp_path / "out/shards")
    assert [row["key"] for row in index] == reader.keys() == sorted(reader.keys())
    assert not {"a-000001", "b-000003"} & set(reader.keys())
    ingested = ShardReader(inputs / "ingest/shards")
    for row in index:
        key = row["key"]
        fields = reader.read(key)
        assert row["shard"] == reader.shard(key) and 0 < row["psnr"] < 60 and 0 <= row["coverage"] <= 1
        assert {name: fields[name] for name in ("image.png", "mask.png")} == ingested.read(key)
        assert [decode_png(fields[f"view{v}.png"]).shape for v in range(2)] == [(sizes.image, sizes.image, 3)] * 2
        assert [decode_png(fields[f"alpha{v}.png"]).shape for v in range(2)] == [(sizes.image, sizes.image)] * 2
        assert decode_png(fields["uv.png"]).shape == (sizes.image, sizes.image, 3)
        assert np.array_equal(decode_npy(fields["label.npy"]), label(key))
        cameras, motion = decode_npy(fields["cameras.npy"]), decode_npy(fields["motion.npy"])
        assert cameras.shape == (3, 25) and cameras.dtype == np.float32 and np.array_equal(cameras[0], label(key)[:25])
        assert motion.shape == (3, sizes.motion.dims) and motion.dtype == np.float32 and np.isfinite(motion).all()
    everything = np.concatenate([decode_npy(reader.read(key, "cameras.npy"))[1:] for key in reader.keys()])
    assert len(np.unique(everything, axis=0)) == 20
    assert not (tmp_path / ".cache/psi4d/scratch/render_views").exists() or not list((tmp_path / ".cache/psi4d/scratch/render_views").iterdir())


def test_the_views_are_what_the_network_renders(inputs, tmp_path):
    """One frame, done again by hand: the same picture for the same camera, to half a grey level and rounding."""
    views(inputs, tmp_path / "out")
    fields = ShardReader(tmp_path / "out/shards").read("b-000001")
    psi = Psi(scale_params("smoke").networks)
    psi.load_state_dict(load_weights(inputs / "psi3d/psi3d.safetensors")[0])
    source = torch.from_numpy(decode_png(fields["image.png"]).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        image = psi(source, None, None, torch.from_numpy(decode_npy(fields["cameras.npy"]))[None, 2:3], motion_scale=0.0).image
    wanted = (image[0].clamp(-1, 1) + 1).permute(1, 2, 0).numpy() * 127.5
    assert np.abs(decode_png(fields["view1.png"]) - wanted).max() < 0.51


def test_views_depend_on_the_inputs_alone(inputs, tmp_path):
    views(inputs, tmp_path / "one")
    first = checksums(tmp_path / "one")
    views(inputs, tmp_path / "one", workers=2)
    assert checksums(tmp_path / "one") == first
    views(inputs, tmp_path / "other", shard_size=5)
    one, other = ShardReader(tmp_path / "one/shards"), ShardReader(tmp_path / "other/shards")
    assert one.keys() == other.keys()
    for key in one.keys():
        assert one.read(key, "cameras.npy") == other.read(key, "cameras.npy")


def test_views_say_what_is_missing(inputs, tmp_path):
    arguments = [inputs / "ingest", inputs / "labels/vfhq.parquet", inputs / "motion", inputs / "psi3d"]
    for position, message in ((0, "frames.parquet is missing"), (1, "nowhere is missing"), (2, "missing"), (3, "missing")):
        changed = [*arguments[:position], tmp_path / "nowhere", *arguments[position + 1 :]]
        with pytest.raises(UserError, match=message):
            render_views(params_with(), *changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_position_map_shows_the_canonical_place_of_a_landmark():
    flame = Flame(head_model.load("standin"))
    tilted = torch.from_numpy(label("tilted"))[None]
    size = 128
    drawn = position_map(flame, tilted, tilted[:, :25], size)[0]
    nose_vertex = int(flame.landmark_vertices[30, flame.landmark_weights[30].argmax()])
    position = head_vertices(flame, tilted)[0, nose_vertex].numpy()
    column, row = (project(position[None], tilted[0, :25].numpy())[0] * size).astype(int)
    assert (drawn[:, row, column] * EXTENT - flame.canonical()[nose_vertex]).norm() < 0.03
    assert drawn.abs().max() <= 1 and (drawn[:, 0, 0] == 0).all()
