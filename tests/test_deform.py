"""Closest triangles and vertices against brute force in double precision, the neck field, and GenHead's deformation."""

import numpy as np
import pytest
import torch

from model.deform import PARTS, NeckField, PartDeformation, closest_on_mesh, nearest_vertices, surface_offset
from model.flame import Flame, rotation_matrices
from pipeline.head_model import standin
from tests.number_rule import error, fixture, needs_reference, unit


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin())


def brute_force(point: np.ndarray, corners: np.ndarray) -> float:
    """Squared distance of a point to a triangle in double precision, by cases written apart from the ones under test."""
    best = np.inf
    for a, b in ((0, 1), (1, 2), (2, 0)):
        edge = corners[b] - corners[a]
        length = edge @ edge
        t = 0.0 if length == 0 else np.clip((point - corners[a]) @ edge / length, 0, 1)
        best = min(best, ((point - corners[a] - t * edge) ** 2).sum())
    system = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
    solution, _, rank, _ = np.linalg.lstsq(system, point - corners[0], rcond=1e-12)
    if rank == 2 and solution.min() >= 0 and solution.sum() <= 1:
        best = min(best, ((point - corners[0] - system @ solution) ** 2).sum())
    return best


@pytest.mark.parametrize("seed", range(3))
def test_closest_triangle_against_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    vertices = draw.normal(size=(40, 3)).astype(np.float32)
    faces = draw.integers(40, size=(60, 3))
    faces[:4, 2] = faces[:4, 1]  # without area: an edge
    faces[4] = faces[4, 0]  # a point
    faces[5] = faces[6]  # the same triangle twice: the first counts
    points = np.concatenate([draw.normal(size=(60, 3)), vertices[:5], vertices[faces[10:15]].mean(1)]).astype(np.float32)
    face, weights, distance = closest_on_mesh(*(torch.from_numpy(a) for a in (points, vertices, faces)))
    corners = vertices[faces].astype(np.float64)
    all_distances = np.array([[brute_force(p, c) for c in corners] for p in points.astype(np.float64)])
    assert np.abs(distance.numpy() - all_distances.min(1)).max() < 1e-5
    assert (face != 6).all()
    assert (weights >= 0).all() and torch.allclose(weights.sum(1), torch.ones(len(points)), atol=1e-5)
    foot = (corners[face] * weights.double().numpy()[..., None]).sum(1)
    assert np.abs(((points - foot) ** 2).sum(1) - all_distances.min(1)).max() < 1e-5


def test_nearest_vertices_against_brute_force() -> None:
    draw = torch.Generator().manual_seed(0)
    points, vertices = torch.randn(2, 300, 3, generator=draw), torch.randn(2, 200, 3, generator=draw)
    distance = torch.cdist(points.double(), vertices.double())
    wanted = distance.topk(10, largest=False).values
    assert torch.allclose(distance.gather(2, nearest_vertices(points, vertices, 10)), wanted, atol=1e-6)
    assert torch.allclose(distance.gather(2, nearest_vertices(points, vertices, 1)), wanted[..., :1], atol=1e-6)


def test_a_rigid_motion_of_the_mesh_moves_all_of_space(flame: Flame) -> None:
    posed = flame.canonical()[flame.simple_vertices[:, 0]]
    turn = rotation_matrices(torch.tensor([0.1, 0.3, -0.2]))
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    offset, distance = surface_offset(points, posed, posed @ turn.T, flame.simple_faces)
    assert torch.allclose(points + offset, points @ turn.T, atol=1e-3)
    assert (distance >= 0).all()


@needs_reference
def test_neck_field_parity() -> None:
    wanted = fixture("psi_v2_posed")
    field = NeckField(*(torch.from_numpy(wanted[key])[None] for key in ("grid24_offset", "grid24_dist2", "grid8_offset")))
    points = torch.from_numpy(0.35 * unit("input:deform_points", (1, 4096, 3)))
    assert error(field(points)[0], wanted["points_out"]) < 1e-6
    assert error(field(points)[0] - points[0], wanted["points_out"] - points[0].numpy()) < 1e-5


def test_neck_field_takes_the_head_back(flame: Flame) -> None:
    rest = [torch.zeros(1, size) for size in (300, 100)]
    pose = torch.tensor([[0.1, 0.3, 0.05, 0.1, 0.0, 0.0]])
    posed = flame.vertices(*rest, pose, torch.zeros(1, 6))
    unposed = flame.vertices(*rest, pose * torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(1, 6))
    field = NeckField.between(flame.simplified(posed), flame.simplified(unposed), flame.simple_faces)
    face = flame.head.regions["face"]
    before, after = ((a[0, face] - unposed[0, face]).norm(dim=1).mean() for a in (posed, field(posed)))
    assert after < 0.05 * before
    still = NeckField.between(flame.simplified(posed), flame.simplified(posed), flame.simple_faces)
    assert (still(posed) - posed).abs().max() < 1e-5


def some_labels() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    shape, expression = 0.5 * torch.randn(2, 300, generator=draw), torch.randn(2, 100, generator=draw)
    return [shape, expression, torch.tensor([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0]]), 0.1 * torch.randn(2, 6, generator=draw)]


def test_part_deformation_brings_vertices_to_the_canonical_head(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    whole, mouth = deformation.meshes(*labels)
    exact = deformation.exact(*labels)
    for part, region, mesh in (("eyes", "eyes", whole), ("face", "face", whole), ("mouth", "lips", mouth)):
        index = torch.as_tensor(flame.head.regions[region])
        assert (exact(mesh[:, index], part) - deformation.canonical_V3[index]).abs().max() < 1e-3, part


def test_part_deformation_against_a_loop(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    mesh = deformation.meshes(*labels)[0].double().numpy()
    points = torch.rand(2, 20, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    found = deformation.exact(*labels)(points, "face").numpy()
    canonical, region = deformation.canonical_V3.double().numpy(), flame.head.regions["face"]
    for b in range(2):
        for i, point in enumerate(points[b].double().numpy()):
            nearest = region[((mesh[b, region] - point) ** 2).sum(1).argmin()]
            around = [n for n in flame.head.neighbours[nearest] if n < len(canonical)]
            weights = 1 / (((mesh[b, around] - point) ** 2).sum(1) + 1e-10)
            moved = point + ((canonical[around] - mesh[b, around]) * weights[:, None]).sum(0) / weights.sum()
            assert np.abs(found[b, i] - moved).max() < 1e-4


def test_grids_approach_the_exact_deformation(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    exact, whole = deformation.exact(*labels), deformation.meshes(*labels)[0]
    points = whole[:, torch.as_tensor(flame.head.regions["face"])]
    moved = (exact(points, "face") - points).norm(dim=2).mean()
    errors = [(deformation.grids(*labels, cells)(points, "face") - exact(points, "face")).norm(dim=2).mean() for cells in (8, 16, 32)]
    assert errors[2] < errors[1] < errors[0] < moved and errors[1] < 0.4 * moved


def test_stored_offsets_are_as_good_as_new(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    grids = deformation.grids(*labels, 8)
    points = torch.rand(1, 50, 3) - 0.5
    for part in PARTS:
        again = deformation.from_offsets(grids.offsets_BP3GGG[1:])(points, part)
        assert torch.allclose(again[0], grids(points.expand(2, -1, -1), part)[1], atol=1e-6)
