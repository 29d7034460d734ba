"""What a sample of each cache takes on disk, roughly, at given params.

Plans of runs and `psi4d doctor` use the same numbers.
"""

from pipeline.config.params import Params

# Bytes a pixel of PNG at the lowest level: a photo of 512 x 512 took 354 kB, and a mask takes a tenth.
PICTURE, MASK = 1.5, 0.15
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
    one = {
        "opacity": views * MASK * rays,
        "depth": views * HALF * rays,
        "background": PICTURE * rays,
        "points and features": HALF * section.points * (3 + sizes.plane_channels),
        "label, cameras, landmarks": SINGLE * (LABEL + views * (CAMERA + LANDMARKS)),
    }
    each = {"view": PICTURE * pixels, "uv": PICTURE * pixels}
    return _files(one) | _files(each, views)


def frame_fields(params: Params) -> Fields:
    """Bytes of the fields of a frame of the multi-view cache; those of all pseudo views together."""
    views, pixels = params.render_views.views, params.networks.image**2
    numbers = LABEL + (1 + views) * (CAMERA + LANDMARKS + params.networks.motion.dims)
    one = {
        "image": PICTURE * pixels,
        "mask": MASK * pixels,
        "uv": PICTURE * pixels,
        "label, cameras, landmarks, motion": SINGLE * numbers,
    }
    each = {"view": PICTURE * pixels, "alpha": MASK * pixels}
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


def _files(sizes: Fields, count: int = 1) -> Fields:
    """The fields with what a tar adds; of each there are `count` files."""
    return {name: count * (size + FIELD_BYTES) for name, size in sizes.items()}
