"""The least-squares problem of fitting a head model to landmarks, solved by damped Gauss-Newton steps.

What is minimised, of each person: robust squares of the weighted landmark differences, in interocular
distances; priors on shape, expression, jaw and eyes; squares of second differences in time.
"""

from collections.abc import Sequence
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
# Pairs of an upper and a lower landmark.
LIDS = [
    (37, 41),
    (38, 40),
    (43, 47),
    (44, 46),
]
LIPS = [
    (61, 67),
    (62, 66),
    (63, 65),
]
# Radians: a jaw opens about x and hardly turns about the others.
JAW_LIMITS = (
    (-0.1, -0.15, -0.05),
    (0.7, 0.15, 0.05),
)
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
# (1 -2 1): frames from the middle one, and their factors.
SECOND_DIFFERENCE = (
    (-1, 1.0),
    (0, -2.0),
    (1, 1.0),
)


class Problem:
    """F frames of G persons. Unknown: shape (G, s) and, of each frame, expression and pose (F, e + 12)."""

    def __init__(
        self,
        model: LandmarkModel,
        points_F702: np.ndarray,
        persons: list[str],
        settings: FitFlame,
    ) -> None:
        points = np.asarray(points_F702, np.float64)
        frames = len(points)
        self.model = model
        self.target = torch.as_tensor(points)
        self.scale = 1 / torch.as_tensor(interocular(points))
        first = _first_frames(persons)
        person = np.cumsum(first) - 1
        self.person = torch.as_tensor(person)
        self.count = sum(first)
        self.rows = _rows()
        self.s = model.shapes
        self.e = model.expressions
        unknowns = self.e + POSE
        self.shape = _zeros(self.count, self.s)
        self.frame = _zeros(frames, unknowns)
        self._pose[:] = _start(model, self.target)
        # Errors of the landmarks are much the same in all frames of a person: more frames are no reason to
        # trust them more.
        frames_of_each = torch.bincount(self.person, minlength=self.count)
        shape_weight = settings.shape_weight * frames_of_each.double()
        self.shape_weight = shape_weight[:, None]  # (G, 1)
        self.prior = _of_frame(
            [settings.expression_weight] * self.e,
            [*NO_PRIOR, *JAW_PRIOR, *EYE_PRIOR, *NO_PRIOR],
        )
        smooth = _of_frame([SMOOTH_EXPRESSION] * self.e, SMOOTH_POSE)
        self.smooth = settings.temporal_weight * smooth
        self.middle = _middle_frames(first)
        # The diagonal of (1 -2 1)^T (1 -2 1).
        self.diagonal = _zeros(frames)
        ones = self.diagonal.new_ones(len(self.middle))
        for shift, factor in SECOND_DIFFERENCE:
            place = self.middle + shift
            squares = factor**2 * ones
            self.diagonal.index_add_(0, place, squares)

    def solve(self, camera_steps: int, steps: int) -> None:
        """First the camera alone, then everything."""
        for _ in range(camera_steps):
            self._step_camera()
        # Levenberg and Marquardt: a step that makes a person's cost larger is not taken, and the next one is
        # shorter.
        damping = _zeros(self.count) + FIRST_DAMPING
        cost = self._cost(self.shape, self.frame)
        for _ in range(steps):
            shape, frame = self._step(damping)
            trial = self._cost(shape, frame)
            better = trial < cost
            of_persons = better[:, None]
            of_frames = better[self.person, None]
            self.shape = torch.where(of_persons, shape, self.shape)
            self.frame = torch.where(of_frames, frame, self.frame)
            cost = torch.where(better, trial, cost)
            shorter = damping * 8
            longer = damping / 4
            damping = torch.where(better, longer, shorter)
            damping = damping.clamp(1e-8, 1e6)

    def project(self) -> np.ndarray:
        """Fitted landmarks, (F, 70, 2), image fractions."""
        groups = self._groups(self.shape, self.frame)
        projected = self.model.project(groups, self._pose)
        return projected.numpy()

    def labels(self) -> np.ndarray:
        """(F, 437) float32."""
        pose = self._pose.numpy()
        eyes = pose[:, EYES]
        shape = self.shape[self.person].numpy()
        expression = self._expression.numpy()
        label = Label(
            camera=self._cameras(),
            shape=shape @ self.model.shape_basis.T,
            expression=expression @ self.model.expression_basis.T,
            neck=pose[:, ROTATION],
            jaw=pose[:, JAW],
            eyes=join(eyes, eyes),
        )
        return label.pack().astype(np.float32)

    def _cameras(self) -> np.ndarray:
        """(F, 25)."""
        pose = self._pose
        frames = len(pose)
        matrices = rotation_matrices(pose[:, ROTATION])
        rotations = matrices.numpy()
        translations = pose[:, TRANSLATION].numpy()
        # The camera is where x_camera = R x + t has its origin: at -R^T t.
        origins = -np.einsum("fij,fi->fj", rotations, translations)
        identity = np.eye(4)
        cam2world = np.tile(identity, (frames, 1, 1))
        cam2world[:, :3, :3] = rotations.transpose(0, 2, 1)
        cam2world[:, :3, 3] = origins
        intrinsics = INTRINSICS.reshape(1, 9)
        return join(
            cam2world.reshape(-1, 16),
            np.tile(intrinsics, (frames, 1)),
        )

    @property
    def _pose(self) -> Tensor:
        return self.frame[:, self.e :]

    @property
    def _expression(self) -> Tensor:
        return self.frame[:, : self.e]

    def _groups(self, shape: Tensor, frame: Tensor) -> Tensor:
        of_frames = shape[self.person]
        expression = frame[:, : self.e]
        coefficients = torch.cat([of_frames, expression], dim=1)
        return self.model.groups(coefficients)

    def _residuals(self, uv: Tensor) -> Tensor:
        scale = self.scale[:, None, None]
        differences = (uv - self.target) * scale
        return self.rows @ differences

    def _bends(self, frame: Tensor) -> Tensor:
        """Second differences in time, (M, e + 12)."""
        before = frame[self.middle - 1]
        at = frame[self.middle]
        after = frame[self.middle + 1]
        return before - 2 * at + after

    def _unbend(self, bends: Tensor) -> Tensor:
        """The transpose of `_bends`, weighted: from second differences back to frames."""
        bends = self.smooth * bends
        out = torch.zeros_like(self.frame)
        for shift, factor in SECOND_DIFFERENCE:
            place = self.middle + shift
            out.index_add_(0, place, factor * bends)
        return out

    def _cost(self, shape: Tensor, frame: Tensor) -> Tensor:
        """What is minimised, of each person, (G,)."""
        groups = self._groups(shape, frame)
        pose = frame[:, self.e :]
        uv = self.model.project(groups, pose)
        residuals = self._residuals(uv)
        squares = residuals.square().sum((1, 2))
        relative = squares / TOLERANCE
        data = TOLERANCE * torch.log1p(relative)
        prior = _weighted_squares(self.prior, frame)
        bending = _weighted_squares(self.smooth, self._bends(frame))
        cost = _weighted_squares(self.shape_weight, shape)
        cost = cost.index_add(0, self.person, data + prior)
        person_of_middle = self.person[self.middle]
        return cost.index_add(0, person_of_middle, bending)

    def _step_camera(self) -> None:
        """A Gauss-Newton step of rotation and translation, which nothing but the landmarks hold."""
        pose = self._pose
        groups = self._groups(self.shape, self.frame)
        uv, by_pose = self.model.by_pose(groups, pose)
        by_rotation = by_pose[..., ROTATION]
        by_translation = by_pose[..., TRANSLATION]
        by_camera = torch.cat([by_rotation, by_translation], dim=-1)
        by = self._weigh(by_camera)
        normal = by.mT @ by
        diagonal = normal.diagonal(dim1=1, dim2=2)
        damped = normal + 1e-6 * torch.diag_embed(diagonal)
        residuals = self._residuals(uv).flatten(1)
        slope = by.mT @ residuals[..., None]
        step = torch.linalg.solve(damped, slope)
        step = step[..., 0]
        turn, shift = step.split(3, dim=1)
        pose[:, ROTATION] -= turn
        pose[:, TRANSLATION] -= shift

    def _weigh(self, by: Tensor) -> Tensor:
        """Derivatives of the landmarks (F, 70, 2, k) to those of the residuals (F, 2R, k)."""
        scale = self.scale.to(by.dtype)
        scale = scale[:, None, None]
        rows = self.rows.to(by.dtype)
        scaled = by.flatten(2) * scale
        weighted = rows @ scaled
        by_axis = weighted.unflatten(2, (2, -1))
        return by_axis.flatten(1, 2)

    def _normal(self) -> Unknowns:
        """Products of the derivatives with themselves, (F, n, n), and with the residuals, (F, n).

        n is s + e + 12.

        Each frame is weighted as the logarithm in `_cost` wants it (iteratively reweighted least squares).
        The products are in float32: they are most of the work, and a step need not be exact.
        """
        pose = self._pose
        groups = self._groups(self.shape, self.frame)
        uv, by_pose = self.model.by_pose(groups, pose)
        by_coefficients = self.model.by_coefficients(groups, pose)
        derivatives = [by_coefficients, by_pose.float()]
        by_all = torch.cat(derivatives, dim=-1)
        by = self._weigh(by_all)
        residuals = self._residuals(uv).flatten(1)
        squares = residuals.square().sum(1)
        weight = 1 / (1 + squares / TOLERANCE)
        products = by.mT @ by
        slopes = apply(by.mT, residuals.float())
        normal = weight[:, None, None] * products
        slope = weight[:, None] * slopes
        return normal, slope

    def _step(self, damping: Tensor) -> Unknowns:
        """A damped Gauss-Newton step: shapes and frames to try."""
        normal, slope = self._normal()
        of_shape = slice(0, self.s)
        of_frame = slice(self.s, None)
        by_shape = normal[:, of_shape, of_shape]
        shapes = add_up(by_shape, self.person, self.count)
        frames = normal[:, of_frame, of_frame]
        mixed = normal[:, of_shape, of_frame].contiguous()  # (F, s, e + 12)
        # Damping is a share of the diagonal, which makes it independent of the units of the unknowns.
        smoothing = self.diagonal[:, None] * self.smooth
        shape_diagonal = shapes.diagonal(dim1=1, dim2=2)
        shape_diagonal = shape_diagonal + self.shape_weight
        frame_diagonal = frames.diagonal(dim1=1, dim2=2)
        frame_diagonal = frame_diagonal + self.prior + smoothing
        shape_damping = damping[:, None] * shape_diagonal
        added = self.shape_weight + shape_damping
        shapes = shapes + torch.diag_embed(added)
        frame_damping = damping[self.person, None]
        damped = self.prior + frame_damping * frame_diagonal
        right = self._descent(slope)
        # The preconditioner keeps the diagonal of the bonds in time; `times` has them whole.
        bonded = frames + torch.diag_embed(damped + smoothing)
        eliminate = Elimination(shapes, bonded, mixed, self.person)
        frames = frames + torch.diag_embed(damped)

        def times(shape: Tensor, frame: Tensor) -> Unknowns:
            by_frame = apply(mixed, frame)
            by_frames = add_up(by_frame, self.person, self.count)
            by_shape = apply(mixed.mT, shape[self.person])
            bends = self._bends(frame)
            shape_product = apply(shapes, shape) + by_frames
            frame_product = apply(frames, frame) + by_shape
            return shape_product, frame_product + self._unbend(bends)

        shape_step, frame_step = eliminate(*right)
        # Without a person of three frames there are no bonds, and the elimination was exact.
        if len(self.middle):
            shape_step, frame_step = conjugate_gradients(
                times,
                precondition=eliminate,
                right=right,
                start=(shape_step, frame_step),
                person=self.person,
            )
        frame = self._limit(self.frame + frame_step)
        return self.shape + shape_step, frame

    def _descent(self, slope: Tensor) -> Unknowns:
        """The right-hand side: minus half the gradient of the cost."""
        of_shape = slope[:, : self.s]
        of_frame = slope[:, self.s :]
        shape_slope = add_up(of_shape, self.person, self.count)
        shape = -shape_slope - self.shape_weight * self.shape
        bends = self._bends(self.frame)
        to_mean = self.prior * self.frame
        unbent = self._unbend(bends)
        frame = -of_frame - to_mean - unbent
        return shape, frame

    def _limit(self, frame: Tensor) -> Tensor:
        low, high = frame.new_tensor(JAW_LIMITS)
        pose = frame[:, self.e :]
        jaw = pose[:, JAW]
        eyes = pose[:, EYES]
        pose[:, JAW] = jaw.clamp(low, high)
        pose[:, EYES] = eyes.clamp(-EYE_LIMIT, EYE_LIMIT)
        return frame


