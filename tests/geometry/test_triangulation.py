"""Points in space are found again from where cameras see them."""

import numpy as np
import torch

from pipeline.core.seeds import rng
from pipeline.geometry.camera import project, sample_look_at
from pipeline.geometry.triangulation import triangulate


def _seen(views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (70, 3), cameras (V, 25), and where these see them (V, 70, 2)."""
    draw = rng(0, "triangulation")
    points = draw.uniform(-0.4, 0.4, (70, 3))
    cameras = np.stack([sample_look_at(draw) for _ in range(views)])
    return points, cameras, np.stack([project(points, camera) for camera in cameras])


def test_points_are_found_from_two_and_from_five_cameras():
    for views in (2, 5):
        points, cameras, seen = _seen(views)
        found = triangulate(torch.from_numpy(seen.astype(np.float32)), torch.from_numpy(cameras))
        assert found.dtype == torch.float32
        assert np.allclose(found, points, atol=1e-4)


def test_what_cameras_do_not_agree_on_lies_between_their_rays():
    points, cameras, seen = _seen(5)
    noise = rng(1, "triangulation").normal(scale=1e-3, size=seen.shape)
    found = triangulate(torch.from_numpy((seen + noise).astype(np.float32)), torch.from_numpy(cameras))
    # A thousandth of a picture is 0.0009 world units at the distance of the head; depth is less certain.
    error = np.linalg.norm(found.numpy() - points, axis=-1)
    assert 1e-4 < np.median(error) < 5e-3
