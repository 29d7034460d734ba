"""Every frame that is shown comes once, in its order, with its time, and looks as in a player."""

from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from pipeline.ingest.files import Rejected
from pipeline.ingest.video import SPARSE, Video
from tests.ingest.films import (
    SIDE,
    copy_packets,
    first_picture,
    number_of,
    numbered,
    picture_of,
    set_matrix,
    write_film,
)


def numbers(video, indices=None):
    return [number_of(frame.picture) for frame in video.frames(indices)]


def times(video):
    return [frame.seconds for frame in video.frames()]


def at_rate(places):
    """Seconds of so many frames, or of frames at these places, of 25 a second."""
    if isinstance(places, int):
        places = range(places)
    return np.array(places) / 25


@pytest.mark.parametrize(
    ("name", "codec", "container", "options"),
    [
        ("x.mp4", "libx264", None, {"bf": "2", "g": "12"}),
        ("x.mov", "libx264", None, {}),
        ("x.mkv", "libx264", None, {"bf": "3"}),
        ("x.m4v", "libx264", "mp4", {}),
        ("x.3gp", "libx264", "mp4", {}),
        ("x.webm", "libvpx-vp9", None, {}),
        ("x.avi", "mpeg4", None, {"bf": "2"}),
        ("asp.mp4", "mpeg4", None, {"bf": "2"}),
        ("named.mp4", "libx264", "mpegts", {"bf": "2", "g": "12"}),
        ("x.mts", "mpeg2video", "mpegts", {"bf": "2", "g": "12"}),
        ("x.mpg", "mpeg2video", "mpeg", {"bf": "2", "g": "12"}),
        ("x.wmv", "wmv2", "asf", {}),
        ("x.flv", "flv", None, {}),
        ("open.mp4", "libx265", None, {"x265-params": "open-gop=1:keyint=12:bframes=3:log-level=none"}),
        ("refresh.mp4", "libx264", None, {"intra-refresh": "1", "g": "12"}),
        ("jpeg.avi", "mjpeg", None, {}),
    ],
)
def test_every_kind_in_its_order(tmp_path, name, codec, container, options):
    path = write_film(
        tmp_path / name,
        numbered(50),
        codec,
        container=container,
        options=options,
        pixels="yuvj420p" if codec == "mjpeg" else "yuv420p",
    )
    video = Video(path)
    assert numbers(video) == list(range(50))
    seconds = times(video)
    np.testing.assert_allclose(seconds, at_rate(50), atol=2e-3)
    scan = video.scan()
    assert len(scan) == 50
    assert scan.damaged == 0
    np.testing.assert_array_equal(scan.seconds_N, seconds)
    # After a scan another decoder may be asked for few frames; it must see the same.
    assert numbers(video, [7, 20, 49]) == [7, 20, 49]
    assert 2 * SPARSE < 50
    assert numbers(video, [5, 23]) == [5, 23]
    whole = {frame.index: frame.picture for frame in video.frames()}
    for frame in video.frames([5, 23, 41]):
        np.testing.assert_array_equal(frame.picture, whole[frame.index])


def test_what_an_edit_list_hides_has_no_index(tmp_path):
    # One key frame, so that the packets before the cut cannot be left out.
    whole = write_film(
        tmp_path / "whole.mp4",
        numbered(50),
        options={"g": "50", "bf": "2", "sc_threshold": "0"},
    )
    cut = copy_packets(
        whole,
        tmp_path / "cut.mp4",
        cut=38 / 25,
        mux={"avoid_negative_ts": "disabled"},
    )
    video = Video(cut)
    assert video.packets == 50
    assert numbers(video) == list(range(38, 50))
    np.testing.assert_allclose(times(video), at_rate(12), atol=1e-3)
    assert len(video.scan()) == 12


