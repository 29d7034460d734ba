"""The mesh is closed, coloured, upright and not mirrored, whatever the head."""

import json
import struct

import numpy as np
import pytest
import torch
import trimesh

from model.fast.psi import Source
from model.fast.renderer import Texels
from model.head.flame import SCALE
from pipeline.avatar.animator import Animator
from pipeline.avatar.mesh import linear_light, surface, vertex_colours, write_mesh
from pipeline.core.errors import UserError
from pipeline.geometry.camera import project
from pipeline.geometry.camera_path import front
from tests.avatar.inputs import save_networks

GRID = 48


@pytest.fixture(scope="module")
def animator(tmp_path_factory) -> Animator:
    return Animator(save_networks(tmp_path_factory.mktemp("networks")))


def blob_planes(animator: Animator) -> torch.Tensor:
    """Tri-planes of a field that is dense to the upper left of a viewer in front, and thin elsewhere."""
    side, channels = animator.sizes.plane_resolution, animator.sizes.plane_channels
    place = (torch.arange(side) + 0.5) / side - 0.5
    x, y, z = place, place, place
    planes = torch.zeros(1, 3, channels, side, side)
    middle = {"x": -0.2, "y": 0.2, "z": 0.0}
    bumps = {
        name: torch.exp(-(((axis - middle[name]) / 0.12) ** 2))
        for name, axis in (("x", x), ("y", y), ("z", z))
    }
    # Plane 0 has x along the width and y along the height, then (y, z) and (z, x).
    for number, (width, height) in enumerate((("x", "y"), ("y", "z"), ("z", "x"))):
        planes[0, number] = bumps[height][:, None] * bumps[width][None, :]
    return planes


@pytest.fixture(scope="module")
def head(animator) -> tuple[torch.Tensor, trimesh.Trimesh]:
    """Planes, and the mesh half-way between the least and the greatest density."""
    planes = blob_planes(animator)
    field, decoder = Texels(planes, animator.sizes.box), animator.psi.renderer.decoder
    inside = torch.tensor([[-0.2, 0.2, 0.0], [0.4, -0.4, 0.0]]) * animator.sizes.box
    dense, thin = decoder.sigma(decoder.hidden(field.features(inside, None))).tolist()
    if dense < thin:
        planes = -planes
        field = Texels(planes, animator.sizes.box)
        dense, thin = decoder.sigma(decoder.hidden(field.features(inside, None))).tolist()
    # The air around the blob is made transparent.
    decoder.sigma_bias = decoder.sigma_bias - (dense + thin) / 2
    return planes, surface(animator, planes, 0.0, GRID)


def test_the_mesh_is_closed_and_its_faces_look_outwards(head):
    _, mesh = head
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0


def test_it_lies_where_the_field_is_dense_in_metres(head, animator):
    _, mesh = head
    centre = np.array([-0.2, 0.2, 0.0]) * animator.sizes.box / SCALE
    assert np.allclose(mesh.centroid, centre, atol=0.02 * animator.sizes.box)


def test_it_is_neither_mirrored_nor_upside_down(head, animator):
    """Its outline from the front is that of the rendered opacity, and no mirror image of it is."""
    planes, mesh = head
    camera = torch.from_numpy(front(1))
    still = torch.zeros(1, animator.sizes.feature_channels, animator.sizes.rays, animator.sizes.rays)
    rendering = animator.psi.render(planes, Source(still, still, still, 1.0), camera[:, None])
    shown = rendering.opacity[0, 0].numpy()
    places = project(mesh.sample(20_000, seed=0) * SCALE, front(1)[0]) * animator.sizes.rays
    drawn = np.zeros(shown.shape)
    columns, rows = places.astype(int).clip(0, len(shown) - 1).T
    drawn[rows, columns] = 1.0
    likeness = {
        "as it is": np.corrcoef(drawn.ravel(), shown.ravel())[0, 1],
        "mirrored": np.corrcoef(drawn[:, ::-1].ravel(), shown.ravel())[0, 1],
        "upside down": np.corrcoef(drawn[::-1].ravel(), shown.ravel())[0, 1],
    }
    assert likeness["as it is"] > 0.5 > max(likeness["mirrored"], likeness["upside down"])


def test_the_files_hold_the_same_coloured_head(head, tmp_path):
    _, mesh = head
    for suffix in ("glb", "ply", "obj"):
        write_mesh(tmp_path / f"head.{suffix}", mesh)
        read = trimesh.load(tmp_path / f"head.{suffix}", force="mesh")
        assert len(read.faces) == len(mesh.faces) and np.allclose(read.bounds, mesh.bounds, atol=1e-5)
    read = trimesh.load(tmp_path / "head.ply", force="mesh")
    assert np.array_equal(vertex_colours(read), vertex_colours(mesh))


def test_colours_of_glb_are_linear_light_on_a_matt_surface(head, tmp_path):
    """As glTF defines them; a viewer would show sRGB values too bright, and no material as metal."""
    _, mesh = head
    write_mesh(tmp_path / "head.glb", mesh)
    data = (tmp_path / "head.glb").read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[20 : 20 + length])
    primitive = tree["meshes"][0]["primitives"][0]
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    view = tree["bufferViews"][tree["accessors"][primitive["attributes"]["COLOR_0"]]["bufferView"]]
    start = 20 + length + 8 + view.get("byteOffset", 0)
    colours = np.frombuffer(data[start : start + view["byteLength"]], np.uint8).reshape(-1, 4)[:, :3]
    wanted = np.round(255 * linear_light(vertex_colours(mesh) / 255))
    assert np.array_equal(colours[: len(wanted)], wanted)
    assert linear_light(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, 0.21404, 1.0], abs=1e-5)


def test_equal_heads_make_equal_bytes(head, tmp_path):
    _, mesh = head
    for name in ("one.glb", "two.glb"):
        write_mesh(tmp_path / name, mesh)
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "two.glb").read_bytes()


def test_a_level_without_a_surface_and_an_unknown_format(head, animator, tmp_path):
    planes, mesh = head
    with pytest.raises(
        UserError, match=r"--level 1e\+06: choose one between .* the raw densities of this head"
    ):
        surface(animator, planes, 1e6, GRID)
    with pytest.raises(UserError, match=r"head.stl: a mesh is written as .glb, .ply, .obj; name it"):
        write_mesh(tmp_path / "head.stl", mesh)
