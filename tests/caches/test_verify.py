"""Damage of every kind is named, and repaired to the same bytes; nothing else is touched."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc.repo import Repo

from pipeline.caches.repair import repair
from pipeline.caches.verify import verify
from pipeline.config.params import load_params
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.store import tables
from pipeline.store.codecs import PNG
from pipeline.store.shards import ShardReader, encode_npy, read_sidecar, sidecar_path, write_shard
from pipeline.store.tables import write_table
from pipeline.store.view_index import write_index
from tests.support import small_cache
from tests.support.folders import checksums
from tests.support.texts import replaced

ROOT = Path(__file__).parents[2]
VIEWS, HEADS = Path("data/views"), Path("data/genhead")
inputs, made, project = small_cache.inputs, small_cache.made, small_cache.project


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()  # DVC's cache may be the same file
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    content = path.read_bytes()[:size]
    path.unlink()
    path.write_bytes(content)


def findings(folder: Path) -> list[str]:
    return [str(finding) for finding in verify(folder).findings]


def place(shard: Path, key: str, field: str) -> int:
    return read_sidecar(shard)[1][key][field][0]


def mend(folder: Path) -> list[str]:
    return repair(load_params(), folder, verify(folder))


def test_whole_caches(project):
    verdict = verify(VIEWS)
    assert verdict.findings == []
    assert [len(keys) for keys in verdict.samples.values()] == [3, 3, 4]
    sizes = [path.stat().st_size for path in VIEWS.glob("shards/*.tar")]
    assert verdict.bytes == sum(sizes)
    assert findings(HEADS) == []
    # A cache that was copied to another machine has no record of DVC, and is whole all the same.
    shutil.rmtree(".dvc")
    assert findings(VIEWS) == findings(HEADS) == []


def test_a_flipped_byte_is_named(project):
    # A PNG with a wrong byte is decoded by some readers to a wrong picture without a word.
    shard = VIEWS / "shards/views-b-000000.tar"
    key = ShardReader(VIEWS / "shards").keys()[5]
    flip(shard, place(shard, key, "view1.png") + 40)
    assert findings(VIEWS) == [
        f"shards/views-b-000000.tar, sample {key}, field view1.png: altered: its CRC-32 is another one"
    ]


def test_a_flipped_byte_outside_of_fields_is_named(project):
    shard = VIEWS / "shards/views-b-000000.tar"
    key = ShardReader(VIEWS / "shards").keys()[5]
    flip(shard, place(shard, key, "mask.png") - 512)  # in the header
    assert findings(VIEWS) == [
        f"shards/views-b-000000.tar, sample {key}, field mask.png: "
        "the tar's header is not what the sidecar says"
    ]
    # The second flip takes the first one back; then the last byte of the padding is hit.
    flip(shard, place(shard, key, "mask.png") - 512)
    flip(shard, shard.stat().st_size - 1)
    [found] = findings(VIEWS)
    assert "padding or the sidecar" in found


def test_a_truncated_shard_is_named_with_its_first_lost_field(project):
    # A copy that was broken off: one finding that says from where on, and none for each lost field.
    shard = VIEWS / "shards/views-a-000000.tar"
    key = ShardReader(VIEWS / "shards").keys()[2]
    cut(shard, place(shard, key, "motion.npy") + 10)
    (found,) = findings(VIEWS)
    assert found.startswith(f"shards/views-a-000000.tar, sample {key}, field motion.npy: truncated: ")


@pytest.mark.parametrize("recorded", [True, False])
def test_missing_and_strange_files_are_named(project, recorded):
    # Without a record the index alone knows that there was a shard.
    if not recorded:
        shutil.rmtree(".dvc")
    (VIEWS / "shards/views-a-000000.tar.json").unlink()
    (VIEWS / "shards/views-b-000000.tar").unlink()
    (VIEWS / "shards/notes.txt").write_text("")
    found = findings(VIEWS)
    assert [line for line in found if "rows of" not in line] == [
        "shards/views-a-000000.tar.json: missing",
        "shards/views-b-000000.tar: missing",
        "shards/notes.txt: does not belong here",
    ]
    assert len(
        found
    ) == 4 and "shards/views-b-000000.tar: 3 rows of index.parquet have no sample" in "\n".join(found)


def test_a_missing_or_altered_index_is_named(project):
    index = VIEWS / "index.parquet"
    # Numbers that are plausible and readable, but not those of the shards.
    table = pq.read_table(index)
    psnr = np.array(table["psnr"]) + np.float32(1)
    place_of_psnr = table.column_names.index("psnr")
    write_table(index, table.set_column(place_of_psnr, "psnr", pa.array(psnr)))
    keys = table["key"].to_pylist()
    assert findings(VIEWS) == [
        f"index.parquet, sample {key}: the column psnr is not what shards/views-{key[0]}-000000.tar has"
        for key in keys
    ]
    cut(index, 300)
    assert findings(VIEWS)[0].startswith("index.parquet: damaged")
    index.unlink()
    assert findings(VIEWS) == ["index.parquet: missing"]


def test_index_and_shards_are_compared(project):
    # One row for each way in which an index can contradict its shards. NaN is one of them, as it equals
    # nothing, not even itself.
    shutil.rmtree(".dvc")
    rows = pq.read_table(VIEWS / "index.parquet").to_pylist()
    keys = [row["key"] for row in rows]
    rows[1]["key"], rows[5]["shard"] = "nobody", "views-a-000000.tar"
    rows[8] |= {"psnr": float("nan"), "offset": 512}
    rows[9] |= {"crcs": rows[9]["crcs"][::-1], "kept": False}
    write_table(
        VIEWS / "index.parquet",
        pa.Table.from_pylist([*rows, rows[0]], pq.read_schema(VIEWS / "index.parquet")),
    )
    assert sorted(findings(VIEWS)) == sorted(
        [
            f"index.parquet, sample {keys[0]}: has two rows",
            f"index.parquet, sample {keys[8]}: the column offset is not what shards/views-c-000000.tar has",
            f"index.parquet, sample {keys[8]}: the column psnr is not what shards/views-c-000000.tar has",
            f"index.parquet, sample {keys[9]}: the column crcs is not what shards/views-c-000000.tar has",
            f"index.parquet, sample {keys[9]}: kept and reason contradict each other",
            "shards/views-a-000000.tar, sample nobody: index.parquet has a row for it, but it is not there",
            f"shards/views-a-000000.tar, sample {keys[5]}: "
            "index.parquet has a row for it, but it is in views-b-000000.tar",
            f"shards/views-a-000000.tar, sample {keys[1]}: no table has a row for it",
        ]
    )


def test_a_missing_record_is_named(project):
    """A sample that is gone from a shard whose sidecar knows nothing of it: only the index does."""
    reader = ShardReader(VIEWS / "shards")
    gone, *kept = reader.keys()[6:]
    write_shard(VIEWS / "shards/views-c-000000.tar", [(key, reader.read(key)) for key in kept])
    where = f"shards/views-c-000000.tar, sample {gone}"
    assert f"{where}: index.parquet has a row for it, but it is not there" in findings(VIEWS)
    before = {path: path.stat().st_ino for path in VIEWS.glob("shards/views-[ab]-*.tar")}
    assert mend(VIEWS) == ["shards/views-c-000000.tar"] and findings(VIEWS) == []
    assert {path: path.stat().st_ino for path in before} == before


def test_index_and_shards_of_other_thresholds(project):
    """Whether a frame is kept follows from the thresholds, which no shard knows: the record of DVC does."""
    rows = pq.read_table(VIEWS / "index.parquet").to_pylist()
    rows[2] |= {"kept": False, "reason": "psnr"}
    schema = pq.read_schema(VIEWS / "index.parquet")
    write_table(VIEWS / "index.parquet", pa.Table.from_pylist(rows, schema))
    assert findings(VIEWS) == ["index.parquet: altered: it is not the file that dvc.lock records"]


def test_shards_of_an_older_format_are_named_with_what_to_do(project):
    # As a cache of a version before the number looks. To call it damaged would send people to repair it.
    for sidecar in (VIEWS / "shards").glob("*.json"):
        facts = json.loads(sidecar.read_text())
        del facts["format"]
        sidecar.unlink()
        sidecar.write_text(json.dumps(facts))
    found = findings(VIEWS)
    assert len(found) == 3
    for clip, line in zip("abc", found, strict=True):
        assert line.startswith(
            f"shards/views-{clip}-000000.tar.json: is older than all formats with a number"
        )
        assert line.endswith("dvc repro render_views.")


def test_what_a_sample_must_have(project):
    # Checksums are right here: a writer of its own made samples that training would stumble over.
    shutil.rmtree(".dvc")
    reader = ShardReader(VIEWS / "shards")
    *others, a, b = reader.keys()[6:]
    first, second = reader.read(a), reader.read(b)
    del first["alpha1.png"]
    first["motion.npy"] = encode_npy(np.zeros((3, 7), np.float64))
    second |= {
        "image.png": PNG.encode(np.zeros((8, 9, 3), np.uint8)),
        "more.png": second["mask.png"],
        "uv.png": b"no picture",
    }
    whole = [(key, reader.read(key)) for key in others]
    write_shard(VIEWS / "shards/views-c-000000.tar", [*whole, (a, first), (b, second)])
    image = load_params().networks.image
    dims = load_params().networks.motion.dims
    assert findings(VIEWS) == [
        f"shards/views-c-000000.tar, sample {b}, field uv.png: no png that can be read",
        f"shards/views-c-000000.tar, sample {a}, field alpha1.png: missing",
        f"shards/views-c-000000.tar, sample {a}, field motion.npy: "
        f"is float64 3 x 7, should be float32 3 x {dims}",
        f"shards/views-c-000000.tar, sample {b}, field image.png: "
        f"is uint8 8 x 9 x 3, should be uint8 {image} x {image} x 3",
        f"shards/views-c-000000.tar, sample {b}, field more.png: no such field belongs into a sample",
    ]


def test_heads_are_numbered_without_a_gap(project):
    # Heads have no table that would miss the shard, neither with a record nor without.
    for file in (HEADS / "shards").glob("heads-000001.tar*"):
        file.unlink()
    assert set(findings(HEADS)) == {
        "shards/heads-000001.tar: missing",
        "shards/heads-000001.tar.json: missing",
    }
    shutil.rmtree(".dvc")
    assert findings(HEADS) == ["shards/heads-000001.tar: missing"]


def test_ingested_faces(tmp_path):
    fields = {
        "image.png": PNG.encode(np.zeros((8, 8, 3), np.uint8)),
        "mask.png": PNG.encode(np.zeros((8, 8), np.uint8)),
    }
    rows = [
        {
            "key": f"p{i}",
            "file": f"p{i}.png",
            "status": "ok" if i else "rejected",
            "shard": "portraits-000000.tar" if i else None,
        }
        for i in range(3)
    ]
    frames = [
        {"key": f"c-{i:06d}", "clip": "c", "index": i, "status": "ok", "shard": "clips-000000.tar"}
        for i in range(2)
    ]
    write_shard(tmp_path / "shards/portraits-000000.tar", [(row["key"], fields) for row in rows[1:]])
    write_shard(tmp_path / "shards/clips-000000.tar", [(row["key"], fields) for row in frames])
    for name, content in (("portraits", rows), ("clips", [{"key": "c"}]), ("frames", frames)):
        write_table(
            tmp_path / f"{name}.parquet", pa.Table.from_pylist(content, getattr(tables, name.upper()))
        )
    assert findings(tmp_path) == []
    # A rejected portrait has no sample, and is none of the findings until its row says that it was accepted.
    rows[0]["status"], rows[0]["shard"] = "ok", "portraits-000000.tar"
    write_table(tmp_path / "portraits.parquet", pa.Table.from_pylist(rows, tables.PORTRAITS))
    assert findings(tmp_path) == [
        "shards/portraits-000000.tar, sample p0: portraits.parquet has a row for it, but it is not there"
    ]


def test_no_cache(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no cache"):
            verify(folder)


def test_repair_makes_only_what_is_broken_and_the_same_bytes(project):
    # Inode and time of the healthy shard: equal bytes alone would not show that it was made again in vain.
    before = checksums(VIEWS)
    shards = sorted((VIEWS / "shards").glob("*.tar"))
    healthy = shards[1].stat()
    flip(shards[0], place(shards[0], "a-000002", "alpha0.png"))
    sidecar_path(shards[2]).unlink()
    assert mend(VIEWS) == ["shards/views-a-000000.tar", "shards/views-c-000000.tar"]
    assert checksums(VIEWS) == before and verify(VIEWS).findings == []
    after = shards[1].stat()
    assert (after.st_ino, after.st_mtime_ns) == (healthy.st_ino, healthy.st_mtime_ns)
    assert not list(Path(".cache/psi4d/scratch").glob("*/*"))


def test_repair_with_an_empty_dvc_cache(project):
    """As after `dvc gc`: only the checksum of the whole folder is left."""
    before = checksums(VIEWS)
    shutil.rmtree(".dvc/cache")
    flip(VIEWS / "shards/views-c-000000.tar.json", 60)
    assert mend(VIEWS) == ["shards/views-c-000000.tar"] and checksums(VIEWS) == before


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_repair_of_damage_that_is_in_the_dvc_cache_as_well(project, link):
    """With links, a byte that flips in one flips in the other; a cache on another disk has symbolic ones."""
    before = checksums(VIEWS)
    shard = VIEWS / "shards/views-c-000000.tar"
    value = hashlib.md5(shard.read_bytes()).hexdigest()
    kept = Path(".dvc/cache/files/md5", value[:2], value[2:])
    shard.unlink()
    link(kept.resolve(), shard)
    kept.chmod(0o644)
    with open(kept, "r+b") as file:
        file.seek(600)
        file.write(b"damage")
    kept.chmod(0o444)
    assert checksums(VIEWS) != before
    assert mend(VIEWS) == ["shards/views-c-000000.tar"] and checksums(VIEWS) == before
    assert hashlib.md5(kept.read_bytes()).hexdigest() == value
    assert kept.stat().st_mode & 0o777 == 0o444
    with Repo(".") as repo:
        assert repo.status() == {}


def test_repair_of_a_lost_index_and_of_heads(project):
    before = checksums(project / "data")
    (VIEWS / "index.parquet").unlink()
    untouched = {path: path.stat().st_ino for path in VIEWS.glob("shards/*.tar")}
    assert mend(VIEWS) == ["index.parquet"]
    assert {path: path.stat().st_ino for path in untouched} == untouched
    (VIEWS / "index.parquet").write_bytes(b"")
    cut(VIEWS / "shards/views-b-000000.tar", 1000)
    assert mend(VIEWS) == ["index.parquet", "shards/views-b-000000.tar"]
    cut(HEADS / "shards/heads-000000.tar", 1000)
    for file in (HEADS / "shards").glob("heads-000002.tar*"):
        file.unlink()
    assert mend(HEADS) == ["shards/heads-000000.tar", "shards/heads-000002.tar"]
    assert checksums(project / "data") == before


def test_repair_refuses_other_inputs(project):
    shard = VIEWS / "shards/views-a-000000.tar"
    flip(shard, 600)
    damaged = shard.read_bytes()
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(replaced(text, "seed: 0", "seed: 1"))
    with pytest.raises(UserError, match=r"other inputs than there are now \(params.yaml: seed\).*dvc repro"):
        mend(VIEWS)
    # Params, data and code: each alone makes other views.
    Path("params.yaml").write_text(text)
    weights = Path("data/psi3d/psi3d.safetensors")
    flip(weights, weights.stat().st_size - 2)
    with pytest.raises(UserError, match="data/psi3d"):
        mend(VIEWS)
    write_bytes("data/code/render_views.txt", b"0  model.psi.network\n")
    with pytest.raises(
        UserError, match=r"other inputs than there are now \(model, model\.fast, model\.fast\.blocks and"
    ):
        mend(VIEWS)
    assert shard.read_bytes() == damaged


def test_repair_refuses_what_it_cannot_know(project):
    # A file of the user: DVC would remove it when the folder is checked out, so that the repair stops before.
    flip(VIEWS / "shards/views-a-000000.tar", 600)
    (VIEWS / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"do not belong there \(mine.txt\)"):
        mend(VIEWS)
    assert (VIEWS / "mine.txt").read_text() == "mine"
    # No stage makes the copy, so its inputs are not known.
    (VIEWS / "mine.txt").unlink()
    shutil.copytree(VIEWS, "copy")
    with pytest.raises(UserError, match="not known with what inputs copy was made"):
        mend(Path("copy"))
    Path("dvc.lock").unlink()
    with pytest.raises(UserError, match=r"dvc\.lock has nothing of it"):
        mend(VIEWS)


def test_repair_does_not_mix_bytes_of_two_origins(project):
    """As if another machine had made the cache: DVC has recorded other bytes for the same inputs."""
    shard = VIEWS / "shards/views-c-000000.tar"
    reader = ShardReader(VIEWS / "shards")
    samples = [(key, reader.read(key)) for key in reader.keys()[6:]]
    _, fields = samples[0]
    dims = load_params().networks.motion.dims
    fields["motion.npy"] = encode_npy(np.zeros((3, dims), np.float32))
    write_shard(shard, samples)
    write_index(VIEWS / "shards", VIEWS / "index.parquet", lambda quality: "")
    with Repo(".") as repo:
        repo.commit("render_views", force=True)
    assert findings(VIEWS) == []
    flip(shard, 600)
    with pytest.raises(UserError, match=r"not the bytes that dvc\.lock records"):
        mend(VIEWS)


@pytest.mark.process
def test_the_command_says_it_and_ends_with_status_1(project):
    def psi4d(*arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    flip(VIEWS / "shards/views-c-000000.tar", 600)
    result = psi4d("verify", "data/views")
    assert result.returncode == 1 and result.stdout.startswith("shards/views-c-000000.tar, sample ")
    assert (
        result.stderr.startswith("psi4d: data/views is not whole: 1 findings.")
        and "Traceback" not in result.stderr
    )
    result = psi4d("verify", "data/views", "--repair")
    assert (
        result.returncode == 0
        and "made again: shards/views-c-000000.tar\ndata/views is whole: 10 samples in 3 shards"
        in result.stdout
    )
