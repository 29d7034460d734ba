"""What a sample of each cache takes on disk, roughly, at given params.

Plans of runs and `psi4d doctor` use the same formula.
"""

from pipeline.config.params import Params

PNG_BYTES = 1.5  # per RGB pixel of a photo; a mask takes a tenth of that
FIELD_BYTES = 768  # per file in a tar: its header and half a block of padding


def face_bytes(params: Params) -> float:
    """Of an aligned portrait or frame: its image, and a mask of a tenth of that."""
    return _bytes(pixels=1.1 * params.networks.image**2, fields=2)


def head_bytes(params: Params) -> float:
    """Of a synthetic head: images in two renderings for each view, and samples of its planes."""
    section = params.render_genhead
    images = _bytes(pixels=2 * section.views * params.networks.image**2, fields=8 + 2 * section.views)
    planes = 2 * section.points * (3 + params.networks.plane_channels)
    return images + planes


def frame_bytes(params: Params) -> float:
    """Of a frame of the multi-view cache: its own image, masks, and its pseudo views."""
    section = params.render_views
    return _bytes(pixels=(2 + section.views) * params.networks.image**2, fields=8 + 2 * section.views)


def _bytes(pixels: float, fields: int) -> float:
    return pixels * PNG_BYTES + fields * FIELD_BYTES
