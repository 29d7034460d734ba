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
from pipeline.store.codecs import decode_picture
from pipeline.store.shards import ShardReader
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
    people="folder",
    neck_share=0.0,
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
CUT = astronaut()[50:250, 100:350]
HALF = astronaut()[:300, 210:380]
CLOSE = astronaut()[30:180, 150:300]
GREY = np.full((200, 200, 3), 90, np.uint8)


def film(count, start=0):
    """A camera that moves over the photograph."""
    pictures = []
    for place in range(count):
        left = 80 + start + 2 * place
        crop = np.array([1 / 280, -left / 280, 0.0])
        pictures.append(cut(astronaut(), crop, 200))
    return pictures


def between_pupils(mesh):
    """Their distance in the picture."""
    right, left = mesh[[468, 473], :2]
    return np.linalg.norm(right - left)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    portraits = root / "portraits"
    clips = root / "clips"
    write_portraits(portraits)
    write_clips(clips)
    return portraits, clips


def write_portraits(folder):
    (folder / "more").mkdir(parents=True)
    face = Image.fromarray(FACE)
    twins = np.concatenate([FACE, FACE], axis=1)
    pictures = {
        "person.png": face,
        "twins.png": Image.fromarray(twins),
        "far.png": face.resize((90, 90)),
        "cut.png": Image.fromarray(CUT),
        "half.png": Image.fromarray(HALF),
        "coffee.png": Image.fromarray(coffee()),
        "dot.png": Image.new("RGB", (1, 1)),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    face.convert("L").save(folder / "more/grey.jpg", quality=95)
    (folder / "nothing.png").touch()
    (folder / "readme.txt").write_text("x")


def write_clips(folder):
    folder.mkdir()
    # A cut to another place, which is the same one in a mirror and half as bright.
    mirrored = [picture[:, ::-1] // 2 for picture in film(14)]
    (first,) = film(1)
    films = {
        "one.mp4": film(8),
        "two.mkv": film(12, start=10),
        "short.mp4": film(2),
        "blank.mp4": [GREY] * 6,
        "mixed.mp4": [*[GREY] * 6, *film(12), *[GREY] * 4],
        "fallen.mp4": [np.rot90(picture) for picture in film(8)],
        "joined.mp4": [*film(8), *mirrored],
        "still.mp4": [first] * 8,
        "cut.mp4": film(40),
    }
    for name, pictures in films.items():
        write_video(folder / name, pictures)
    cut_off = folder / "cut.mp4"
    whole = cut_off.read_bytes()
    cut_off.write_bytes(whole[: len(whole) // 2])
    numbered = folder / "numbered"
    numbered.mkdir()
    for number, picture in enumerate(film(8, start=4), start=7):
        Image.fromarray(picture).save(numbered / f"{number:04d}.png")
    # Who opens a pipe waits for ever.
    os.mkfifo(folder / "pipe.mp4")
    (folder / "text.mp4").write_text("no film")


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
        row = rows[file]
        assert row["status"] == "rejected"
        assert row["reason"].startswith(start), (file, row["reason"])
    passed_over = {
        "readme.txt": "not a picture",
        "pipe.mp4": "a FIFO, not a file",
    }
    for file, reason in passed_over.items():
        row = rows[file]
        assert row["status"] == "passed over"
        assert row["reason"] == reason
    assert len(rows) == len(used) + len(reasons) + len(passed_over)
    # The metrics count what the rows say; files without a picture count in no share.
    portraits = metrics["portraits"]
    assert portraits["rejected"] == {
        "empty file": 1,
        "face too small": 1,
        "head cut by the edge of the picture": 1,
        "image too small": 1,
        "no face": 1,
        "two faces": 1,
    }
    assert portraits["ok"] == 3
    assert portraits["ignored_files"] == 1
    assert portraits["face_share"] == 0.8571
    clips = metrics["clips"]
    assert clips["ok"] == 5
    assert clips["ignored_files"] == 1
    assert clips["train"] + clips["validation"] + clips["test"] == 5
    assert clips["cuts"] == 1
    assert clips["frames_left_out"] == {"other shots": 8, "uniform": 10 + 6}


def test_frames_and_splits(result):
    out, _ = result
    frames = table(out / "frames.parquet", "key").values()
    clips = table(out / "clips.parquet")
    usable = [row for row in clips.values() if row["status"] == "ok"]
    assert {row["split"] for row in usable} == {"train", "validation", "test"}
    mixed = clips["mixed.mp4"]
    assert mixed["frames_ok"] == 6
    assert mixed["frames_decoded"] == 6
    # Six frames each, spread over the shot that is used; numbers count all frames of the file.
    indices = {
        "mixed.mp4": [7, 9, 11, 13, 15, 17],
        "two.mkv": [1, 3, 5, 7, 9, 11],
        "joined.mp4": [9, 11, 13, 16, 18, 20],
        "numbered": [0, 2, 3, 4, 6, 7],
    }
    for name, expected in indices.items():
        clip = clips[name]
        rows = [row for row in frames if row["clip"] == clip["key"]]
        assert [row["index"] for row in rows] == expected
        assert {row["split"] for row in rows} == {clip["split"]}
        seconds = [row["seconds"] for row in rows]
        np.testing.assert_allclose(seconds, np.array(expected) / 25, atol=2e-3)


def test_shards_hold_what_the_tables_say(result):
    out, _ = result
    reader = ShardReader(out / "shards")
    rows = table(out / "portraits.parquet", "key")
    rows |= table(out / "frames.parquet", "key")
    usable = {key: row for key, row in rows.items() if row["status"] == "ok"}
    assert sorted(reader.keys()) == sorted(usable)
    for key, row in usable.items():
        assert reader.shard(key) == row["shard"]
        image = decode_picture(reader.read(key, "image.png"))
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        mask = decode_picture(reader.read(key, "mask.png"))
        assert mask.shape == (64, 64)
        assert mask.dtype == np.uint8
        # The face belongs to the person.
        assert mask[30:40, 28:36].mean() > 200
        flat = np.array(row["landmarks"], np.float32)
        mesh = flat.reshape(478, 3)
        assert mesh[:, :2].min() > 0.15
        assert mesh[:, :2].max() < 0.95
        # It is 112 of 512 pixels in the official frame.
        assert 0.18 < between_pupils(mesh) < 0.26


def test_a_subfolder_says_whom_a_photo_shows(result):
    out, _ = result
    portraits = table(out / "portraits.parquet", "key")
    people = {row["key"]: row["person"] for row in table(out / "people.parquet", "key").values()}
    usable = {key for key, row in portraits.items() if row["status"] == "ok"}
    assert people.keys() == usable
    for key, person in people.items():
        file = portraits[key]["file"]
        assert person == ("more" if file.startswith("more/") else file)
    assert "more" in people.values()


def test_nothing_to_read(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    portraits, clips = folders
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"ingest\.portraits.*is empty.*generated"):
        ingest(SETTINGS, 64, MACHINE, empty, clips, out)
    absent = tmp_path / "absent"
    with pytest.raises(UserError, match=r"ingest\.clips.*does not exist"):
        ingest(SETTINGS, 64, MACHINE, portraits, absent, out)
    assert not out.exists()


def test_nothing_usable(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    portraits, clips = folders
    out = tmp_path / "out"
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(clips / "one.mp4", one)
    too_few = "1 clips 1 can be used, but training, validation and testing need one each"
    with pytest.raises(UserError, match=too_few):
        ingest(SETTINGS, 64, MACHINE, portraits, one, out)
    bad = tmp_path / "bad"
    bad.mkdir()
    shutil.copy(portraits / "coffee.png", bad)
    no_face = r"none of the 1 portraits .* 1 x no face \(for example coffee.png"
    with pytest.raises(UserError, match=no_face):
        ingest(SETTINGS, 64, MACHINE, bad, clips, out)
    assert not out.exists()


def test_a_face_that_fills_the_picture_is_found():
    finder = FaceFinder(0.5, 48)
    face = finder.find(CLOSE)
    again = finder.find(CLOSE)
    np.testing.assert_array_equal(face.mesh_478, again.mesh_478)
    assert between_pupils(face.mesh_478) > 20
    with pytest.raises(Rejected, match="no face"):
        finder.find(GREY)


def test_faces_that_are_not_upright():
    finder = FaceFinder(0.5, 48)
    finder.check_upright(FACE, finder.find(FACE))
    for turns, angle in ((1, -90), (3, 90)):
        view = np.rot90(FACE, turns)
        # The detector reads memory row by row.
        turned = np.ascontiguousarray(view)
        face = finder.find(turned)
        assert roll_of(face.mesh_478) == pytest.approx(angle, abs=15)
        with pytest.raises(Rejected, match="face not upright: turned by"):
            finder.check_upright(turned, face)


def test_a_panorama_is_not_padded_at_its_full_size():
    finder = FaceFinder(0.5, 48)
    large = Image.fromarray(CLOSE).resize((3000, 3000))
    tracemalloc.start()
    face = finder.find(np.asarray(large))
    wide = np.zeros((400, 12_000, 3), np.uint8)
    with pytest.raises(Rejected, match="no face"):
        finder.find(wide)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert between_pupils(face.mesh_478) > 400
    # A border of half its length on each side would take 900 MB.
    assert peak < 200e6


def test_clips_in_no_list_are_passed_over(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Names may be with or without a suffix.
    lists = {"train": "one.mp4", "validation": "two", "test": "numbered"}
    for split, name in lists.items():
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
    reader = ShardReader(out / "shards")
    mask = decode_picture(reader.read(row["key"], "mask.png"))
    _, _, shift = row["crop"]
    above = int(shift * 64)
    assert above > 3
    assert (mask[:above] == 0).all()
    head = mask[above + 1 : 40, 28:36]
    assert head.mean() > 200


def test_rows_go_from_the_worker_to_the_table_unchanged(folders, result):
    out, _ = result
    finder = FaceFinder(SETTINGS.detection_score, SETTINGS.min_face)
    face = finder.find(FACE)
    crop = fit_crop(five_points(face.mesh_478))
    row = table(out / "portraits.parquet")["person.png"]
    # Tables hold float32.
    aligned = to_aligned(face.mesh_478, crop)
    landmarks = np.array(row["landmarks"], np.float32)
    assert np.array_equal(landmarks, aligned.astype(np.float32).ravel())
    found_crop = np.array(row["crop"], np.float32)
    assert np.array_equal(found_crop, crop.astype(np.float32))
    portraits, clips, frames = (
        pq.read_table(out / f"{name}.parquet") for name in ("portraits", "clips", "frames")
    )
    assert portraits.schema == PORTRAITS
    assert clips.schema == CLIPS
    assert frames.schema == FRAMES
    # Frames lie by clips, as those are listed.
    for found in (portraits, clips):
        files = found["file"].to_pylist()
        assert files == sorted(files)
    # A frame has no landmarks exactly where it was rejected.
    for row in frames.to_pylist():
        accepted = row["landmarks"] is not None
        assert row["status"] == ("ok" if accepted else "rejected")
    assert set(frames["status"].to_pylist()) == {"ok", "rejected"}
