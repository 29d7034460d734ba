"""Closest triangles and vertices against brute force, the neck field, and GenHead's deformation."""

import numpy as np
import pytest
import torch

from model.head.deform import (
    PARTS,
    NeckField,
    PartDeformation,
    closest_on_mesh,
    nearest_vertices,
    surface_offset,
)
from model.head.flame import Flame, rotation_matrices
from pipeline.geometry.standin import standin
from pipeline.parity.cases import NECK_GRIDS
from pipeline.parity.file import kept_places, read_fixture, relative_error
from pipeline.parity.numbers import NumberRule
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
    best = np.full((len(points_N3), len(corners)), np.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        edge = corners[:, b] - corners[:, a]
        to_point = points - corners[:, a]
        length2 = (edge**2).sum(-1)
        share = (to_point * edge).sum(-1) / np.where(length2 == 0, 1, length2)
        rest = to_point - np.clip(share, 0, 1)[..., None] * edge
        best = np.minimum(best, (rest**2).sum(-1))
    first = corners[:, 1] - corners[:, 0]
    second = corners[:, 2] - corners[:, 0]
    to_point = points - corners[:, 0]
    normal = np.cross(first, second)
    # A triangle without area has no inside: nothing is larger than what is no number.
    area2 = (normal**2).sum(-1)
    area2 = np.where(area2 == 0, np.nan, area2)
    u = (np.cross(to_point, second) * normal).sum(-1) / area2
    v = (np.cross(first, to_point) * normal).sum(-1) / area2
    inside = (u >= 0) & (v >= 0) & (u + v <= 1)
    height2 = (to_point * normal).sum(-1) ** 2 / area2
    return np.where(inside, height2, best)


def a_mesh(draw: np.random.Generator, thin: float) -> tuple[np.ndarray, np.ndarray]:
    """Random triangles, and others.

    Two corners or all in one place, three on a line, nearly so by `thin`, one triangle twice.
    """
    vertices = draw.normal(size=(60, 3)).astype(np.float32)
    faces = draw.integers(30, size=(70, 3))
    faces[:4, 2] = faces[:4, 1]
    faces[4:6] = faces[4:6, :1]
    for face in faces[6:16]:
        face[2] = 30 + face[0]
        along = draw.uniform(-0.5, 1.5)
        on_line = (1 - along) * vertices[face[0]] + along * vertices[face[1]]
        vertices[face[2]] = on_line + thin * draw.normal(size=3)
    faces[16] = faces[17]
    # Two vertices lie in one place.
    vertices[faces[18, 1]] = vertices[faces[18, 0]]
    return vertices, faces


# The smallest bound is the root of what rounding leaves of zero.
THIN_AND_BOUND = [(0.0, 3e-5), (1e-6, 3e-5), (1e-5, 1e-4), (1e-4, 1e-3), (1e-3, 1e-3)]


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
    shares = draw.dirichlet([1, 1, 1], len(faces))
    on_edges = corners[:, 0] * 0.25 + corners[:, 1] * 0.75
    on_faces = (corners * shares[..., None]).sum(1)
    apart = draw.normal(size=(150, 3))
    far = 20 * draw.normal(size=(20, 3))
    near = on_faces + 1e-3 * draw.normal(size=on_faces.shape)
    points = np.concatenate([vertices, on_edges, on_faces, apart, far, near]).astype(np.float32)
    arrays = (torch.from_numpy(array) for array in (points, vertices, faces))
    face, weights, distance2 = closest_on_mesh(*arrays)
    wanted = np.sqrt(squared_distances(points, corners).min(1))
    scale = np.maximum(1, wanted)
    error = np.abs(np.sqrt(distance2.numpy()) - wanted) / scale
    assert error.max() < bound
    foot = (corners[face].astype(np.float64) * weights.double().numpy()[..., None]).sum(1)
    error = np.abs(np.linalg.norm(points - foot, axis=1) - wanted) / scale
    assert error.max() < 2 * bound
    assert (weights >= 0).all() and (weights.sum(1) - 1).abs().max() < bound
    # Of two equal faces the first is taken.
    assert (face != 17).all()


@pytest.mark.parametrize("count", [1, 10])
def test_nearest_vertices_against_brute_force(count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    vertices = torch.randn(2, 200, 3, generator=draw)
    # Pairs of vertices lie in one place.
    vertices[:, 100:120] = vertices[:, :20]
    around = torch.randn(2, 300, 3, generator=draw)
    far = 10 * torch.randn(2, 20, 3, generator=draw)
    points = torch.cat([around, vertices[:, :50], far], 1)
    distance2 = torch.cdist(points.double(), vertices.double()).square()
    found = nearest_vertices(points, vertices, count)
    assert found.shape == (2, 370, count)
    assert (found.sort(-1).values.diff(dim=-1) > 0).all()
    near = distance2.gather(2, found)
    nearest = distance2.topk(count, largest=False).values
    scale = distance2.amax(-1, keepdim=True).clamp_min(1)
    assert ((near - nearest).abs() < 1e-6 * scale).all()


@pytest.mark.parametrize("flat", [0.0, 1e-7])
def test_points_beside_a_triangle_without_area_move_along(flat: float) -> None:
    posed = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, flat, 0.0]])
    moved = posed + torch.tensor([0.1, 0.2, 0.3])
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    offset, _ = surface_offset(points, posed, moved, torch.tensor([[0, 1, 2]]))
    assert torch.allclose(offset, torch.tensor([0.1, 0.2, 0.3]).expand(50, 3), atol=1e-6)


