"""Fitting the head model to landmarks (facts 5.3): shape, expression, head rotation, jaw, eyes and camera of many faces at once.

Damped Gauss-Newton instead of thousands of gradient steps: the landmarks depend on a few hundred numbers per face, and the derivatives
are cheap (`pipeline.fit_flame.landmark_model`). A portrait is a person with one frame; a clip is a person with many: one shape, and rotation,
jaw, translation and expression that change smoothly (their second differences are small).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.head.flame import HeadModel, rotation_matrices
from model.head.label import Label, join
from pipeline.config.params import FitFlame
from pipeline.core.progress import progress
from pipeline.fit_flame.landmark_model import EYES, JAW, POSE, ROTATION, TRANSLATION, LandmarkModel
from pipeline.geometry.camera import FOCAL, INTRINSICS
from pipeline.geometry.landmarks import CONTOUR, MOUTH, PUPILS, interocular

CHUNK = 96  # frames solved together: bounds memory, and small enough for the processor's cache
CORNERS = [36, 39, 42, 45]
LIDS = [(37, 41), (38, 40), (43, 47), (44, 46)]  # upper and lower
LIPS = [(61, 67), (62, 66), (63, 65)]
JAW_LIMITS = (
    (-0.1, -0.15, -0.05),
    (0.7, 0.15, 0.05),
)  # radians: opens about x, hardly turns about the others
EYE_LIMIT = 0.8
# Priors keep directions still that landmarks hardly see: weights of squared radians against squared interocular distances.
JAW_PRIOR = (1e-3, 0.3, 1.0)
EYE_PRIOR = (1e-2, 1e-2, 1.0)
SMOOTH_POSE = (
    (1.0,) * 3 + (0.1,) * 3 + (0.0,) * 3 + (1.0,) * 3
)  # relative to temporal_weight; eyes jump and are left alone
SMOOTH_EXPRESSION = 0.002
CONJUGATE_STEPS = 6
TOLERANCE = 1.0  # sum of squared residuals from which on a frame counts less (Cauchy): a wrong one must not bend the shape of its clip


@dataclass(frozen=True)
class Fit:
    """What was found of N frames."""

    labels: np.ndarray  # (N, 437) float32 (facts 5.4); the camera holds the whole head rotation
    points: np.ndarray  # (N, 70, 2) landmarks of the fitted heads, image fractions
    errors: (
        np.ndarray
    )  # (N,) mean distance of the landmarks in the image over the distance between the eye centres


def fit(head: HeadModel, points_N70x2: np.ndarray, persons: list[str], settings: FitFlame) -> Fit:
    """Fit `head` to landmarks in image fractions (y down). Frames of a person must follow one another, in the order of time.

    Every person is solved apart from the others, so that a result does not depend on who else is in the data. Raises ValueError
    when `persons` has another length than the points or comes back to a person it had left.
    """
    model = LandmarkModel(head)
    ranges = chunks(persons, len(points_N70x2))

    def solve(bounds: tuple[int, int]) -> Fit:
        rows = slice(*bounds)
        return fit_chunk(model, points_N70x2[rows], persons[rows], settings)

    # Many small products: threads that share one of them wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            solved = list(progress(pool.map(solve, ranges), total=len(ranges), label="fit_flame"))
    finally:
        torch.set_num_threads(threads)
    return Fit(
        *(np.concatenate([getattr(one, name) for one in solved]) for name in ("labels", "points", "errors"))
    )


def fit_chunk(model: LandmarkModel, points_N70x2: np.ndarray, persons: list[str], settings: FitFlame) -> Fit:
    """Fit frames that are solved together (see `chunks`), with one thread of torch: with more, the last bits are others."""
    problem = _Problem(model, points_N70x2, persons, settings)
    problem.solve(settings.camera_steps, settings.steps)
    fitted = problem.project()
    distances = np.linalg.norm(fitted - points_N70x2, axis=-1)
    return Fit(problem.labels(), fitted, distances.mean(1) / interocular(np.asarray(points_N70x2)))


def chunks(persons: list[str], count: int) -> list[tuple[int, int]]:
    """Ranges of whole persons of about CHUNK frames."""
    if len(persons) != count:
        raise ValueError(f"{count} frames, but persons are given for {len(persons)}")
    starts = [i for i in range(count) if i == 0 or persons[i] != persons[i - 1]]
    if len({persons[i] for i in starts}) != len(starts):
        raise ValueError("the frames of a person must follow one another")
    ranges, first = [], 0
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        if stop - first > CHUNK and start > first:
            ranges.append((first, start))
            first = start
    return [*ranges, (first, count)] if count else []


def _rows() -> Tensor:
    """Weighted rows (R, 70) that turn landmark differences into residuals: each landmark, then openings of lids and lips, then gaze."""
    weights = torch.ones(70, dtype=torch.float64)
    weights[CONTOUR] = 0.4  # an outline slides over the head when it turns
    weights[CORNERS] = 1.5
    weights[MOUTH] = 1.5
    rows = [torch.diag(weights)]
    for pairs, weight in ((LIDS, 2.0), (LIPS, 2.0)):
        for upper, lower in pairs:
            row = torch.zeros(1, 70, dtype=torch.float64)
            row[0, upper], row[0, lower] = weight, -weight
            rows.append(row)
    for pupil, corners in ((PUPILS.start, CORNERS[:2]), (PUPILS.start + 1, CORNERS[2:])):
        row = torch.zeros(1, 70, dtype=torch.float64)
        row[0, pupil], row[0, corners] = 2.0, -1.0
        rows.append(row)
    return torch.cat(rows)


class _Problem:
    """The least-squares problem of F frames of G persons. Unknown: shape (G, s) and, of each frame, expression and pose (F, e + 12)."""

    def __init__(
        self, model: LandmarkModel, points: np.ndarray, persons: list[str], settings: FitFlame
    ) -> None:
        self.model = model
        self.target = torch.as_tensor(np.asarray(points, np.float64))
        first = [i == 0 or persons[i] != persons[i - 1] for i in range(len(persons))]
        self.person = torch.as_tensor(np.cumsum(first) - 1)
        self.count = int(self.person[-1]) + 1
        self.rows = _rows()
        self.scale = 1 / torch.as_tensor(interocular(np.asarray(points, np.float64)))
        self.s, self.e = model.shapes, model.expressions
        self.shape = torch.zeros(self.count, self.s, dtype=torch.float64)
        self.frame = torch.zeros(len(points), self.e + POSE, dtype=torch.float64)
        self.frame[:, self.e :] = _start(model, self.target)
        # Errors of the landmarks are much the same in all frames of a person: more frames are no reason to trust them more.
        frames = torch.bincount(self.person, minlength=self.count).double()
        self.shape_weight = (settings.shape_weight * frames)[:, None]  # (G, 1)
        priors = [
            *[settings.expression_weight] * self.e,
            0.0,
            0.0,
            0.0,
            *JAW_PRIOR,
            *EYE_PRIOR,
            0.0,
            0.0,
            0.0,
        ]
        self.prior = torch.tensor(priors, dtype=torch.float64)
        smooth = torch.tensor([SMOOTH_EXPRESSION] * self.e + list(SMOOTH_POSE), dtype=torch.float64)
        self.smooth = settings.temporal_weight * smooth
        # Middle frames of three that belong to one person.
        self.middle = torch.tensor(
            [i for i in range(1, len(first) - 1) if not first[i] and not first[i + 1]], dtype=torch.int64
        )
        self.diagonal = torch.zeros(len(first), dtype=torch.float64)
        for shift, square in ((-1, 1.0), (0, 4.0), (1, 1.0)):
            self.diagonal.index_add_(
                0, self.middle + shift, torch.full((len(self.middle),), square, dtype=torch.float64)
            )

    def solve(self, camera_steps: int, steps: int) -> None:
        """First the camera alone, then everything."""
        for _ in range(camera_steps):
            self._step_camera()
        damping = torch.full((self.count,), 1e-3, dtype=torch.float64)
        cost = self._cost(self.shape, self.frame)
        for _ in range(steps):
            shape, frame = self._step(damping)
            trial = self._cost(shape, frame)
            better = trial < cost
            self.shape = torch.where(better[:, None], shape, self.shape)
            self.frame = torch.where(better[self.person, None], frame, self.frame)
            cost = torch.where(better, trial, cost)
            damping = torch.where(better, damping / 4, damping * 8).clamp(1e-8, 1e6)

    def _residuals(self, uv: Tensor) -> Tensor:
        return self.rows @ ((uv - self.target) * self.scale[:, None, None])

    def _coefficients(self, shape: Tensor, frame: Tensor) -> Tensor:
        return torch.cat([shape[self.person], frame[:, : self.e]], dim=1)

    def _bends(self, frame: Tensor) -> Tensor:
        """Second differences in time, (M, e + 12)."""
        return frame[self.middle - 1] - 2 * frame[self.middle] + frame[self.middle + 1]

    def _cost(self, shape: Tensor, frame: Tensor) -> Tensor:
        """What is minimised, of each person, (G,)."""
        uv = self.model.project(self.model.groups(self._coefficients(shape, frame)), frame[:, self.e :])
        data = TOLERANCE * torch.log1p(self._residuals(uv).square().sum((1, 2)) / TOLERANCE)
        cost = (self.shape_weight * shape.square()).sum(1)
        cost = cost.index_add(0, self.person, data + (self.prior * frame.square()).sum(1))
        return cost.index_add(0, self.person[self.middle], (self.smooth * self._bends(frame).square()).sum(1))

    def _step_camera(self) -> None:
        pose = self.frame[:, self.e :]
        uv, by = self.model.by_pose(self.model.groups(self._coefficients(self.shape, self.frame)), pose)
        by = self._weigh(torch.cat([by[..., ROTATION], by[..., TRANSLATION]], dim=-1))
        normal = by.mT @ by
        normal = normal + 1e-6 * torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
        step = torch.linalg.solve(normal, by.mT @ self._residuals(uv).flatten(1)[..., None])[..., 0]
        pose[:, ROTATION] -= step[:, :3]
        pose[:, TRANSLATION] -= step[:, 3:]

    def _weigh(self, by: Tensor) -> Tensor:
        """Derivatives of the landmarks (F, 70, 2, k) to those of the residuals (F, 2R, k)."""
        return (
            (self.rows.to(by.dtype) @ (by.flatten(2) * self.scale[:, None, None].to(by.dtype)))
            .unflatten(2, (2, -1))
            .flatten(1, 2)
        )

    def _normal(self) -> tuple[Tensor, Tensor]:
        """Products of the derivatives with themselves, (F, n, n), and with the residuals, (F, n); n = s + e + 12. Multiplied in float32.

        Each frame is weighted as the logarithm in `_cost` wants it (iteratively reweighted least squares).
        """
        pose = self.frame[:, self.e :]
        groups = self.model.groups(self._coefficients(self.shape, self.frame))
        uv, by_pose = self.model.by_pose(groups, pose)
        by = self._weigh(torch.cat([self.model.by_coefficients(groups, pose), by_pose.float()], dim=-1))
        residuals = self._residuals(uv).flatten(1)
        weight = 1 / (1 + residuals.square().sum(1) / TOLERANCE)
        return weight[:, None, None] * (by.mT @ by), weight[:, None] * (by.mT @ residuals[..., None].float())[
            ..., 0
        ]

    def _step(self, damping: Tensor) -> tuple[Tensor, Tensor]:
        """A damped Gauss-Newton step: shapes and frames to try."""
        normal, slope = self._normal()
        shapes = _add_up(normal[:, : self.s, : self.s], self.person, self.count)
        frames = normal[:, self.s :, self.s :]
        mixed = normal[:, : self.s, self.s :].contiguous()  # (F, s, e + 12)
        smoothing = self.diagonal[:, None] * self.smooth
        shape_diagonal = shapes.diagonal(dim1=1, dim2=2) + self.shape_weight
        frame_diagonal = frames.diagonal(dim1=1, dim2=2) + self.prior + smoothing
        shapes = shapes + torch.diag_embed(self.shape_weight + damping[:, None] * shape_diagonal)
        damped = self.prior + damping[self.person, None] * frame_diagonal
        right_shape = -_add_up(slope[:, : self.s], self.person, self.count) - self.shape_weight * self.shape
        right_frame = -slope[:, self.s :] - self.prior * self.frame - self._unbend(self._bends(self.frame))
        eliminate = _Elimination(shapes, frames + torch.diag_embed(damped + smoothing), mixed, self.person)
        frames = frames + torch.diag_embed(damped)

        def times(shape: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
            cross = _add_up((mixed @ frame[..., None])[..., 0], self.person, self.count)
            return (shapes @ shape[..., None])[..., 0] + cross, (
                (frames @ frame[..., None])[..., 0]
                + (mixed.mT @ shape[self.person, :, None])[..., 0]
                + self._unbend(self._bends(frame))
            )

        step = eliminate(right_shape, right_frame)
        if len(self.middle):  # else the elimination was exact
            step = self._conjugate_gradients(times, eliminate, (right_shape, right_frame), step)
        return self.shape + step[0], self._limit(self.frame + step[1])

    def _unbend(self, bends: Tensor) -> Tensor:
        """The transpose of `_bends`, weighted: from second differences back to frames."""
        bends = self.smooth * bends
        out = torch.zeros_like(self.frame)
        for shift, factor in ((-1, 1.0), (0, -2.0), (1, 1.0)):
            out.index_add_(0, self.middle + shift, factor * bends)
        return out

    def _dot(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        return (a[0] * b[0]).sum(1).index_add(0, self.person, (a[1] * b[1]).sum(1))

    def _conjugate_gradients(self, times, precondition, right, start):  # type: ignore[no-untyped-def]
        """Solve for all persons at once, each with its own step lengths: the bonds between neighbouring frames are left to iteration."""

        def along(
            x: tuple[Tensor, Tensor], factor: Tensor, direction: tuple[Tensor, Tensor]
        ) -> tuple[Tensor, Tensor]:
            return x[0] + factor[:, None] * direction[0], x[1] + factor[self.person, None] * direction[1]

        x = start
        rest = along(right, -torch.ones(self.count, dtype=torch.float64), times(*x))
        direction = precondition(*rest)
        power = self._dot(rest, direction)
        for _ in range(CONJUGATE_STEPS):
            turned = times(*direction)
            length = power / self._dot(direction, turned).clamp(min=1e-300)
            x = along(x, length, direction)
            rest = along(rest, -length, turned)
            conditioned = precondition(*rest)
            fresh = self._dot(rest, conditioned)
            direction = along(conditioned, fresh / power.clamp(min=1e-300), direction)
            power = fresh
        return x

    def _limit(self, frame: Tensor) -> Tensor:
        low, high = frame.new_tensor(JAW_LIMITS)
        pose = frame[:, self.e :]
        pose[:, JAW] = pose[:, JAW].clamp(low, high)
        pose[:, EYES] = pose[:, EYES].clamp(-EYE_LIMIT, EYE_LIMIT)
        return frame

    def project(self) -> np.ndarray:
        """Fitted landmarks, (F, 70, 2)."""
        return self.model.project(
            self.model.groups(self._coefficients(self.shape, self.frame)), self.frame[:, self.e :]
        ).numpy()

    def labels(self) -> np.ndarray:
        """(F, 437) float32."""
        pose = self.frame[:, self.e :].numpy()
        rotations = rotation_matrices(self.frame[:, self.e :][:, ROTATION]).numpy()
        cam2world = np.tile(np.eye(4), (len(pose), 1, 1))
        cam2world[:, :3, :3] = rotations.transpose(0, 2, 1)
        cam2world[:, :3, 3] = -np.einsum("fij,fi->fj", rotations, pose[:, TRANSLATION])
        shape = self.shape[self.person].numpy() @ self.model.shape_basis.T
        expression = self.frame[:, : self.e].numpy() @ self.model.expression_basis.T
        intrinsics = np.tile(INTRINSICS.reshape(1, 9), (len(pose), 1))
        label = Label(
            camera=join(cam2world.reshape(-1, 16), intrinsics),
            shape=shape,
            expression=expression,
            neck=pose[:, ROTATION],
            jaw=pose[:, JAW],
            eyes=join(pose[:, EYES], pose[:, EYES]),
        )
        return label.pack().astype(np.float32)


class _Elimination:
    """Solves the normal equations without the bonds in time: frames are eliminated, what is left is one small system per person."""

    def __init__(self, shapes_Gss: Tensor, frames_Fxx: Tensor, mixed_Fsx: Tensor, person: Tensor) -> None:
        self.person, self.mixed = person, mixed_Fsx
        self.frames = torch.linalg.cholesky(frames_Fxx)
        self.solved = torch.cholesky_solve(mixed_Fsx.mT, self.frames)  # (F, x, s)
        self.shapes = torch.linalg.cholesky(
            shapes_Gss - _add_up(mixed_Fsx @ self.solved, person, len(shapes_Gss))
        )

    def __call__(self, shape: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """The solution (G, s), (F, x) for this right-hand side."""
        reduced = shape - _add_up((self.solved.mT @ frame[..., None])[..., 0], self.person, len(shape))
        shape = torch.cholesky_solve(reduced[..., None], self.shapes)[..., 0]
        alone = torch.cholesky_solve(frame[..., None], self.frames)[..., 0]
        return shape, alone - (self.solved @ shape[self.person, :, None])[..., 0]


def _add_up(values: Tensor, person: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, person, values)


def _start(model: LandmarkModel, target: Tensor) -> Tensor:
    """Poses (F, 12) from the mean head: the best affine map to the image, its nearest rotation, and the distance that gives its size."""
    inner = slice(CONTOUR.stop, None)
    zero = torch.zeros(1, model.shapes + model.expressions, dtype=torch.float64)
    points = model.points(model.groups(zero), torch.zeros(1, POSE, dtype=torch.float64))[0, inner]
    flipped = (target[:, inner] - 0.5) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    middle = points.mean(0)
    affine = (torch.linalg.pinv(points - middle) @ (flipped - flipped.mean(1, keepdim=True))).mT  # (F, 2, 3)
    left, strengths, right = torch.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    rotation = torch.cat([rows, torch.linalg.cross(rows[:, 0], rows[:, 1])[:, None]], dim=1)
    distance = FOCAL / strengths.mean(1)
    across = flipped.mean(1) * distance[:, None] / FOCAL
    place = torch.cat([across, -distance[:, None]], dim=1) - (rotation @ middle)
    pose = torch.zeros(len(target), POSE, dtype=torch.float64)
    pose[:, ROTATION] = _axis_angle(rotation)
    pose[:, TRANSLATION] = place
    return pose


def _axis_angle(rotation_F33: Tensor) -> Tensor:
    """Axis-angle vectors (F, 3) of rotations by less than pi."""
    skew = rotation_F33 - rotation_F33.mT
    axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=1) / 2
    sine, cosine = axis.norm(dim=1), (rotation_F33.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    return axis * (torch.atan2(sine, cosine) / sine.clamp(min=1e-9))[:, None]
