"""Small films for the tests: every frame carries its number, and a red corner tells which way is up."""

import struct

import av
import numpy as np

from pipeline.ingest.video import Video

SIDE = 64
BITS = 8


def numbered(count, start=0, width=SIDE, height=SIDE):
    """Pictures (height, width, 3): the number as white blocks along the lower edge, a red block at the top
    left."""
    return [picture_of(start + number, width, height) for number in range(count)]


def picture_of(number, width=SIDE, height=SIDE):
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[: height // 4, : width // 4] = (250, 0, 0)
    picture[-height // 4 :] = 16
    # Bits from left to right, the lowest first: blocks this large survive every codec.
    block = width // BITS
    for bit in range(BITS):
        if number >> bit & 1:
            left = bit * block
            picture[-height // 4 :, left : left + block] = 235
    return picture


def number_of(picture):
    """The number that a picture carries."""
    height, width = picture.shape[:2]
    block = width / BITS
    places = [int((bit + 0.5) * block) for bit in range(BITS)]
    row = height - height // 8
    brightness = picture[row, places].mean(axis=-1)
    bits = np.packbits(brightness > 128, bitorder="little")
    return int(bits[0])


def first_picture(path):
    """The first frame of a film as it is shown, uint8 (H, W, 3)."""
    frames = Video(path).frames()
    return next(frames).picture


def write_film(
    path,
    pictures,
    codec="libx264",
    rate=25,
    container=None,
    options=None,
    mux=None,
    times=None,
    pixels="yuv420p",
    aspect=None,
    tags=None,
    change=None,
):
    """Encode pictures; `tags` are attributes of the encoder, `change` makes another frame of each."""
    with av.open(str(path), "w", format=container, options=mux or {}) as film:
        stream = film.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        # Several threads would write other bytes.
        stream.thread_count = 1
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for place, picture in enumerate(pictures):
            pixels_in_rows = np.ascontiguousarray(picture)
            frame = av.VideoFrame.from_ndarray(pixels_in_rows, format="rgb24")
            if change:
                frame = change(frame, place)
            frame.pts = times[place] if times else place
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return path


def copy_packets(source, target, keep=lambda place: True, cut=0.0, mux=None):
    """Copy the packets that `keep` wants; an edit list hides the first `cut` seconds, whose packets stay."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=mux or {}) as new:
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        offset = int(cut / stream.time_base)
        for place, packet in enumerate(old.demux(stream)):
            if packet.size and keep(place):
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = copied
                new.mux(packet)
    return target


def set_matrix(source, target, a, b, c, d, x=0, y=0):
    """Write the display matrix of an MP4: (p, q) is shown at (a p + c q + x, b p + d q + y)."""
    data = source.read_bytes()
    place = data.index(b"tkhd") + 44
    one = 1 << 16
    # Numbers have 16 bits behind the point, those of the last column 30.
    rows = [
        (a * one, b * one, 0),
        (c * one, d * one, 0),
        (x * one, y * one, 1 << 30),
    ]
    matrix = b"".join(struct.pack(">3i", *row) for row in rows)
    end = place + len(matrix)
    target.write_bytes(data[:place] + matrix + data[end:])
    return target
