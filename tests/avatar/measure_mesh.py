"""How far meshes are from the true heads: `python -m tests.avatar.measure_mesh` in a generated run.

For the first frame of each clip of a split: the mean distance in millimetres between 20,000 points of the
mesh and of the true head, in both directions (chamfer), beside that of the copied template and of the head
that fit_flame found. The head alone counts, above the neck.

`outer`: points that are seen from somewhere, as a mesh of density has no other; `front` are those before the
ears. Two samples of one head are 1.5 mm apart. `all`: also the skull beneath the hair, the hollow of the
mouth and the backs of the eyes, which the template has too and no outer surface comes nearer than 5 mm.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from model.head.flame import SCALE, Flame
from pipeline.avatar.animator import Weights
from pipeline.avatar.mesh import SHARE, seen_level, surface
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
SHARES = (1.0, 0.85, 0.75, 0.65, 0.55, 0.45, 0.4, 0.35)
# Of the pictures of a head from VIEWS sides in which its points hide each other: metres of a pixel, which
# takes in several of the HIDING points, and of how far a point may lie behind the nearest one.
VIEWS, PIXEL, HIDING = 36, 0.005, 300_000


def head_points(mesh: trimesh.Trimesh) -> np.ndarray:
    """Points on the surface above the neck, metres."""
    points = mesh.sample(4 * POINTS, seed=0)
    # The box of the tri-planes cuts the bust, which the true head has.
    return points[points[:, 1] > NECK]


def outer_points(mesh: trimesh.Trimesh) -> np.ndarray:
    """Those of `head_points` that are seen from somewhere around or above the head."""
    points = head_points(mesh)
    hiding = mesh.sample(HIDING, seed=1)
    seen = np.zeros(len(points), bool)
    for towards in _directions():
        basis, _ = np.linalg.qr(np.column_stack([towards, np.eye(3)]))
        across = basis[:, 1:3]
        places, rows = np.unique(_pixels(hiding, across), axis=0, return_inverse=True)
        nearest = np.full(len(places), -np.inf)
        np.maximum.at(nearest, rows.ravel(), hiding @ towards)
        _, found = cKDTree(places).query(_pixels(points, across))
        seen |= points @ towards > nearest[found] - PIXEL
    return points[seen]


def _directions() -> np.ndarray:
    """Unit vectors to viewers, evenly spread (a spiral around the upper part of a ball), (VIEWS, 3)."""
    height = np.linspace(-0.2, 1.0, VIEWS)
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(VIEWS)
    radius = np.sqrt(1 - height**2)
    return np.column_stack([radius * np.cos(turn), height, radius * np.sin(turn)])


def _pixels(points_P3: np.ndarray, across_32: np.ndarray) -> np.ndarray:
    return np.floor(points_P3 @ across_32 / PIXEL)


Points = tuple[np.ndarray, np.ndarray]


def both_kinds(mesh: trimesh.Trimesh) -> Points:
    """All points of a head and its outer ones, POINTS of each."""
    return head_points(mesh)[:POINTS], outer_points(mesh)[:POINTS]


def distances_to(truth: Points, points: Points) -> dict[str, float]:
    """Chamfer distances, millimetres."""
    outer, true_outer = points[1], truth[1]
    ahead, true_ahead = outer[outer[:, 2] > 0], true_outer[true_outer[:, 2] > 0]
    return {
        "outer": _both_ways(outer, true_outer),
        "front": _both_ways(ahead, true_ahead),
        "all": _both_ways(points[0], truth[0]),
    }


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


def meshes_of(
    studio: Studio,
    photo: Path,
    flame: Flame,
    shares: Sequence[float],
) -> Iterator[tuple[str, trimesh.Trimesh]]:
    """The meshes that are compared, by name."""
    shared = shared_parts()
    yield "copied template", mesh_of(shared.template, shared.faces)
    avatar = studio.avatar(photo)
    label = torch.from_numpy(avatar.portrait.label_437)[None]
    fitted = head_vertices(flame, label)[0]
    yield "fitted head", mesh_of(fitted.numpy(), flame.faces.numpy())
    animator = studio.animator
    planes = animator.psi.planes(avatar.source, avatar.motion_1M)
    skull = studio.skull(avatar)
    seen = seen_level(animator, avatar, planes)
    for share in shares:
        closed = surface(animator, planes, share * seen, skull=skull)
        yield f"{share:.2f} of the density seen", closed
    share = min(shares, key=lambda share: abs(share - SHARE))
    yield f"{share:.2f}, back by density", surface(animator, planes, share * seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", default="test", help="validation to choose the level, test to report")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    options = parser.parse_args()
    params = load_params()
    studio = Studio(params, Weights())
    flame = Flame(load(params.flame.model))
    folder = Path(".cache/psi4d/measure")
    folder.mkdir(parents=True, exist_ok=True)
    clips = sorted((paths.GENERATED / "clips").glob(f"{options.split}-*.mp4"))
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for file in clips:
        truth = both_kinds(true_head(file.stem, params))
        photo = first_frame(file, folder)
        for name, mesh in meshes_of(studio, photo, flame, options.shares):
            found[name].append(distances_to(truth, both_kinds(mesh)))
    for name, rows in found.items():
        means = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
        words = "  ".join(f"{key} {mean:5.2f} mm" for key, mean in means.items())
        print(f"{name:27} {words}  ({len(rows)} heads)")


if __name__ == "__main__":
    main()
