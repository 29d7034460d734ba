"""The head as a coloured mesh: marching cubes through the density of its tri-planes (facts 8).

In metres and upright: x to the right of the picture, y up, z towards the viewer, as glTF wants it. The world
of the tri-planes has the same axes (pipeline/geometry/camera.py), so nothing is mirrored or turned.
"""

from pathlib import Path

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh.exchange.gltf import export_glb
from trimesh.visual import ColorVisuals

from model.fast.renderer import FastDecoder, Texels
from model.head.flame import SCALE
from model.volume.renderer import camera_rays
from pipeline.avatar.animator import Animator, Avatar
from pipeline.avatar.studio import Studio
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.geometry import camera_path

FORMATS = (".glb", ".ply", ".obj")
GRID = 128  # points a side, as published
POINTS = 1 << 16  # at once
SKIN = 0.004  # world units below the surface, where colours are read: outside of it they are of thin air


def mesh_of(
    studio: Studio,
    photo: Path,
    driving: Path | None,
    frame: int,
    size: int = GRID,
    level: float | None = None,
) -> trimesh.Trimesh:
    """The mesh of a photo or a saved avatar, with its own motion or that of a frame of the driver `driving`.

    Without a `level` it is that of `seen_level`. Raises UserError.
    """
    animator, avatar = studio.animator, studio.avatar(photo)
    motion = avatar.motion_1M
    if driving:
        _, motions = studio.driver(driving)
        if frame >= len(motions):
            raise UserError(f"--frame {frame}: {driving} has {len(motions)} frames, the first is 0.")
        motion = motions[frame : frame + 1]
    planes = animator.psi.planes(avatar.source, motion)
    if level is None:
        level = seen_level(animator, avatar, planes)
    return surface(animator, planes, level, size)


@torch.inference_mode()
def surface(animator: Animator, planes_13CRR: Tensor, level: float, size: int = GRID) -> trimesh.Trimesh:
    """The coloured surface of raw density `level` in a grid of `size` points a side; vertices in metres.

    Only the largest piece is kept. A flat cut closes it where the head leaves the box of the tri-planes, so
    that it is watertight. Raises UserError when the density is nowhere, or everywhere, above `level`.
    """
    box = animator.sizes.box
    field = Texels(planes_13CRR, box)
    decoder = animator.psi.renderer.decoder
    places = (torch.arange(size) + 0.5) / size * box - box / 2
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"), dim=-1).flatten(0, 2)
    sigma = torch.cat([_density(field, decoder, points) for points in grid.split(POINTS)])
    low, high = float(sigma.min()), float(sigma.max())
    if not low < level < high:
        raise UserError(
            f"--level {level:g}: choose one between {low:.1f} and {high:.1f}, the raw densities of this head."
        )
    # One layer of air all around closes what the box cuts off.
    volume = np.pad(sigma.view(size, size, size).numpy(), 1, constant_values=min(low, level - 1.0))
    step = box / size
    vertices, faces, _, _ = marching_cubes(
        volume, level, spacing=(step, step, step), gradient_direction="ascent"
    )
    vertices += float(places[0]) - step
    mesh = trimesh.Trimesh(vertices, faces, process=True)
    mesh = max(mesh.split(only_watertight=False), key=lambda piece: len(piece.faces))
    inside = torch.from_numpy(mesh.vertices - SKIN * mesh.vertex_normals).float()
    colours = torch.cat([_colour(field, decoder, points) for points in inside.split(POINTS)])
    mesh.visual = ColorVisuals(mesh, vertex_colors=(colours * 255).round().byte().numpy())
    mesh.apply_scale(1 / SCALE)
    return mesh


def _density(field: Texels, decoder: FastDecoder, points_M3: Tensor) -> Tensor:
    return decoder.sigma(decoder.hidden(field.features(points_M3, None)))


def _colour(field: Texels, decoder: FastDecoder, points_M3: Tensor) -> Tensor:
    """sRGB (M, 3) in [0, 1]."""
    return decoder.colour(decoder.hidden(field.features(points_M3, None)))[:, :3].clamp(0, 1)


@torch.inference_mode()
def seen_level(animator: Animator, avatar: Avatar, planes_13CRR: Tensor) -> float:
    """The raw density at the depth at which a viewer in front sees the head: the median over opaque rays.

    Trained for minutes, networks build softer heads than published ones, so that no fixed level suits all.
    Raises UserError when the head is transparent.
    """
    camera = torch.from_numpy(camera_path.front(1)).to(animator.device)
    rendering = animator.psi.render(planes_13CRR, avatar.source, camera[:, None])
    origins, directions = camera_rays(camera[:, None], animator.sizes.rays)
    depth, opaque = rendering.depth.flatten(), rendering.opacity.flatten() > 0.9
    if not opaque.any():
        raise UserError(
            "the head of this avatar is transparent from the front; there is no surface to extract."
        )
    points = origins[0, 0] + depth[opaque, None] * directions[0, 0, opaque]
    field = Texels(planes_13CRR, animator.sizes.box)
    return float(_density(field, animator.psi.renderer.decoder, points).median())


def write_mesh(path: Path, mesh: trimesh.Trimesh) -> None:
    """Write `mesh` as the suffix of `path` says: .glb, .ply or .obj, with the colours of its vertices.

    Raises UserError for another suffix, or when the place cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"{path}: a mesh is written as {', '.join(FORMATS)}; name it {path.with_suffix('.glb')}."
        )
    if path.suffix.lower() == ".glb":
        data = _glb(mesh)
    else:
        data = mesh.export(file_type=path.suffix.lower()[1:])
    write_bytes(path, data.encode() if isinstance(data, str) else data)


def _glb(mesh: trimesh.Trimesh) -> bytes:
    """A glTF file, in which colours are linear light and a surface without a material is polished metal."""
    mesh = mesh.copy()
    srgb = vertex_colours(mesh) / 255
    light = np.round(255 * linear_light(srgb)).astype(np.uint8)
    mesh.visual = ColorVisuals(mesh, vertex_colors=light)
    return export_glb(mesh, tree_postprocessor=_make_matt)


def _make_matt(tree: dict) -> None:
    surface = {"baseColorFactor": [1.0, 1.0, 1.0, 1.0], "metallicFactor": 0.0, "roughnessFactor": 1.0}
    tree["materials"] = [{"pbrMetallicRoughness": surface, "doubleSided": True}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0


def vertex_colours(mesh: trimesh.Trimesh) -> np.ndarray:
    """sRGB colours of the vertices, uint8 (V, 3)."""
    if not isinstance(mesh.visual, ColorVisuals):
        raise ValueError("the mesh has no colours of vertices")
    return np.asarray(mesh.visual.vertex_colors)[:, :3]


def linear_light(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
