"""Stage evaluate: how well people who were never seen in training are reenacted (paper section 5.2 and 5.3).

Three methods go through the same numbers: `psi`; `psi3d`, the static head of the source at the driving
camera, without motion; `copy`, the source frame as it is. `real`, the driving frames themselves, shows what
the instruments read when there is nothing to find.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.clips.held_out import CachedClips, Frame, HeldOutClips, stack_frames
from pipeline.config.params import Params
from pipeline.evaluate import metrics
from pipeline.evaluate.instruments import Instruments
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.truth import Truth, fit_against_truth, novel_views, response
from pipeline.geometry.label import moving_parts

METHODS = ("psi", "psi3d", "copy")
# A real frame compared with itself says nothing; its identity, the calibrated expression and what the face
# mesh reads in it do.
NOT_SELF_EVIDENT = (
    "id",
    "expression_error",
    "mouth_opening_correlation",
    "eye_opening_correlation",
    "gaze_correlation",
    "faces_found",
)


class Pair(NamedTuple):
    """A person and a frame whose motion they shall have."""

    source: Frame
    driving: Frame


@dataclass(frozen=True)
class Evaluation:
    """What the report shows."""

    scores: dict[str, Any]  # nested: table, method, number; what is not finite was not to be had
    per_pair: dict[str, dict[str, np.ndarray]]  # method, number: (N,) in the order of `self_pairs`
    keys: dict[str, Any]  # of the frames that were chosen, for each table
    self_pairs: list[Pair]
    cross_pairs: list[Pair]
    clips: HeldOutClips
    synthesizers: Synthesizers


def evaluate(
    params: Params,
    ingest: Path,
    labels: Path,
    perception: Path,
    psi3d: Path,
    views: Path,
    psi: Path,
    truth: Path,
) -> Evaluation:
    """Measure Psi, Psi_3d and the copied source on the clips of `evaluate.split`.

    The paths are folders of the graph. `truth` is empty for real input; then what needs it is left out.
    Raises UserError when a network cannot be read or there is no clip.
    """
    section = params.evaluate
    known = Truth(truth, ingest) if (truth / "frames.parquet").exists() else None
    instruments = Instruments(params, perception, known)
    synthesizers = Synthesizers(params.networks, psi, psi3d, instruments.device)
    clips = CachedClips(views, synthesizers.motion, section.split, instruments.device)

    self_keys = clips.self_pairs(section.self_frames)
    cross_keys = clips.cross_pairs(section.cross_pairs, params.seed)
    frontal_keys = clips.frontal_groups(section.frontal_drivers, params.seed)
    frames = _load(clips, [*self_keys, *cross_keys], frontal_keys)
    self_pairs = [Pair(frames[source], frames[driving]) for source, driving in self_keys]
    cross_pairs = [Pair(frames[source], frames[driving]) for source, driving in cross_keys]
    groups = [(frames[source], [frames[key] for key in drivers]) for source, drivers in frontal_keys]
    real = torch.stack([frame.image for frame in frames.values()])

    scores: dict[str, Any] = {}
    scores["self"], per_pair = _reenact(instruments, synthesizers, self_pairs, real, same=True)
    if cross_pairs:
        scores["cross"], _ = _reenact(instruments, synthesizers, cross_pairs, real, same=False)
    consistency = instruments.consistency(synthesizers, groups)
    if consistency is not None:
        scores["consistency"] = {"psi": consistency}
    if known:
        scores["novel_views"] = novel_views(known, clips, synthesizers, instruments.judges)
        scores["response"] = response(known, clips, synthesizers)
        scores |= fit_against_truth(known, labels, instruments.flame)
    keys = {"self": self_keys, "cross": cross_keys, "frontal": frontal_keys}
    return Evaluation(scores, per_pair, keys, self_pairs, cross_pairs, clips, synthesizers)


def _load(
    clips: HeldOutClips,
    pairs: Iterable[tuple[str, str]],
    groups: Iterable[tuple[str, list[str]]],
) -> dict[str, Frame]:
    """The frames that pairs and groups name, once each, in the order of their keys."""
    keys = {key for pair in pairs for key in pair}
    for source, drivers in groups:
        keys |= {source, *drivers}
    return {key: clips.frame(key) for key in sorted(keys)}


def _reenact(
    instruments: Instruments,
    synthesizers: Synthesizers,
    pairs: Sequence[Pair],
    real: Tensor,
    same: bool,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Means per method, and the numbers of each pair per method.

    `real` are all real frames that are looked at.
    """
    sources = [pair.source for pair in pairs]
    drivings = [pair.driving for pair in pairs]
    cameras = stack_frames(drivings, "camera")
    wanted = stack_frames(drivings, "image")
    thumbnails = metrics.Thumbnails(instruments.judges, wanted)
    means: dict[str, Any] = {}
    per_pair = {}
    for method in (*METHODS, "real"):
        if method == "real":
            image = wanted
        else:
            image = synthesizers.draw(method, sources, drivings, cameras[:, None]).image
        points = _where_faces_are(instruments, method, sources, drivings)
        per_pair[method] = instruments.reenactment(image, points, sources, drivings, same)
        scores: dict[str, Any] = {name: values.mean() for name, values in per_pair[method].items()}
        if same:
            scores |= instruments.followed(image, drivings)
            scores["lpips_thumbnail"] = thumbnails(scores["lpips"])
        # A covariance needs two pictures.
        if method != "real" and len(image) > 1:
            scores["fid_perception"] = instruments.fid(image, real)
        # Psi_3d and the copy know no driving motion.
        scores["response"] = 0.0
        if method == "psi":
            unmoved = synthesizers.draw(method, sources, sources, cameras[:, None]).image
            face = moving_parts(points, image.shape[-1])
            scores["response"] = metrics.root_mean_square(image - unmoved)
            scores["response_face"] = metrics.concentration(image - unmoved, face)
        means[method] = scores
    means["real"] = {name: value for name, value in means["real"].items() if name in NOT_SELF_EVIDENT}
    return means, per_pair


def _where_faces_are(
    instruments: Instruments,
    method: str,
    sources: Sequence[Frame],
    drivings: Sequence[Frame],
) -> Tensor:
    """The landmarks of what a method draws, image fractions (N, 70, 2)."""
    driving_cameras = stack_frames(drivings, "camera")
    if method == "copy":
        return instruments.reenacted_landmarks(sources, sources, stack_frames(sources, "camera"))
    if method == "psi3d":
        return instruments.reenacted_landmarks(sources, sources, driving_cameras)
    if method == "psi":
        return instruments.reenacted_landmarks(sources, drivings, driving_cameras)
    return instruments.reenacted_landmarks(drivings, drivings, driving_cameras)
