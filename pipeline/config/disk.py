"""What a sample of each cache takes on disk, roughly, at given params.

Plans of runs and `psi4d doctor` use the same numbers.
"""

import numpy as np

from pipeline.config.params import Params

# Bytes a pixel of PNG at the lowest level: a photo of 512 x 512 took 354 kB, a position map 66. A mask takes
# a tenth of a photo.
PICTURE, MAP, MASK = 1.5, 0.25, 0.15
# What codecs take of PNG's bytes: without a loss, and by quality, as measured on portraits of 512 pixels
# (python -m tests.benchmarks.codecs). Other qualities count as those next to them.
SHARES = {
    "png": ((0,), (1.0,)),
    "webp": ((90, 95, 101), (0.12, 0.18, 0.60)),
    "jpeg": ((90, 95), (0.17, 0.26)),
    "avif": ((80, 90), (0.12, 0.17)),
}
LOSSLESS = 101
HALF, SINGLE = 2, 4  # bytes a number
CAMERA, LABEL, LANDMARKS = 25, 437, 140  # numbers
FIELD_BYTES = 768  # per file in a tar: its header and half a block of padding

Fields = dict[str, float]


def face_fields(params: Params) -> Fields:
    """Bytes of the fields of an aligned portrait or frame."""
    pixels = params.networks.image**2
    return _files({"image": PICTURE * pixels, "mask": MASK * pixels})


def head_fields(params: Params) -> Fields:
    """Bytes of the fields of a synthetic head; those of all views together."""
    section, sizes = params.render_genhead, params.networks
    views, pixels, rays = section.views, sizes.image**2, sizes.rays**2
    codecs = section.pictures
    one = {
        "opacity": views * MASK * rays * share(codecs.opacity),
        "depth": views * HALF * rays * section.geometry_share,
        "background": PICTURE * rays * share(codecs.background),
        "points and features": HALF * section.points * (3 + sizes.plane_channels) * section.geometry_share,
        "label, cameras, landmarks": SINGLE * (LABEL + views * (CAMERA + LANDMARKS)),
    }
    each = {"view": PICTURE * pixels * share(codecs.view), "uv": MAP * pixels * share(codecs.uv)}
    return _files(one) | _files(each, views)


def frame_fields(params: Params) -> Fields:
    """Bytes of the fields of a frame of the multi-view cache; those of all pseudo views together."""
    section, pixels = params.render_views, params.networks.image**2
    views, codecs = section.views, section.pictures
    alpha_pixels = params.networks.rays**2 if section.alpha_size == "rays" else pixels
    numbers = LABEL + (1 + views) * (CAMERA + LANDMARKS + params.networks.motion.dims)
    one = {
        "image": PICTURE * pixels * share(codecs.image),
        "mask": MASK * pixels * share(codecs.mask),
        "uv": MAP * pixels * share(codecs.uv),
        "label, cameras, landmarks, motion": SINGLE * numbers,
    }
    each = {
        "view": PICTURE * pixels * share(codecs.view),
        "alpha": MASK * alpha_pixels * share(codecs.alpha),
    }
    return _files(one) | _files(each, views)


def face_bytes(params: Params) -> float:
    """Of an aligned portrait or frame."""
    return sum(face_fields(params).values())


def head_bytes(params: Params) -> float:
    """Of a synthetic head."""
    return sum(head_fields(params).values())


def frame_bytes(params: Params) -> float:
    """Of a frame of the multi-view cache."""
    return sum(frame_fields(params).values())


def share(codec: str) -> float:
    """What a codec of params.yaml takes of the bytes of PNG."""
    name, _, quality = codec.partition("-")
    return float(np.interp(int(quality) if quality else LOSSLESS, *SHARES[name]))


def _files(sizes: Fields, count: int = 1) -> Fields:
    """The fields with what a tar adds; of each there are `count` files."""
    return {name: count * (size + FIELD_BYTES) for name, size in sizes.items()}