def _first_frames(persons: list[str]) -> list[bool]:
    """Where a person begins."""
    first = [True]
    for one, next_one in pairwise(persons):
        first.append(one != next_one)
    return first


def _middle_frames(first: list[bool]) -> Tensor:
    """The frames (M,) between two others of the same person, where second differences are taken."""
    middle = []
    for i in range(1, len(first) - 1):
        if not first[i] and not first[i + 1]:
            middle.append(i)
    return torch.tensor(middle, dtype=torch.int64)


def _of_frame(expression: Sequence[float], pose: Sequence[float]) -> Tensor:
    """A weight (e + 12,) for each unknown of a frame."""
    return torch.tensor([*expression, *pose], dtype=torch.float64)


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


def _weighted_squares(weights: Tensor, values: Tensor) -> Tensor:
    squares = weights * values.square()
    return squares.sum(1)


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
        row = _zeros(1, 70)
        row[0, upper] = 2.0
        row[0, lower] = -2.0
        rows.append(row)
    right_pupil = PUPILS.start
    corners_of = {
        right_pupil: CORNERS[:2],
        right_pupil + 1: CORNERS[2:],
    }
    for pupil, corners in corners_of.items():
        row = _zeros(1, 70)
        row[0, pupil] = 2.0
        row[0, corners] = -1.0
        rows.append(row)
    return torch.cat(rows)


