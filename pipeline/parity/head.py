"""The head model of the flame fixture: made by the number rule, with the landmark embedding of the official repository."""

from pathlib import Path

import numpy as np

from model.foreign.pickled_arrays import read_mapping
from model.head.flame import REGIONS, HeadModel
from model.head.flame_file import EMBEDDING
from pipeline.config.scales import scale_params
from pipeline.parity.numbers import NumberRule


def landmark_embedding(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """Faces and weights of the 70 landmarks as the official repository ships them and "", or zeros and where that file is looked for.

    Raises ValueError when the file is there and no good.
    """
    places = [folder, folder.parent / "flame_side", Path(scale_params("paper").flame.model).parent]
    found = [place / EMBEDDING for place in places if (place / EMBEDDING).is_file()]
    if not found:
        needed = f"{EMBEDDING} of the official repository is needed in one of {', '.join(map(str, places))}"
        return (np.zeros(70, np.int64), np.zeros((70, 3))), needed
    try:
        content = read_mapping(found[0])
        faces, weights = content["full_lmk_faces_idx"][0], content["full_lmk_bary_coords"][0]
        shapes = (faces.shape, weights.shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{found[0]} cannot be read: {error}") from error
    if shapes != ((70,), (70, 3)):
        raise ValueError(f"{found[0]} does not hold 70 landmarks")
    return (faces, weights), ""


def fake_head(rule: NumberRule, landmark_faces: np.ndarray, landmark_weights: np.ndarray) -> HeadModel:
    """The head model of the flame fixture: an ellipsoid with FLAME's numbers of vertices and faces."""
    count = 5023
    i = np.arange(count)
    around, down = 2 * np.pi * i / 34, np.pi * (i + 0.5) / count
    axes = [0.075 * np.sin(down) * np.sin(around), 0.11 * np.cos(down), 0.095 * np.sin(down) * np.cos(around)]
    template = np.stack(axes, 1).astype(np.float32)
    j = np.arange(4988)
    skin = np.zeros((count, 5))
    skin[:, 1] = np.clip((template[:, 1] + 0.11) / 0.06, 0, 1)
    skin[:, 0] = 1 - skin[:, 1]
    regressor = np.zeros((5, count))
    for joint, place in enumerate(
        [(0, -0.11, 0), (0, -0.08, -0.01), (0, -0.02, 0.02), (-0.03, 0.03, 0.07), (0.03, 0.03, 0.07)]
    ):
        regressor[joint, np.argsort(((template - np.array(place)) ** 2).sum(1), kind="stable")[:8]] = 1 / 8
    some = np.arange(3)
    return HeadModel(
        name="fake",
        template_V3=template,
        directions_V3K=1e-3 * rule.unit("flame:shapedirs", (count, 3, 400)),
        pose_directions=1e-4 * rule.unit("flame:posedirs", (count, 3, 36)).reshape(-1, 36).T,
        joint_regressor=regressor,
        skin_weights=skin,
        parents=np.array([-1, 0, 1, 1, 1]),
        faces_F3=np.concatenate([np.stack([j, j + 34, j + 1], 1), np.stack([j + 1, j + 34, j + 35], 1)]),
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions=dict.fromkeys(REGIONS, some),
        simple_vertices=some[None],
        simple_weights=np.ones((1, 3)) / 3,
        simple_faces=np.zeros((1, 3), np.int64),
        neighbours=np.zeros((count, 10), np.int64),
    )
