"""How far meshes are from the true heads: `python -m tests.avatar.measure_mesh` in a generated run.

For the first frame of each test clip: the mean distance in millimetres between 20,000 points of the mesh and
of the true surface, in both directions (chamfer), beside that of the copied template and of the head that
fit_flame found. The head alone counts, above the neck.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from model.head.flame import SCALE, Flame
from pipeline.avatar.animator import Weights
from pipeline.avatar.mesh import seen_level, surface
from pipeline.avatar.studio import Studio
from pipeline.config.params import load_params
from pipeline.core import paths
from pipeline.core.seeds import rng
from pipeline.geometry.head_model import load
from pipeline.geometry.label import head_vertices
from pipeline.synthetic.animation import clip
from pipeline.synthetic.generator import latent
from pipeline.synthetic.person import person
from pipeline.synthetic.scene import figure, pose, shared_parts

POINTS = 20_000
NECK = -0.08  # metres; the chin is above it
LEVELS = (5.0, 8.0, 10.0, 12.0, 15.0, 20.0)


def head_points(mesh: trimesh.Trimesh) -> np.ndarray:
    """Points on the surface above the neck, metres."""
    points = mesh.sample(4 * POINTS, seed=0)
    above = points[points[:, 1] > NECK]
    return above[:POINTS]


def chamfer(mesh: trimesh.Trimesh, truth: np.ndarray) -> tuple[float, float]:
    """Mean distance to the truth and back, millimetres: of the whole head, and of its front half."""
    points = head_points(mesh)
    whole = _both_ways(points, truth)
    front = _both_ways(points[points[:, 2] > 0], truth[truth[:, 2] > 0])
    return whole, front


def _both_ways(a: np.ndarray, b: np.ndarray) -> float:
    there, back = cKDTree(b).query(a)[0].mean(), cKDTree(a).query(b)[0].mean()
    return 500.0 * float(there + back)


def measured(folder: Path) -> Iterator[dict[str, tuple[float, float]]]:
    """The distances of each kind of mesh, for each test clip."""
    params = load_params()
    studio = Studio(params, Weights())
    flame = Flame(load(params.flame.model))
    faces, template = shared_parts().faces, shared_parts().template
    for file in sorted((paths.GENERATED / "clips").glob("test-*.mp4")):
        photo = folder / f"{file.stem}.png"
        with av.open(str(file)) as container:
            Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24")).save(photo)
        shot = clip(rng(params.seed, "clip", file.name), params.ingest.frames, params.ingest.fps)[0]
        body = figure(person(latent(params.seed, f"clip-{file.stem}")))
        true = trimesh.Trimesh(pose(body, shot.moment) / SCALE, faces, process=False)
        truth = head_points(true)
        avatar = studio.avatar(photo)
        planes = studio.animator.psi.planes(avatar.source, avatar.motion_1M)
        fitted = head_vertices(flame, torch.from_numpy(avatar.portrait.label_437[None]))[0].numpy()
        seen = seen_level(studio.animator, avatar, planes)
        meshes = {
            "copied template": trimesh.Trimesh(template / SCALE, faces, process=False),
            "fitted head": trimesh.Trimesh(fitted / SCALE, flame.faces.numpy(), process=False),
            "level as seen": surface(studio.animator, planes, seen),
        }
        for level in LEVELS:
            meshes[f"level {level:g}"] = surface(studio.animator, planes, level)
        yield {"seen": (seen, seen)} | {name: chamfer(mesh, truth) for name, mesh in meshes.items()}


def main() -> None:
    folder = Path(".cache/psi4d/measure")
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(measured(folder))
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        whole, front = values.mean(axis=0)
        print(f"{name:20} whole {whole:6.2f} mm  front {front:6.2f} mm  ({len(rows)} heads)")


if __name__ == "__main__":
    main()
