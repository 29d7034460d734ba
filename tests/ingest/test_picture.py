"""Pictures of every format and colour space look as in a viewer, or are refused with the reason."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from pipeline.ingest import picture as module
from pipeline.ingest.files import Rejected
from pipeline.ingest.picture import read_picture

COLOUR = (200, 100, 50)
# Tags of Exif.
ORIENTATION = 0x0112
COMMENT = 0x9286
EXPOSURE = 0x829A
# Red, green and blue of ICC profiles, as XYZ under D50.
DISPLAY_P3 = (
    (0.5151, 0.2412, -0.0011),
    (0.2919, 0.6922, 0.0419),
    (0.1572, 0.0666, 0.7841),
)
ADOBE_RGB = (
    (0.6097, 0.3111, 0.0195),
    (0.2053, 0.6257, 0.0609),
    (0.1492, 0.0632, 0.7446),
)
PROPHOTO = (
    (0.7977, 0.2880, 0.0000),
    (0.1352, 0.7119, 0.0000),
    (0.0313, 0.0001, 0.8249),
)
D50 = (0.9642, 1.0, 0.8249)


def distance(image, colours):
    """How far levels are from the wanted ones, (H, W, 3)."""
    return np.abs(image.astype(int) - colours)


def profile(primaries, gamma=2.2, table=False):
    """An ICC profile of three primaries and one curve, a gamma or a table of 16-bit numbers."""

    curve = curve_of(gamma, table)
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(79)
    # Contents begin at multiples of four bytes.
    padding = bytes(-len(name) % 4)
    tags = {
        b"desc": name + padding,
        b"wtpt": b"XYZ \0\0\0\0" + xyz(D50),
    }
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + xyz(primary)
        tags[letter + b"TRC"] = curve
    # A header, how many tags there are, where each lies, and then what they hold.
    directory = struct.pack(">I", len(tags))
    first = 128 + 4 + 12 * len(tags)
    data = b""
    for tag, content in tags.items():
        place = first + len(data)
        directory += tag + struct.pack(">II", place, len(content))
        data += content
    size = first + len(data)
    head = struct.pack(
        ">I4sI4s4s4s",
        size,
        bytes(4),
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
    )
    head += bytes(12) + b"acsp" + bytes(28) + xyz(D50)
    return head.ljust(128, b"\0") + directory + data


def curve_of(gamma, table):
    """The tag of a curve."""
    if not table:
        number = round(gamma * 256)
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, number) + b"\0\0"
    light = np.linspace(0, 1, 1024) ** gamma
    values = np.round(light * 65535)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + values.astype(">u2").tobytes()


def xyz(values):
    """Three numbers as profiles have them: 16 bits before the point and 16 behind."""
    fixed = [round(value * 65536) for value in values]
    return struct.pack(">3i", *fixed)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "avif", "jp2", "gif", "jfif", "ppm"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 30), COLOUR).save(path)
    image = read_picture(path)
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    assert distance(image, COLOUR).max() <= 3
    # The suffix does not matter.
    renamed = path.rename(tmp_path / "x.txt")
    again = read_picture(renamed)
    np.testing.assert_array_equal(again, image)


def test_other_kinds_of_images(tmp_path):
    side = (20, 20)
    # 16 bits a channel.
    deep = Image.fromarray(np.full(side, 40_000, np.uint16))
    dark = Image.fromarray(np.full(side, 200, np.uint16))
    green = Image.new("RGB", side, (10, 200, 30))
    pictures = {
        "grey.png": Image.new("L", side, 90),
        "deep.png": deep,
        "dark.png": dark,
        "deep.tif": deep,
        "clear.png": Image.new("RGBA", side, (0, 0, 0, 0)),
        "grey-alpha.png": Image.new("LA", side, (100, 255)),
        "press.jpg": Image.new("CMYK", side, (0, 255, 255, 0)),
        "palette.png": green.convert("P", palette=Image.Palette.ADAPTIVE),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    # What shows nothing is white, as most viewers have it.
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
        assert distance(image, colour).max() <= 4, name


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB, PROPHOTO])
@pytest.mark.parametrize("table", [False, True])
def test_colour_profiles(tmp_path, primaries, table):
    gamma = 1.8 if primaries == PROPHOTO else 2.2
    icc = profile(primaries, gamma, table)
    random = np.random.default_rng(0)
    plain = random.integers(40, 220, (24, 24, 3), dtype=np.uint8)
    tagged = ImageCms.profileToProfile(
        Image.fromarray(plain),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(icc)),
        outputMode="RGB",
    )
    # Without its profile the picture would look otherwise.
    assert distance(np.asarray(tagged), plain).mean() > 2
    path = tmp_path / "x.png"
    tagged.save(path, icc_profile=icc)
    difference = distance(read_picture(path), plain)
    assert difference.max() <= 5
    assert difference.mean() < 1


def test_a_profile_that_does_not_fit_is_not_heeded(tmp_path):
    broken = tmp_path / "broken.png"
    coloured = Image.new("RGB", (20, 20), COLOUR)
    coloured.save(broken, icc_profile=b"no profile")
    assert (read_picture(broken) == COLOUR).all()
    # Three primaries say nothing about grey.
    grey = tmp_path / "grey.png"
    image = Image.new("L", (20, 20), 90)
    image.save(grey, icc_profile=profile(DISPLAY_P3))
    assert (read_picture(grey) == 90).all()


@pytest.mark.parametrize("name", ["x.png", "x.tif", "grey.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, name):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :16] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / name
    image = Image.fromarray(picture)
    if name == "grey.tif":
        image = image.convert("L")
    image.save(path, exif=exif)
    half_turn = np.rot90(picture, 2)
    expected = {
        1: picture,
        2: picture[:, ::-1],
        3: half_turn,
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1),
        7: half_turn.transpose(1, 0, 2),
        8: np.rot90(picture),
    }
    found = read_picture(path)
    np.testing.assert_array_equal(found, expected[orientation])


def test_the_gamma_of_a_png(tmp_path):
    """Numbers that are light itself are shown brighter; the usual gamma changes nothing."""
    path = tmp_path / "x.png"
    found = {}
    for gamma in (45_455, 100_000):
        chunks = PngInfo()
        chunks.add(b"gAMA", struct.pack(">I", gamma))
        Image.new("RGB", (20, 20), COLOUR).save(path, pnginfo=chunks)
        found[gamma] = read_picture(path)[0, 0]
    np.testing.assert_array_equal(found[45_455], COLOUR)
    brighter = 255 * (np.array(COLOUR) / 255) ** (1 / 2.2)
    np.testing.assert_array_equal(found[100_000], np.rint(brighter))


def test_odd_exif_numbers_lose_no_photo(tmp_path):
    image = Image.new("RGB", (48, 32), COLOUR)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[COMMENT] = b"\xff\xfe"
    exif[EXPOSURE] = 0.5
    path = tmp_path / "x.jpg"
    image.save(path, exif=exif)
    data = path.read_bytes()
    broken = bytearray(data)
    place = data.index(b"Exif\0\0") + 6
    order = "<" if data[place : place + 2] == b"II" else ">"
    # The type of a number after the orientation is one that does not exist.
    tag = struct.pack(f"{order}H", EXPOSURE)
    entry = data.index(tag, place)
    broken[entry + 2 : entry + 4] = b"\x7f\x7f"
    path.write_bytes(broken)
    assert read_picture(path).shape == (48, 32, 3)
    # Nothing can be read without the order of the bytes.
    broken[place : place + 2] = b"\xff\xff"
    path.write_bytes(broken)
    assert read_picture(path).shape[2] == 3
    # There are eight orientations.
    exif[ORIENTATION] = 77
    image.save(path, exif=exif)
    assert read_picture(path).shape == (32, 48, 3)


@pytest.mark.parametrize("name", ["phone.heic", "named.jpg"])
def test_heic_is_read_as_a_phone_shows_it(tmp_path, name):
    """A phone writes how it was held into the container; the orientation in EXIF then says nothing more."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    wide = Image.new("RGB", (96, 64), "white")
    wide.paste(COLOUR, (0, 0, 96, 32))
    lying = wide.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / name
    pillow_heif.from_pillow(lying).save(path, quality=95, exif=exif.tobytes())
    image = read_picture(path)
    assert image.shape == (64, 96, 3)
    assert distance(image[:24], COLOUR).max() <= 8
    assert distance(image[40:], (255, 255, 255)).max() <= 8
    # Half of it is no picture, and has a reason.
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Rejected, match="cannot be read"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_pictures_are_shrunk(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(module, "KEPT_PIXELS", 3000)
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (200, 60), COLOUR).save(path)
    image = read_picture(path)
    # A JPEG is decoded at a half, a quarter or an eighth of its size.
    assert image.shape in ((30, 100, 3), (15, 50, 3))
    assert distance(image, COLOUR).max() <= 3


def test_bad_images_have_reasons(tmp_path, monkeypatch):
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "really.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    cut = tmp_path / "cut.png"
    Image.fromarray(noise).save(cut)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:5000])
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
        said = str(caught.value)
        assert said.startswith(reason)
        # Reasons stand in tables that are published: they name no place of this machine.
        assert str(tmp_path) not in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(Rejected, match="cannot be read: Permission denied"):
        read_picture(path)
