"""Fitting the head model to landmarks: shape, expression, head rotation, jaw, eyes and camera (facts 5.3).

Damped Gauss-Newton instead of thousands of gradient steps: the landmarks depend on a few hundred numbers per
face, and the derivatives are cheap (`landmark_model`). A portrait is a person with one frame; a clip is a
person with many: one shape, and rotation, jaw, translation and expression that change smoothly (their second
differences are small).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from model.head.flame import HeadModel
from pipeline.config.params import FitFlame
from pipeline.core.progress import progress
from pipeline.fit_flame.landmark_model import LandmarkModel
from pipeline.fit_flame.problem import Problem
from pipeline.geometry.landmarks import interocular

CHUNK = 96  # frames solved together: bounds memory, and small enough for the processor's cache


@dataclass(frozen=True)
class Fit:
    """What was found of N frames."""

    # (N, 437) float32 (facts 5.4); the camera holds the whole head rotation.
    labels: np.ndarray
    # (N, 70, 2) landmarks of the fitted heads, image fractions.
    points: np.ndarray
    # (N,) mean distance of the landmarks in the image, in distances between the eye centres.
    errors: np.ndarray


def fit(
    head: HeadModel,
    points_N70x2: np.ndarray,
    persons: list[str],
    settings: FitFlame,
) -> Fit:
    """Fit `head` to landmarks in image fractions (y down).

    Frames of a person must follow one another, in the order of time. Every person is solved apart from the
    others, so that a result does not depend on who else is in the data. Raises ValueError when `persons` has
    another length than the points or comes back to a person it had left.
    """
    model = LandmarkModel(head)
    ranges = chunks(persons, len(points_N70x2))

    def solve(bounds: tuple[int, int]) -> Fit:
        rows = slice(*bounds)
        return fit_chunk(
            model,
            points_N70x2[rows],
            persons[rows],
            settings,
        )

    # Many small products: threads that share one of them wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            running = pool.map(solve, ranges)
            solved = list(
                progress(
                    running,
                    total=len(ranges),
                    label="fit_flame",
                )
            )
    finally:
        torch.set_num_threads(threads)
    return Fit(
        labels=np.concatenate([one.labels for one in solved]),
        points=np.concatenate([one.points for one in solved]),
        errors=np.concatenate([one.errors for one in solved]),
    )


def fit_chunk(
    model: LandmarkModel,
    points_N70x2: np.ndarray,
    persons: list[str],
    settings: FitFlame,
) -> Fit:
    """Fit frames that are solved together (see `chunks`).

    One thread of torch has to do it: with more, the last bits differ.
    """
    problem = Problem(model, points_N70x2, persons, settings)
    problem.solve(settings.camera_steps, settings.steps)
    fitted = problem.project()
    differences = fitted - points_N70x2
    distances = np.linalg.norm(differences, axis=-1)
    unit = interocular(np.asarray(points_N70x2))
    errors = distances.mean(1) / unit
    return Fit(problem.labels(), fitted, errors)


def chunks(persons: list[str], count: int) -> list[tuple[int, int]]:
    """Ranges of whole persons of about CHUNK frames. Raises ValueError as `fit`."""
    if len(persons) != count:
        raise ValueError(f"{count} frames, but persons are given for {len(persons)}")
    starts = [i for i in range(count) if i == 0 or persons[i] != persons[i - 1]]
    if len({persons[i] for i in starts}) != len(starts):
        raise ValueError("the frames of a person must follow one another")
    # A person longer than a chunk is one of its own, as its frames share a shape.
    ranges, first = [], 0
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        if stop - first > CHUNK and start > first:
            ranges.append((first, start))
            first = start
    return [*ranges, (first, count)] if count else []