@pytest.mark.parametrize("name", ["x.mkv", "x.ts"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
def test_a_start_between_key_frames(tmp_path, name, codec):
    options = {"g": "20", "bf": "2", "sc_threshold": "0"}
    if codec == "libx265":
        options["x265-params"] = "open-gop=1:keyint=20:bframes=2:log-level=none"
    whole = write_film(tmp_path / "whole.mkv", numbered(50), codec, options=options)
    cut = copy_packets(whole, tmp_path / name, keep=lambda place: place >= 7)
    # What comes before the first key frame refers to pictures that are not there.
    first, *others = numbers(Video(cut))
    assert first in (20, 21)
    assert others == list(range(first + 1, 50))


def test_variable_rate(tmp_path):
    places = [0, 1, 2, 8, 9, 20]
    path = write_film(tmp_path / "x.mkv", numbered(6), times=places)
    np.testing.assert_allclose(times(Video(path)), at_rate(places), atol=2e-3)


def test_times_that_do_not_rise_become_even(tmp_path):
    first = write_film(tmp_path / "a.ts", numbered(20), container="mpegts")
    second = write_film(tmp_path / "b.ts", numbered(20, start=20), container="mpegts")
    # Two recordings one after the other, each of which begins at zero.
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    video = Video(both)
    assert numbers(video) == list(range(40))
    steps = np.diff(times(video))
    assert (steps > 0).all()


def test_frames_that_an_avi_dropped(tmp_path):
    places = [place for place in range(50) if place % 5 != 3]
    pictures = [picture_of(place) for place in places]
    path = write_film(
        tmp_path / "x.avi",
        pictures,
        "mpeg4",
        options={"g": "10"},
        times=places,
    )
    video = Video(path)
    assert numbers(video) == places
    np.testing.assert_allclose(times(video), at_rate(places), atol=1e-3)


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (0, -1)),
        ((-1, 0, 0, -1), (-1, -1)),
        ((0, -1, 1, 0), (-1, 0)),
        ((-1, 0, 0, 1), (0, -1)),
        ((1, 0, 0, -1), (-1, 0)),
        ((0, 1, 1, 0), (0, 0)),
        ((0, -1, -1, 0), (-1, -1)),
    ],
)
def test_display_matrix(tmp_path, matrix, corner):
    pictures = numbered(5, width=96)
    whole = write_film(tmp_path / "whole.mp4", pictures)
    turned = set_matrix(whole, tmp_path / "turned.mp4", *matrix)
    picture = first_picture(turned)
    on_its_side = matrix[0] == 0
    assert picture.shape == ((96, 64, 3) if on_its_side else (64, 96, 3))
    row, column = (4 if place == 0 else -5 for place in corner)
    red, green, _ = picture[row, column]
    assert red > 200
    assert green < 60
    straight = first_picture(whole)
    # The pixels are those of the straight film, in other places.
    assert pixels_of(picture) == pixels_of(straight)
    # Mirrored, and turned and mirrored.
    if matrix == (-1, 0, 0, 1):
        np.testing.assert_array_equal(picture, straight[:, ::-1])
    if matrix == (0, 1, 1, 0):
        np.testing.assert_array_equal(picture, straight.transpose(1, 0, 2))


def pixels_of(picture):
    """The colours of a picture and how often each is there."""
    return Counter(map(tuple, picture.reshape(-1, 3).tolist()))


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        ((4, 3), (64, 85)),
        ((1, 2), (128, 64)),
    ],
)
def test_pixels_that_are_not_square(tmp_path, aspect, shape):
    path = write_film(tmp_path / "x.mp4", numbered(5), aspect=Fraction(*aspect))
    assert first_picture(path).shape[:2] == shape
    assert numbers(Video(path)) == list(range(5))


