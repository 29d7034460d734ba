"""Stage evaluate: how well people who were never seen in training are reenacted (paper section 5.2 and 5.3).

Three methods go through the same numbers: `psi`; `psi3d`, the static head of the source at the driving camera, without motion; `copy`, the
source frame as it is. `real`, the driving frames themselves, shows what the instruments read when there is nothing to find.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.head.flame import Flame
from pipeline.clips.held_out import CachedClips, Frame, HeldOutClips, stack_frames
from pipeline.config.params import Params
from pipeline.core.device import choose_device
from pipeline.core.files import write_bytes, write_json
from pipeline.evaluate import metrics
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.truth import Truth, fit_against_truth, novel_views, response
from pipeline.geometry import camera, head_model
from pipeline.geometry.label import FIVE_POINTS, landmarks, moving_parts
from pipeline.networks.judges import Judges

METHODS = ("psi", "psi3d", "copy")
DIGITS = 6
SELF_EVIDENT = (
    "id",
    "expression_error",
    "mouth_opening_correlation",
    "eye_opening_correlation",
    "gaze_correlation",
    "faces_found",
)


def frontal_camera() -> np.ndarray:
    """The view of Cons.: straight from the front at the distance of the official inference (facts 8)."""
    cam2world = np.eye(4)
    cam2world[:3, 3] = (0.0, 0.01, 4.2)
    return camera.pack(cam2world)


class Instruments:
    """Everything that measures pictures."""

    def __init__(self, params: Params, perception: Path, truth: Truth | None) -> None:
        self.device = choose_device(params.machine.device)
        self.judges = Judges.load(perception, self.device)
        self.recognition = metrics.FaceRecognition(perception / "identity.onnx")
        self.fid = metrics.FidPerception(self.judges)
        self.flame = Flame(head_model.load(params.flame.model)).to(self.device)
        self.truth = truth
        self.reader = metrics.FaceReader()

    @cached_property
    def expression_truth(self) -> metrics.ExpressionTruth:
        """The calibrated instrument for expression, from real frames of training clips."""
        instrument = metrics.ExpressionTruth(self.flame)
        images, parameters = self.truth.calibration_frames()  # pyrefly: ignore[missing-attribute]
        instrument.calibrate(self._expression_pose(images), parameters.to(self.device))
        return instrument

    @torch.no_grad()
    def five_points(self, sources: Sequence[Frame], drivings: Sequence[Frame], cameras_N25: Tensor) -> Tensor:
        """Where the face of a reenacted source is: landmarks of the source's shape in the driving frame's expression (N, 70, 2)."""
        label = torch.cat(
            [stack_frames(sources, "label")[:, :325], stack_frames(drivings, "label")[:, 325:]], dim=1
        )
        return landmarks(self.flame, label, cameras_N25[:, None])[:, 0]

    @torch.no_grad()
    def _expression_pose(self, images: Tensor) -> Tensor:
        return torch.cat([self.judges.expression_pose(part.to(self.device)) for part in images.split(64)])

    @torch.no_grad()
    def reenactment(
        self, result: Tensor, points: Tensor, sources: Sequence[Frame], drivings: Sequence[Frame], same: bool
    ) -> dict[str, np.ndarray]:
        """The numbers of each pair, (N,): likeness to the driving frame (only if it shows the same person), to the source's identity, and
        to the
        driving frame's expression and pose."""
        source_points = self.five_points(sources, sources, stack_frames(sources, "camera"))
        wanted, mask = stack_frames(drivings, "image"), stack_frames(drivings, "mask")
        five = list(FIVE_POINTS)
        scores: dict[str, Any] = {
            "id": metrics.cosine(
                self.recognition(result, points[:, five]),
                self.recognition(stack_frames(sources, "image"), source_points[:, five]),
            )
        }
        found, driven = self._expression_pose(result), self._expression_pose(wanted)
        scores |= {"aed": metrics.aed(found, driven), "apd": metrics.apd(found, driven)}
        if same:
            driving_points = self.five_points(drivings, drivings, stack_frames(drivings, "camera"))
            scores["lpips"] = self.judges.lpips(result, wanted)
            scores["lpips_head"] = metrics.head_lpips(
                self.judges, result, wanted, metrics.head_region(mask, driving_points)
            )
            scores["psnr_foreground"] = metrics.foreground_psnr(result, wanted, mask)
        if self.truth:
            scores["expression_error"] = self.expression_truth(
                found, self.truth.parameters([frame.key for frame in drivings]).to(self.device)
            )
        return {
            name: torch.as_tensor(value, dtype=torch.float64, device="cpu").numpy()
            for name, value in scores.items()
        }

    def motion(self, frames: Sequence[Frame]) -> dict[str, np.ndarray]:
        """Mouth, lids and gaze of real frames, (N,): the truth where it is known, else as they are read from the pictures."""
        if self.truth:
            return self.reader.measure(np.stack([self.truth.landmarks[frame.key] for frame in frames]))
        return self.reader(stack_frames(frames, "image"))

    def followed(self, result: Tensor, drivings: Sequence[Frame]) -> dict[str, float]:
        """How well mouth, lids and gaze of pictures follow those of the driving frames, over each clip: correlations; and in which share of
        the pictures a face is found."""
        found, wanted = self.reader(result), self.motion(drivings)
        clips = [frame.clip for frame in drivings]
        scores = {
            f"{name}_correlation": metrics.within_clips(found[name], wanted[name], clips) for name in found
        }
        return scores | {"faces_found": float(np.isfinite(found["mouth_opening"]).mean())}

    def consistency(
        self, synthesizers: Synthesizers, groups: Sequence[tuple[Frame, list[Frame]]]
    ) -> float | None:
        """Cons. of Psi, averaged over the sources; None when no source has two drivers."""
        values = []
        for source, drivings in groups:
            if len(drivings) > 1:
                cameras = torch.from_numpy(frontal_camera()).to(self.device).expand(len(drivings), 25)
                sources = [source] * len(drivings)
                drawn = synthesizers.draw("psi", sources, drivings, cameras[:, None])
                points = self.five_points(sources, drivings, cameras)[:, list(FIVE_POINTS)]
                values.append(metrics.consistency(self.recognition(drawn.image, points)))
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Evaluation:
    """What the report shows."""

    scores: dict[str, Any]
    self_pairs: list[tuple[Frame, Frame]]
    cross_pairs: list[tuple[Frame, Frame]]
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
    out: Path,
) -> Evaluation:
    """Measure Psi, Psi_3d and the copied source on the clips of `evaluate.split`; write `out`/pairs.json and `out`/frames.csv (one row a
    self-reenacted frame).

    `truth` is empty for real input; then what needs it is left out. Returns the scores (nested, six digits) and what to draw.
    """
    section = params.evaluate
    known = Truth(truth, ingest) if (truth / "frames.parquet").exists() else None
    instruments = Instruments(params, perception, known)
    synthesizers = Synthesizers(params.networks, psi, psi3d, instruments.device)
    clips = CachedClips(views, synthesizers.motion, section.split, instruments.device)
    pairs = {
        "self": clips.self_pairs(section.self_frames),
        "cross": clips.cross_pairs(section.cross_pairs, params.seed),
    }
    groups = clips.frontal_groups(section.frontal_drivers, params.seed)
    write_json(out / "pairs.json", pairs | {"frontal": groups})
    frames = {
        key: clips.frame(key)
        for key in sorted(
            {key for both in pairs.values() for pair in both for key in pair}
            | {k for s, d in groups for k in (s, *d)}
        )
    }
    loaded = {
        kind: [(frames[source], frames[driving]) for source, driving in both] for kind, both in pairs.items()
    }
    real = torch.stack([frame.image for frame in frames.values()])
    scores: dict[str, Any] = {}
    for kind, both in loaded.items():
        if both:
            scores[kind], table = _reenact(instruments, synthesizers, both, real, same=kind == "self")
            if kind == "self":
                write_bytes(out / "frames.csv", _csv(both, table).encode())
    consistency = instruments.consistency(
        synthesizers, [(frames[source], [frames[key] for key in drivers]) for source, drivers in groups]
    )
    if consistency is not None:
        scores["consistency"] = {"psi": consistency}
    if known:
        scores["novel_views"] = novel_views(known, clips, synthesizers, instruments.judges)
        scores["response"] = response(known, clips, synthesizers)
        scores |= fit_against_truth(known, labels, instruments.flame)
    return Evaluation(rounded(scores), loaded["self"], loaded["cross"], clips, synthesizers)


