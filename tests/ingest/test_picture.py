"""Pictures of every format and colour space look as in a viewer, or are refused with the reason."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.ingest import picture as module
from pipeline.ingest.files import Rejected
from pipeline.ingest.picture import read_picture

COLOUR = (200, 100, 50)
# Red, green and blue of ICC profiles, as XYZ under D50.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
PROPHOTO = ((0.7977, 0.2880, 0.0000), (0.1352, 0.7119, 0.0000), (0.0313, 0.0001, 0.8249))


def profile(primaries, gamma=2.2, table=False):
    """An ICC profile of three primaries and one curve, a gamma or a table of 16-bit numbers."""

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(fixed(value) for value in values)

    if table:
        values = np.round(np.linspace(0, 1, 1024) ** gamma * 65535).astype(">u2")
        curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + values.tobytes()
    else:
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(79)
    tags = {b"desc": name + bytes(-len(name) % 4), b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    for letter, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"] = xyz(primary)
        tags[bytes([letter]) + b"TRC"] = curve
    table_bytes, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        place = 128 + 4 + 12 * len(tags) + len(data)
        table_bytes += tag + struct.pack(">II", place, len(content))
        data += content
    size = 128 + len(table_bytes) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + table_bytes + data


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "avif", "jp2", "gif", "jfif", "ppm"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 30), COLOUR).save(path)
    image = read_picture(path)
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - COLOUR).max() <= 3
    # The suffix does not matter.
    renamed = path.rename(tmp_path / "x.txt")
    np.testing.assert_array_equal(read_picture(renamed), image)


def test_other_kinds_of_images(tmp_path):
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((20, 20), 200, np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.tif")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (20, 20), (100, 255)).save(tmp_path / "grey-alpha.png")
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "press.jpg")
    palette = Image.new("RGB", (20, 20), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    colours = {
        "grey.png": (90, 90, 90),
        "deep.png": (156, 156, 156),
        "dark.png": (1, 1, 1),
        "deep.tif": (156, 156, 156),
        "clear.png": (255, 255, 255),
        "grey-alpha.png": (100, 100, 100),
        "press.jpg": (255, 0, 0),
        "palette.png": (10, 200, 30),
    }
    for name, colour in colours.items():
        image = read_picture(tmp_path / name)
        assert image.shape == (20, 20, 3), name
        assert np.abs(image.astype(int) - colour).max() <= 4, name


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB, PROPHOTO])
@pytest.mark.parametrize("table", [False, True])
def test_colour_profiles(tmp_path, primaries, table):
    icc = profile(primaries, 1.8 if primaries == PROPHOTO else 2.2, table)
    plain = Image.fromarray(np.random.default_rng(0).integers(40, 220, (24, 24, 3), dtype=np.uint8))
    source = ImageCms.createProfile("sRGB")
    target = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    tagged = ImageCms.profileToProfile(plain, source, target, outputMode="RGB")
    assert np.abs(np.asarray(tagged).astype(int) - np.asarray(plain)).mean() > 2
    tagged.save(tmp_path / "x.png", icc_profile=icc)
    difference = np.abs(read_picture(tmp_path / "x.png").astype(int) - np.asarray(plain))
    assert difference.max() <= 5 and difference.mean() < 1


def test_a_profile_that_does_not_fit_is_not_heeded(tmp_path):
    Image.new("RGB", (20, 20), COLOUR).save(tmp_path / "broken.png", icc_profile=b"no profile")
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png", icc_profile=profile(DISPLAY_P3))
    assert (read_picture(tmp_path / "broken.png") == COLOUR).all()
    assert (read_picture(tmp_path / "grey.png") == 90).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "x.png", exif=exif)
    turned = {1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1]}
    turned |= {5: picture.transpose(1, 0, 2), 6: np.rot90(picture, -1), 8: np.rot90(picture)}
    turned |= {7: np.rot90(picture, 2).transpose(1, 0, 2)}
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), turned[orientation])


def test_odd_exif_numbers_lose_no_photo(tmp_path):
    image = Image.new("RGB", (48, 32), COLOUR)
    exif = Image.Exif()
    exif[0x0112], exif[0x9286], exif[0x829A] = 6, b"\xff\xfe", 0.5
    image.save(tmp_path / "whole.jpg", exif=exif)
    data = (tmp_path / "whole.jpg").read_bytes()
    broken = bytearray(data)
    place = data.index(b"Exif\0\0") + 6
    order = "<" if data[place : place + 2] == b"II" else ">"
    # The type of a number after the orientation is one that does not exist.
    entry = data.index(struct.pack(f"{order}H", 0x829A), place)
    broken[entry + 2 : entry + 4] = b"\x7f\x7f"
    (tmp_path / "odd.jpg").write_bytes(bytes(broken))
    assert read_picture(tmp_path / "odd.jpg").shape == (48, 32, 3)
    broken[place : place + 2] = b"\xff\xff"
    (tmp_path / "odder.jpg").write_bytes(bytes(broken))
    assert read_picture(tmp_path / "odder.jpg").shape[2] == 3
    exif[0x0112] = 77
    image.save(tmp_path / "strange.jpg", exif=exif)
    assert read_picture(tmp_path / "strange.jpg").shape == (32, 48, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_pictures_are_shrunk(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(module, "KEPT_PIXELS", 3000)
    Image.new("RGB", (200, 60), COLOUR).save(tmp_path / f"x.{suffix}")
    image = read_picture(tmp_path / f"x.{suffix}")
    assert image.shape == (30, 100, 3) or image.shape == (15, 50, 3)
    assert image.shape[0] * image.shape[1] <= 3000
    assert np.abs(image.astype(int) - COLOUR).max() <= 3


def test_bad_images_have_reasons(tmp_path, monkeypatch):
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "really.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    monkeypatch.setattr(module, "MOST_PIXELS", 5000)
    Image.new("RGB", (100, 60)).save(tmp_path / "huge.png")
    reasons = {
        "tiny.png": "image too small: 1 x 1",
        "empty.png": "empty file",
        "folder.png": "a folder, not a file",
        "huge.png": "image too large: 100 x 60",
        "text.png": "cannot be read: cannot identify image file",
        "cut.png": "cannot be read",
        "absent.png": "cannot be read: No such file",
        "really.jpg": "HEIC: ",
    }
    if module._heif_is_registered():
        reasons["really.jpg"] = "cannot be read"
    for name, reason in reasons.items():
        with pytest.raises(Rejected) as caught:
            read_picture(tmp_path / name)
        assert str(caught.value).startswith(reason)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(Rejected, match="cannot be read: Permission denied"):
        read_picture(path)
