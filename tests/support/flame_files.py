"""A head model as FLAME's own files."""

import collections
import pickle
import sys
import types
from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix

from model.head.flame import HeadModel
from model.head.flame_file import ADDITIONS, EMBEDDING, SIMPLIFIED


def write_flame(head: HeadModel, folder: Path) -> Path:
    """A head model as FLAME's files.

    They are a pickle of protocol 2 with chumpy arrays and a sparse matrix, and numpy object arrays beside it.
    """
    # chumpy itself does not run on a current NumPy, so that a module of its name stands in for it.
    module = types.ModuleType("chumpy.ch")
    module.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    shape_directions = module.Ch()
    shape_directions.__dict__.update(x=head.directions_V3K.astype(np.float64), _dirty_vars=set())
    count = len(head.template_V3)
    content = {
        "v_template": head.template_V3.astype(np.float64),
        "f": head.faces_F3.astype(np.uint32),
        "shapedirs": shape_directions,
        "posedirs": np.asfortranarray(head.pose_directions.T.reshape(count, 3, 36)),
        "J_regressor": csc_matrix(head.joint_regressor),
        "weights": head.skin_weights,
        "kintree_table": np.stack([head.parents, np.arange(5)]).astype(np.uint32),
        "bs_style": "lbs",
        "order": collections.OrderedDict(a=1),
    }
    # Pickle asks for the module while it writes; a reader that imported it by accident must not find it.
    sys.modules["chumpy"], sys.modules["chumpy.ch"] = types.ModuleType("chumpy"), module
    try:
        (folder / "generic_model.pkl").write_bytes(pickle.dumps(content, 2))
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    addition = {
        "eye_idxs": head.regions["eyes"],
        "face_idxs": head.regions["face"],
        "eyelids_idxs": head.regions["eyelids"],
    }
    simplified = {"idxs": head.simple_vertices, "baris": head.simple_weights, "faces": head.simple_faces}
    embedding = {
        "full_lmk_faces_idx": head.landmark_faces[None],
        "full_lmk_bary_coords": head.landmark_weights[None],
    }
    for name, values in (
        (ADDITIONS[0], addition | {"vertices_region_idxs": head.neighbours}),
        (SIMPLIFIED, simplified),
        (EMBEDDING, embedding),
    ):
        np.save(folder / name, values, allow_pickle=True)
    return folder / "generic_model.pkl"
