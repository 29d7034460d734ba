"""The head model of the flame fixture: made by the number rule, with the official landmark embedding."""

from pathlib import Path

import numpy as np

from model.foreign.pickled_arrays import read_mapping
from model.head.flame import PARENTS, REGIONS, HeadModel
from model.head.flame_file import EMBEDDING
from pipeline.config.scales import scale_params
from pipeline.parity.numbers import NumberRule

VERTICES, RING = 5023, 34
# Metres, of root, neck, jaw, left eye and right eye.
JOINT_PLACES = (
    (0, -0.11, 0),
    (0, -0.08, -0.01),
    (0, -0.02, 0.02),
    (-0.03, 0.03, 0.07),
    (0.03, 0.03, 0.07),
)


def landmark_embedding(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """Faces and weights of the 70 landmarks as the official repository ships them, and "".

    Where that file is missing: zeros, and where it is looked for. Raises ValueError when it is there and no
    good.
    """
    own = Path(scale_params("paper").flame.model)
    places = [folder, folder.parent / "flame_side", own.parent]
    files = [place / EMBEDDING for place in places]
    found = [file for file in files if file.is_file()]
    if not found:
        looked_at = ", ".join(map(str, places))
        needed = f"{EMBEDDING} of the official repository is needed in one of {looked_at}"
        nothing = (np.zeros(70, np.int64), np.zeros((70, 3)))
        return nothing, needed
    try:
        content = read_mapping(found[0])
        faces = content["full_lmk_faces_idx"][0]
        weights = content["full_lmk_bary_coords"][0]
        shapes = (faces.shape, weights.shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{found[0]} cannot be read: {error}") from error
    if shapes != ((70,), (70, 3)):
        raise ValueError(f"{found[0]} does not hold 70 landmarks")
    return (faces, weights), ""


def fake_head(
    rule: NumberRule,
    landmark_faces: np.ndarray,
    landmark_weights: np.ndarray,
) -> HeadModel:
    """The head model of the flame fixture: an ellipsoid with FLAME's numbers of vertices and faces.

    Vertices run down a spiral of RING a turn; faces join each turn to the next.
    """
    i = np.arange(VERTICES)
    around = 2 * np.pi * i / RING
    down = np.pi * (i + 0.5) / VERTICES
    x = 0.075 * np.sin(down) * np.sin(around)
    y = 0.11 * np.cos(down)
    z = 0.095 * np.sin(down) * np.cos(around)
    template = np.stack([x, y, z], 1).astype(np.float32)

    upper = np.arange(VERTICES - RING - 1)
    lower = upper + RING
    # Two triangles fill the square between two neighbours and those below them.
    left = np.stack([upper, lower, upper + 1], 1)
    right = np.stack([upper + 1, lower, lower + 1], 1)

    height = template[:, 1]
    head_share = np.clip((height + 0.11) / 0.06, 0, 1)
    skin = np.zeros((VERTICES, 5))
    skin[:, 1] = head_share
    skin[:, 0] = 1 - skin[:, 1]
    # A joint is the mean of the eight vertices nearest to its place.
    regressor = np.zeros((5, VERTICES))
    for joint, place in enumerate(JOINT_PLACES):
        offset = template - np.array(place)
        distance2 = (offset**2).sum(1)
        nearest = np.argsort(distance2, kind="stable")[:8]
        regressor[joint, nearest] = 1 / 8
    directions = rule.unit("flame:shapedirs", (VERTICES, 3, 400))
    pose_directions = rule.unit("flame:posedirs", (VERTICES, 3, 36))
    some = np.arange(3)
    return HeadModel(
        name="fake",
        template_V3=template,
        directions_V3K=1e-3 * directions,
        pose_directions=1e-4 * pose_directions.reshape(-1, 36).T,
        joint_regressor=regressor,
        skin_weights=skin,
        parents=np.array(PARENTS),
        faces_F3=np.concatenate([left, right]),
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions=dict.fromkeys(REGIONS, some),
        simple_vertices=some[None],
        simple_weights=np.ones((1, 3)) / 3,
        simple_faces=np.zeros((1, 3), np.int64),
        neighbours=np.zeros((VERTICES, 10), np.int64),
    )