def test_a_rigid_motion_of_the_mesh_moves_all_of_space(flame: Flame) -> None:
    posed = flame.canonical()[flame.simple_vertices[:, 0]]
    turn = rotation_matrices(torch.tensor([0.1, 0.3, -0.2]))
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    offset, distance = surface_offset(points, posed, posed @ turn.T, flame.simple_faces)
    assert torch.allclose(points + offset, points @ turn.T, atol=1e-3)
    assert (distance >= 0).all()


def test_neck_field_parity() -> None:
    stored = read_fixture(PARITY / "psi_v2_posed.npz")
    grids = [torch.from_numpy(stored[name].values)[None] for name in NECK_GRIDS]
    field = NeckField(*grids)
    points = NumberRule().tensor("deform_points", (1, 4096, 3), 0.35)
    wanted = stored["points_out"].values
    places = kept_places(points.numel(), len(wanted))
    before, found = (array.numpy().ravel()[places] for array in (points, field(points)))
    assert relative_error(found - before, wanted - before) < 1e-5


def test_neck_field_takes_the_head_back(flame: Flame) -> None:
    rest = [torch.zeros(1, size) for size in (300, 100)]
    pose = torch.tensor([[0.1, 0.3, 0.05, 0.1, 0.0, 0.0]])
    posed = flame.vertices(*rest, pose, torch.zeros(1, 6))
    unposed = flame.vertices(*rest, pose * torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(1, 6))
    field = NeckField.between(flame.simplified(posed), flame.simplified(unposed), flame.simple_faces)
    face = flame.head.regions["face"]

    def distance(vertices: torch.Tensor) -> torch.Tensor:
        return (vertices[0, face] - unposed[0, face]).norm(dim=1).mean()

    assert distance(field(posed)) < 0.05 * distance(posed)
    still = NeckField.between(flame.simplified(posed), flame.simplified(posed), flame.simple_faces)
    assert (still(posed) - posed).abs().max() < 1e-5


def some_labels() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    shape = 0.5 * torch.randn(2, 300, generator=draw)
    expression = torch.randn(2, 100, generator=draw)
    jaw = torch.tensor([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    eyes = 0.1 * torch.randn(2, 6, generator=draw)
    return [shape, expression, jaw, eyes]


def test_part_deformation_brings_vertices_to_the_canonical_head(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    whole, mouth = deformation.meshes(*labels)
    exact = deformation.exact(*labels)
    for part, region, mesh in (("eyes", "eyes", whole), ("face", "face", whole), ("mouth", "lips", mouth)):
        index = torch.as_tensor(flame.head.regions[region])
        error = exact(mesh[:, index], part) - deformation.canonical_V3[index]
        assert error.abs().max() < 1e-3, part


def test_part_deformation_against_a_loop(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    whole, _ = deformation.meshes(*labels)
    mesh = whole.double().numpy()
    points = torch.rand(2, 20, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    found = deformation.exact(*labels)(points, "face").numpy()
    canonical = deformation.canonical_V3.double().numpy()
    region = flame.head.regions["face"]
    for b in range(2):
        for i, point in enumerate(points[b].double().numpy()):
            distance2 = ((mesh[b] - point) ** 2).sum(1)
            nearest = region[distance2[region].argmin()]
            around = [n for n in flame.head.neighbours[nearest] if n < len(canonical)]
            weights = 1 / (distance2[around] + 1e-10)
            motions = canonical[around] - mesh[b, around]
            moved = point + weights @ motions / weights.sum()
            assert np.abs(found[b, i] - moved).max() < 1e-4


def test_grids_approach_the_exact_deformation(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    whole, _ = deformation.meshes(*labels)
    points = whole[:, torch.as_tensor(flame.head.regions["face"])]
    exact = deformation.exact(*labels)(points, "face")
    moved = (exact - points).norm(dim=2).mean()
    errors = []
    for cells in (8, 16, 32):
        found = deformation.grids(*labels, cells)(points, "face")
        errors.append((found - exact).norm(dim=2).mean())
    assert errors[2] < errors[1] < errors[0] < moved
    assert errors[1] < 0.4 * moved


def test_stored_offsets_are_as_good_as_new(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    grids = deformation.grids(*labels, 8)
    points = torch.rand(1, 50, 3) - 0.5
    for part in PARTS:
        again = deformation.from_offsets(grids.offsets_BP3GGG[1:])(points, part)
        assert torch.allclose(again[0], grids(points.expand(2, -1, -1), part)[1], atol=1e-6)
