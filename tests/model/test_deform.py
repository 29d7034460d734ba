"""Closest triangles and vertices against brute force, the neck field, and GenHead's deformation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.head.deform import (
    PARTS,
    REGION_OF_PART,
    NeckField,
    PartDeformation,
    closest_on_mesh,
    nearest_vertices,
    surface_offset,
)
from model.head.flame import Flame, rotation_matrices
from pipeline.geometry.standin import standin
from pipeline.parity.file import kept_places, read_fixture, relative_error
from pipeline.parity.numbers import NumberRule
from pipeline.parity.psi_cases import NECK_GRIDS
from tests.published import PARITY


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin())


def squared_distances(points_N3: np.ndarray, corners_F33: np.ndarray) -> np.ndarray:
    """Of every point to every triangle in double precision, (N, F).

    The cases are written apart from the ones under test.
    """
    points = points_N3.astype(np.float64)[:, None]
    corners = corners_F33.astype(np.float64)
    a, b, c = np.moveaxis(corners, 1, 0)
    best = squared_distances_to_edges(points, a, b)
    for start, end in ((b, c), (c, a)):
        distance2 = squared_distances_to_edges(points, start, end)
        best = np.minimum(best, distance2)
    first = b - a
    second = c - a
    to_point = points - a
    normal = np.cross(first, second)
    # A triangle without area has no inside: nothing is larger than what is no number.
    area2 = dot(normal, normal)
    area2 = np.where(area2 == 0, np.nan, area2)
    along_first = np.cross(to_point, second)
    along_second = np.cross(first, to_point)
    u = dot(along_first, normal) / area2
    v = dot(along_second, normal) / area2
    inside = (u >= 0) & (v >= 0) & (u + v <= 1)
    height = dot(to_point, normal)
    height2 = height**2 / area2
    return np.where(inside, height2, best)


def squared_distances_to_edges(
    points: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
) -> np.ndarray:
    edge = end - start
    to_point = points - start
    length2 = dot(edge, edge)
    # An edge of no length is a point.
    divisor = np.where(length2 == 0, 1, length2)
    share = dot(to_point, edge) / divisor
    share = np.clip(share, 0, 1)
    rest = to_point - share[..., None] * edge
    return dot(rest, rest)


def dot(a_X3: np.ndarray, b_X3: np.ndarray) -> np.ndarray:
    return (a_X3 * b_X3).sum(-1)


def a_mesh(draw: np.random.Generator, thin: float) -> tuple[np.ndarray, np.ndarray]:
    """Random triangles, and others.

    Two corners or all in one place, three on a line, nearly so by `thin`, one triangle twice.
    """
    vertices = draw.normal(size=(60, 3))
    vertices = vertices.astype(np.float32)
    faces = draw.integers(30, size=(70, 3))
    for face in faces[:4]:
        face[2] = face[1]
    for face in faces[4:6]:
        face[:] = face[0]
    for face in faces[6:16]:
        face[2] = 30 + face[0]
        first, second, third = face
        start = vertices[first]
        end = vertices[second]
        along = draw.uniform(-0.5, 1.5)
        on_line = (1 - along) * start + along * end
        beside = thin * draw.normal(size=3)
        vertices[third] = on_line + beside
    faces[16] = faces[17]
    # Two vertices lie in one place.
    one, other, _ = faces[18]
    vertices[other] = vertices[one]
    return vertices, faces


# The smallest bound is the root of what rounding leaves of zero.
THIN_AND_BOUND = [
    (0.0, 3e-5),
    (1e-6, 3e-5),
    (1e-5, 1e-4),
    (1e-4, 1e-3),
    (1e-3, 1e-3),
]


@pytest.mark.parametrize(("thin", "bound"), THIN_AND_BOUND)
@pytest.mark.parametrize("seed", range(3))
def test_closest_triangle_against_brute_force(
    seed: int,
    thin: float,
    bound: float,
) -> None:
    draw = np.random.default_rng(seed)
    vertices, faces = a_mesh(draw, thin)
    corners = vertices[faces]
    points = points_around(draw, vertices, corners)
    arrays = map(torch.from_numpy, (points, vertices, faces))
    face, weights, distance2 = closest_on_mesh(*arrays)
    wanted = squared_distances(points, corners).min(1)
    wanted = np.sqrt(wanted)

    def error(distance: np.ndarray) -> float:
        # Float32 knows a distance relative to the size of the coordinates.
        scale = np.maximum(1, wanted)
        off = np.abs(distance - wanted)
        return (off / scale).max()

    distance = np.sqrt(distance2.numpy())
    assert error(distance) < bound
    own_corners = corners[face].astype(np.float64)
    own_weights = weights.double().numpy()
    weighted = own_corners * own_weights[..., None]
    to_foot = points - weighted.sum(1)
    length = np.linalg.norm(to_foot, axis=1)
    assert error(length) < 2 * bound
    assert weights.min() >= 0
    rest = weights.sum(1) - 1
    assert rest.abs().max() < bound
    # Of two equal faces the first is taken.
    assert 17 not in face


def points_around(
    draw: np.random.Generator,
    vertices: np.ndarray,
    corners: np.ndarray,
) -> np.ndarray:
    """On vertices, edges and faces of a mesh, apart from it, far away, and close above faces."""
    shares = draw.dirichlet(np.ones(3), len(corners))
    first, second, _ = np.moveaxis(corners, 1, 0)
    on_edges = first * 0.25 + second * 0.75
    weighted = corners * shares[..., None]
    on_faces = weighted.sum(1)
    apart = draw.normal(size=(150, 3))
    far = 20 * draw.normal(size=(20, 3))
    above = 1e-3 * draw.normal(size=on_faces.shape)
    near = on_faces + above
    points = np.concatenate([vertices, on_edges, on_faces, apart, far, near])
    return points.astype(np.float32)


@pytest.mark.parametrize("count", [1, 10])
def test_nearest_vertices_against_brute_force(count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    vertices = torch.randn(2, 200, 3, generator=draw)
    # Pairs of vertices lie in one place.
    vertices[:, 100:120] = vertices[:, :20]
    around = torch.randn(2, 300, 3, generator=draw)
    far = 10 * torch.randn(2, 20, 3, generator=draw)
    on_mesh = vertices[:, :50]
    points = torch.cat([around, on_mesh, far], 1)
    distance = torch.cdist(points.double(), vertices.double())
    distance2 = distance.square()
    found = nearest_vertices(points, vertices, count)
    assert found.shape == (2, 370, count)
    # No vertex comes twice.
    rising = found.sort(-1).values
    steps = rising.diff(dim=-1)
    assert (steps > 0).all()
    near = distance2.gather(2, found)
    nearest = distance2.topk(count, largest=False).values
    # Which of two equally near vertices it is may be a matter of rounding: the distances decide.
    scale = distance2.amax(-1, keepdim=True)
    scale = scale.clamp_min(1)
    error = (near - nearest).abs() / scale
    assert error.max() < 1e-6


@pytest.mark.parametrize("flat", [0.0, 1e-7])
def test_points_beside_a_triangle_without_area_move_along(flat: float) -> None:
    corners = [
        [0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0],
        [0.5, flat, 0.0],
    ]
    posed = torch.tensor(corners)
    shift = torch.tensor([0.1, 0.2, 0.3])
    face = torch.tensor([[0, 1, 2]])
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(50, 3, generator=draw)
    moved = posed + shift
    offset, _ = surface_offset(points, posed, moved, face)
    assert torch.allclose(offset, shift.expand(50, 3), atol=1e-6)


def test_a_rigid_motion_of_the_mesh_moves_all_of_space(flame: Flame) -> None:
    some = flame.simple_vertices[:, 0]
    posed = flame.canonical()[some]
    angles = torch.tensor([0.1, 0.3, -0.2])
    turn = rotation_matrices(angles)
    draw = torch.Generator().manual_seed(1)
    points = torch.rand(500, 3, generator=draw) - 0.5
    turned = posed @ turn.T
    offset, distance = surface_offset(points, posed, turned, flame.simple_faces)
    wanted = points @ turn.T
    assert torch.allclose(points + offset, wanted, atol=1e-3)
    assert (distance >= 0).all()


def test_neck_field_parity() -> None:
    stored = read_fixture(PARITY / "psi_v2_posed.npz")
    grids = [stored[name].values[None] for name in NECK_GRIDS]
    field = NeckField(*map(torch.from_numpy, grids))
    points = NumberRule().tensor("deform_points", (1, 4096, 3), 0.35)
    wanted = stored["points_out"].values
    places = kept_places(points.numel(), len(wanted))
    before = points.flatten()[places].numpy()
    found = field(points).flatten()[places].numpy()
    # The motions are compared: they are small beside the places.
    moved = found - before
    assert relative_error(moved, wanted - before) < 1e-5


def test_neck_field_takes_the_head_back(flame: Flame) -> None:
    rest = [torch.zeros(1, size) for size in (300, 100)]
    straight = torch.zeros(1, 6)
    pose = torch.tensor([[0.1, 0.3, 0.05, 0.1, 0.0, 0.0]])
    without_neck = pose.clone()
    without_neck[:, :3] = 0.0
    posed = flame.vertices(*rest, pose, straight)
    unposed = flame.vertices(*rest, without_neck, straight)
    simple_posed = flame.simplified(posed)
    simple_unposed = flame.simplified(unposed)
    field = NeckField.between(simple_posed, simple_unposed, flame.simple_faces)
    face = flame.head.regions["face"]

    def distance(vertices: Tensor) -> Tensor:
        (offset,) = vertices - unposed
        return offset[face].norm(dim=1).mean()

    found = field(posed)
    assert distance(found) < 0.05 * distance(posed)
    still = NeckField.between(simple_posed, simple_posed, flame.simple_faces)
    moved = still(posed) - posed
    assert moved.abs().max() < 1e-5


def some_labels() -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    shape = 0.5 * torch.randn(2, 300, generator=draw)
    expression = torch.randn(2, 100, generator=draw)
    # One mouth is open.
    jaw = torch.zeros(2, 3)
    jaw[0, 0] = 0.2
    eyes = 0.1 * torch.randn(2, 6, generator=draw)
    return [shape, expression, jaw, eyes]


def test_part_deformation_brings_vertices_to_the_canonical_head(flame: Flame) -> None:
    deformation = PartDeformation(flame)
    labels = some_labels()
    whole, mouth = deformation.meshes(*labels)
    exact = deformation.exact(*labels)
    meshes = {"eyes": whole, "face": whole, "mouth": mouth}
    for part, mesh in meshes.items():
        region = flame.head.regions[REGION_OF_PART[part]]
        index = torch.as_tensor(region)
        found = exact(mesh[:, index], part)
        error = found - deformation.canonical_V3[index]
        assert error.abs().max() < 1e-3, part


def test_part_deformation_against_a_loop(flame: Flame) -> None:
    deformation = PartDeformation(flame)
    labels = some_labels()
    whole, _ = deformation.meshes(*labels)
    draw = torch.Generator().manual_seed(3)
    points = torch.rand(2, 20, 3, generator=draw) - 0.5
    deform = deformation.exact(*labels)
    found = deform(points, "face").numpy()
    meshes = whole.double().numpy()
    places = points.double().numpy()
    canonical = deformation.canonical_V3.double().numpy()
    region = flame.head.regions["face"]
    heads = zip(meshes, places, found, strict=True)
    for mesh, own_points, own_found in heads:
        for point, moved in zip(own_points, own_found, strict=True):
            to_vertex = mesh - point
            distance2 = dot(to_vertex, to_vertex)
            nearest = region[distance2[region].argmin()]
            # The list is padded with the number of vertices.
            around = flame.head.neighbours[nearest]
            around = around[around < len(canonical)]
            weights = 1 / (distance2[around] + 1e-10)
            motions = canonical[around] - mesh[around]
            motion = weights @ motions / weights.sum()
            error = moved - (point + motion)
            assert np.abs(error).max() < 1e-4


def test_grids_approach_the_exact_deformation(flame: Flame) -> None:
    deformation = PartDeformation(flame)
    labels = some_labels()
    whole, _ = deformation.meshes(*labels)
    face = torch.as_tensor(flame.head.regions["face"])
    points = whole[:, face]
    deform = deformation.exact(*labels)
    exact = deform(points, "face")

    def distance(found: Tensor) -> Tensor:
        return (found - exact).norm(dim=2).mean()

    moved = distance(points)
    coarse, middle, fine = (
        distance(deformation.grids(*labels, cells)(points, "face")) for cells in (8, 16, 32)
    )
    assert fine < middle < coarse < moved
    assert middle < 0.4 * moved


def test_stored_offsets_are_as_good_as_new(flame: Flame) -> None:
    deformation = PartDeformation(flame)
    labels = some_labels()
    grids = deformation.grids(*labels, 8)
    # One label alone is what a stage stores.
    stored = deformation.from_offsets(grids.offsets_BP3GGG[1:])
    points = torch.rand(1, 50, 3) - 0.5
    for part in PARTS:
        (again,) = stored(points, part)
        both = points.expand(2, -1, -1)
        _, wanted = grids(both, part)
        assert torch.allclose(again, wanted, atol=1e-6)
