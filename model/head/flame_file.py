"""Reading the licensed FLAME: generic_model.pkl and the side files of the official repository, without executing them (facts 5.5, 10.2)."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.foreign.pickled_arrays import read_mapping
from model.head.flame import HeadModel
from model.weights import load_weights, save_weights

ADDITIONS = (
    "flame_addition_info_new_smallface.npy",
    "flame_addition_info_new_nosmallface.npy",
    "flame_addition_info.npy",
)
SIMPLIFIED = "simplify_baricentric2.npy"
EMBEDDING = "landmark_embedding_with_eyes.npy"
HEAD = "flame head model"  # what the JSON of a saved head says it is


def read_flame(path: Path) -> HeadModel:
    """The head model in a FLAME pickle (2019 or 2020: 300 shape and 100 expression directions) and the three side files beside it, or in what
    `save_head` made of them.

    Raises ValueError naming the file that is missing, damaged or of another layout.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _saved_head(path)
    folder = path.parent
    addition_path = next(
        (folder / name for name in ADDITIONS if (folder / name).is_file()), folder / ADDITIONS[0]
    )
    model, addition = read_mapping(path), read_mapping(addition_path)
    simplified, embedding = read_mapping(folder / SIMPLIFIED), read_mapping(folder / EMBEDDING)

    def numbers(source: dict, file: Path, key: str, dimensions: int, dtype: type) -> np.ndarray:
        array = source.get(key)
        if not isinstance(array, np.ndarray) or array.ndim != dimensions or not np.isfinite(array).all():
            raise ValueError(
                f"{file}: '{key}' is missing or is no array of {dimensions} dimensions with finite numbers"
            )
        return np.ascontiguousarray(array, dtype)

    template_V3 = numbers(model, path, "v_template", 2, np.float32)
    faces_F3 = numbers(model, path, "f", 2, np.int64)
    skin_weights = numbers(model, path, "weights", 2, np.float32)
    pose = numbers(model, path, "posedirs", 3, np.float32)
    parents = numbers(model, path, "kintree_table", 2, np.int64)[0]
    parents[:1] = -1  # the root's parent is stored as the largest unsigned number
    landmark_faces = numbers(embedding, folder / EMBEDDING, "full_lmk_faces_idx", 2, np.int64)[0]
    landmark_weights = numbers(embedding, folder / EMBEDDING, "full_lmk_bary_coords", 3, np.float32)[0]
    eyes = numbers(addition, addition_path, "eye_idxs", 1, np.int64)
    face = numbers(addition, addition_path, "face_idxs", 1, np.int64)
    for array, limit, what in (
        (landmark_faces, len(faces_F3), EMBEDDING),
        (faces_F3, len(template_V3), path.name),
    ):
        if array.size == 0 or array.min() < 0 or array.max() >= limit:
            raise ValueError(f"{folder / what}: an index lies outside of the mesh of {path.name}")
    if landmark_weights.shape != (70, 3) or landmark_faces.shape != (70,):
        raise ValueError(f"{folder / EMBEDDING}: expected 70 landmarks, found {len(landmark_faces)}")
    for array, name in ((eyes, "eye_idxs"), (face, "face_idxs")):
        if array.size == 0 or array.min() < 0 or array.max() >= len(template_V3):
            raise ValueError(f"{addition_path}: '{name}' has an index outside of the mesh of {path.name}")
    if skin_weights.shape != (len(template_V3), 5):
        raise ValueError(
            f"{path}: 'weights' has shape {skin_weights.shape}, expected ({len(template_V3)}, 5)"
        )

    landmarks = (template_V3[faces_F3[landmark_faces]] * landmark_weights[..., None]).sum(1)
    joint = skin_weights.argmax(1)
    eyelids = addition.get("eyelids_idxs")  # the oldest of the three files has none
    if not isinstance(eyelids, np.ndarray):
        eyelids = _around(template_V3, face, landmarks[36:48], 0.012)
    regions = {
        "face": face,
        "eyes": eyes,
        "left_eye": eyes[joint[eyes] == 3],
        "right_eye": eyes[joint[eyes] == 4],
        # No file that a user has names the lips and the neck: lips are what lies within 8 mm of the outer and inner lip landmarks, neck
        # is what moves mainly with the root, which is what a bowed head leaves behind.
        "lips": _around(template_V3, face, landmarks[48:68], 0.008),
        "eyelids": np.asarray(eyelids, np.int64),
        "neck": face[joint[face] == 0],
    }
    return HeadModel(
        name=path.stem,
        template_V3=template_V3,
        directions_V3K=numbers(model, path, "shapedirs", 3, np.float32),
        pose_directions=np.ascontiguousarray(pose.reshape(-1, pose.shape[2]).T),
        joint_regressor=numbers(model, path, "J_regressor", 2, np.float32),
        skin_weights=skin_weights,
        parents=parents,
        faces_F3=faces_F3,
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions=regions,
        simple_vertices=numbers(simplified, folder / SIMPLIFIED, "idxs", 2, np.int64),
        simple_weights=numbers(simplified, folder / SIMPLIFIED, "baris", 2, np.float32),
        simple_faces=numbers(simplified, folder / SIMPLIFIED, "faces", 2, np.int64),
        neighbours=numbers(addition, addition_path, "vertices_region_idxs", 2, np.int64),
    )


def save_head(path: Path, head: HeadModel, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a head model as safetensors, with `facts` and its name in the JSON beside it; returns that. It stays under FLAME's
    licence.
    """
    arrays = {
        field.name: getattr(head, field.name)
        for field in fields(HeadModel)
        if field.name not in ("name", "regions")
    }
    arrays |= {f"regions.{name}": indices for name, indices in head.regions.items()}
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
    return save_weights(path, tensors, {**facts, "network": HEAD, "name": head.name})


def _saved_head(path: Path) -> HeadModel:
    tensors, facts = load_weights(path)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    regions = {
        name.removeprefix("regions."): arrays.pop(name)
        for name in list(arrays)
        if name.startswith("regions.")
    }
    wanted = {field.name for field in fields(HeadModel)} - {"name", "regions"}
    if facts.get("network") != HEAD or arrays.keys() != wanted:
        raise ValueError(f"{path} holds no head model")
    return HeadModel(name=str(facts.get("name")), regions=regions, **arrays)


def _around(
    points_N3: np.ndarray, candidates: np.ndarray, centres_M3: np.ndarray, radius: float
) -> np.ndarray:
    distance = np.linalg.norm(points_N3[candidates, None] - centres_M3, axis=-1).min(1)
    return candidates[
        distance <= max(radius, np.sort(distance)[min(20, len(distance) - 1)])
    ]  # a coarse mesh keeps its nearest vertices
