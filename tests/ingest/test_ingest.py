"""The stage on small folders: a row for every file and frame, shards as the tables say, errors for people."""

import os
import shutil
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.data import astronaut, coffee

from pipeline.config.params import Ingest, Machine
from pipeline.core.errors import UserError
from pipeline.ingest.crop import cut, fit_crop, five_points, to_aligned
from pipeline.ingest.detector import FaceFinder, roll_of
from pipeline.ingest.files import Rejected
from pipeline.ingest.worker import ingest
from pipeline.store.shards import ShardReader, decode_png
from pipeline.store.tables import CLIPS, FRAMES, PORTRAITS
from tests.support.videos import write_video

SETTINGS = Ingest(
    source="folder",
    portraits="portraits",
    clips="clips",
    identities=1,
    photos=1,
    train_clips=1,
    validation_clips=1,
    test_clips=1,
    frames=6,
    portrait_size=64,
    clip_size=64,
    fps=25,
    min_face=48,
    max_outside=0.2,
    min_frames=3,
    detection_score=0.5,
    smooth_crop=True,
    validation_share=0.1,
    test_share=0.1,
    split="hash",
    recordings="auto",
    frame_rate=25,
    shard_size=2,
)
MACHINE = Machine(
    workers=0,
    processes=1,
    device="cpu",
    ray_address="",
    object_store_mb=100,
    activation_checkpointing=False,
)
# A photograph of a person that comes with scikit-image.
FACE = astronaut()[:300, 80:380]
# The same head with its crown cut off, and with its left half.
CUT, HALF = astronaut()[50:250, 100:350], astronaut()[:300, 210:380]
GREY = np.full((200, 200, 3), 90, np.uint8)


