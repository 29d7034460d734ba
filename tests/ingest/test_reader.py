import os
import struct

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.ingest import reader
from pipeline.ingest.reader import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Rejected,
    find_files,
    probe_video,
    read_frames,
    read_image,
)
from pipeline.store.shards import decode_png, encode_png
from tests.support.videos import write_video


def pictures(count, height=48, width=64):
    found = np.zeros((count, height, width, 3), np.uint8)
    for number, picture in enumerate(found):
        picture[:16, :16] = (250, 0, 0)
        picture[20:, : 4 + 2 * number] = 200
    return list(found)


def test_files_are_sorted_and_others_counted(tmp_path):
    for name in ("b/2.PNG", "a.png", "b/notes.txt", ".hidden.png", ".git/x.png", "c.jpeg", "film.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert find_files(tmp_path, IMAGE_SUFFIXES) == (
        ["a.png", "b/2.PNG", "c.jpeg", "folder.png", "gone.png"],
        2,
    )
    assert find_files(tmp_path, VIDEO_SUFFIXES)[0] == ["film.mp4"]
    assert find_files(tmp_path / "absent", VIDEO_SUFFIXES) == ([], 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_colour_images(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 30), (200, 100, 50)).save(path)
    image = read_image(path)
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - [200, 100, 50]).max() <= 3


def test_other_kinds_of_images(tmp_path):
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (20, 20), (100, 255)).save(tmp_path / "grey-alpha.png")
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "press.jpg")
    palette = Image.new("RGB", (20, 20), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    for name, colour in {
        "grey.png": (90, 90, 90), "deep.png": (156, 156, 156), "clear.png": (255, 255, 255), "grey-alpha.png": (100, 100, 100),
        "press.jpg": (255, 0, 0), "palette.png": (10, 200, 30),
    }.items():  # fmt: skip
        image = read_image(tmp_path / name)
        assert image.shape == (20, 20, 3) and np.abs(image.astype(int) - colour).max() <= 4, name


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (40, 20, 3)


def test_bad_images_have_reasons(tmp_path, monkeypatch):
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("this is no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "whole.png"
    )
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    monkeypatch.setattr(reader, "MOST_PIXELS", 5000)
    Image.new("RGB", (100, 60)).save(tmp_path / "huge.png")
    for name, reason in {
        "tiny.png": "image too small: 1 x 1", "empty.png": "empty file", "folder.png": "a folder, not a file",
        "huge.png": "image too large: 100 x 60", "text.png": "cannot be read: cannot identify image file",
        "cut.png": "cannot be read", "absent.png": "cannot be read: No such file",
    }.items():  # fmt: skip
        with pytest.raises(Rejected) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(reason) and str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(Rejected, match="cannot be read: Permission denied"):
        read_image(path)


@pytest.mark.parametrize("name", ["x.mp4", "x.mov", "x.mkv", "x.avi"])
def test_probe_and_decode(tmp_path, name):
    path = write_video(tmp_path / name, pictures(20), codec="mpeg4" if name.endswith("avi") else "libx264")
    video = probe_video(path)
    assert (video.packets, video.width, video.height) == (20, 64, 48) and video.fps == pytest.approx(25)
    assert video.declared in (0, 20)
    frames = list(read_frames(path, [0, 3, 19]))
    assert [index for index, _, _ in frames] == [0, 3, 19]
    np.testing.assert_allclose([seconds for _, seconds, _ in frames], [0, 0.12, 0.76], atol=0.045)
    np.testing.assert_allclose(np.diff([seconds for _, seconds, _ in frames]), [0.12, 0.64], atol=1e-3)
    for index, _, picture in frames:
        assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
        assert abs((picture[30, :, 1] > 100).sum() - (4 + 2 * index)) <= 1


def test_decord_and_pyav_agree(tmp_path):
    path = write_video(tmp_path / "x.mp4", pictures(12))
    for (i, s, a), (j, t, b) in zip(
        reader._decord_frames(path, range(1, 12, 3)), reader._pyav_frames(path, range(1, 12, 3)), strict=True
    ):
        assert i == j and s == pytest.approx(t, abs=1e-4)
        np.testing.assert_array_equal(a, b)


def test_time_stamps_of_a_variable_frame_rate(tmp_path):
    times = [0, 1, 2, 8, 9, 20]
    path = write_video(tmp_path / "x.mkv", pictures(6), times=times)
    np.testing.assert_allclose(
        [seconds for _, seconds, _ in read_frames(path, range(6))], np.array(times) / 25, atol=2e-3
    )


@pytest.mark.parametrize(("height", "width"), [(48, 64), (96, 128)])
def test_turned_video(tmp_path, height, width):
    data = write_video(tmp_path / "x.mp4", pictures(5, height, width)).read_bytes()
    place = data.index(b"tkhd") + 44  # the 3x3 matrix of the track header
    matrix = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, height << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data[:place] + matrix + data[place + 36 :])
    (_, _, picture), *_ = read_frames(tmp_path / "turned.mp4", range(5))
    (_, _, other), *_ = reader._pyav_frames(tmp_path / "turned.mp4", range(5))
    assert picture.shape == (width, height, 3)
    np.testing.assert_array_equal(picture, other)
    assert picture[4, -4, 0] > 200  # the red corner went from top left to top right


def test_bad_videos_have_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no film\n" * 50)
    whole = write_video(tmp_path / "whole.mp4", pictures(50)).read_bytes()
    (tmp_path / "no-index.mp4").write_bytes(
        write_video(tmp_path / "late.mp4", pictures(50), faststart=False).read_bytes()[:900]
    )
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, reason in {
        "empty.mp4": "empty file", "text.mp4": "cannot be read", "no-index.mp4": "cannot be read", "sound.mp4": "no video stream",
    }.items():  # fmt: skip
        with pytest.raises(Rejected, match=reason) as caught:
            probe_video(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    video = probe_video(tmp_path / "cut.mp4")
    assert video.declared == 50 and 0 < video.packets < 50
    assert len(list(read_frames(tmp_path / "cut.mp4", range(50)))) < 50


def test_png_still_works_beside_the_video_libraries():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)
