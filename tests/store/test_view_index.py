"""The index of a multi-view cache: what it says, and that it opens quickly.

Samples come from a folder, over HTTP, from S3 and through plain tools.
"""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.core.errors import UserError
from pipeline.store.samples import Views
from pipeline.store.shards import OlderFormat, ShardReader, encode_npy, read_sidecar, write_shard
from pipeline.store.storage import Storage
from pipeline.store.view_index import (
    GAP,
    QUALITY,
    ROW_GROUP,
    ViewIndex,
    schema_of,
    shard_rows,
    write_index,
)
from tests.support.range_server import serve
from tests.support.views_cache import cache, reader, same

__all__ = ["cache"]  # the fixture


def test_the_index_says_what_the_shards_have(cache):
    shards = ShardReader(cache / "shards")
    table = pq.read_table(cache / "index.parquet")
    fields = json.loads(table.schema.metadata[b"fields"])
    assert table["key"].to_pylist() == shards.keys()
    for row in table.to_pylist():
        key, shard = row["key"], cache / "shards" / row["shard"]
        _, members = read_sidecar(shard)
        assert list(members[key]) == fields
        told = list(zip(row["sizes"], row["crcs"], strict=True))
        assert told == [(size, crc) for _, size, crc in members[key].values()]
        cameras = Views.cameras.array(shards[key])
        assert np.array_equal(np.float32(row["cameras"]), cameras.ravel())
        assert key == f"{row['clip']}-{row['index']:06d}"
        assert row["split"] == ("test" if row["clip"] == "clip0" else "train")
        # The part of the tar that is the sample is a tar by itself, but for its end.
        part = shard.read_bytes()[row["offset"] :][: row["size"]]
        with tarfile.open(fileobj=io.BytesIO(part)) as tar:
            assert [info.name for info in tar] == [f"{key}.{field}" for field in fields]


def test_the_index_has_all_cameras(cache):
    index, shards = ViewIndex(cache), ShardReader(cache / "shards")
    wanted = [Views.cameras.array(shards[key]) for key in shards]
    assert np.array_equal(index.cameras(), np.stack(wanted))


def test_fields_are_read_from_their_places(cache, monkeypatch):
    index, shards = ViewIndex(cache), ShardReader(cache / "shards")
    assert len(index) == len(shards) and index.views == 2
    # Samples here are small: with the real gap one read has all fields, with none each has its own.
    for gap in (GAP, 0):
        monkeypatch.setattr("pipeline.store.view_index.GAP", gap)
        for frame in range(len(index)):
            key = index.key(frame)
            assert index.read(frame, index.fields) == shards.read(key)
            assert index.read(frame, ["view1.png", "cameras.npy"]) == {
                name: shards.read(key, name) for name in ("view1.png", "cameras.npy")
            }


def test_equal_shards_make_equal_bytes(cache, tmp_path):
    write_index(cache / "shards", tmp_path / "index.parquet", lambda quality: "")
    assert (tmp_path / "index.parquet").read_bytes() == (cache / "index.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet"]


def test_samples_that_differ_are_refused(cache, tmp_path):
    # The index has the names of fields but once, so that one sample with others would be read from wrong
    # places.
    with pytest.raises(UserError, match="no shard"):
        write_index(tmp_path, tmp_path / "index.parquet", lambda quality: "")
    some = {
        "cameras.npy": encode_npy(np.zeros((1, 25), np.float32)),
        "frame.json": Views.frame.encode(
            {"clip": "a", "index": 0, "split": "train"} | dict.fromkeys(QUALITY, 0.0)
        ),
    }
    write_shard(tmp_path / "views-000000.tar", [("a", some)])
    write_shard(tmp_path / "views-000001.tar", [("b", some | {"more.png": b""})])
    with pytest.raises(UserError, match=r"views-000001.*other fields"):
        write_index(tmp_path, tmp_path / "index.parquet", lambda quality: "")
    more = some | {"more.png": b""}
    write_shard(tmp_path / "views-000000.tar", [("a", some), ("c", more)])
    with pytest.raises(UserError, match="fields of the sample c are not"):
        shard_rows(tmp_path / "views-000000.tar")
    assert not (tmp_path / "index.parquet").exists() and not list(tmp_path.glob(".*"))


def test_an_index_of_another_format_is_refused(cache, tmp_path):
    table = pq.read_table(cache / "index.parquet")
    for found, said in ({}, "older than all formats"), ({"format": "1"}, "of format 1"):
        metadata = {"fields": table.schema.metadata[b"fields"]} | found
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "index.parquet")
        with pytest.raises(OlderFormat, match=rf"index\.parquet is {said}.*dvc repro render_views"):
            ViewIndex(tmp_path)


