"""Stage evaluate: how well people of held-out clips are reenacted (paper sections 5.2 and 5.3).

Three methods go through the same numbers: `psi`; `psi3d`, the static head of the source at the
driving camera, without motion; `copy`, the source frame as it is. `real`, the driving frames
themselves, shows what the instruments read when there is nothing to find.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pipeline.clips.held_out import CachedClips, Frame, HeldOutClips, stack_frames
from pipeline.config.params import Params
from pipeline.core.device import to_device
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.evaluate import metrics
from pipeline.evaluate.instruments import Instruments
from pipeline.evaluate.kept import Kept
from pipeline.evaluate.lips import lips
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.sums import Table, Together
from pipeline.evaluate.tally import Tally
from pipeline.evaluate.truth import Truth, fit_against_truth, novel_views, response
from pipeline.geometry.camera import rotation_between
from pipeline.geometry.label import moving_parts

METHODS = ("psi", "psi3d", "copy")
# A real frame compared with itself says nothing; its identity, the calibrated expression and what
# the face mesh reads in it do.
NOT_SELF_EVIDENT = (
    "id",
    "id_arcface",
    "expression_error",
    "mouth_opening_correlation",
    "eye_opening_correlation",
    "gaze_correlation",
    "faces_found",
)
# Pairs are drawn and measured some at a time, so that memory does not grow with their number: a whole batch
# of all instruments.
AT_ONCE = 64

# Of a source and of a driving frame.
Keys = tuple[str, str]
# Of a source and of its drivers.
Group = tuple[str, list[str]]


class Pair(NamedTuple):
    """A person and a frame whose motion they shall have."""

    source: Frame
    driving: Frame


@dataclass(frozen=True)
class Evaluation:
    """What the report shows.

    `scores` are nested: section, method, number; or section, number. One that is not finite could
    not be had. `per_pair` has the numbers of the self-reenacted frames by method and name, (N,) in
    the order of `self_keys`, and `turned` by how many degrees the head has turned from the source.
    """

    scores: dict[str, Any]
    per_pair: dict[str, dict[str, np.ndarray]]
    turned: np.ndarray
    self_keys: list[Keys]
    cross_keys: list[Keys]
    frontal_keys: list[Group]
    clips: HeldOutClips
    synthesizers: Synthesizers
    published: Mapping[str, str]  # the instruments of papers that measured, in words
    instruments: Instruments
    kept: Kept


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
    out. Frames with the keys in `bad` are not looked at. A killed run goes on where it was; what it keeps
    for that lies in a scratch folder until `Evaluation.kept` forgets it. Raises UserError when a network
    cannot be read or there is no clip.
    """
    section, networks, official = params.evaluate, params.networks, Path(params.pretrain.official)
    known = Truth(truth, ingest) if (truth / "frames.parquet").exists() else None
    instruments = Instruments(params, perception, known)
    synthesizers = Synthesizers(networks, psi, psi3d, instruments.flame, instruments.device)
    motion, device = synthesizers.motion, instruments.device
    clips = CachedClips(views, motion, section.split, device, bad, section.clips)
    settings = (section, networks, params.seed, params.threads, str(device), sorted(bad))
    given = [path for path in (truth, Path(params.flame.model), official) if path.exists()]
    mark = fingerprint(__file__, *settings, *given, ingest, labels, perception, psi3d, views, psi)
    kept = Kept(scratch_folder("evaluate", mark))

    self_keys = clips.self_pairs(section.self_frames)
    if section.cross == "all":
        cross_keys = clips.all_cross_pairs(section.cross_pairs)
    else:
        cross_keys = clips.cross_pairs(section.cross_pairs, params.seed)
    frontal_keys = clips.frontal_groups(section.frontal_drivers, params.seed)
    with_pairs = section.fid == "pairs"
    reenactment = Reenactment(instruments, synthesizers, clips, kept, with_pairs)
    if section.fid == "frames":
        # FID compares with all real frames that are looked at, each once, in the order of their keys.
        groups = ((source, key) for source, drivers in frontal_keys for key in drivers)
        looked_at = {key for keys in (*self_keys, *cross_keys, *groups) for key in keys}
        looked_at |= {source for source, _ in frontal_keys}
        reenactment.compare_with(sorted(looked_at), "real")

    # Only where there are some, as the report shows all scores.
    scores: dict[str, Any] = {"frames_marked_bad": clips.marked_bad} if clips.marked_bad else {}
    scores["self"], per_pair, turned = reenactment(self_keys, same=True)
    if cross_keys:
        scores["cross"], _, _ = reenactment(cross_keys, same=False)
    consistency = reenactment.consistency(frontal_keys)
    if consistency is not None:
        scores["consistency"] = {instruments.name("psi"): consistency}
    heard = lips(instruments, synthesizers, clips, ingest, Path(params.ingest.clips), kept)
    if heard:
        scores["lips"] = heard
    if known:
        scores["novel_views"] = novel_views(known, clips, synthesizers, instruments.judges)
        scores["response"] = response(known, clips, synthesizers)
        scores |= fit_against_truth(known, labels, instruments.flame)
    return Evaluation(
        scores,
        per_pair,
        turned,
        self_keys,
        cross_keys,
        frontal_keys,
        clips,
        synthesizers,
        instruments.published.used,
        instruments,
        kept,
    )


