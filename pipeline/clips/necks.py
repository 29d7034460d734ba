"""How far the neck of every frame of a cache is turned."""

import numpy as np

from pipeline.geometry.neck import clip_necks
from pipeline.store.view_index import ViewIndex


def necks_of(index: ViewIndex) -> np.ndarray:
    """The rotations (N, 3) of the necks of all frames, axis-angle in radians, float32.

    All frames of a clip say what its rotation is, also those that are not trained on.
    """
    cameras = index.own_cameras()
    names = index.columns(["clip"])["clip"].unify_dictionaries().combine_chunks()
    clip = names.indices.to_numpy()
    order = np.argsort(clip, kind="stable")
    bounds = np.cumsum(np.bincount(clip))[:-1]
    necks = np.empty((len(index), 3), np.float32)
    for frames in np.split(order, bounds):
        necks[frames] = clip_necks(cameras[frames])
    return necks
