"""The mesh is closed, coloured, upright and not mirrored, whatever the head."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from model.fast.psi import Source
from model.head.flame import SCALE
from model.volume.planes import Planes
from pipeline.avatar.animator import Animator
from pipeline.avatar.mesh import HeadField, fill_cavities, linear_light, surface, vertex_colours, write_mesh
from pipeline.core.errors import UserError
from pipeline.geometry.camera import project
from pipeline.geometry.camera_path import front
from tests.avatar.inputs import save_networks

GRID = 48
# Of the blob, in sides of the box.
MIDDLE = (-0.2, 0.2, 0.0)


@pytest.fixture(scope="module")
def animator(tmp_path_factory) -> Animator:
    # The decoder of this seed makes a blob of what is a blob.
    return Animator(save_networks(tmp_path_factory.mktemp("networks"), seed=3))


def blob_planes(animator: Animator) -> Planes:
    """Tri-planes of a field that is dense to the upper left of a viewer in front, and thin elsewhere."""
    sizes = animator.sizes
    side = sizes.plane_resolution
    places = (torch.arange(side) + 0.5) / side - 0.5
    bumps = {}
    for axis, middle in zip("xyz", MIDDLE, strict=True):
        distance = (places - middle) / 0.12
        bumps[axis] = torch.exp(-(distance**2))
    planes = torch.zeros(1, 3, sizes.plane_channels, side, side)
    # Plane 0 has x along the width and y along the height, then (y, z) and (z, x).
    for number, (width, height) in enumerate(("xy", "yz", "zx")):
        planes[0, number] = bumps[height][:, None] * bumps[width][None, :]
    # The portrait adds nothing to them.
    portrait = torch.zeros(1, sizes.plane_channels, sizes.image, sizes.image)
    detail = torch.zeros(1, 4 + sizes.psi.portrait_detail, sizes.image, sizes.image)
    return Planes(planes, portrait, torch.from_numpy(front(1)), detail_BDSS=detail)


def densities(animator: Animator, planes: Planes) -> tuple[float, float]:
    """Raw densities in the middle of the blob and far from it."""
    points = torch.tensor([MIDDLE, (0.4, -0.4, 0.0)]) * animator.sizes.box
    field = HeadField(animator, planes)
    inside, outside = field.density(points).tolist()
    return inside, outside


@pytest.fixture(scope="module")
def head(animator) -> tuple[Planes, trimesh.Trimesh]:
    """Planes, and the mesh half-way between the least and the greatest density."""
    planes = blob_planes(animator)
    inside, outside = densities(animator, planes)
    # Raw networks may take a bump for a hollow.
    if inside < outside:
        planes = replace(planes, triplanes_B3CRR=-planes.triplanes_B3CRR)
        inside, outside = densities(animator, planes)
    # The air around the blob is made transparent.
    decoder = animator.psi.renderer.decoder
    decoder.sigma_bias = decoder.sigma_bias - (inside + outside) / 2
    return planes, surface(animator, planes, 0.0, GRID)


def test_the_mesh_is_closed_and_its_faces_look_outwards(head):
    _, mesh = head
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0


def test_a_cavity_within_the_head_has_no_surface():
    """The skin alone is kept, also where the field is thin behind it."""
    side = torch.linspace(-1, 1, 21)
    x, y, z = torch.meshgrid(side, side, side, indexing="ij")
    radius = (x * x + y * y + z * z).sqrt().numpy()
    ball = 0.7 - radius
    # The same ball with a hollow in its middle.
    shell = np.minimum(ball, radius - 0.3)
    fill_cavities(shell, 0.0)
    assert np.array_equal(shell > 0.0, ball > 0.0)
    # A well that is open to the outside is part of it.
    well = np.where((radius < 0.7) & (z.numpy() < 0.0), 1.0, -1.0)
    before = well.copy()
    fill_cavities(well, 0.0)
    assert np.array_equal(well, before)


def test_it_lies_where_the_field_is_dense_in_metres(head, animator):
    _, mesh = head
    box = animator.sizes.box
    centre = np.array(MIDDLE) * box / SCALE
    assert np.allclose(mesh.centroid, centre, atol=0.02 * box)


def opacity_in_front(animator: Animator, planes: Planes) -> np.ndarray:
    """How opaque the rendered head is for a viewer in front, (rays, rays)."""
    rays = animator.sizes.rays
    nothing = torch.zeros(1, animator.sizes.feature_channels, rays, rays)
    source = Source(nothing, nothing, nothing, 1.0)
    camera = torch.from_numpy(front(1))
    rendering = animator.psi.render(planes, source, camera[:, None])
    return rendering.opacity[0, 0].numpy()


def outline_in_front(mesh: trimesh.Trimesh, side: int) -> np.ndarray:
    """1 where a viewer in front sees the mesh, (side, side)."""
    points = mesh.sample(20_000, seed=0) * SCALE
    # Points all over the surface fill its outline.
    places = project(points, front(1)[0]) * side
    columns, rows = places.astype(int).clip(0, side - 1).T
    drawn = np.zeros((side, side))
    drawn[rows, columns] = 1.0
    return drawn


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def test_it_is_neither_mirrored_nor_upside_down(head, animator):
    """Its outline from the front is that of the rendered opacity, and no mirror image of it is."""
    planes, mesh = head
    shown = opacity_in_front(animator, planes)
    drawn = outline_in_front(mesh, len(shown))
    assert likeness(drawn, shown) > 0.5
    mirrored, upside_down = drawn[:, ::-1], drawn[::-1]
    assert likeness(mirrored, shown) < 0.5
    assert likeness(upside_down, shown) < 0.5


@pytest.mark.parametrize("suffix", ["glb", "ply", "obj"])
def test_the_files_hold_the_same_head(suffix, head, tmp_path):
    _, mesh = head
    path = tmp_path / f"head.{suffix}"
    write_mesh(path, mesh)
    read = trimesh.load(path, force="mesh")
    assert len(read.faces) == len(mesh.faces)
    assert np.allclose(read.bounds, mesh.bounds, atol=1e-5)


def test_a_ply_holds_the_colours_as_they_are(head, tmp_path):
    _, mesh = head
    path = tmp_path / "head.ply"
    write_mesh(path, mesh)
    read = trimesh.load(path, force="mesh")
    assert np.array_equal(vertex_colours(read), vertex_colours(mesh))


def glb_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a glTF file and its binary part."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[20 : 20 + length])
    # Each part has a header of eight bytes.
    return tree, data[20 + length + 8 :]


def test_colours_of_glb_are_linear_light_on_a_matt_surface(head, tmp_path):
    """As glTF defines them; a viewer would show sRGB values too bright, and no material as metal."""
    _, mesh = head
    path = tmp_path / "head.glb"
    write_mesh(path, mesh)
    tree, data = glb_parts(path)
    primitive = tree["meshes"][0]["primitives"][0]
    material = tree["materials"][primitive["material"]]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    accessor = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    view = tree["bufferViews"][accessor["bufferView"]]
    start = view.get("byteOffset", 0)
    values = np.frombuffer(data[start : start + view["byteLength"]], np.uint8)
    colours = values.reshape(-1, 4)[:, :3]
    light = linear_light(vertex_colours(mesh) / 255)
    wanted = np.round(255 * light)
    assert np.array_equal(colours[: len(wanted)], wanted)


def test_linear_light_is_that_of_the_standard():
    srgb = np.array([0.0, 0.5, 1.0])
    assert linear_light(srgb) == pytest.approx([0.0, 0.21404, 1.0], abs=1e-5)


def test_equal_heads_make_equal_bytes(head, tmp_path):
    _, mesh = head
    for name in ("one.glb", "two.glb"):
        write_mesh(tmp_path / name, mesh)
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "two.glb").read_bytes()


def test_a_level_without_a_surface(head, animator):
    planes, _ = head
    words = r"--level 1e\+06: choose one between .* the raw densities of this head"
    with pytest.raises(UserError, match=words):
        surface(animator, planes, 1e6, GRID)


def test_an_unknown_format(head, tmp_path):
    _, mesh = head
    words = r"head.stl: a mesh is written as .glb, .ply, .obj; name it"
    with pytest.raises(UserError, match=words):
        write_mesh(tmp_path / "head.stl", mesh)
