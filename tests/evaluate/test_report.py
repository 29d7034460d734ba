"""What people look at: the sheet, films at the clips' own speed, and the page as a browser reads it."""

from fractions import Fraction
from html.parser import HTMLParser

import av
import cv2
import numpy as np
import pytest

from pipeline.core.pictures import CAPTION
from pipeline.evaluate import gallery, report
from pipeline.evaluate.legend import COLUMNS
from pipeline.evaluate.report import Cell
from tests.evaluate import world as a_world
from tests.support import small_run

VOID = {"meta", "img", "br", "input", "link"}


class Page(HTMLParser):
    """The text of each element, and that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: dict[str, list[dict]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.setdefault(tag, []).append(dict(attrs))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data.strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = a_world.build(tmp_path_factory.mktemp("world"))
    made.report(views=2, videos=3)
    return made


def test_the_contact_sheet(world):
    data = np.frombuffer((world.out / "sheet.jpg").read_bytes(), np.uint8)
    sheet = cv2.imdecode(data, cv2.IMREAD_COLOR)
    # Three pairs of one person and two across, with two other sides.
    assert sheet.shape == (5 * (CAPTION + gallery.TILE), 6 * gallery.TILE, 3)
    assert len(data) < 400_000


def test_films_run_at_the_speed_of_their_clips(world):
    films = sorted((world.out / "videos").iterdir())
    kinds = [film.name.split("-")[0] for film in films]
    assert kinds == ["cross", "self", "self"]
    with av.open(str(films[0])) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(25, 2)
        assert float(stream.duration * stream.time_base) == pytest.approx(small_run.FRAMES / 12.5)
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == small_run.FRAMES
    assert pictures[0].shape == (CAPTION + gallery.TILE, 4 * gallery.TILE, 3)


def test_the_page(world):
    text = (world.out / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    page = Page(text)
    assert page.texts["h2"][:2] == ["Self-reenactment", "Cross-identity reenactment"]
    assert page.texts["h2"][-2:] == ["Videos", "What the columns mean"]
    assert page.texts["dt"] == [column.name for column in COLUMNS.values()]
    videos = page.attributes["video"]
    assert len(videos) == 3
    for video in videos:
        assert video["src"].startswith("data:video/mp4;base64,")
    assert page.attributes["img"][0]["src"].startswith("data:image/jpeg;base64,/9j/")
    # Each film says how fast it is.
    captions = page.texts["figcaption"]
    assert len(captions) == 3
    for caption in captions:
        assert caption.endswith(".mp4, 12.5 frames a second")
    measured = page.texts["pre"]
    assert len(measured) == 3
    for table in measured:
        assert "size change result" in table
        assert "background driver" in table
        assert "truth mesh gaze" in table
        assert "truth estimator mouth opening" in table
    cells = page.texts["td"]
    for name in ("Psi", "Psi_3d, no motion", "source copied", "real frame"):
        assert name in cells


def test_what_is_shown_is_escaped():
    film = gallery.Film("<b>&.mp4", b"film", Fraction(30000, 1001))
    text = report.page({"response": {"rms": 0.5}}, b"sheet", [film])
    assert "<b>" not in text
    page = Page(text)
    assert page.texts["figcaption"] == ["<b>&.mp4, 29.97 frames a second"]
    assert page.texts["h2"][0] == "Response to the motion"
    assert page.texts["td"] == ["Psi", "0.5000"]


def test_the_best_value_of_each_column_is_marked():
    values = {
        "psi": {"lpips": 0.2, "id": 0.8},
        "copy": {"lpips": 0.20001, "id": 1.0},
        "psi3d": {"lpips": 0.3, "id": 0.9},
        "real": {"id": 2.0},
    }
    table = report.table("self", values)
    assert [column.name for column in table.columns] == ["LPIPS", "ID"]
    psi, copy, psi3d, real = table.rows
    assert psi.cells == [Cell("0.2000", True), Cell("0.8000", False)]
    # What reads alike is equally good.
    assert copy.cells == [Cell("0.2000", True), Cell("1.0000", True)]
    assert psi3d.cells == [Cell("0.3000", False), Cell("0.9000", False)]
    # A real frame does not compete.
    assert real.cells == [Cell("", False), Cell("2.0000", False)]


def test_a_single_row_has_no_best():
    (row,) = report.table("fit_flame", {"rotation_degrees": 12.5, "jaw_degrees": 1.0}).rows
    assert row.name == "median"
    assert row.cells == [Cell("12.50", False), Cell("1.0000", False)]


def test_numbers_are_rounded_and_what_is_not_finite_is_left_out():
    scores = {"a": {"b": np.float64(1.23456789), "c": float("nan")}}
    assert report.rounded(scores) == {"a": {"b": 1.234568}}
