"""Pictures: what a viewer shows of a file, as sRGB.

`read_picture` is the only way in. The contents of a file decide how it is read, never its suffix. HEIC needs
the package pillow-heif (`pip install -e ".[heic]"`), all other formats come with Pillow.
"""

import importlib
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

from pipeline.ingest.files import Rejected, check_file, plain_words

# Formats whose readers decode pixels and nothing else; that of EPS, say, would start a program.
FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"]
SMALLEST_SIDE = 16
MOST_PIXELS = 200_000_000
# Above this a picture is halved until it fits. Reading takes 9 bytes a pixel, here 330 MB at most; a format
# that is not decoded at a smaller scale (all but JPEG) takes 4 bytes for each of its own pixels, which is 800
# MB at the limit.
KEPT_PIXELS = 36_000_000
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
USUAL_GAMMA = 1 / 2.2
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# MOST_PIXELS gives a reason instead of a warning.
Image.MAX_IMAGE_PIXELS = None
# Until then, Pillow does not know the less usual formats by their names.
Image.init()


def read_picture(path: str | Path) -> np.ndarray:
    """The picture of a file as uint8 sRGB (H, W, 3), upright as its EXIF orientation says.

    Colours are brought to sRGB by the embedded profile; a picture without one is taken as sRGB. Grey,
    palette, CMYK, Lab and 16-bit pictures are converted, transparent pixels become white, of an animation the
    first picture is taken. A picture of more than KEPT_PIXELS is shrunk by a whole number. Raises Rejected,
    with a reason for people, for whatever cannot be read.
    """
    path = Path(path)
    check_file(path)
    try:
        # Not by its name: Pillow maps some files into memory then, and mixes up the lines of turned TIFFs.
        with open(path, "rb") as file, Image.open(file, formats=_formats(path)) as image:
            picture = _read(image)
    except Rejected:
        raise
    except Exception as error:
        # Pillow's readers let struct, value, index and system errors through when a file is damaged.
        raise Rejected(f"cannot be read: {plain_words(error)}") from error
    return picture


def _formats(path: Path) -> list[str]:
    """The formats that are tried. Raises Rejected for HEIC where its reader is missing."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] != b"ftyp" or head[8:12] not in HEIC_BRANDS:
        return FORMATS
    if not _heif_is_registered():
        raise Rejected("HEIC: reading it needs pillow-heif (pip install pillow-heif)")
    return ["HEIF"]


@cache
def _heif_is_registered() -> bool:
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _read(image: Image.Image) -> np.ndarray:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Rejected(f"image too large: {width} x {height}")
    if min(width, height) < SMALLEST_SIDE:
        raise Rejected(f"image too small: {width} x {height}")
    shrink = _shrink_factor(width, height)
    # JPEG is decoded at a smaller scale at once, other formats are shrunk afterwards.
    image.draft(None, (width // shrink, height // shrink))
    image.load()
    # Only now, as Pillow turns a TIFF while it loads, and reads the last chunks of a PNG.
    turn = TURNS.get(_orientation(image))
    profile = image.info.get("icc_profile")
    smaller = image.width * image.height < width * height
    shown = image if smaller or shrink == 1 else _flat(image).reduce(shrink)
    shown = _to_srgb(_flat(shown), profile)
    if not profile and "srgb" not in image.info:
        shown = _with_usual_gamma(shown, image.info.get("gamma"))
    if turn is not None:
        shown = shown.transpose(turn)
    return np.array(shown)


def _shrink_factor(width: int, height: int) -> int:
    factor = 1
    while width * height > KEPT_PIXELS * factor**2:
        factor *= 2
    return factor


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that makes sense."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _flat(image: Image.Image) -> Image.Image:
    """The picture in one of the modes L, RGB, CMYK and LAB, without transparency, in its own colour space."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits, or of 32 that hold 8 or 16 bits or the unit interval, as 8 bits."""
    values = np.asarray(image, np.float32)
    largest = values.max()
    if image.mode.startswith("I;16") or largest > 255:
        values = values / 257.0
    elif image.mode == "F" and largest <= 1:
        values = values * 255.0
    rounded = np.clip(values + 0.5, 0, 255)
    return Image.fromarray(rounded.astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in sRGB. A profile that is damaged, or of another kind of picture, is not heeded."""
    if image.mode == "LAB":
        return ImageCms.profileToProfile(
            image,
            _lab(),
            _srgb(),
            outputMode="RGB",
        )
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                return ImageCms.profileToProfile(
                    image,
                    source,
                    _srgb(),
                    outputMode="RGB",
                )
        except (ImageCms.PyCMSError, OSError):
            pass
    # A conversion copies, even where there is nothing to convert.
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_usual_gamma(image: Image.Image, gamma: float | None) -> Image.Image:
    """The picture in sRGB of a PNG that says by which exponent its numbers follow from light."""
    # One of 1 / 2.2 is what screens have.
    if not gamma or abs(gamma - USUAL_GAMMA) < 0.02:
        return image
    light = np.linspace(0.0, 1.0, 256) ** (1.0 / gamma)
    levels = np.rint(255.0 * light**USUAL_GAMMA)
    return image.point(levels.astype(int).tolist() * 3)


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _lab() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
