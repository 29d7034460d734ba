"""Reading the licensed FLAME: generic_model.pkl and the official repository's side files (facts 5.5, 10.2).

Nothing in these files is executed.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.foreign.pickled_arrays import read_mapping
from model.head.flame import JOINTS, HeadModel, within
from model.weights import load_weights

ADDITIONS = (
    "flame_addition_info_new_smallface.npy",
    "flame_addition_info_new_nosmallface.npy",
    "flame_addition_info.npy",
)
SIMPLIFIED = "simplify_baricentric2.npy"
EMBEDDING = "landmark_embedding_with_eyes.npy"
REGION = "regions."  # before the name of a region among the tensors of a saved head
HEAD = "flame head model"  # what the JSON of a saved head says it is
LEFT_EYE, RIGHT_EYE = 3, 4  # joints
LIP_RADIUS, LID_RADIUS = 0.008, 0.012  # metres around landmarks that make a region
LEAST_AROUND = 20  # vertices of such a region at least


def read_flame(path: Path) -> HeadModel:
    """The head model in a FLAME pickle and the three side files beside it, or in a saved head.

    The pickle is that of 2019 or 2020, with 300 shape and 100 expression directions; a saved head holds the
    `head_tensors`. Raises ValueError naming the file that is missing, damaged or of another layout.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _saved_head(path)
    folder = path.parent
    # The first of its names that is there counts; where none is, the first one is missed.
    there = [name for name in ADDITIONS if (folder / name).is_file()]
    name = there[0] if there else ADDITIONS[0]
    model = _Arrays(path)
    addition = _Arrays(folder / name)
    simplified = _Arrays(folder / SIMPLIFIED)
    embedding = _Arrays(folder / EMBEDDING)

    template_V3 = model.numbers("v_template", 2)
    faces_F3 = model.indices("f", 2)
    skin_weights = model.numbers("weights", 2)
    pose_V3P = model.numbers("posedirs", 3)
    # The root's parent is stored as the largest unsigned number.
    parents = model.indices("kintree_table", 2)[0]
    parents[:1] = -1
    landmark_faces = embedding.indices("full_lmk_faces_idx", 2)[0]
    landmark_weights = embedding.numbers("full_lmk_bary_coords", 3)[0]
    eyes = addition.indices("eye_idxs", 1)
    face = addition.indices("face_idxs", 1)

    outside = f"outside of the mesh of {path.name}"
    vertices = len(template_V3)
    if not within(landmark_faces, len(faces_F3)):
        raise ValueError(f"{embedding.path}: an index lies {outside}")
    if not within(faces_F3, vertices):
        raise ValueError(f"{path}: an index lies {outside}")
    if landmark_weights.shape != (70, 3) or landmark_faces.shape != (70,):
        raise ValueError(f"{embedding.path}: expected 70 landmarks, found {len(landmark_faces)}")
    for array, name in ((eyes, "eye_idxs"), (face, "face_idxs")):
        if not within(array, vertices):
            raise ValueError(f"{addition.path}: '{name}' has an index {outside}")
    if skin_weights.shape != (vertices, JOINTS):
        raise ValueError(f"{path}: 'weights' has shape {skin_weights.shape}, expected ({vertices}, {JOINTS})")

    corners_L33 = template_V3[faces_F3[landmark_faces]]
    landmarks_L3 = (corners_L33 * landmark_weights[..., None]).sum(1)
    joint_V = skin_weights.argmax(1)
    # The oldest of the three files has no eyelids.
    eyelids = addition.content.get("eyelids_idxs")
    if not isinstance(eyelids, np.ndarray):
        eyelids = _around(template_V3, face, landmarks_L3[36:48], LID_RADIUS)
    regions = {
        "face": face,
        "eyes": eyes,
        "left_eye": eyes[joint_V[eyes] == LEFT_EYE],
        "right_eye": eyes[joint_V[eyes] == RIGHT_EYE],
        # No file that a user has names the lips and the neck: lips are what lies close to the outer and inner
        # lip landmarks, neck is what moves mainly with the root, which is what a bowed head leaves behind.
        "lips": _around(template_V3, face, landmarks_L3[48:68], LIP_RADIUS),
        "eyelids": np.asarray(eyelids, np.int64),
        "neck": face[joint_V[face] == 0],
    }
    return HeadModel(
        name=path.stem,
        template_V3=template_V3,
        directions_V3K=model.numbers("shapedirs", 3),
        pose_directions=np.ascontiguousarray(pose_V3P.reshape(-1, pose_V3P.shape[2]).T),
        joint_regressor=model.numbers("J_regressor", 2),
        skin_weights=skin_weights,
        parents=parents,
        faces_F3=faces_F3,
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions=regions,
        simple_vertices=simplified.indices("idxs", 2),
        simple_weights=simplified.numbers("baris", 2),
        simple_faces=simplified.indices("faces", 2),
        neighbours=addition.indices("vertices_region_idxs", 2),
    )


class _Arrays:
    """The arrays in one of the files, checked as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_mapping(path)

    def numbers(self, key: str, dimensions: int) -> np.ndarray:
        """A float32 array. Raises ValueError, as `indices` does."""
        return self._array(key, dimensions, np.float32)

    def indices(self, key: str, dimensions: int) -> np.ndarray:
        """An int64 array."""
        return self._array(key, dimensions, np.int64)

    def _array(
        self,
        key: str,
        dimensions: int,
        dtype: type,
    ) -> np.ndarray:
        array = self.content.get(key)
        fits = isinstance(array, np.ndarray) and array.ndim == dimensions
        if not fits or not np.isfinite(array).all():
            expected = f"no array of {dimensions} dimensions with finite numbers"
            raise ValueError(f"{self.path}: '{key}' is missing or is {expected}")
        return np.ascontiguousarray(array, dtype)


def head_tensors(head: HeadModel) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A head model as the tensors and the facts of a file of weights, which `read_flame` reads.

    It stays under FLAME's licence.
    """
    arrays = {name: getattr(head, name) for name in _array_names()}
    for name, indices in head.regions.items():
        arrays[f"{REGION}{name}"] = indices
    tensors = {}
    for name, array in arrays.items():
        copied = np.array(array, order="C")
        tensors[name] = torch.from_numpy(copied)
    return tensors, {"network": HEAD, "name": head.name}


def _saved_head(path: Path) -> HeadModel:
    tensors, facts = load_weights(path)
    # Names of regions are free, so that they have a prefix that no field has.
    arrays, regions = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(REGION):
            regions[name.removeprefix(REGION)] = tensor.numpy()
        else:
            arrays[name] = tensor.numpy()
    complete = arrays.keys() == set(_array_names())
    if facts.get("network") != HEAD or not complete:
        raise ValueError(f"{path} holds no head model")
    name = str(facts.get("name"))
    return HeadModel(name=name, regions=regions, **arrays)


def _array_names() -> list[str]:
    names = [field.name for field in fields(HeadModel)]
    return [name for name in names if name not in ("name", "regions")]


def _around(
    points_N3: np.ndarray,
    candidates: np.ndarray,
    centres_M3: np.ndarray,
    radius: float,
) -> np.ndarray:
    """The candidates within a radius of one of the centres; on a coarse mesh the nearest ones."""
    offset_CM3 = points_N3[candidates, None] - centres_M3
    distance_CM = np.linalg.norm(offset_CM3, axis=-1)
    distance_C = distance_CM.min(1)
    enough = min(LEAST_AROUND, len(distance_C) - 1)
    least = np.sort(distance_C)[enough]
    return candidates[distance_C <= max(radius, least)]
