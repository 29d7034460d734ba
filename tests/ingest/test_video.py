"""Every frame that is shown comes once, in its order, with its time, and looks as in a player."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from pipeline.ingest.files import Rejected
from pipeline.ingest.video import SPARSE, Video
from tests.ingest.films import (
    copy_packets,
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
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_film(tmp_path / name, numbered(50), codec, 25, container, options, pixels=pixels)
    video = Video(path)
    assert numbers(video) == list(range(50))
    np.testing.assert_allclose(times(video), np.arange(50) / 25, atol=2e-3)
    assert len(video.scan()) == 50 and video.scan().damaged == 0
    np.testing.assert_array_equal(video.scan().seconds_N, times(video))
    # After a scan another decoder may be asked for few frames; it must see the same.
    assert numbers(video, [7, 20, 49]) == [7, 20, 49]
    few = [5, 23, 41]
    assert 2 * SPARSE < 50 and numbers(video, few[:2]) == few[:2]
    whole = {frame.index: frame.picture for frame in video.frames()}
    for frame in video.frames(few):
        np.testing.assert_array_equal(frame.picture, whole[frame.index])


def test_what_an_edit_list_hides_has_no_index(tmp_path):
    whole = write_film(
        tmp_path / "whole.mp4", numbered(50), options={"g": "50", "bf": "2", "sc_threshold": "0"}
    )
    cut = copy_packets(whole, tmp_path / "cut.mp4", cut=38 / 25, mux={"avoid_negative_ts": "disabled"})
    video = Video(cut)
    assert video.packets == 50
    assert numbers(video) == list(range(38, 50))
    np.testing.assert_allclose(times(video), np.arange(12) / 25, atol=1e-3)
    assert len(video.scan()) == 12


@pytest.mark.parametrize("name", ["x.mkv", "x.ts"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
def test_a_start_between_key_frames(tmp_path, name, codec):
    options = {
        "g": "20",
        "bf": "2",
        "sc_threshold": "0",
        "x265-params": "open-gop=1:keyint=20:bframes=2:log-level=none",
    }
    if codec != "libx265":
        del options["x265-params"]
    whole = write_film(tmp_path / "whole.mkv", numbered(50), codec, options=options)
    cut = copy_packets(whole, tmp_path / name, keep=lambda place: place >= 7)
    found = numbers(Video(cut))
    assert found == list(range(found[0], 50)) and found[0] in (20, 21)


def test_variable_rate(tmp_path):
    places = [0, 1, 2, 8, 9, 20]
    path = write_film(tmp_path / "x.mkv", numbered(6), times=places)
    np.testing.assert_allclose(times(Video(path)), np.array(places) / 25, atol=2e-3)


def test_times_that_do_not_rise_become_even(tmp_path):
    first = write_film(tmp_path / "a.ts", numbered(20), container="mpegts").read_bytes()
    second = write_film(tmp_path / "b.ts", numbered(20, start=20), container="mpegts").read_bytes()
    (tmp_path / "both.ts").write_bytes(first + second)
    video = Video(tmp_path / "both.ts")
    assert numbers(video) == list(range(40))
    assert (np.diff(times(video)) > 0).all()


def test_frames_that_an_avi_dropped(tmp_path):
    places = [place for place in range(50) if place % 5 != 3]
    pictures = [picture_of(place) for place in places]
    path = write_film(tmp_path / "x.avi", pictures, "mpeg4", options={"g": "10"}, times=places)
    video = Video(path)
    assert numbers(video) == places
    np.testing.assert_allclose(times(video), np.array(places) / 25, atol=1e-3)


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
    picture = next(Video(turned).frames()).picture
    assert picture.shape == ((96, 64, 3) if matrix[0] == 0 else (64, 96, 3))
    rows, columns = corner
    inside = picture[4 if rows == 0 else -5, 4 if columns == 0 else -5]
    assert inside[0] > 200 and inside[1] < 60
    straight = next(Video(whole).frames()).picture
    # The pixels are those of the straight film, in other places.
    assert sorted(map(tuple, picture.reshape(-1, 3))) == sorted(map(tuple, straight.reshape(-1, 3)))
    if matrix == (-1, 0, 0, 1):
        np.testing.assert_array_equal(picture, straight[:, ::-1])
    if matrix == (0, 1, 1, 0):
        np.testing.assert_array_equal(picture, straight.transpose(1, 0, 2))


@pytest.mark.parametrize(("aspect", "shape"), [((4, 3), (64, 85)), ((1, 2), (128, 64))])
def test_pixels_that_are_not_square(tmp_path, aspect, shape):
    path = write_film(tmp_path / "x.mp4", numbered(5), aspect=Fraction(*aspect))
    video = Video(path)
    assert next(video.frames()).picture.shape[:2] == shape
    assert numbers(video) == list(range(5))


COLOUR = (200, 100, 50)


@pytest.mark.parametrize("matrix", [None, 1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_range_and_matrix(tmp_path, matrix, full):
    tags = {"color_range": 2 if full else 1}
    if matrix:
        tags["colorspace"] = matrix

    def change(frame, place):
        return frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=2 if full else 1)

    picture = np.zeros((64, 64, 3), np.uint8) + np.array(COLOUR, np.uint8)
    path = write_film(tmp_path / "x.mp4", [picture] * 3, tags=tags, change=change)
    shown = next(Video(path).frames()).picture
    assert np.abs(shown.astype(int) - COLOUR).max() <= 3


def test_a_large_film_without_tags_is_bt709(tmp_path):
    picture = np.zeros((720, 1280, 3), np.uint8) + np.array(COLOUR, np.uint8)

    def change(frame, place):
        changed = frame.reformat(format="yuv420p", dst_colorspace=1)
        changed.colorspace = 2
        return changed

    path = write_film(tmp_path / "x.mp4", [picture] * 2, change=change)
    shown = next(Video(path).frames()).picture
    assert np.abs(shown.astype(int) - COLOUR).max() <= 3


def test_bad_files_have_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no film\n" * 50)
    late = write_film(tmp_path / "late.mp4", numbered(50)).read_bytes()
    (tmp_path / "no-index.mp4").write_bytes(late[:900])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole = write_film(tmp_path / "whole.mp4", numbered(50), mux={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
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


def test_damage_hides_frames_until_the_next_key_frame(tmp_path):
    options = {"g": "10", "bf": "0", "sc_threshold": "0"}
    path = write_film(tmp_path / "x.mkv", numbered(40), options=options)
    with av.open(str(path)) as film:
        packets = [bytes(packet) for packet in film.demux(video=0) if packet.size]
    data = path.read_bytes()
    place = data.index(packets[14])
    broken = bytearray(data)
    broken[place + 4 : place + len(packets[14])] = bytes(len(packets[14]) - 4)
    path.write_bytes(bytes(broken))
    video = Video(path)
    found = numbers(video)
    assert set(found) == {*range(14), *range(20, 40)}
    assert video.scan().damaged == 6


def test_the_cover_is_not_the_film(tmp_path):
    path = write_film(tmp_path / "x.mkv", numbered(10))
    with av.open(str(path)) as old, av.open(str(tmp_path / "covered.mp4"), "w") as new:
        cover = new.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        film = new.add_stream_from_template(old.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        new.mux(cover.encode(picture))
        new.mux(cover.encode())
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = film
                new.mux(packet)
    assert numbers(Video(tmp_path / "covered.mp4")) == list(range(10))


def moving_bar(place):
    """A white bar that goes 4 pixels to the right with every frame; the odd lines are half a frame later."""
    picture = np.full((64, 64, 3), 60, np.uint8)
    for lines, shift in ((slice(0, None, 2), 0), (slice(1, None, 2), 2)):
        left = 8 + 4 * place + shift
        picture[lines, left : left + 8] = 220
    return picture


def combing(picture):
    """How much neighbouring lines differ beside how much lines of one field do, in levels."""
    lines = picture[8:-8, :, 1].astype(float)
    between = np.abs(np.diff(lines, axis=0)).mean()
    within = np.abs(lines[2:] - lines[:-2]).mean()
    return between - within


@pytest.mark.parametrize(
    ("codec", "options"), [("mpeg2video", {"flags": "+ildct+ilme"}), ("libx264", {"x264-params": "tff=1"})]
)
def test_fields_are_brought_together(tmp_path, codec, options):
    pictures = [moving_bar(place) for place in range(8)]
    path = write_film(tmp_path / "x.mkv", pictures, codec, options=options)
    with av.open(str(path)) as film:
        coded = list(film.decode(video=0))
    assert all(frame.interlaced_frame for frame in coded)
    assert combing(coded[3].to_ndarray(format="rgb24")) > 8
    frames = list(Video(path).frames())
    assert [frame.index for frame in frames] == list(range(8))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(8) / 25, atol=2e-3)
    assert max(combing(frame.picture) for frame in frames) < 4
    # Which of the two fields is kept, 2 pixels apart, is the choice of the filter.
    for place, frame in enumerate(frames):
        bright = frame.picture[20:44, :, 1].mean(axis=0) > 140
        assert abs(np.flatnonzero(bright).mean() - (11.5 + 4 * place)) < 2.1


def to_hdr(pictures, transfer):
    """Pictures of sRGB as 16-bit RGB with BT.2020 primaries, white at 203 cd/m2."""
    coded = np.asarray(pictures) / 255.0
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    light = np.clip(linear @ to_2020.T, 0, None)
    if transfer == 16:
        power = (light * 203 / 10_000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        display = light * 203 / 1000
        luma = display @ [0.2627, 0.6780, 0.0593]
        scene = display * np.maximum(luma, 1e-9)[..., None] ** (1 / 1.2 - 1)
        upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        code = np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)
    return (code * 65535 + 0.5).astype(np.uint16)


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_looks_as_the_plain_film(tmp_path, transfer):
    colours = np.random.default_rng(3).integers(60, 230, (8, 8, 3)).astype(np.uint8)
    plain = np.kron(colours, np.ones((16, 16, 1), np.uint8))
    deep = to_hdr(plain, transfer)

    def change(frame, place):
        coded = av.VideoFrame.from_ndarray(deep, format="rgb48le")
        return coded.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range=1)

    tags = {"colorspace": 9, "color_trc": transfer, "color_primaries": 9, "color_range": 1}
    quality = {"x265-params": "lossless=1:log-level=none"}
    path = write_film(
        tmp_path / "x.mp4",
        [plain] * 3,
        "libx265",
        options=quality,
        pixels="yuv444p10le",
        tags=tags,
        change=change,
    )
    video = Video(path)
    for frame in video.frames():
        difference = np.abs(frame.picture[8::16, 8::16].astype(int) - colours)
        assert difference.max() <= 4 and difference.mean() < 1
    video.scan()
    assert not video._may_jump


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
    data = write_film(tmp_path / name, numbered(20), codec, 25, container, {"g": "6"}).read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(12):
        changed = np.frombuffer(data, np.uint8).copy()
        reach = len(data) if rng.random() < 0.5 else 400
        places = rng.integers(0, reach, rng.integers(1, 40))
        changed[places] = rng.integers(0, 256, len(places))
        path = tmp_path / f"changed-{name}"
        path.write_bytes(changed.tobytes()[: rng.integers(100, 2 * len(data))])
        try:
            video = Video(path)
            shown = [(frame.index, frame.seconds) for frame in video.frames()]
        except Rejected as reason:
            assert str(reason)
            continue
        assert [index for index, _ in shown] == list(range(len(video.scan())))
        assert [seconds for _, seconds in shown] == video.scan().seconds_N.tolist()