def _start(model: LandmarkModel, target: Tensor) -> Tensor:
    """Poses (F, 12) from the mean head.

    The best affine map of the head to the image has the nearest rotation, and its size gives the distance.
    """
    inner = slice(CONTOUR.stop, None)
    points = _mean_landmarks(model)[inner]
    middle = points.mean(0)
    up = torch.tensor([1.0, -1.0], dtype=torch.float64)
    from_middle = target[:, inner] - 0.5
    flipped = from_middle * up
    centre = flipped.mean(1)
    centred = flipped - flipped.mean(1, keepdim=True)
    inverse = torch.linalg.pinv(points - middle)
    affine = (inverse @ centred).mT  # (F, 2, 3)
    left, strengths, right = torch.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    first, second = rows.unbind(1)
    third = torch.linalg.cross(first, second)
    rotation = torch.stack([first, second, third], dim=1)
    distance = FOCAL / strengths.mean(1)
    distance = distance[:, None]
    across = centre * distance / FOCAL
    place = torch.cat([across, -distance], dim=1)
    vectors = rotation_vectors(rotation.numpy())
    pose = _zeros(len(target), POSE)
    pose[:, ROTATION] = torch.from_numpy(vectors)
    turned = rotation @ middle
    pose[:, TRANSLATION] = place - turned
    return pose


def _mean_landmarks(model: LandmarkModel) -> Tensor:
    """The landmarks of the mean head in its own frame, (70, 3)."""
    coefficients = model.shapes + model.expressions
    groups = model.groups(_zeros(1, coefficients))
    at_rest = _zeros(1, POSE)
    return model.points(groups, at_rest)[0]