class Reenactment:
    """Pairs that go through all methods and instruments, a piece of them at a time."""

    def __init__(
        self,
        instruments: Instruments,
        synthesizers: Synthesizers,
        clips: HeldOutClips,
        kept: Kept,
        with_pairs: bool,
    ) -> None:
        """`kept` has what an earlier run measured; `with_pairs` has FID compare with the driving frames."""
        self.instruments, self.synthesizers, self.clips = instruments, synthesizers, clips
        self.kept, self.with_pairs = kept, with_pairs

    def compare_with(self, keys: Sequence[str], part: str) -> None:
        """Let FID take these frames as the real ones."""
        fid = self.instruments.fid
        fid.begin()
        for _, frames in self.kept.left(part, _pieces(keys), fid, self._frames, "frames"):
            fid.take(stack_frames(to_device(frames, self.clips.device), "image"))

    def __call__(
        self,
        keys: Sequence[Keys],
        same: bool,
    ) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]], np.ndarray]:
        """Means per method, the numbers of each pair per method, and how far each head has turned.

        `same` says that pairs show one person.
        """
        part = "self" if same else "cross"
        # The tallies begin with the real pictures that FID knows by then.
        if self.with_pairs:
            self.compare_with([driving for _, driving in keys], f"real-{part}")
        tallies = {method: Tally(self.instruments) for method in (*METHODS, "real")}
        thumbnails = metrics.Thumbnails(self.instruments.judges)
        turned = Table()
        sums = Together(**tallies, thumbnails=thumbnails, turned=turned)
        for piece, frames in self.kept.left(part, _pieces(keys), sums, self._read):
            pairs = self._pairs(piece, frames)
            # Only the driving frames of the same person show how a result should look.
            if same:
                thumbnails.shrink(stack_frames([pair.driving for pair in pairs], "image"))
            for method, tally in tallies.items():
                self._measure(method, tally, pairs, same)
            turned.add({"turned": np.array([_turn(*pair) for pair in pairs])})

        means = {}
        driven = [self.clips.clip_of[driving] for _, driving in keys]
        for method, tally in tallies.items():
            means[method] = tally.means(driven if same else None)
            if same:
                means[method]["lpips_thumbnail"] = thumbnails(means[method]["lpips"])
        telling = {name: value for name, value in means["real"].items() if name in NOT_SELF_EVIDENT}
        per_pair = {method: tally.numbers for method, tally in tallies.items()}
        return means | {"real": telling}, per_pair, turned.columns["turned"]

    def consistency(self, groups: Sequence[Group]) -> float | None:
        """Cons. of Psi, averaged over the sources; None when no source has two drivers."""
        pieces = [[source, *drivers] for source, drivers in groups if len(drivers) > 1]
        found = Table()
        for _, frames in self.kept.left("consistency", pieces, found, self._frames, "frames"):
            source, *drivings = to_device(frames, self.clips.device)
            value = self.instruments.consistency(self.synthesizers, source, drivings)
            found.add({"psi": np.array([value])})
        return float(found.columns["psi"].mean()) if pieces else None

    def _frames(self, keys: Sequence[str]) -> tuple[Frame, ...]:
        """Frames, on the CPU."""
        return tuple(self.clips.read(key) for key in keys)

    def _read(self, keys: Sequence[Keys]) -> dict[str, Frame]:
        """The frames of pairs, each read once, on the CPU."""
        needed = sorted({key for pair in keys for key in pair})
        return {key: self.clips.read(key) for key in needed}

    def _pairs(self, keys: Sequence[Keys], read: Mapping[str, Frame]) -> list[Pair]:
        """Pairs of frames that were read, on the device."""
        frames = {key: to_device(frame, self.clips.device) for key, frame in read.items()}
        return [Pair(frames[source], frames[driving]) for source, driving in keys]

    def _measure(
        self,
        method: str,
        tally: Tally,
        pairs: Sequence[Pair],
        same: bool,
    ) -> None:
        """Draw the pairs by a method, and add what is measured to its tally."""
        sources = [pair.source for pair in pairs]
        drivings = [pair.driving for pair in pairs]
        cameras = stack_frames(drivings, "camera")[:, None]
        if method == "real":
            image = stack_frames(drivings, "image")
        else:
            image = self.synthesizers.draw(method, sources, drivings, cameras).image
        points = self._where_faces_are(method, sources, drivings)
        tally.add(image, points, sources, drivings, same)
        if method != "real":
            tally.fid.add(image)
        # Psi_3d and the copy know no driving motion.
        if method == "psi":
            unmoved = self.synthesizers.draw(method, sources, sources, cameras).image
            tally.change.add(image - unmoved, moving_parts(points, image.shape[-1]))

    def _where_faces_are(
        self,
        method: str,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
    ) -> Tensor:
        """The landmarks of what a method draws, image fractions (N, 70, 2)."""
        who = drivings if method == "real" else sources
        moved_by = sources if method in ("copy", "psi3d") else drivings
        # A copied image keeps the camera that it was taken by.
        seen_by = sources if method == "copy" else drivings
        return self.instruments.reenacted_landmarks(who, moved_by, stack_frames(seen_by, "camera"))


def _pieces(keys: Sequence) -> list[Sequence]:
    return [keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE)]


def _turn(source: Frame, driving: Frame) -> float:
    """How far a head turns, degrees."""
    return rotation_between(source.camera.cpu().numpy(), driving.camera.cpu().numpy())
