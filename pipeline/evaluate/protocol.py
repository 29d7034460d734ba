"""Stage evaluate: how well people of held-out clips are reenacted (paper sections 5.2 and 5.3).

Three methods go through the same numbers: `psi`; `psi3d`, the static head of the source at the
driving camera, without motion; `copy`, the source frame as it is. `real`, the driving frames
themselves, shows what the instruments read when there is nothing to find.
"""

from collections.abc import Collection, Iterable, Sequence
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
# A real frame compared with itself says nothing; its identity, the calibrated expression and what
# the face mesh reads in it do.
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
    """What the report shows.

    `scores` are nested: section, method, number; or section, number. One that is not finite could
    not be had. `per_pair` has the numbers of the self-reenacted frames by method and name, (N,) in
    the order of `self_pairs`. `keys` are those of all chosen frames, by section.
    """

    scores: dict[str, Any]
    per_pair: dict[str, dict[str, np.ndarray]]
    keys: dict[str, Any]
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
    bad: Collection[str] = (),
) -> Evaluation:
    """Measure Psi, Psi_3d and the copied source on the clips of `evaluate.split`.

    The paths are folders of the graph. `truth` is empty for real input; then what needs it is left
    out. Frames with the keys in `bad` are not looked at. Raises UserError when a network cannot be read
    or there is no clip.
    """
    section = params.evaluate
    known = Truth(truth, ingest) if (truth / "frames.parquet").exists() else None
    instruments = Instruments(params, perception, known)
    synthesizers = Synthesizers(params.networks, psi, psi3d, instruments.device)
    clips = CachedClips(views, synthesizers.motion, section.split, instruments.device, bad)

    self_keys = clips.self_pairs(section.self_frames)
    cross_keys = clips.cross_pairs(section.cross_pairs, params.seed)
    frontal_keys = clips.frontal_groups(section.frontal_drivers, params.seed)
    frames = _load(clips, [*self_keys, *cross_keys], frontal_keys)
    self_pairs = [Pair(frames[source], frames[driving]) for source, driving in self_keys]
    cross_pairs = [Pair(frames[source], frames[driving]) for source, driving in cross_keys]
    groups = []
    for source, drivers in frontal_keys:
        drivings = [frames[key] for key in drivers]
        groups.append((frames[source], drivings))
    # FID compares with all real frames that are looked at, each once, in the order of their keys.
    real = torch.stack([frame.image for frame in frames.values()])

    # Only where there are some, as the report shows all scores.
    scores: dict[str, Any] = {"frames_marked_bad": clips.marked_bad} if clips.marked_bad else {}
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

    `real` are the images (F, 3, S, S) of all real frames; `same` says that pairs show one person.
    """
    sources = [pair.source for pair in pairs]
    drivings = [pair.driving for pair in pairs]
    cameras = stack_frames(drivings, "camera")
    wanted = stack_frames(drivings, "image")
    # Only the driving frames of the same person show how a result should look.
    thumbnails = metrics.Thumbnails(instruments.judges, wanted) if same else None
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
        if thumbnails:
            scores |= instruments.followed(image, drivings)
            scores["lpips_thumbnail"] = thumbnails(scores["lpips"])
        # A covariance needs two pictures.
        if method != "real" and len(image) > 1:
            scores["fid_perception"] = instruments.fid(image, real)
        # Psi_3d and the copy know no driving motion.
        scores["response"] = 0.0
        if method == "psi":
            unmoved = synthesizers.draw(method, sources, sources, cameras[:, None]).image
            change = image - unmoved
            face = moving_parts(points, image.shape[-1])
            scores["response"] = metrics.root_mean_square(change)
            scores["response_face"] = metrics.concentration(change, face)
        means[method] = scores
    telling = {name: value for name, value in means["real"].items() if name in NOT_SELF_EVIDENT}
    return means | {"real": telling}, per_pair


def _where_faces_are(
    instruments: Instruments,
    method: str,
    sources: Sequence[Frame],
    drivings: Sequence[Frame],
) -> Tensor:
    """The landmarks of what a method draws, image fractions (N, 70, 2)."""
    who = drivings if method == "real" else sources
    moved_by = sources if method in ("copy", "psi3d") else drivings
    # A copied image keeps the camera that it was taken by.
    seen_by = sources if method == "copy" else drivings
    return instruments.reenacted_landmarks(who, moved_by, stack_frames(seen_by, "camera"))