def test_many_rows_need_little_to_open(tmp_path):
    """Three row groups: what is not asked for is not read, and a frame is found in its group."""
    count, fields = 2 * ROW_GROUP + 100, ["cameras.npy", "frame.json", "image.png"]
    numbers = np.arange(count)
    rows = pa.table(
        {
            "key": [f"k-{i}" for i in numbers],
            "clip": [f"clip-{i // 200:05d}" for i in numbers],
            "split": ["test" if i < 400 else "train" for i in numbers],
            "index": numbers % 200,
            "shard": [f"views-{i // 256:06d}.tar" for i in numbers],
            "offset": numbers % 256 * 4096,
            "size": np.full(count, 4096),
            "sizes": [[1, 2, 3]] * count,
            "crcs": [[4, 5, 6]] * count,
            "cameras": [[0.0] * 25] * count,
            **{name: np.zeros(count, np.float32) for name in ("psnr", "coverage", "identity")},
            "kept": numbers % 10 != 3,
            "reason": ["psnr" if i % 10 == 3 else "" for i in numbers],
        },
        schema_of(fields),
    )
    pq.write_table(rows, tmp_path / "index.parquet", row_group_size=ROW_GROUP)
    index = ViewIndex(tmp_path)
    clips, out = index.clips("train")
    training = numbers[400:]
    assert len(clips) == -(-len(training) // 200)
    assert list(clips) == sorted(clips)
    assert out == (training % 10 == 3).sum()
    assert clips["clip-00002"].tolist() == [i for i in range(400, 600) if i % 10 != 3]
    # First and last frames of row groups, where a search that is off by one goes wrong.
    assert not index._places
    for frame in (0, ROW_GROUP, count - 1):
        assert index.key(frame) == f"k-{frame}"
    with pytest.raises(UserError, match=r"views-000128\.tar: No such file"):
        index.read(2 * ROW_GROUP + 5, ["image.png"])
    assert list(index._places) == [2]


def test_plain_webdataset_reads_the_cache(cache):
    # For people who train something else on the cache, without a line of this project.
    shards = ShardReader(cache / "shards")
    files = [str(path) for path in sorted((cache / "shards").glob("*.tar"))]
    found = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == shards.keys()
    for sample in found:
        ours = shards[sample["__key__"]]
        with Image.open(io.BytesIO(ours["view0.png"])) as image:
            assert np.array_equal(sample["view0.png"], np.array(image))
        assert np.array_equal(sample["motion.npy"], Views.motion.array(ours))
        assert sample["frame.json"]["clip"] == sample["__key__"][:5]


def test_the_loader_reads_over_http(cache):
    """The same batches, with a few range requests a frame and no whole shard."""
    with serve(cache) as (address, asked):
        there, here = reader(address), reader(cache)
        assert there.clips.keys() == here.clips.keys()
        # The first batch also asks for the places of the row group.
        there.batch(0, 4)
        for step in range(1, 4):
            asked.clear()
            assert same(there.batch(step, 4), here.batch(step, 4))
            assert 0 < len(asked) <= 8 and all(
                path.endswith(".tar") and span.startswith("bytes=") for path, span in asked
            )


def test_the_loader_reads_from_s3(cache, monkeypatch):
    """A real S3 server on this machine; addresses and keys come from the environment, as everywhere."""
    server = pytest.importorskip("moto.server", reason="make test installs moto").ThreadedMotoServer(
        "127.0.0.1", 0, verbose=False
    )
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("ENDPOINT_URL", f"http://{host}:{port}"),
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        files = boto3.client("s3")
        files.create_bucket(Bucket="heads")
        for path in (path for path in cache.rglob("*") if path.is_file()):
            files.upload_file(str(path), "heads", f"views/{path.relative_to(cache).as_posix()}")
        there, here = reader("s3://heads/views"), reader(cache)
        assert all(same(there.batch(step, 4), here.batch(step, 4)) for step in range(3))
        with pytest.raises(UserError, match="cannot read s3://heads/nothing"):
            reader("s3://heads/nothing")
    finally:
        server.stop()


def test_damage_behind_an_address_is_refused_by_name(cache, tmp_path):
    index = ViewIndex(cache)
    shard = cache / "shards/views-000000.tar"
    places = read_sidecar(shard)[1]["clip0-000002"]
    (tmp_path / "shards").mkdir()
    (tmp_path / "index.parquet").write_bytes((cache / "index.parquet").read_bytes())
    content = bytearray(shard.read_bytes())
    content[places["view0.png"][0] + 30] ^= 1
    (tmp_path / "shards/views-000000.tar").write_bytes(content)
    # The second shard is not there at all: a mirror that was copied by half.
    assert index.key(2) == "clip0-000002"
    with serve(tmp_path) as (address, _):
        there = ViewIndex(address)
        assert there.read(2, ["view1.png"]) == index.read(2, ["view1.png"])
        with pytest.raises(
            UserError,
            match=r"http.*views-000000\.tar: the field view0\.png of the sample clip0-000002 is altered",
        ):
            there.read(2, ["view0.png"])
        with pytest.raises(UserError, match=r"cannot read http.*views-000001\.tar"):
            there.read(7, ["view0.png"])
        with pytest.raises(UserError, match=r"cannot read http.*nothing/index"):
            ViewIndex(f"{address}/nothing")
    with pytest.raises(UserError, match="Look whether the address is right"):
        ViewIndex(address)
    with serve(cache, ranges=False) as (address, _), pytest.raises(UserError, match="knows range requests"):
        Storage(address).read("shards/views-000000.tar", [(512, 600)])


def test_inspect_takes_an_address(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    with serve(cache) as (address, _):
        result = CliRunner().invoke(app, ["inspect", address])
        assert result.exit_code == 0 and "multi-view cache, 12 samples in 2 shards" in result.output, (
            result.exception
        )
        assert (
            "view1.png"
            in CliRunner().invoke(app, ["inspect", address, "--clip", "clip1", "--frame", "2"]).output
        )
