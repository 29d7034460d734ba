"""Films look as in a player: their matrices of colours, their ranges, and HDR."""

import av
import numpy as np
import pytest

from pipeline.ingest.video import Video
from tests.ingest.films import first_picture, write_film

COLOUR = (200, 100, 50)


def plain(height, width):
    """A picture of one colour."""
    return np.full((height, width, 3), COLOUR, np.uint8)


def from_colour(picture):
    """How far a picture is from it, in levels."""
    difference = picture.astype(int) - COLOUR
    return np.abs(difference).max()


@pytest.mark.parametrize("matrix", [None, 1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_range_and_matrix(tmp_path, matrix, full):
    levels = 2 if full else 1
    tags = {"color_range": levels}
    # Without a tag a film so small has the matrix of BT.601.
    if matrix:
        tags["colorspace"] = matrix

    def change(frame, place):
        return frame.reformat(
            format="yuv420p",
            dst_colorspace=matrix,
            dst_color_range=levels,
        )

    pictures = [plain(64, 64)] * 3
    path = write_film(tmp_path / "x.mp4", pictures, tags=tags, change=change)
    assert from_colour(first_picture(path)) <= 3


def test_a_large_film_without_tags_is_bt709(tmp_path):
    def change(frame, place):
        changed = frame.reformat(format="yuv420p", dst_colorspace=1)
        # Nothing is said about it.
        changed.colorspace = 2
        return changed

    pictures = [plain(720, 1280)] * 2
    path = write_film(tmp_path / "x.mp4", pictures, change=change)
    assert from_colour(first_picture(path)) <= 3


# Linear light of the primaries of sRGB to that of BT.2020.
TO_BT2020 = np.array(
    [
        [0.6274, 0.3293, 0.0433],
        [0.0691, 0.9195, 0.0114],
        [0.0164, 0.0880, 0.8956],
    ]
)
# Numbers of transfer functions in films.
PQ = 16
HLG = 18


def to_hdr(pictures, transfer):
    """Pictures of sRGB as 16-bit RGB with BT.2020 primaries, white at 203 cd/m2."""
    coded = np.asarray(pictures) / 255.0
    bright = ((coded + 0.055) / 1.055) ** 2.4
    linear = np.where(coded <= 0.04045, coded / 12.92, bright)
    light = np.clip(linear @ TO_BT2020.T, 0, None)
    nits = 203 * light
    code = pq_code(nits) if transfer == PQ else hlg_code(nits)
    levels = code * 65535 + 0.5
    return levels.astype(np.uint16)


def pq_code(nits):
    """SMPTE ST 2084: what a screen of 10,000 cd/m2 shows."""
    power = (nits / 10_000) ** 0.1593017578125
    above = 0.8359375 + 18.8515625 * power
    below = 1 + 18.6875 * power
    return (above / below) ** 78.84375


def hlg_code(nits):
    """ARIB STD-B67: what a camera sees whose picture a screen of 1,000 cd/m2 shows with a gamma of 1.2."""
    display = nits / 1000
    luma = display @ [0.2627, 0.6780, 0.0593]
    gain = np.maximum(luma, 1e-9) ** (1 / 1.2 - 1)
    scene = display * gain[..., None]
    # A root below, a logarithm above.
    lower = np.sqrt(3 * scene)
    shifted = np.maximum(12 * scene - 0.28466892, 1e-9)
    upper = 0.17883277 * np.log(shifted) + 0.55991073
    return np.where(scene <= 1 / 12, lower, upper)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_looks_as_the_plain_film(tmp_path, transfer):
    random = np.random.default_rng(3)
    colours = random.integers(60, 230, (8, 8, 3)).astype(np.uint8)
    # Each colour fills 16 x 16 pixels.
    block = np.ones((16, 16, 1), np.uint8)
    picture = np.kron(colours, block)
    deep = to_hdr(picture, transfer)

    def change(frame, place):
        coded = av.VideoFrame.from_ndarray(deep, format="rgb48le")
        return coded.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range=1)

    tags = {
        "colorspace": 9,
        "color_trc": transfer,
        "color_primaries": 9,
        "color_range": 1,
    }
    quality = {"x265-params": "lossless=1:log-level=none"}
    path = write_film(
        tmp_path / "x.mp4",
        [picture] * 3,
        "libx265",
        options=quality,
        pixels="yuv444p10le",
        tags=tags,
        change=change,
    )
    video = Video(path)
    for frame in video.frames():
        middles = frame.picture[8::16, 8::16].astype(int)
        difference = np.abs(middles - colours)
        assert difference.max() <= 4
        assert difference.mean() < 1
    video.scan()
    assert not video._may_jump
