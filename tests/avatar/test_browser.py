"""A mesh as a browser shows it."""

import base64
from pathlib import Path

import numpy as np
import pytest
import trimesh
from trimesh.visual import ColorVisuals

from pipeline.avatar.mesh import write_mesh
from tests.support.browser import opened

pytestmark = pytest.mark.process
TEMPLATE = Path(__file__).with_name("glb_page.html")
METRES = 0.4  # on a side of that page
SKIN = (200, 100, 50)


def write_page(glb: Path) -> Path:
    """A page that reads the glTF file by its specification and draws it from the front."""
    page = glb.with_suffix(".html")
    data = base64.b64encode(glb.read_bytes()).decode()
    page.write_text(TEMPLATE.read_text().replace("DATA", data))
    return page


def has_something(picture: np.ndarray) -> bool:
    return picture.std() > 1


def test_a_glb_is_upright_and_not_mirrored_in_a_browser(tmp_path):
    """A ball to the upper left of a viewer in front, in front of a larger one of another colour."""
    near = trimesh.creation.icosphere(radius=0.04).apply_translation([-0.08, 0.05, 0.1])
    far = trimesh.creation.icosphere(radius=0.06).apply_translation([-0.05, 0.02, -0.1])
    both = trimesh.util.concatenate([near, far])
    colours = np.full((len(both.vertices), 3), (0, 0, 255), np.uint8)
    colours[: len(near.vertices)] = SKIN
    both.visual = ColorVisuals(both, vertex_colors=colours)
    write_mesh(tmp_path / "balls.glb", both)
    page = write_page(tmp_path / "balls.glb")
    with opened(page.as_uri(), tmp_path / "browser", 256) as browser:
        picture = browser.picture_when(has_something).astype(int)
    red, _, blue = np.moveaxis(picture, -1, 0)
    # The rows and columns of what is skin and of what is blue; paper is white.
    for found, (x, y) in ((red - blue > 60, (-0.08, 0.05)), (blue - red > 60, (-0.05, 0.02))):
        rows, columns = np.nonzero(found)
        seen = (columns.mean() / 256 - 0.5) * METRES, (0.5 - rows.mean() / 256) * METRES
        assert np.allclose(seen, (x, y), atol=0.02 if x > -0.06 else 0.003)
    # In the light its colour is that of the mesh.
    middle = picture[int((0.5 - 0.05 / METRES) * 256), int((0.5 - 0.08 / METRES) * 256)]
    assert np.allclose(middle / middle.sum(), np.array(SKIN) / sum(SKIN), atol=0.05)
