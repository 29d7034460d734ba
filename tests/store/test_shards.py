"""Shards: the same bytes, readable by plain tools, and damage refused by name."""

import json
import pickle
import tarfile

import numpy as np
import pytest
import webdataset

from pipeline.core.errors import UserError
from pipeline.store.codecs import PNG, decode_picture
from pipeline.store.shards import (
    FORMAT,
    OlderFormat,
    ShardReader,
    check_shard,
    decode_npy,
    encode_npy,
    read_sidecar,
    sidecar_path,
    write_shard,
)


def samples(count: int = 5) -> list[tuple[str, dict[str, bytes]]]:
    generator = np.random.default_rng(0)
    return [
        (
            f"clip-{index:06d}",
            {
                "image.png": PNG.encode(generator.integers(0, 255, (16, 12, 3), np.uint8)),
                "label.npy": encode_npy(generator.normal(size=437).astype(np.float32)),
            },
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    "shape, kind",
    [
        ((7, 5), np.uint8),
        ((7, 5, 3), np.uint8),
        ((7, 5), np.uint16),
        ((1, 1, 3), np.uint8),
    ],
)
def test_png_holds_every_number(shape, kind):
    # 16 bits are for depths. A single pixel is an image, too, and no grey one for having three numbers.
    most = np.iinfo(kind).max
    image = np.random.default_rng(1).integers(0, most, shape).astype(kind)
    again = decode_picture(PNG.encode(image))
    assert again.dtype == kind and np.array_equal(again, image)


def test_png_keeps_the_order_of_the_channels():
    import io

    from PIL import Image

    # Another library reads it: with one library, a swap in both directions would cancel.
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    with Image.open(io.BytesIO(PNG.encode(red))) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_codecs_refuse_what_they_cannot_hold():
    with pytest.raises(ValueError, match="float64"):
        PNG.encode(np.zeros((2, 2)))
    for decode in (decode_picture, decode_npy):
        for data in (b"", b"not a file of this kind"):
            with pytest.raises(UserError):
                decode(data)
    # An array of objects is a pickle inside, which no reader of ours may load.
    with pytest.raises(ValueError):
        encode_npy(np.array([{}], dtype=object))


def test_equal_samples_make_equal_bytes(tmp_path):
    # Bytes hang neither on the clock nor on the user nor on the folder: DVC reruns a stage for less.
    first = write_shard(tmp_path / "a/x.tar", samples())
    second = write_shard(tmp_path / "b/x.tar", iter(samples()))
    assert first == second
    assert first.samples == 5
    assert first.bytes == (tmp_path / "a/x.tar").stat().st_size
    for name in ("x.tar", "x.tar.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["x.tar", "x.tar.json"]


def test_plain_tar_and_webdataset_read_the_shard(tmp_path):
    # Places are counted by the writer, and a header that is larger than a block would shift them all.
    write_shard(tmp_path / "x.tar", samples())
    _, members = read_sidecar(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        for info in tar:
            key, field = info.name.split(".", 1)
            assert members[key][field][:2] == [info.offset_data, info.size]
            assert (info.mtime, info.uid, info.gid) == (0, 0, 0)
            assert (info.mode, info.uname) == (0o444, "psi4d")
    dataset = webdataset.WebDataset(
        str(tmp_path / "x.tar"),
        shardshuffle=False,
        nodesplitter=None,
    )
    found = list(dataset)
    assert [
        (sample["__key__"], {"image.png": sample["image.png"], "label.npy": sample["label.npy"]})
        for sample in found
    ] == samples()


def test_reader_finds_samples_by_key_across_shards(tmp_path):
    # Written in the wrong order and read after a pickle, as by the processes of a data loader.
    write_shard(tmp_path / "a-000001.tar", samples()[3:])
    write_shard(tmp_path / "a-000000.tar", samples()[:3])
    reader = pickle.loads(pickle.dumps(ShardReader(tmp_path)))
    assert reader.keys() == [key for key, _ in samples()]
    assert len(reader) == 5
    for key, fields in samples():
        assert key in reader
        assert reader.read(key) == dict(reader[key]) == fields
        assert reader.read(key, "label.npy") == fields["label.npy"]
    assert reader.shard("clip-000004") == "a-000001.tar"
    assert reader.fields("clip-000004") == ["image.png", "label.npy"]


@pytest.mark.parametrize(
    "key, field",
    [
        ("a.b", "x.png"),
        ("A", "x.png"),
        ("a/b", "x.png"),
        ("", "x.png"),
        ("a", "xpng"),
        ("a", "x/y.png"),
        ("a" * 99, "x.png"),
    ],
)
def test_bad_names_are_refused_and_leave_nothing(tmp_path, key, field):
    # A dot would move the border of key and field, a slash leave the folder, a long name need an extension.
    with pytest.raises(ValueError):
        write_shard(tmp_path / "x.tar", [(key, {field: b""})])
    assert list(tmp_path.iterdir()) == []


def test_a_key_may_come_once(tmp_path):
    with pytest.raises(ValueError, match="comes twice"):
        write_shard(tmp_path / "x.tar", samples()[:1] * 2)
    write_shard(tmp_path / "x.tar", samples())
    write_shard(tmp_path / "y.tar", samples())
    with pytest.raises(UserError, match=r"clip-000000 is in x\.tar and in y\.tar"):
        ShardReader(tmp_path)


def test_damage_is_refused_by_name(tmp_path):
    path = tmp_path / "x.tar"
    write_shard(path, samples())
    _, members = read_sidecar(path)
    whole = path.read_bytes()
    # A bit in the middle of an array, which no decoder would notice. Other fields stay readable.
    damaged = bytearray(whole)
    damaged[members["clip-000002"]["label.npy"][0] + 200] ^= 1
    path.write_bytes(damaged)
    reader = ShardReader(tmp_path)
    with pytest.raises(UserError, match=r"x\.tar: the field label\.npy of the sample clip-000002 is altered"):
        reader.read("clip-000002")
    assert reader.read("clip-000002", "image.png") == samples()[2][1]["image.png"]
    with pytest.raises(UserError, match="checksum"):
        check_shard(path)
    offset, _, _ = members["clip-000004"]["image.png"]
    path.write_bytes(whole[: offset + 10])
    with pytest.raises(UserError, match=r"image\.png of the sample clip-000004 is cut short"):
        reader.read("clip-000004")
    path.unlink()
    with pytest.raises(UserError, match="cannot open"):
        reader.read("clip-000000")


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match="no shard"):
        ShardReader(tmp_path)
    write_shard(tmp_path / "x.tar", samples())
    with pytest.raises(UserError, match="no sample nobody"):
        ShardReader(tmp_path).read("nobody")
    with pytest.raises(UserError, match=r"clip-000000 has no field view9\.png"):
        ShardReader(tmp_path).read("clip-000000", "view9.png")
    sidecar_path(tmp_path / "x.tar").write_text('{"name": 1}')
    with pytest.raises(UserError, match=r"x\.tar\.json is damaged"):
        ShardReader(tmp_path)
    sidecar_path(tmp_path / "x.tar").unlink()
    with pytest.raises(UserError, match=r"no x\.tar\.json"):
        ShardReader(tmp_path)


@pytest.mark.parametrize(
    "found, said",
    [(None, "older than all formats"), (1, "of format 1,"), (99, "of format 99,")],
)
def test_a_shard_of_another_format_is_refused(tmp_path, found, said):
    write_shard(tmp_path / "x.tar", samples())
    # None is a cache of an early version, 99 one of a version that is newer than the code.
    sidecar = sidecar_path(tmp_path / "x.tar")
    facts = json.loads(sidecar.read_text())
    assert facts.pop("format") == FORMAT
    if found is not None:
        facts["format"] = found
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(OlderFormat, match=rf"x\.tar is .*{said}.*format {FORMAT}.*dvc repro render_views\.$"):
        ShardReader(tmp_path, "render_views")
    with pytest.raises(OlderFormat, match=r"dvc repro\.$"):
        check_shard(tmp_path / "x.tar")


def test_a_place_that_cannot_be_written(tmp_path):
    # A file where a folder should be: it fails for root as well, whom no permission stops.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_shard(tmp_path / "file/x.tar", samples())