def _reenact(
    instruments: Instruments,
    synthesizers: Synthesizers,
    pairs: list[tuple[Frame, Frame]],
    real: Tensor,
    same: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means per method, and the numbers of each pair per method."""
    sources, drivings = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cameras, wanted = stack_frames(drivings, "camera"), stack_frames(drivings, "image")
    thumbnails = metrics.Thumbnails(instruments.judges, wanted)
    table = {}
    means: dict[str, Any] = {}
    for method in (*METHODS, "real"):
        if method == "real":
            image, points = wanted, instruments.five_points(drivings, drivings, cameras)
        else:
            image = synthesizers.draw(method, sources, drivings, cameras[:, None]).image
            where = stack_frames(sources, "camera") if method == "copy" else cameras
            points = instruments.five_points(
                sources, sources if method in ("copy", "psi3d") else drivings, where
            )
        table[method] = instruments.reenactment(image, points, sources, drivings, same)
        means[method] = {name: values.mean() for name, values in table[method].items()}
        if same:
            means[method] |= instruments.followed(image, drivings)
        if "lpips" in means[method]:
            means[method]["lpips_thumbnail"] = thumbnails(means[method]["lpips"])
        if method != "real" and len(image) > 1:
            means[method]["fid_perception"] = instruments.fid(image, real)
        if method == "psi":
            change = image - synthesizers.draw(method, sources, sources, cameras[:, None]).image
            means[method]["response"] = metrics.root_mean_square(change)
            means[method]["response_face"] = metrics.concentration(
                change, moving_parts(points, image.shape[-1])
            )
        else:
            means[method]["response"] = 0.0  # Psi_3d and the copy know no driving motion
    # A real frame compared with itself says nothing; its identity, the calibrated expression and what the face mesh reads in it do.
    means["real"] = {name: value for name, value in means["real"].items() if name in SELF_EVIDENT}
    return means, table


def _csv(pairs: list[tuple[Frame, Frame]], table: dict[str, dict[str, np.ndarray]]) -> str:
    """One row per self-reenacted frame, in the order of how far the head has turned from the source (degrees): the table that dvc plots."""
    turned = [
        rotation_between(source.camera.cpu().numpy(), driving.camera.cpu().numpy())
        for source, driving in pairs
    ]
    names = [
        (method, name)
        for method in METHODS
        for name in ("lpips", "psnr_foreground", "aed", "expression_error")
        if name in table[method]
    ]
    lines = [",".join(["turned", "driving", *(f"{name}_{method}" for method, name in names)])]
    for i in sorted(range(len(pairs)), key=lambda i: (turned[i], pairs[i][1].key)):
        lines.append(
            ",".join(
                [
                    f"{turned[i]:.3f}",
                    pairs[i][1].key,
                    *(f"{table[method][name][i]:.6f}" for method, name in names),
                ]
            )
        )
    return "\n".join(lines) + "\n"


def rotation_between(a_25: np.ndarray, b_25: np.ndarray) -> float:
    """The angle between two cameras' rotations, degrees."""
    relative = a_25[:16].reshape(4, 4)[:3, :3].T @ b_25[:16].reshape(4, 4)[:3, :3]
    return float(np.degrees(np.arccos(np.clip((np.trace(relative) - 1) / 2, -1, 1))))


def rounded(value: Any) -> Any:
    """Numbers to six digits, so that equal results are equal text; what is not finite is left out."""
    if isinstance(value, dict):
        return {
            key: rounded(item)
            for key, item in value.items()
            if not (isinstance(item, float) and not np.isfinite(item))
        }
    return round(float(value), DIGITS)
