"""Closest triangles and vertices against brute force in double precision.

Also the neck field, and GenHead's deformation.
"""

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

    Its cases are written apart from the ones under test.
    """
    points, corners = points_N3.astype(np.float64)[:, None], corners_F33.astype(np.float64)
    best = np.full((len(points_N3), len(corners)), np.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        edge, to_point = corners[:, b] - corners[:, a], points - corners[:, a]
        length = (edge**2).sum(-1)
        t = np.clip((to_point * edge).sum(-1) / np.where(length == 0, 1, length), 0, 1)
        best = np.minimum(best, ((to_point - t[..., None] * edge) ** 2).sum(-1))
    first, second, to_point = (
        corners[:, 1] - corners[:, 0],
        corners[:, 2] - corners[:, 0],
        points - corners[:, 0],
    )
    normal = np.cross(first, second)
    area2 = np.where(
        (normal**2).sum(-1) == 0, np.nan, (normal**2).sum(-1)
    )  # no number: such a triangle has no inside
    u, v = (
        (np.cross(to_point, second) * normal).sum(-1) / area2,
        (np.cross(first, to_point) * normal).sum(-1) / area2,
    )
    return np.where((u >= 0) & (v >= 0) & (u + v <= 1), (to_point * normal).sum(-1) ** 2 / area2, best)


def a_mesh(draw: np.random.Generator, thin: float) -> tuple[np.ndarray, np.ndarray]:
    """Random triangles, and degenerate ones.

    These have two corners or all in one place, three on a line, or nearly so by `thin`; one occurs twice.
    """
    vertices = draw.normal(size=(60, 3)).astype(np.float32)
    faces = draw.integers(30, size=(70, 3))
    faces[:4, 2] = faces[:4, 1]
    faces[4:6] = faces[4:6, :1]
    for face in faces[6:16]:
        face[2] = 30 + face[0]
        along = draw.uniform(-0.5, 1.5)
        vertices[face[2]] = (
            (1 - along) * vertices[face[0]] + along * vertices[face[1]] + thin * draw.normal(size=3)
        )
    faces[16] = faces[17]
    vertices[faces[18, 1]] = vertices[faces[18, 0]]  # two vertices in one place
    return vertices, faces


@pytest.mark.parametrize(
    ("thin", "bound"), [(0.0, 3e-5), (1e-6, 3e-5), (1e-5, 1e-4), (1e-4, 1e-3), (1e-3, 1e-3)]
)
@pytest.mark.parametrize("seed", range(3))
def test_closest_triangle_against_brute_force(seed: int, thin: float, bound: float) -> None:
    draw = np.random.default_rng(seed)
    vertices, faces = a_mesh(draw, thin)
    corners = vertices[faces]
    shares = draw.dirichlet([1, 1, 1], len(faces))
    on_edges, on_faces = corners[:, 0] * 0.25 + corners[:, 1] * 0.75, (corners * shares[..., None]).sum(1)
    apart = [
        draw.normal(size=(150, 3)),
        20 * draw.normal(size=(20, 3)),
        on_faces + 1e-3 * draw.normal(size=on_faces.shape),
    ]
    points = np.concatenate([vertices, on_edges, on_faces, *apart]).astype(np.float32)
    face, weights, distance2 = closest_on_mesh(*(torch.from_numpy(a) for a in (points, vertices, faces)))
    wanted = np.sqrt(squared_distances(points, corners).min(1))
    scale = np.maximum(1, wanted)
    assert (
        np.abs(np.sqrt(distance2.numpy()) - wanted) / scale
    ).max() < bound  # 3e-5: the root of what rounding leaves of zero
    foot = (corners[face].astype(np.float64) * weights.double().numpy()[..., None]).sum(1)
    assert (np.abs(np.linalg.norm(points - foot, axis=1) - wanted) / scale).max() < 2 * bound
    assert (weights >= 0).all() and (weights.sum(1) - 1).abs().max() < bound
    assert (face != 17).all()  # of two equal ones the first


@pytest.mark.parametrize("count", [1, 10])
def test_nearest_vertices_against_brute_force(count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    vertices = torch.randn(2, 200, 3, generator=draw)
    vertices[:, 100:120] = vertices[:, :20]  # two in one place
    points = torch.cat(
        [
            torch.randn(2, 300, 3, generator=draw),
            vertices[:, :50],
            10 * torch.randn(2, 20, 3, generator=draw),
        ],
        1,
    )
    distance2 = torch.cdist(points.double(), vertices.double()).square()
    found = nearest_vertices(points, vertices, count)
    assert found.shape == (2, 370, count) and (found.sort(-1).values.diff(dim=-1) > 0).all()
    near = distance2.gather(2, found)
    scale = distance2.amax(-1, keepdim=True).clamp_min(1)
    assert ((near - distance2.topk(count, largest=False).values).abs() < 1e-6 * scale).all()


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
    field = NeckField(*(torch.from_numpy(stored[name].values)[None] for name in NECK_GRIDS))
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
    before, after = ((a[0, face] - unposed[0, face]).norm(dim=1).mean() for a in (posed, field(posed)))
    assert after < 0.05 * before
    still = NeckField.between(flame.simplified(posed), flame.simplified(posed), flame.simple_faces)
    assert (still(posed) - posed).abs().max() < 1e-5


def some_labels() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    shape, expression = 0.5 * torch.randn(2, 300, generator=draw), torch.randn(2, 100, generator=draw)
    return [
        shape,
        expression,
        torch.tensor([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        0.1 * torch.randn(2, 6, generator=draw),
    ]


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
    errors = [
        (deformation.grids(*labels, cells)(points, "face") - exact(points, "face")).norm(dim=2).mean()
        for cells in (8, 16, 32)
    ]
    assert errors[2] < errors[1] < errors[0] < moved and errors[1] < 0.4 * moved


def test_stored_offsets_are_as_good_as_new(flame: Flame) -> None:
    deformation, labels = PartDeformation(flame), some_labels()
    grids = deformation.grids(*labels, 8)
    points = torch.rand(1, 50, 3) - 0.5
    for part in PARTS:
        again = deformation.from_offsets(grids.offsets_BP3GGG[1:])(points, part)
        assert torch.allclose(again[0], grids(points.expand(2, -1, -1), part)[1], atol=1e-6)
