import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.data import astronaut, coffee

from pipeline.config.params import Ingest, Machine
from pipeline.core.errors import UserError
from pipeline.ingest.crop import cut
from pipeline.ingest.detector import FaceFinder
from pipeline.ingest.reader import Rejected
from pipeline.ingest.worker import choose_frames, ingest, split_clips
from pipeline.store.shards import ShardReader, decode_png
from tests.support.videos import write_video

SETTINGS = Ingest(
    source="folder", portraits="portraits", clips="clips", identities=1, photos=1, train_clips=1, validation_clips=1, test_clips=1, frames=6,
    portrait_size=64, clip_size=64, fps=25, min_face=48, min_frames=3, detection_score=0.5, smooth_crop=True, validation_share=0.1,
    test_share=0.1, shard_size=2,
)  # fmt: skip
MACHINE = Machine(
    workers=0, device="cpu", ray_address="", object_store_mb=100, activation_checkpointing=False
)
FACE = astronaut()[:300, 80:380]  # a photograph of a person that comes with scikit-image


def film(count, start=0):
    """A camera that moves over the photograph."""
    return [
        cut(astronaut(), np.array([1 / 280, -(80 + start + 2 * i) / 280, 0.0]), 200) for i in range(count)
    ]


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
    Image.fromarray(coffee()).save(portraits / "coffee.png")
    Image.new("RGB", (1, 1)).save(portraits / "dot.png")
    (portraits / "nothing.png").touch()
    (portraits / "readme.txt").write_text("x")
    write_video(clips / "one.mp4", film(8))
    write_video(clips / "two.mkv", film(12, start=10))
    write_video(clips / "short.mp4", film(2))
    write_video(clips / "blank.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 6)
    write_video(clips / "mixed.mp4", [*film(4), *[np.full((200, 200, 3), 90, np.uint8)] * 4])
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
    reasons = {
        file: row["reason"]
        for file, row in (table(out / "portraits.parquet") | table(out / "clips.parquet")).items()
    }
    assert {file for file, reason in reasons.items() if not reason} == {
        "person.png",
        "more/grey.jpg",
        "one.mp4",
        "two.mkv",
        "mixed.mp4",
    }
    for file, start in {
        "twins.png": "two faces", "far.png": "face too small: ", "coffee.png": "no face", "dot.png": "image too small: 1 x 1",
        "nothing.png": "empty file", "short.mp4": "clip too short: 2 frames, 3 needed", "blank.mp4": "no face", "cut.mp4": "truncated: ",
        "text.mp4": "cannot be read",
    }.items():  # fmt: skip
        assert reasons[file].startswith(start), (file, reasons[file])
    assert metrics["portraits"]["ok"] == 2 and metrics["portraits"]["ignored_files"] == 1
    assert metrics["portraits"]["rejected"] == {
        "empty file": 1,
        "face too small": 1,
        "image too small": 1,
        "no face": 1,
        "two faces": 1,
    }
    assert metrics["portraits"]["face_share"] == 0.8
    assert metrics["clips"]["ok"] == 3
    assert [metrics["clips"][split] for split in ("train", "validation", "test")] == [1, 1, 1]


def test_frames_and_splits(result):
    out, _ = result
    frames, clips = table(out / "frames.parquet", "key"), table(out / "clips.parquet")
    usable = [row for row in clips.values() if row["status"] == "ok"]
    assert {row["split"] for row in usable} == {"train", "validation", "test"}
    assert clips["mixed.mp4"]["frames_ok"] == 4 and clips["mixed.mp4"]["frames_decoded"] == 6
    mixed = [row for row in frames.values() if row["clip"] == clips["mixed.mp4"]["key"]]
    assert [row["reason"] for row in mixed] == [""] * 4 + ["no face"] * 2
    two = [row for row in frames.values() if row["clip"] == clips["two.mkv"]["key"]]
    assert [row["index"] for row in two] == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose([row["seconds"] for row in two], np.arange(0, 12, 2) / 25, atol=2e-3)
    assert {row["split"] for row in two} == {clips["two.mkv"]["split"]}


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
        assert mask[30:40, 28:36].mean() > 200  # the face belongs to the person
        points = np.array(row["landmarks"], np.float32).reshape(478, 3)
        assert (points[:, :2] > 0.15).all() and (points[:, :2] < 0.95).all()
        assert (
            0.18 < np.linalg.norm(points[468, :2] - points[473, :2]) < 0.26
        )  # 112 of 512 pixels in the official frame


def test_generated_clips_say_their_split_in_the_name():
    names = {"test-000": "test", "train-000": "train", "train-001": "train", "validation-000": "validation"}
    rows = [{"key": name, "file": f"{name}.mp4", "status": "ok", "reason": ""} for name in names]
    assert split_clips(rows, SETTINGS.model_copy(update={"source": "generated"})) == names


def test_splits_do_not_move_when_clips_are_added():
    rows = [{"key": str(n), "file": f"{n}.mp4", "status": "ok", "reason": ""} for n in range(200)]
    few, many = split_clips(rows[:150], SETTINGS), split_clips(rows, SETTINGS)
    assert all(many[key] == split for key, split in few.items())
    assert all(8 < sum(split == name for split in many.values()) < 35 for name in ("validation", "test"))


def test_each_split_has_a_clip_or_the_run_stops():
    rows = [{"key": str(n), "file": f"{n}.mp4", "status": "ok", "reason": ""} for n in range(3)]
    for share in (0.0, 0.1, 0.9):
        settings = SETTINGS.model_copy(update={"validation_share": 0.0, "test_share": share})
        assert sorted(split_clips(rows, settings).values()) == ["test", "train", "validation"]
    with pytest.raises(UserError, match="training, validation and testing need one each"):
        split_clips(rows[:2], SETTINGS)


def test_which_frames():
    assert list(choose_frames(5, 24)) == [0, 1, 2, 3, 4]
    assert list(choose_frames(24, 24)) == list(range(24))
    assert list(choose_frames(1000, 200)) == list(range(200))
    assert list(choose_frames(1000, 50)) == list(range(0, 200, 4))
    assert list(choose_frames(1000, 24)) == list(range(0, 96, 4))
    assert list(choose_frames(0, 24)) == []


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
