"""What `psi4d inspect` says and draws of a small real cache."""

import json
import math
import re
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.caches.cache import Cache, angles
from pipeline.caches.film import write_film
from pipeline.caches.inspect import sample, summary
from pipeline.caches.page import write_page
from pipeline.caches.sheet import REAL, RIM, TILE, rose, write_sheet
from pipeline.cli import app
from pipeline.core.errors import UserError
from pipeline.core.pictures import CAPTION
from pipeline.geometry.camera import look_at
from pipeline.store.samples import Views
from pipeline.store.shards import ShardReader
from pipeline.store.tables import write_table
from pipeline.store.view_index import write_index
from tests.support import small_cache

REMOTE = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(["']?(?:https?:)?//|fetch\(|import\s""")
VIEWS, HEADS = Path("data/views"), Path("data/genhead")
inputs, made, project = small_cache.inputs, small_cache.made, small_cache.project


def rows(text: str) -> dict[str, list[str]]:
    """The lines of a text table by their first cell."""
    found = {}
    for line in text.splitlines():
        first, *cells = re.split(r" {2,}", line.strip())
        found[first] = cells
    return found


def test_angles_are_those_of_look_at():
    # A wrong sign of an angle would look like a plausible cache, seen from the other side.
    cameras, wanted = [], []
    for yaw, height, radius in ((-0.7, -0.1, 3.7), (0.0, 0.2, 4.0), (0.4, 0.6, 4.4)):
        cameras.append(look_at(yaw, height * math.pi / 2, radius, np.zeros(3)))
        wanted.append([math.degrees(yaw), math.degrees(math.asin(height)), radius])
    assert np.allclose(angles(np.stack(cameras)), wanted, atol=1e-4)


def test_the_summary_counts(project):
    text = summary(Cache(VIEWS))
    table = rows(text)
    assert "multi-view cache, 10 samples in 3 shards" in text
    assert (table["train"], table["test"], table["all"]) == (
        ["2", "6", "12", "6"],
        ["1", "4", "8", "4"],
        ["3", "10", "20", "10"],
    )
    rejected = [int(table[reason][0]) for reason in ("no fitted head", "no face")]
    assert sum(rejected) == 2
    # The fitted cameras of real frames must not be counted among the drawn ones of the pseudo views.
    reader = ShardReader(VIEWS / "shards")
    pseudo = np.concatenate([Views.cameras.array(reader[key])[1:] for key in reader])
    yaw, _, _ = angles(pseudo).T
    least, *_, median, _, _, most = map(float, table["pseudo yaw °"])
    assert (least, median, most) == pytest.approx((yaw.min(), np.median(yaw), yaw.max()), rel=1e-3)
    assert {"psnr", "coverage", "identity"} <= table.keys()
    assert {"real yaw °", "real pitch °", "real radius"} <= table.keys()
    assert {"pseudo pitch °", "pseudo radius"} <= table.keys()


def test_frames_that_are_not_trained_on_are_counted(project):
    cache = Cache(VIEWS)
    assert all(entry.kept for entry in cache.entries)
    assert "not trained on" not in summary(cache)
    # A threshold that a single frame fails: the others must stay where they are counted.
    worst = min(entry.quality["psnr"] for entry in cache.entries)
    write_index(
        VIEWS / "shards",
        VIEWS / "index.parquet",
        lambda quality: "psnr" if quality["psnr"] < worst + 1e-3 else "",
    )
    cache = Cache(VIEWS)
    table = rows(summary(cache))
    assert table["all"] == ["3", "10", "20", "9"]
    assert table["not trained on, low psnr"] == ["1"]
    [out] = [entry for entry in cache.entries if not entry.kept]
    told = rows(sample(cache, out))
    assert told[out.key][-1] == "no"


def test_the_summary_of_heads(project):
    table = rows(summary(Cache(HEADS)))
    assert table["all"] == ["0", "5", "15"]
    assert {"view yaw °", "view radius"} <= table.keys()
    assert "psnr" not in table


def test_a_sample_with_all_its_fields(project):
    cache = Cache(VIEWS)
    (entry,) = cache.chosen("b", 1)
    table = rows(sample(cache, entry))
    fields = ShardReader(VIEWS / "shards").read("b-000001")
    assert fields.keys() <= table.keys()
    # The camera of the real frame and those of two views.
    size = len(fields["cameras.npy"])
    assert table["cameras.npy"] == ["float32", "3 x 25", f"{size}"]
    assert table["label.npy"][:2] == ["float32", "437"]
    assert table["mask.png"][:2] == ["uint8", "32 x 32"]
    assert {"real", "0", "1"} <= table.keys()
    assert table["b-000001"][2] == "views-b-000000.tar"
    assert cache.chosen("b-000001", None) == [entry]
    with pytest.raises(UserError, match="has no clip b frame 77"):
        cache.chosen("b", 77)


def test_the_contact_sheet(project):
    cache = Cache(VIEWS)
    assert write_sheet(cache, cache.chosen("c", None), Path("out/sheet.png")) == 4
    with Image.open("out/sheet.png") as image:
        # Real frame, mask, two views and the rose, below a title and their captions.
        top = 2 * CAPTION
        assert image.size == (5 * TILE, 4 * (TILE + top + 4))
        real = image.crop((0, top, TILE, top + TILE))
        assert real.getextrema() != ((255, 255),) * 3
    assert write_sheet(cache, cache.entries, Path("out/all.png")) == 8
    # Heads have an opacity in the place of the mask, and fewer of them than a sheet has rows.
    heads = Cache(HEADS)
    assert write_sheet(heads, heads.entries, Path("out/heads.png")) == 5


def add_times(clip: str) -> None:
    """Give frames of ingest times: a tenth of a second apart, and the third one comes a second late."""
    ingest = Path("data/ingest")
    frames = pq.read_table(ingest / "frames.parquet")
    seconds = [index / 10 + (index > 1) for index in frames["index"].to_pylist()]
    write_table(ingest / "frames.parquet", frames.append_column("seconds", pa.array(seconds)))
    write_table(ingest / "clips.parquet", pa.table({"key": [clip], "fps": [10.0]}))


def test_the_film_of_a_clip_is_as_fast_as_the_clip(project):
    cache = Cache(VIEWS)
    add_times("c")
    entries = cache.chosen("c", None)
    assert write_film(cache, entries, Path("out/c.mp4")) == 4
    with av.open("out/c.mp4") as container:
        frames = list(container.decode(video=0))
    times = [entry.index / 10 + (entry.index > 1) for entry in entries]
    wanted = [time - times[0] for time in times]
    assert [frame.time for frame in frames] == pytest.approx(wanted, abs=1e-4)
    # The real frame and two views, each below its caption, in the order of the cache.
    shown = frames[-1].to_ndarray(format="rgb24")
    assert shown.shape == (TILE + CAPTION, 3 * TILE, 3)
    for number, view in enumerate(cache.views(entries[-1].key)):
        tile = shown[CAPTION:, number * TILE : (number + 1) * TILE]
        assert np.abs(tile.mean((0, 1)) - view.mean((0, 1))).max() < 6


def test_a_film_is_one_clip_in_a_folder_with_its_tables(project):
    cache, out = Cache(VIEWS), Path("c.mp4")
    with pytest.raises(UserError, match=r"--film shows one clip: psi4d inspect data/views --clip NAME"):
        write_film(cache, cache.entries, out)
    with pytest.raises(UserError, match=r"c.gif: a film is an MP4; name it c.mp4"):
        write_film(cache, cache.chosen("c", None), Path("c.gif"))
    with pytest.raises(UserError, match=r"clips.parquet"):
        write_film(cache, cache.chosen("c", None), out)
    heads = Cache(HEADS)
    with pytest.raises(UserError, match=r"synthetic heads are in no clip"):
        write_film(heads, heads.entries, out)
    assert not out.exists()


def test_the_rose_points_where_the_camera_is():
    """A camera on the right of a viewer in front (world +x) has its dot there, and one above has it above.

    At half the angle of the rim it is half way to it.
    """
    size = 201
    middle = size // 2
    cases = [(-RIM / 2, 0, 0.22, 0), (RIM / 2, 0, -0.22, 0), (0, RIM, 0, 0.44)]
    for yaw, pitch, right, up in cases:
        drawn = rose(np.array([[yaw, pitch, 4.0]]), ["real"], size)
        x, y = round(middle + right * size), round(middle - up * size)
        assert tuple(drawn[y, x]) == REAL


def test_the_page_holds_all_numbers_and_loads_its_pictures(project, monkeypatch):
    # Three frames a sheet, so that the clip of four needs a second one.
    monkeypatch.setattr("pipeline.caches.page.FRAMES_PER_SHEET", 3)
    cache = Cache(VIEWS)
    page = write_page(cache, cache.entries, Path("out/page"), bad=["b-000001"])
    text = page.read_text()
    assert page == Path("out/page/index.html") and len(text) < 40_000 and "base64" not in text
    # People open it from a disk, often on a machine without a network.
    assert not REMOTE.findall(text) and "{{" not in text
    content = json.loads(
        re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    )
    assert content["pictures"] == ["real", "0", "1", "mask"] and content["qualities"] == [
        "psnr",
        "coverage",
        "identity",
    ]
    assert [(clip["name"], clip["split"], len(clip["frames"])) for clip in content["clips"]] == [
        ("a", "train", 3),
        ("b", "train", 3),
        ("c", "test", 4),
    ]
    assert [len(clip["sheets"]) for clip in content["clips"]] == [1, 1, 2]
    # Marks that were saved before are on the page, and buttons to change and save them.
    assert content["bad"] == ["b-000001"] and content["marks"]
    assert {"bad", "save"} <= set(re.findall(r'<button id="(\w+)"', text))
    side = 32
    for clip in content["clips"]:
        for number, name in enumerate(clip["sheets"]):
            with Image.open(page.parent / name) as image:
                assert image.size == (4 * side, min(len(clip["frames"]) - 3 * number, 3) * side)
    frame = content["clips"][0]["frames"][0]
    assert frame["key"] == "a-000000" and np.allclose(
        frame["cameras"], angles(cache.cameras("a-000000")), atol=0.01
    )
    assert (
        write_page(cache, cache.entries, Path("out/one.html")) == Path("out/one.html")
        and Path("out/one-sheets").is_dir()
    )


def test_the_command(project):
    def inspect(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["inspect", *arguments])
        assert result.exit_code == 0, result.exception
        return result.output

    assert "10 samples" in inspect("data/views")
    assert rows(inspect("data/views", "--clip", "b")).keys() == {"key", "b-000000", "b-000001", "b-000002"}
    assert "cameras.npy" in inspect("data/genhead", "--frame", "3")
    assert "4 of 4 frames are now in s.png" in inspect("data/views", "--clip", "c", "--sheet", "s.png")
    assert "5 frames are now in page/index.html" in inspect("data/genhead", "--html", "page")
    assert '"marks":false' in Path("page/index.html").read_text()
    Path("data/bad_frames").mkdir()
    Path("data/bad_frames/x.csv").write_text("key\nc-000000\n")
    inspect("data/views", "--html", "page")
    assert '"bad":["c-000000"]' in Path("page/index.html").read_text()
    (VIEWS / "index.parquet").unlink()
    assert "psi4d verify data/views" in str(CliRunner().invoke(app, ["inspect", "data/views"]).exception)
