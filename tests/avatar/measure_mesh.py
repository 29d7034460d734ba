"""How far meshes are from the true heads: `python -m tests.avatar.measure_mesh` in a generated run.

For the first frame of each test clip: the mean distance in millimetres between 20,000 points of the mesh and
of the true surface, in both directions (chamfer), beside that of the copied template and of the head that
fit_flame found. The head alone counts, above the neck.
"""

from collections import defaultdict
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
from pipeline.config.params import Params, load_params
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
# Of `seen_level`: the density at the skin is less than within, where a soft head becomes opaque.
SHARES = (1.0, 0.75, 0.6, 0.5, 0.4)


def head_points(mesh: trimesh.Trimesh) -> np.ndarray:
    """Points on the surface above the neck, metres."""
    points = mesh.sample(4 * POINTS, seed=0)
    # The box of the tri-planes cuts the bust, which the true head has.
    above = points[points[:, 1] > NECK]
    return above[:POINTS]


def chamfer(mesh: trimesh.Trimesh, truth: np.ndarray) -> tuple[float, float]:
    """Mean distance to the truth and back, millimetres: of the whole head, and of its front half."""
    points = head_points(mesh)
    whole = _both_ways(points, truth)
    front = _both_ways(points[points[:, 2] > 0], truth[truth[:, 2] > 0])
    return whole, front


def _both_ways(a: np.ndarray, b: np.ndarray) -> float:
    there, _ = cKDTree(b).query(a)
    back, _ = cKDTree(a).query(b)
    # The mean of both, from metres to millimetres.
    return 500.0 * float(there.mean() + back.mean())


def true_head(name: str, params: Params) -> trimesh.Trimesh:
    """The head in the first frame of a test clip, metres."""
    settings = params.ingest
    file = f"{name}.mp4"
    # The draws of the graph, so that the same person does the same.
    shots = clip(rng(params.seed, "clip", file), settings.frames, settings.fps)
    body = figure(person(latent(params.seed, f"clip-{name}")))
    vertices = pose(body, shots[0].moment)
    return mesh_of(vertices, shared_parts().faces)


def mesh_of(vertices: np.ndarray, faces: np.ndarray) -> trimesh.Trimesh:
    """A mesh in metres of vertices in world units."""
    return trimesh.Trimesh(vertices / SCALE, faces, process=False)


def first_frame(clip_file: Path, folder: Path) -> Path:
    photo = folder / f"{clip_file.stem}.png"
    with av.open(str(clip_file)) as container:
        frame = next(container.decode(video=0))
        picture = frame.to_ndarray(format="rgb24")
    Image.fromarray(picture).save(photo)
    return photo


def meshes_of(studio: Studio, photo: Path, flame: Flame) -> Iterator[tuple[str, trimesh.Trimesh]]:
    """The meshes that are compared, by name."""
    shared = shared_parts()
    yield "copied template", mesh_of(shared.template, shared.faces)
    avatar = studio.avatar(photo)
    label = torch.from_numpy(avatar.portrait.label_437)[None]
    fitted = head_vertices(flame, label)[0]
    yield "fitted head", mesh_of(fitted.numpy(), flame.faces.numpy())
    animator = studio.animator
    planes = animator.psi.planes(avatar.source, avatar.motion_1M)
    for share in SHARES:
        level = share * seen_level(animator, avatar, planes)
        yield f"{share:.2f} of the density seen", surface(animator, planes, level)


def main() -> None:
    params = load_params()
    studio = Studio(params, Weights())
    flame = Flame(load(params.flame.model))
    folder = Path(".cache/psi4d/measure")
    folder.mkdir(parents=True, exist_ok=True)
    clips = sorted((paths.GENERATED / "clips").glob("test-*.mp4"))
    distances: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for file in clips:
        truth = head_points(true_head(file.stem, params))
        photo = first_frame(file, folder)
        for name, mesh in meshes_of(studio, photo, flame):
            distances[name].append(chamfer(mesh, truth))
    for name, values in distances.items():
        whole, front = np.mean(values, axis=0)
        print(f"{name:30} whole {whole:6.2f} mm  front {front:6.2f} mm  ({len(values)} heads)")


if __name__ == "__main__":
    main()
