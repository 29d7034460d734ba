"""The head as a coloured mesh: marching cubes through the density of its tri-planes (facts 8).

In metres and upright: x to the right of the picture, y up, z towards the viewer, as glTF wants it. The world
of the tri-planes has the same axes (pipeline/geometry/camera.py), so nothing is mirrored or turned.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import trimesh
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh.exchange.gltf import export_glb
from trimesh.visual import ColorVisuals

from model.head.flame import SCALE
from model.volume.planes import Planes
from model.volume.renderer import camera_rays
from pipeline.avatar.animator import Animator, Avatar
from pipeline.avatar.skull import Skull
from pipeline.avatar.studio import Studio
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.geometry import camera_path

FORMATS = (".glb", ".ply", ".obj")
GRID = 128  # points a side, as published
POINTS = 1 << 16  # at once
OPAQUE = 0.9
SKIN = 0.004  # world units below the surface, where colours are read
# Of the density where a viewer sees a soft head, which is within. Of 0.35 to 1 this share came nearest to the
# true heads of the demo's validation people (python -m tests.avatar.measure_mesh --split validation).
SHARE = 0.55

Back = Literal["skull", "density"]


def mesh_of(
    studio: Studio,
    photo: Path,
    driving: Path | None,
    frame: int,
    size: int = GRID,
    level: float | None = None,
    back: Back = "skull",
) -> trimesh.Trimesh:
    """The mesh of a photo or a saved avatar, with its own motion or that of a frame of the driver `driving`.

    Without a `level` it is that of `usual_level`. The back is the fitted `skull`, or what the `density` says
    of a side that training has never seen. Raises UserError.
    """
    if back not in get_args(Back):
        raise UserError(f"--back is {back}, but must be one of {', '.join(get_args(Back))}.")
    animator, avatar = studio.animator, studio.avatar(photo)
    motion = avatar.motion_1M
    if driving:
        _, motions = studio.driver(driving)
        if frame >= len(motions):
            raise UserError(f"--frame {frame}: {driving} has {len(motions)} frames, the first is 0.")
        motion = motions[frame : frame + 1]
    # Of a driver its expression alone counts here: a mesh has no camera.
    planes = animator.psi.planes(avatar.source, motion)
    if level is None:
        level = usual_level(animator, avatar, planes)
    skull = studio.skull(avatar) if back == "skull" else None
    return surface(animator, planes, level, size, skull)


class HeadField:
    """Density and colour of a head anywhere in its box, from the tri-planes of the fast path."""

    def __init__(self, animator: Animator, planes: Planes) -> None:
        self.device = planes.triplanes_B3CRR.device
        self.box = animator.sizes.box
        self.features = animator.psi.renderer.features(planes)
        self.decoder = animator.psi.renderer.decoder

    def density(self, points_M3: Tensor) -> Tensor:
        """Raw densities (M,) on the CPU of points in world units."""
        parts = []
        for points in points_M3.split(POINTS):
            hidden = self._hidden(points)
            parts.append(self.decoder.sigma(hidden).cpu())
        return torch.cat(parts)

    def colour(self, points_M3: Tensor) -> np.ndarray:
        """sRGB, uint8 (M, 3)."""
        parts = []
        for points in points_M3.split(POINTS):
            hidden = self._hidden(points)
            parts.append(self.decoder.colour(hidden).cpu())
        features = torch.cat(parts)
        # The first three features of a point are its colour; the others are for super-resolution.
        colours = features[:, :3].clamp(0, 1)
        levels = (colours * 255).round()
        return levels.byte().numpy()

    def _hidden(self, points_m3: Tensor) -> Tensor:
        features = self.features(points_m3.to(self.device), None)
        return self.decoder.hidden(features)


@torch.inference_mode()
def surface(
    animator: Animator,
    planes: Planes,
    level: float,
    size: int = GRID,
    skull: Skull | None = None,
) -> trimesh.Trimesh:
    """The coloured surface of raw density `level` in a grid of `size` points a side; vertices in metres.

    With a `skull` the back of the head is that, in the colours around it. Only the outer surface of the
    largest piece is kept. A flat cut closes it where the head leaves the box of the tri-planes, so that it is
    watertight. Raises UserError when the density is nowhere, or everywhere, above `level`.
    """
    field = HeadField(animator, planes)
    step = field.box / size
    places = (torch.arange(size) + 0.5) * step - field.box / 2
    axes = torch.meshgrid(places, places, places, indexing="ij")
    grid = torch.stack(axes, dim=-1).flatten(0, 2)
    density = field.density(grid)
    low, high = float(density.min()), float(density.max())
    if not low < level < high:
        limits = f"{low:.1f} and {high:.1f}, the raw densities of this head"
        raise UserError(f"--level {level:g}: choose one between {limits}.")
    volume = density.view(size, size, size).numpy()
    if skull:
        volume = skull.closed(volume, level, field.box)
    # A layer of air all around closes what the box cuts off.
    closed = np.pad(volume, 1, constant_values=min(low, level - 1.0))
    fill_cavities(closed, level)
    # Towards higher density is inwards, so that faces look out.
    vertices, faces, _, _ = marching_cubes(
        closed,
        level,
        spacing=(step, step, step),
        gradient_direction="ascent",
    )
    vertices += float(places[0]) - step
    whole = trimesh.Trimesh(vertices, faces)
    pieces = whole.split(only_watertight=False)
    mesh = max(pieces, key=lambda piece: len(piece.faces))
    # On the surface itself the colour is half that of the air before it.
    inside = mesh.vertices - SKIN * mesh.vertex_normals
    colours = field.colour(torch.from_numpy(inside).float())
    mesh.apply_scale(1 / SCALE)
    if skull:
        colours = skull.painted(mesh.vertices, colours)
    mesh.visual = ColorVisuals(mesh, vertex_colors=colours)
    return mesh


def fill_cavities(volume_NNN: np.ndarray, level: float) -> None:
    """Make what is below `level` dense unless it is connected to the first point of the volume, in place.

    Rays end at the skin. What is thin behind it was never seen, and would become a second surface within.
    """
    air, _ = ndimage.label(volume_NNN <= level)
    cavities = (air > 0) & (air != air[0, 0, 0])
    volume_NNN[cavities] = volume_NNN.max()


def usual_level(animator: Animator, avatar: Avatar, planes: Planes) -> float:
    """The raw density that counts as the skin when nothing is said: SHARE of `seen_level`.

    Networks that were trained for minutes build softer heads than published ones, so that no fixed level
    suits all. Raises UserError when the head is transparent.
    """
    return SHARE * seen_level(animator, avatar, planes)


@torch.inference_mode()
def seen_level(animator: Animator, avatar: Avatar, planes: Planes) -> float:
    """The raw density where a viewer in front sees the head: the median at the depths of opaque rays.

    Raises UserError when the head is transparent.
    """
    front = torch.from_numpy(camera_path.front(1))
    camera = front[None].to(animator.device)
    rendering = animator.psi.render(planes, avatar.source, camera)
    depth = rendering.depth.flatten()
    opaque = rendering.opacity.flatten() > OPAQUE
    if not opaque.any():
        raise UserError("this head is transparent from the front: there is no surface to extract.")
    origins, directions = camera_rays(camera, animator.sizes.rays)
    along = depth[opaque, None] * directions[0, 0, opaque]
    points = origins[0, 0] + along
    field = HeadField(animator, planes)
    density = field.density(points)
    return float(density.median())


def write_mesh(path: Path, mesh: trimesh.Trimesh) -> None:
    """Write `mesh` as the suffix of `path` says: .glb, .ply or .obj, with the colours of its vertices.

    Raises UserError for another suffix, or when the place cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        example = path.with_suffix(".glb")
        raise UserError(f"{path}: a mesh is written as {known}; name it {example}.")
    if suffix == ".glb":
        data = _glb(mesh)
    else:
        data = mesh.export(file_type=suffix[1:])
    write_bytes(path, data.encode() if isinstance(data, str) else data)


def _glb(mesh: trimesh.Trimesh) -> bytes:
    """A glTF file, in which colours are linear light and a surface without a material is polished metal."""
    # The caller's mesh keeps its sRGB.
    mesh = mesh.copy()
    srgb = vertex_colours(mesh) / 255
    levels = np.round(255 * linear_light(srgb))
    light = levels.astype(np.uint8)
    mesh.visual = ColorVisuals(mesh, vertex_colors=light)
    # Without normals, viewers shade triangles instead of a skin.
    return export_glb(mesh, include_normals=True, tree_postprocessor=_make_matt)


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
    dark = srgb / 12.92
    bright = ((srgb + 0.055) / 1.055) ** 2.4
    return np.where(srgb <= 0.04045, dark, bright)