def test_bad_files_have_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no film\n" * 50)
    # The index of an MP4 stands at its end, or at its beginning if that is asked for.
    late = tmp_path / "no-index.mp4"
    data = write_film(late, numbered(50)).read_bytes()
    late.write_bytes(data[:900])
    early = tmp_path / "cut.mp4"
    data = write_film(early, numbered(50), mux={"movflags": "faststart"}).read_bytes()
    two_thirds = len(data) * 2 // 3
    early.write_bytes(data[:two_thirds])
    write_sound(tmp_path / "sound.mp4")
    reasons = {
        "empty.mp4": "empty file",
        "text.mp4": "cannot be read",
        "no-index.mp4": "cannot be read",
        "sound.mp4": "no video stream",
        "cut.mp4": "truncated: [0-9]+ of 50 frames are missing",
    }
    for name, reason in reasons.items():
        with pytest.raises(Rejected, match=reason) as caught:
            Video(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


def write_sound(path):
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = np.zeros((1, 4096), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_damage_hides_frames_until_the_next_key_frame(tmp_path):
    options = {"g": "10", "bf": "0", "sc_threshold": "0"}
    path = write_film(tmp_path / "x.mkv", numbered(40), options=options)
    with av.open(str(path)) as film:
        packets = [bytes(packet) for packet in film.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    # All but the length of a packet becomes zeros.
    packet = packets[14]
    begin = data.index(packet) + 4
    zeros = bytes(len(packet) - 4)
    data[begin : begin + len(zeros)] = zeros
    path.write_bytes(data)
    video = Video(path)
    found = numbers(video)
    assert set(found) == {*range(14), *range(20, 40)}
    assert video.scan().damaged == 6


def test_the_cover_is_not_the_film(tmp_path):
    path = write_film(tmp_path / "x.mkv", numbered(10))
    with av.open(str(path)) as old, av.open(str(tmp_path / "covered.mp4"), "w") as new:
        cover = new.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        film = new.add_stream_from_template(old.streams.video[0])
        black = np.zeros((32, 32, 3), np.uint8)
        picture = av.VideoFrame.from_ndarray(black, format="rgb24")
        new.mux(cover.encode(picture))
        new.mux(cover.encode())
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = film
                new.mux(packet)
    assert numbers(Video(tmp_path / "covered.mp4")) == list(range(10))


def test_of_several_films_the_largest_is_shown(tmp_path):
    """A preview lies before the film itself."""
    with av.open(str(tmp_path / "both.mkv"), "w") as both:
        for side in (32, SIDE):
            stream = both.add_stream("libx264", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for place in range(10):
            for stream in both.streams:
                picture = picture_of(place, stream.width, stream.height)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                both.mux(stream.encode(frame))
        for stream in both.streams:
            both.mux(stream.encode())
    video = Video(tmp_path / "both.mkv")
    assert (video.width, video.height) == (SIDE, SIDE)
    assert numbers(video) == list(range(10))


def moving_bar(place):
    """A white bar that goes 4 pixels to the right with every frame; the odd lines are half a frame later."""
    picture = np.full((64, 64, 3), 60, np.uint8)
    for field in (0, 1):
        left = 8 + 4 * place + 2 * field
        picture[field::2, left : left + 8] = 220
    return picture


def combing(picture):
    """How much neighbouring lines differ beside how much lines of one field do, in levels."""
    lines = picture[8:-8, :, 1].astype(float)
    neighbours = np.abs(lines[1:] - lines[:-1])
    of_a_field = np.abs(lines[2:] - lines[:-2])
    return neighbours.mean() - of_a_field.mean()


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg2video", {"flags": "+ildct+ilme"}),
        ("libx264", {"x264-params": "tff=1"}),
    ],
)
def test_fields_are_brought_together(tmp_path, codec, options):
    pictures = [moving_bar(place) for place in range(8)]
    path = write_film(tmp_path / "x.mkv", pictures, codec, options=options)
    with av.open(str(path)) as film:
        coded = list(film.decode(video=0))
    assert all(frame.interlaced_frame for frame in coded)
    combed = coded[3].to_ndarray(format="rgb24")
    assert combing(combed) > 8
    video = Video(path)
    np.testing.assert_allclose(times(video), at_rate(8), atol=2e-3)
    for place, frame in enumerate(video.frames()):
        assert frame.index == place
        assert combing(frame.picture) < 4
        # Which of the two fields is kept, 2 pixels apart, is the choice of the filter.
        brightness = frame.picture[20:44, :, 1].mean(axis=0)
        columns = np.flatnonzero(brightness > 140)
        assert columns.mean() == pytest.approx(11.5 + 4 * place, abs=2.1)


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("x.mp4", "libx264", None),
        ("x.mkv", "libx264", None),
        ("x.ts", "mpeg2video", "mpegts"),
        ("x.flv", "flv", None),
    ],
)
def test_hostile_files_end(tmp_path, name, codec, container):
    """Files with changed bytes are read or refused, never more; what is read is there again a second time."""
    path = write_film(
        tmp_path / name,
        numbered(20),
        codec,
        container=container,
        options={"g": "6"},
    )
    data = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(12):
        changed = np.frombuffer(data, np.uint8).copy()
        # Half of the changes are in the header, where they do most.
        reach = len(data) if rng.random() < 0.5 else 400
        count = rng.integers(1, 40)
        places = rng.integers(0, reach, count)
        changed[places] = rng.integers(0, 256, len(places))
        length = rng.integers(100, 2 * len(data))
        path.write_bytes(changed[:length].tobytes())
        try:
            video = Video(path)
            frames = list(video.frames())
        except Rejected as reason:
            assert str(reason)
            continue
        scan = video.scan()
        indices = [frame.index for frame in frames]
        assert indices == list(range(len(scan)))
        seconds = [frame.seconds for frame in frames]
        assert seconds == scan.seconds_N.tolist()