def film(count, start=0):
    """A camera that moves over the photograph."""
    crops = [np.array([1 / 280, -(80 + start + 2 * place) / 280, 0.0]) for place in range(count)]
    return [cut(astronaut(), crop, 200) for crop in crops]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    portraits, clips = root / "portraits", root / "clips"
    (portraits / "more").mkdir(parents=True)
    clips.mkdir()
    Image.fromarray(FACE).save(portraits / "person.png")
    Image.fromarray(FACE).convert("L").save(portraits / "more" / "grey.jpg", quality=95)
    Image.fromarray(np.concatenate([FACE, FACE], axis=1)).save(portraits / "twins.png")
    Image.fromarray(FACE).resize((90, 90)).save(portraits / "far.png")
    Image.fromarray(CUT).save(portraits / "cut.png")
    Image.fromarray(HALF).save(portraits / "half.png")
    Image.fromarray(coffee()).save(portraits / "coffee.png")
    Image.new("RGB", (1, 1)).save(portraits / "dot.png")
    (portraits / "nothing.png").touch()
    (portraits / "readme.txt").write_text("x")
    write_video(clips / "one.mp4", film(8))
    write_video(clips / "two.mkv", film(12, start=10))
    write_video(clips / "short.mp4", film(2))
    write_video(clips / "blank.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 6)
    write_video(clips / "mixed.mp4", [*[GREY] * 6, *film(12), *[GREY] * 4])
    write_video(clips / "fallen.mp4", [np.rot90(picture) for picture in film(8)])
    mirrored = [picture[:, ::-1] // 2 for picture in film(14)]
    write_video(clips / "joined.mp4", [*film(8), *mirrored])
    write_video(clips / "still.mp4", [film(1)[0]] * 8)
    (clips / "numbered").mkdir()
    for number, picture in enumerate(film(8, start=4)):
        Image.fromarray(picture).save(clips / "numbered" / f"{number + 7:04d}.png")
    os.mkfifo(clips / "pipe.mp4")
    whole = write_video(clips / "cut.mp4", film(40)).read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / "text.mp4").write_text("no film")
    return portraits, clips


def table(path, key="file"):
    return {row[key]: row for row in pq.read_table(path).to_pylist()}


@pytest.fixture(scope="module")
def result(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("ingested")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        return out, ingest(SETTINGS, 64, MACHINE, *folders, out)


def test_every_file_has_a_row_with_a_reason(result):
    out, metrics = result
    rows = table(out / "portraits.parquet") | table(out / "clips.parquet")
    used = {file for file, row in rows.items() if row["status"] == "ok"}
    assert used == {
        "person.png",
        "more/grey.jpg",
        "cut.png",
        "one.mp4",
        "two.mkv",
        "mixed.mp4",
        "joined.mp4",
        "numbered",
    }
    reasons = {
        "twins.png": "two faces",
        "far.png": "face too small: ",
        "half.png": "head cut by the edge of the picture: ",
        "coffee.png": "no face",
        "dot.png": "image too small: 1 x 1",
        "nothing.png": "empty file",
        "short.mp4": "clip too short: 2 frames, 3 needed",
        "blank.mp4": "no face",
        "cut.mp4": "truncated: ",
        "text.mp4": "cannot be read",
        "fallen.mp4": ("no face", "face not upright"),
        "still.mp4": "nothing moves",
    }
    for file, start in reasons.items():
        assert rows[file]["status"] == "rejected"
        assert rows[file]["reason"].startswith(start), (file, rows[file]["reason"])
    for file, reason in {"readme.txt": "not a picture", "pipe.mp4": "a FIFO, not a file"}.items():
        assert (rows[file]["status"], rows[file]["reason"]) == ("passed over", reason)
    assert len(rows) == len(used) + len(reasons) + 2
    cut_head = "head cut by the edge of the picture"
    rejected = ["empty file", "face too small", cut_head, "image too small", "no face", "two faces"]
    assert metrics["portraits"]["rejected"] == dict.fromkeys(rejected, 1)
    assert metrics["portraits"]["ok"] == 3 and metrics["portraits"]["ignored_files"] == 1
    assert metrics["portraits"]["face_share"] == 0.8571
    assert metrics["clips"]["ok"] == 5 and metrics["clips"]["ignored_files"] == 1
    assert sum(metrics["clips"][split] for split in ("train", "validation", "test")) == 5
    assert metrics["clips"]["cuts"] == 1
    assert metrics["clips"]["frames_left_out"] == {"other shots": 8, "uniform": 10 + 6}


def test_frames_and_splits(result):
    out, _ = result
    frames, clips = table(out / "frames.parquet", "key"), table(out / "clips.parquet")
    usable = [row for row in clips.values() if row["status"] == "ok"]
    assert {row["split"] for row in usable} == {"train", "validation", "test"}
    assert clips["mixed.mp4"]["frames_ok"] == clips["mixed.mp4"]["frames_decoded"] == 6
    rows = {name: [] for name in ("mixed.mp4", "two.mkv", "joined.mp4", "numbered")}
    for row in frames.values():
        for name, mine in rows.items():
            if row["clip"] == clips[name]["key"]:
                mine.append(row)
    assert [row["index"] for row in rows["mixed.mp4"]] == [7, 9, 11, 13, 15, 17]
    assert [row["index"] for row in rows["two.mkv"]] == [1, 3, 5, 7, 9, 11]
    assert [row["index"] for row in rows["joined.mp4"]] == [9, 11, 13, 16, 18, 20]
    assert [row["index"] for row in rows["numbered"]] == [0, 2, 3, 4, 6, 7]
    for mine in rows.values():
        times = [row["seconds"] for row in mine]
        np.testing.assert_allclose(times, np.array([row["index"] for row in mine]) / 25, atol=2e-3)
    assert {row["split"] for row in rows["two.mkv"]} == {clips["two.mkv"]["split"]}


def test_shards_hold_what_the_tables_say(result):
    out, _ = result
    reader = ShardReader(out / "shards")
    rows = [*table(out / "portraits.parquet", "key").values(), *table(out / "frames.parquet", "key").values()]
    usable = [row for row in rows if row["status"] == "ok"]
    assert sorted(reader.keys()) == sorted(row["key"] for row in usable)
    for row in usable:
        assert reader.shard(row["key"]) == row["shard"]
        image, mask = (decode_png(reader.read(row["key"], field)) for field in ("image.png", "mask.png"))
        assert image.shape == (64, 64, 3) and mask.shape == (64, 64) and image.dtype == mask.dtype == np.uint8
        # The face belongs to the person.
        assert mask[30:40, 28:36].mean() > 200
        points = np.array(row["landmarks"], np.float32).reshape(478, 3)
        assert (points[:, :2] > 0.15).all() and (points[:, :2] < 0.95).all()
        # It is 112 of 512 pixels in the official frame.
        assert 0.18 < np.linalg.norm(points[468, :2] - points[473, :2]) < 0.26


def test_nothing_to_read(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"ingest\.portraits.*is empty.*generated"):
        ingest(SETTINGS, 64, MACHINE, tmp_path / "empty", folders[1], tmp_path / "out")
    with pytest.raises(UserError, match=r"ingest\.clips.*does not exist"):
        ingest(SETTINGS, 64, MACHINE, folders[0], tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_usable(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(folders[1] / "one.mp4", one)
    with pytest.raises(
        UserError, match="1 clips 1 can be used, but training, validation and testing need one each"
    ):
        ingest(SETTINGS, 64, MACHINE, folders[0], one, tmp_path / "out")
    bad = tmp_path / "bad"
    bad.mkdir()
    shutil.copy(folders[0] / "coffee.png", bad)
    with pytest.raises(UserError, match=r"none of the 1 portraits .* 1 x no face \(for example coffee.png"):
        ingest(SETTINGS, 64, MACHINE, bad, folders[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_face_that_fills_the_picture_is_found():
    finder = FaceFinder(0.5, 48)
    close = astronaut()[30:180, 150:300]
    face = finder.find(close)
    again = finder.find(close)
    np.testing.assert_array_equal(face.mesh_478, again.mesh_478)
    assert np.linalg.norm(face.mesh_478[468, :2] - face.mesh_478[473, :2]) > 20
    with pytest.raises(Rejected, match="no face"):
        finder.find(np.full((64, 64, 3), 128, np.uint8))


def test_faces_that_are_not_upright():
    finder = FaceFinder(0.5, 48)
    finder.check_upright(FACE, finder.find(FACE))
    for turns, angle in ((1, -90), (3, 90)):
        turned = np.ascontiguousarray(np.rot90(FACE, turns))
        face = finder.find(turned)
        assert roll_of(face.mesh_478) == pytest.approx(angle, abs=15)
        with pytest.raises(Rejected, match="face not upright: turned by"):
            finder.check_upright(turned, face)


def test_a_panorama_is_not_padded_at_its_full_size():
    finder = FaceFinder(0.5, 48)
    close = Image.fromarray(astronaut()[30:180, 150:300]).resize((3000, 3000))
    tracemalloc.start()
    face = finder.find(np.asarray(close))
    wide = np.zeros((400, 12_000, 3), np.uint8)
    with pytest.raises(Rejected, match="no face"):
        finder.find(wide)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.linalg.norm(face.mesh_478[468, :2] - face.mesh_478[473, :2]) > 400
    # A border of half its length on each side would take 900 MB.
    assert peak < 200e6


def test_clips_in_no_list_are_passed_over(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, name in (("train", "one.mp4"), ("validation", "two"), ("test", "numbered")):
        (tmp_path / f"{split}.txt").write_text(f"{name}\n")
    settings = SETTINGS.model_copy(update={"split": str(tmp_path)})
    metrics = ingest(settings, 64, MACHINE, *folders, tmp_path / "out")
    clips = table(tmp_path / "out" / "clips.parquet")
    used = {file: row["split"] for file, row in clips.items() if row["status"] == "ok"}
    assert used == {"one.mp4": "train", "two.mkv": "validation", "numbered": "test"}
    assert clips["mixed.mp4"]["reason"] == "in no list of ingest.split"
    assert metrics["clips"]["rejected"] == {}


def test_a_head_that_is_cut_by_the_edge(result):
    out, _ = result
    rows = table(out / "portraits.parquet")
    assert rows["half.png"]["reason"].endswith("of it are outside, at most 20% allowed (ingest.max_outside)")
    assert rows["person.png"]["outside"] == 0
    row = rows["cut.png"]
    assert 0.02 < row["outside"] < 0.2
    # The rows of the square above the picture repeat its first one, and belong to nobody.
    mask = decode_png(ShardReader(out / "shards").read(row["key"], "mask.png"))
    above = int(row["crop"][2] * 64)
    assert above > 3
    assert (mask[:above] == 0).all() and mask[above + 1 : 40, 28:36].mean() > 200


def test_rows_go_from_the_worker_to_the_table_unchanged(folders, result):
    out, _ = result
    finder = FaceFinder(SETTINGS.detection_score, SETTINGS.min_face)
    face = finder.find(FACE)
    crop = fit_crop(five_points(face.mesh_478))
    row = table(out / "portraits.parquet")["person.png"]
    wanted = to_aligned(face.mesh_478, crop).astype(np.float32)
    assert np.array_equal(np.array(row["landmarks"], np.float32), wanted.ravel())
    assert np.array_equal(np.array(row["crop"], np.float32), crop.astype(np.float32))
    for name, schema in (("portraits", PORTRAITS), ("clips", CLIPS), ("frames", FRAMES)):
        found = pq.read_table(out / f"{name}.parquet")
        assert found.schema == schema
        files = found["key" if name == "frames" else "file"].to_pylist()
        # Frames lie by clips, as those are listed.
        assert name == "frames" or files == sorted(files)
    # A frame has no landmarks exactly where it was rejected.
    frames = table(out / "frames.parquet", "key").values()
    assert all((row["landmarks"] is None) == (row["status"] != "ok") for row in frames)
    assert {row["status"] for row in frames} == {"ok", "rejected"}
