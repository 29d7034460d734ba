"""The least-squares problem of fitting a head model to landmarks, solved by damped Gauss-Newton steps.

What is minimised, of each person: robust squares of the weighted landmark differences, in interocular
distances; priors on shape, expression, jaw and eyes; squares of second differences in time.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from model.head.flame import rotation_matrices
from model.head.label import Label, join
from pipeline.config.params import FitFlame
from pipeline.fit_flame.landmark_model import EYES, JAW, POSE, ROTATION, TRANSLATION, LandmarkModel
from pipeline.fit_flame.normal_equations import Elimination, Unknowns, add_up, apply, conjugate_gradients
from pipeline.geometry.camera import FOCAL, INTRINSICS
from pipeline.geometry.landmarks import CONTOUR, MOUTH, PUPILS, interocular
from pipeline.geometry.rotations import rotation_vectors

CORNERS = [36, 39, 42, 45]  # landmarks, of both eyes
LIDS = [(37, 41), (38, 40), (43, 47), (44, 46)]  # upper and lower
LIPS = [(61, 67), (62, 66), (63, 65)]
# Radians: a jaw opens about x and hardly turns about the others.
JAW_LIMITS = ((-0.1, -0.15, -0.05), (0.7, 0.15, 0.05))
EYE_LIMIT = 0.8
# Priors keep directions still that landmarks hardly see: weights of squared radians against squared
# interocular distances. Rotation and translation have none.
JAW_PRIOR = (1e-3, 0.3, 1.0)
EYE_PRIOR = (1e-2, 1e-2, 1.0)
NO_PRIOR = (0.0, 0.0, 0.0)
# Relative to temporal_weight: rotation, jaw, eyes, translation. Eyes jump and are left alone.
SMOOTH_POSE = np.repeat([1.0, 0.1, 0.0, 1.0], 3)
SMOOTH_EXPRESSION = 0.002
# Sum of squared residuals from which on a frame counts less (Cauchy): a wrong one must not bend the shape of
# its clip.
TOLERANCE = 1.0
FIRST_DAMPING = 1e-3


class Problem:
    """F frames of G persons. Unknown: shape (G, s) and, of each frame, expression and pose (F, e + 12)."""

    def __init__(
        self,
        model: LandmarkModel,
        points_F702: np.ndarray,
        persons: list[str],
        settings: FitFlame,
    ) -> None:
        self.model = model
        points = np.asarray(points_F702, np.float64)
        self.target = torch.as_tensor(points)
        self.scale = 1 / torch.as_tensor(interocular(points))
        # Where a person begins.
        first = [True]
        for one, next_one in pairwise(persons):
            first.append(one != next_one)
        self.person = torch.as_tensor(np.cumsum(first) - 1)
        self.count = int(self.person[-1]) + 1
        self.rows = _rows()
        self.s, self.e = model.shapes, model.expressions
        self.shape = torch.zeros(self.count, self.s, dtype=torch.float64)
        self.frame = torch.zeros(len(points), self.e + POSE, dtype=torch.float64)
        self.frame[:, self.e :] = _start(model, self.target)
        # Errors of the landmarks are much the same in all frames of a person: more frames are no reason to
        # trust them more.
        frames = torch.bincount(self.person, minlength=self.count).double()
        self.shape_weight = (settings.shape_weight * frames)[:, None]  # (G, 1)
        expression = [settings.expression_weight] * self.e
        self.prior = torch.tensor(
            [*expression, *NO_PRIOR, *JAW_PRIOR, *EYE_PRIOR, *NO_PRIOR],
            dtype=torch.float64,
        )
        smooth = torch.tensor([*[SMOOTH_EXPRESSION] * self.e, *SMOOTH_POSE], dtype=torch.float64)
        self.smooth = settings.temporal_weight * smooth
        # Second differences are taken at the middle frames of three that belong to one person.
        middle = [i for i in range(1, len(first) - 1) if not first[i] and not first[i + 1]]
        self.middle = torch.tensor(middle, dtype=torch.int64)
        # The diagonal of (1 -2 1)^T (1 -2 1).
        self.diagonal = torch.zeros(len(first), dtype=torch.float64)
        for shift, square in ((-1, 1.0), (0, 4.0), (1, 1.0)):
            squares = torch.full((len(middle),), square, dtype=torch.float64)
            self.diagonal.index_add_(0, self.middle + shift, squares)

    def solve(self, camera_steps: int, steps: int) -> None:
        """First the camera alone, then everything."""
        for _ in range(camera_steps):
            self._step_camera()
        # Levenberg and Marquardt: a step that makes a person's cost larger is not taken, and the next one is
        # shorter.
        damping = torch.full((self.count,), FIRST_DAMPING, dtype=torch.float64)
        cost = self._cost(self.shape, self.frame)
        for _ in range(steps):
            shape, frame = self._step(damping)
            trial = self._cost(shape, frame)
            better = trial < cost
            self.shape = torch.where(better[:, None], shape, self.shape)
            self.frame = torch.where(better[self.person, None], frame, self.frame)
            cost = torch.where(better, trial, cost)
            damping = torch.where(better, damping / 4, damping * 8).clamp(1e-8, 1e6)

    def project(self) -> np.ndarray:
        """Fitted landmarks, (F, 70, 2), image fractions."""
        return self.model.project(self._groups(self.shape, self.frame), self._pose).numpy()

    def labels(self) -> np.ndarray:
        """(F, 437) float32."""
        pose = self._pose.numpy()
        rotations = rotation_matrices(self._pose[:, ROTATION]).numpy()
        # The camera is where x_camera = R x + t has its origin: at -R^T t.
        cam2world = np.tile(np.eye(4), (len(pose), 1, 1))
        cam2world[:, :3, :3] = rotations.transpose(0, 2, 1)
        cam2world[:, :3, 3] = -np.einsum("fij,fi->fj", rotations, pose[:, TRANSLATION])
        intrinsics = np.tile(INTRINSICS.reshape(1, 9), (len(pose), 1))
        label = Label(
            camera=join(cam2world.reshape(-1, 16), intrinsics),
            shape=self.shape[self.person].numpy() @ self.model.shape_basis.T,
            expression=self.frame[:, : self.e].numpy() @ self.model.expression_basis.T,
            neck=pose[:, ROTATION],
            jaw=pose[:, JAW],
            eyes=join(pose[:, EYES], pose[:, EYES]),
        )
        return label.pack().astype(np.float32)

    @property
    def _pose(self) -> Tensor:
        return self.frame[:, self.e :]

    def _groups(self, shape: Tensor, frame: Tensor) -> Tensor:
        coefficients = torch.cat([shape[self.person], frame[:, : self.e]], dim=1)
        return self.model.groups(coefficients)

    def _residuals(self, uv: Tensor) -> Tensor:
        return self.rows @ ((uv - self.target) * self.scale[:, None, None])

    def _bends(self, frame: Tensor) -> Tensor:
        """Second differences in time, (M, e + 12)."""
        before, after = self.middle - 1, self.middle + 1
        return frame[before] - 2 * frame[self.middle] + frame[after]

    def _unbend(self, bends: Tensor) -> Tensor:
        """The transpose of `_bends`, weighted: from second differences back to frames."""
        bends = self.smooth * bends
        out = torch.zeros_like(self.frame)
        for shift, factor in ((-1, 1.0), (0, -2.0), (1, 1.0)):
            out.index_add_(0, self.middle + shift, factor * bends)
        return out

    def _cost(self, shape: Tensor, frame: Tensor) -> Tensor:
        """What is minimised, of each person, (G,)."""
        uv = self.model.project(self._groups(shape, frame), frame[:, self.e :])
        squares = self._residuals(uv).square().sum((1, 2))
        data = TOLERANCE * torch.log1p(squares / TOLERANCE)
        prior = (self.prior * frame.square()).sum(1)
        bending = (self.smooth * self._bends(frame).square()).sum(1)
        cost = (self.shape_weight * shape.square()).sum(1)
        cost = cost.index_add(0, self.person, data + prior)
        return cost.index_add(0, self.person[self.middle], bending)

    def _step_camera(self) -> None:
        """A Gauss-Newton step of rotation and translation, which nothing but the landmarks hold."""
        pose = self._pose
        uv, by = self.model.by_pose(self._groups(self.shape, self.frame), pose)
        by_camera = torch.cat([by[..., ROTATION], by[..., TRANSLATION]], dim=-1)
        by = self._weigh(by_camera)
        normal = by.mT @ by
        normal = normal + 1e-6 * torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
        slope = by.mT @ self._residuals(uv).flatten(1)[..., None]
        step = torch.linalg.solve(normal, slope)[..., 0]
        pose[:, ROTATION] -= step[:, :3]
        pose[:, TRANSLATION] -= step[:, 3:]

    def _weigh(self, by: Tensor) -> Tensor:
        """Derivatives of the landmarks (F, 70, 2, k) to those of the residuals (F, 2R, k)."""
        scaled = by.flatten(2) * self.scale[:, None, None].to(by.dtype)
        weighted = self.rows.to(by.dtype) @ scaled
        return weighted.unflatten(2, (2, -1)).flatten(1, 2)

    def _normal(self) -> Unknowns:
        """Products of the derivatives with themselves, (F, n, n), and with the residuals, (F, n).

        n is s + e + 12.

        Each frame is weighted as the logarithm in `_cost` wants it (iteratively reweighted least squares).
        The products are in float32: they are most of the work, and a step need not be exact.
        """
        pose = self._pose
        groups = self._groups(self.shape, self.frame)
        uv, by_pose = self.model.by_pose(groups, pose)
        by_all = torch.cat([self.model.by_coefficients(groups, pose), by_pose.float()], dim=-1)
        by = self._weigh(by_all)
        residuals = self._residuals(uv).flatten(1)
        weight = 1 / (1 + residuals.square().sum(1) / TOLERANCE)
        normal = weight[:, None, None] * (by.mT @ by)
        slope = weight[:, None] * apply(by.mT, residuals.float())
        return normal, slope

    def _step(self, damping: Tensor) -> Unknowns:
        """A damped Gauss-Newton step: shapes and frames to try."""
        normal, slope = self._normal()
        shapes = add_up(normal[:, : self.s, : self.s], self.person, self.count)
        frames = normal[:, self.s :, self.s :]
        mixed = normal[:, : self.s, self.s :].contiguous()  # (F, s, e + 12)
        # Damping is a share of the diagonal, which makes it independent of the units of the unknowns.
        smoothing = self.diagonal[:, None] * self.smooth
        shape_diagonal = shapes.diagonal(dim1=1, dim2=2) + self.shape_weight
        frame_diagonal = frames.diagonal(dim1=1, dim2=2) + self.prior + smoothing
        shapes = shapes + torch.diag_embed(self.shape_weight + damping[:, None] * shape_diagonal)
        damped = self.prior + damping[self.person, None] * frame_diagonal
        right = self._descent(slope)
        # The preconditioner keeps the diagonal of the bonds in time; `times` has them whole.
        bonded = frames + torch.diag_embed(damped + smoothing)
        eliminate = Elimination(shapes, bonded, mixed, self.person)
        frames = frames + torch.diag_embed(damped)

        def times(shape: Tensor, frame: Tensor) -> Unknowns:
            by_frames = add_up(apply(mixed, frame), self.person, self.count)
            by_shape = apply(mixed.mT, shape[self.person])
            bending = self._unbend(self._bends(frame))
            return apply(shapes, shape) + by_frames, apply(frames, frame) + by_shape + bending

        step = eliminate(*right)
        # Without a person of three frames there are no bonds, and the elimination was exact.
        if len(self.middle):
            step = conjugate_gradients(times, eliminate, right, step, self.person)
        return self.shape + step[0], self._limit(self.frame + step[1])

    def _descent(self, slope: Tensor) -> Unknowns:
        """The right-hand side: minus half the gradient of the cost."""
        shape_slope = add_up(slope[:, : self.s], self.person, self.count)
        shape = -shape_slope - self.shape_weight * self.shape
        bending = self._unbend(self._bends(self.frame))
        frame = -slope[:, self.s :] - self.prior * self.frame - bending
        return shape, frame

    def _limit(self, frame: Tensor) -> Tensor:
        low, high = frame.new_tensor(JAW_LIMITS)
        pose = frame[:, self.e :]
        pose[:, JAW] = pose[:, JAW].clamp(low, high)
        pose[:, EYES] = pose[:, EYES].clamp(-EYE_LIMIT, EYE_LIMIT)
        return frame


def _rows() -> Tensor:
    """Weighted rows (R, 70) that turn landmark differences into residuals.

    They are each landmark, then openings of lids and lips, then gaze: small motions that matter more than
    their length.
    """
    weights = torch.ones(70, dtype=torch.float64)
    # An outline slides over the head when it turns.
    weights[CONTOUR] = 0.4
    weights[CORNERS] = 1.5
    weights[MOUTH] = 1.5
    rows = [torch.diag(weights)]
    for upper, lower in LIDS + LIPS:
        row = torch.zeros(1, 70, dtype=torch.float64)
        row[0, upper] = 2.0
        row[0, lower] = -2.0
        rows.append(row)
    for pupil, corners in ((PUPILS.start, CORNERS[:2]), (PUPILS.start + 1, CORNERS[2:])):
        row = torch.zeros(1, 70, dtype=torch.float64)
        row[0, pupil] = 2.0
        row[0, corners] = -1.0
        rows.append(row)
    return torch.cat(rows)


def _start(model: LandmarkModel, target: Tensor) -> Tensor:
    """Poses (F, 12) from the mean head.

    The best affine map of the head to the image has the nearest rotation, and its size gives the distance.
    """
    inner = slice(CONTOUR.stop, None)
    zero = torch.zeros(1, model.shapes + model.expressions, dtype=torch.float64)
    at_rest = torch.zeros(1, POSE, dtype=torch.float64)
    points = model.points(model.groups(zero), at_rest)[0, inner]
    up = torch.tensor([1.0, -1.0], dtype=torch.float64)
    flipped = (target[:, inner] - 0.5) * up
    middle = points.mean(0)
    centred = flipped - flipped.mean(1, keepdim=True)
    affine = (torch.linalg.pinv(points - middle) @ centred).mT  # (F, 2, 3)
    left, strengths, right = torch.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    third = torch.linalg.cross(rows[:, 0], rows[:, 1])
    rotation = torch.cat([rows, third[:, None]], dim=1)
    distance = FOCAL / strengths.mean(1)
    across = flipped.mean(1) * distance[:, None] / FOCAL
    place = torch.cat([across, -distance[:, None]], dim=1) - (rotation @ middle)
    pose = torch.zeros(len(target), POSE, dtype=torch.float64)
    pose[:, ROTATION] = torch.from_numpy(rotation_vectors(rotation.numpy()))
    pose[:, TRANSLATION] = place
    return pose
