"""What measures pictures: judging networks, the face mesh, and what is calibrated by the truth."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from insightface.model_zoo import get_model
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance

from model.head.flame import Flame
from model.judges.identity import identity_crop
from pipeline.clips.held_out import Frame, stack_frames
from pipeline.config.params import Params
from pipeline.core.device import choose_device
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.evaluate import metrics
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.published import Faces, PublishedInstruments
from pipeline.evaluate.sums import Tensors
from pipeline.evaluate.truth import Truth
from pipeline.geometry import camera_path, head_model
from pipeline.geometry.expression import INNER, NUMBERS, ExpressionOffsets
from pipeline.geometry.label import FIVE_POINTS, Estimate, Label, landmarks
from pipeline.geometry.landmarks import landmarks_70
from pipeline.geometry.motion_targets import motion_measures
from pipeline.ingest.detector import FaceFinder
from pipeline.ingest.files import Rejected
from pipeline.networks.judges import Judges

# The face mesh finds little in pictures with smaller sides.
READER_PIXELS = 256
# The least score of the face detector is low, as what is looked at are blurred faces in their
# place.
READER_SCORE = 0.3
# The penalty of the calibration, over the variance of its inputs.
RIDGE = 1.0
FIVE = list(FIVE_POINTS)
# What torchmetrics calls the sums of one side of a distance, behind the name of the side.
FID_SUMS = ("features_sum", "features_cov_sum", "features_num_samples")
# So many pictures the regressor reads together, which bounds the memory that it takes.
AT_ONCE = 64

# Features (B, E) of pictures (B, 3, S, S) with landmarks (B, 70, 2) as image fractions.
Recognise = Callable[[Tensor, Tensor], np.ndarray]


class Instruments:
    """Everything that measures pictures, loaded once for all methods."""

    def __init__(
        self,
        params: Params,
        perception: Path,
        truth: Truth | None,
    ) -> None:
        """`perception` is the folder of the judging networks.

        Raises UserError when they cannot be read.
        """
        self.device = choose_device(params.machine.device)
        self.judges = Judges.load(perception, self.device)
        self.published = PublishedInstruments(Path(params.pretrain.official), self.device)
        self.recognise = self._recognition(perception)
        self.fid = self._fid()
        self.flame = Flame(head_model.load(params.flame.model)).to(self.device)
        self.truth = truth
        self.reader = FaceReader()

    def _recognition(self, perception: Path) -> Recognise:
        """The published face recognition where it was imported, else our own."""
        if self.published.network("arcface") is not None:
            return lambda images, points: self.published.identity(Faces(images, points), FIVE)
        file = perception / "identity.onnx"
        if self.published.has("arcface"):
            file = self.published.recognition_file
        network = FaceRecognition(file)
        return lambda images, points: network(images, points[:, FIVE])

    def _fid(self) -> "FidPerception":
        inception = self.published.inception
        if inception is not None:
            return FidPerception("fid_inception_pytorch_fid", inception, self.device)
        return FidPerception("fid_perception", self.judges.trunk, self.device)

    def name(self, own: str) -> str:
        """What the number `own` of face recognition is called, by the network that reads it."""
        return f"{own}_arcface" if self.published.has("arcface") else own

    @cached_property
    def expression_truth(self) -> "ExpressionTruth":
        """The instrument for expression, calibrated on true frames of training clips."""
        instrument = ExpressionTruth(self.flame)
        images, parameters = self.truth.calibration_frames()  # pyrefly: ignore[missing-attribute]
        instrument.calibrate(self.expression_pose(images), parameters.to(self.device))
        return instrument

    @torch.no_grad()
    def reenacted_landmarks(
        self,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
        cameras_N25: Tensor,
    ) -> Tensor:
        """Where the face of a reenacted source is, image fractions (N, 70, 2).

        These are the landmarks of the source's shape in the driving frame's expression.
        """
        shape = Label.split(stack_frames(sources, "label")).shape
        label = replace(Label.split(stack_frames(drivings, "label")), shape=shape)
        # The camera in the label is not looked at: the head is seen by `cameras`.
        return landmarks(self.flame, label.pack(), cameras_N25[:, None])[:, 0]

    @torch.no_grad()
    def expression_pose(self, images: Tensor) -> Tensor:
        """What the estimator reads in pictures (N, 3, S, S), (N, 109)."""
        estimates = []
        for part in images.split(AT_ONCE):
            estimates.append(self.judges.expression_pose(part.to(self.device)))
        return torch.cat(estimates)

    @torch.no_grad()
    def reenactment(
        self,
        result: Tensor,
        points: Tensor,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
        same: bool,
    ) -> dict[str, np.ndarray]:
        """The numbers of each pair by name, float64 (N,).

        They say how like results (N, 3, S, S) with landmarks `points` (N, 70, 2) are to the
        source's identity and to the driving frame's expression and pose; where both are the `same`
        person, also to the driving frame.
        """
        wanted = stack_frames(drivings, "image")
        found = self.expression_pose(result)
        driven = self.expression_pose(wanted)
        recognised = self.recognise(result, points)
        scores: dict[str, Any] = {
            self.name("id"): metrics.cosine(recognised, self._identity(sources)),
        }
        if not self.published.has("deep3d"):
            scores["aed"] = metrics.aed(found, driven)
            scores["apd"] = metrics.apd(found, driven)
        if self.published.distances_wanted:
            driving_faces = Faces(wanted, self._real_landmarks(drivings))
            scores |= self.published.distances(Faces(result, points), driving_faces)
        if same:
            mask = stack_frames(drivings, "mask")
            regions = metrics.head_region(mask, self._real_landmarks(drivings))
            scores["lpips"] = self.judges.lpips(result, wanted)
            scores["lpips_head"] = metrics.head_lpips(self.judges, result, wanted, regions)
            scores["psnr_foreground"] = metrics.foreground_psnr(result, wanted, mask)
        if self.truth:
            parameters = self.truth.parameters([frame.key for frame in drivings])
            scores["expression_error"] = self.expression_truth(found, parameters.to(self.device))
        return {name: _to_float64(value) for name, value in scores.items()}

    def _identity(self, frames: Sequence[Frame]) -> np.ndarray:
        """Face recognition features of real frames, (N, E)."""
        return self.recognise(stack_frames(frames, "image"), self._real_landmarks(frames))

    def _real_landmarks(self, frames: Sequence[Frame]) -> Tensor:
        """The landmarks of fitted heads in their own frames, image fractions (N, 70, 2)."""
        return self.reenacted_landmarks(frames, frames, stack_frames(frames, "camera"))

    def motion(self, frames: Sequence[Frame]) -> dict[str, np.ndarray]:
        """Mouth, lids and gaze of real frames, (N,).

        They are the truth where it is known, else what is read from the pictures.
        """
        if self.truth:
            points = [self.truth.landmarks[frame.key] for frame in frames]
            return self.reader.measure(np.stack(points))
        return self.reader(stack_frames(frames, "image"))

    def followed(
        self,
        found: Mapping[str, np.ndarray],
        wanted: Mapping[str, np.ndarray],
        clips: Sequence[str],
    ) -> dict[str, float]:
        """How well mouth, lids and gaze of pictures follow those of the driving frames.

        `found` is what `reader` reads in the pictures, `wanted` what `motion` says of the frames,
        `clips` theirs. Correlations over each clip, -1 to 1, and in which share of the pictures a
        face is found.
        """
        scores = {}
        for name, values in found.items():
            correlation = metrics.within_clips(values, wanted[name], clips)
            scores[f"{name}_correlation"] = correlation
        # Of a picture without a face nothing is read: all measures are NaN.
        is_found = np.isfinite(found["mouth_opening"])
        scores["faces_found"] = float(is_found.mean())
        return scores

    def consistency(
        self,
        synthesizers: Synthesizers,
        source: Frame,
        drivings: Sequence[Frame],
    ) -> float:
        """Cons. of Psi's results of one source, by two drivers or more."""
        cameras = torch.from_numpy(camera_path.front(len(drivings))).to(self.device)
        sources = [source] * len(drivings)
        drawn = synthesizers.draw("psi", sources, drivings, cameras[:, None])
        points = self.reenacted_landmarks(sources, drivings, cameras)
        return metrics.consistency(self.recognise(drawn.image, points))


def _to_float64(values: Tensor | np.ndarray) -> np.ndarray:
    on_cpu = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    return on_cpu.numpy()


class FaceReader:
    """Reads mouth, lids and gaze from pictures, enlarged, by the face mesh of ingest.

    It is an instrument that no network of ours has learnt from pictures that ours have drawn.
    """

    NAMES = ("mouth_opening", "eye_opening", "gaze")

    def __init__(self) -> None:
        self.faces = FaceFinder(READER_SCORE, 0.0)

    def __call__(self, images_BCHW: Tensor) -> dict[str, np.ndarray]:
        """The measures of `motion_measures`, (B,); NaN where no face is found."""
        size = max(images_BCHW.shape[-1], READER_PIXELS)
        large = F.interpolate(
            images_BCHW,
            size=(size, size),
            mode="bicubic",
            align_corners=False,
        )
        # NaN marks a picture without a face, which the correlations then leave out.
        points = np.full((len(images_BCHW), 70, 2), np.nan)
        for i, image in enumerate(to_uint8(large)):
            with contextlib.suppress(Rejected):
                points[i] = landmarks_70(self.faces.find(image).mesh_478)
        return self.measure(points)

    @classmethod
    def measure(cls, points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
        """The same of known landmarks."""
        measures = motion_measures(points_N70x2)
        return {name: measures[name] for name in cls.NAMES}


class FidPerception:
    """Fréchet distance over the features of a network; lower is better.

    `name` says of which: `fid_perception` of the 64 numbers of our trunk, which are not those of Inception.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        device: torch.device,
    ) -> None:
        self.name, self.network, self.device = name, network, device
        self.real = self._empty()

    def begin(self) -> None:
        """Forget the real images."""
        self.real = self._empty()

    def take(self, images_BCHW: Tensor) -> None:
        """Take more of the real images, which results are compared with."""
        self.real.update(images_BCHW, real=True)

    def results(self) -> "FidResults":
        """The results of a method, still without any."""
        distance = self._empty()
        _give(distance, "real", self.tensors())
        return FidResults(distance)

    def tensors(self) -> Tensors:
        """Sums over the real images, all that the distance knows of them."""
        return _sums(self.real, "real")

    def restore(self, tensors: Tensors) -> None:
        _give(self.real, "real", tensors)

    def _empty(self) -> FrechetInceptionDistance:
        distance = FrechetInceptionDistance(feature=self.network, normalize=True)
        # The root of a product of two covariances of few pictures needs double precision.
        distance.set_dtype(torch.float64)
        # It learns from the features of its first picture in what precision to answer, which is the
        # double one here; after a restart there may be no picture.
        distance.orig_dtype = torch.float64
        return distance.to(self.device)


class FidResults:
    """Results that are compared with real images."""

    def __init__(self, distance: FrechetInceptionDistance) -> None:
        self.network = distance

    def add(self, images_BCHW: Tensor) -> None:
        """Take more results."""
        self.network.update(images_BCHW, real=False)

    @property
    def count(self) -> int:
        """How many results there are."""
        return int(self.network.fake_features_num_samples)

    def distance(self) -> float:
        """The distance of the two sets, of at least two images each."""
        with warnings.catch_warnings():
            # It warns when it has seen no picture itself, as after a restart all may have been seen before.
            warnings.simplefilter("ignore", UserWarning)
            return float(self.network.compute().clamp_min(0.0))

    def tensors(self) -> Tensors:
        """Sums over the results; those over the real images are kept by themselves."""
        return _sums(self.network, "fake")

    def restore(self, tensors: Tensors) -> None:
        _give(self.network, "fake", tensors)


def _sums(distance: FrechetInceptionDistance, side: str) -> Tensors:
    """What a distance knows of its `real` or `fake` images."""
    return {name: getattr(distance, f"{side}_{name}").clone() for name in FID_SUMS}


def _give(
    distance: FrechetInceptionDistance,
    side: str,
    sums: Tensors,
) -> None:
    for name in FID_SUMS:
        setattr(distance, f"{side}_{name}", sums[name].to(distance.device, copy=True))


class FaceRecognition:
    """Face recognition as insightface runs it: an ONNX network on aligned crops of 112 pixels."""

    def __init__(self, onnx_file: Path) -> None:
        """Raises UserError when the file is missing or holds no recognition network."""
        try:
            self.model = get_model(str(onnx_file), providers=["CPUExecutionProvider"])
        # insightface asserts, and onnxruntime has errors of its own that derive from Exception
        # alone.
        except Exception as error:
            advice = "Run `dvc repro pretrain@perception`."
            raise UserError(
                f"{onnx_file} is no readable face recognition network ({error}). {advice}"
            ) from error

    def __call__(self, image_BCHW: Tensor, five_points_B52: Tensor) -> np.ndarray:
        """Features (B, E), not normalised."""
        crops = to_uint8(identity_crop(image_BCHW, five_points_B52))
        # insightface takes blue first, as OpenCV does.
        blue_first = [np.ascontiguousarray(crop[:, :, ::-1]) for crop in crops]
        return self.model.get_feat(blue_first)


class ExpressionTruth:
    """Expression error against known parameters, of generated heads alone.

    In percent of the inter-ocular distance; lower is better. The frozen regressor learnt fitted
    parameters, which are biased against the truth. So a ridge regression from its 109 numbers to
    the true offsets of landmarks (`pipeline.geometry.expression`) is fitted on real frames of
    training clips, where the truth is known: a calibrated instrument. The error is the mean
    distance over the inner landmarks between what it reads in a picture and the truth of the
    driving frame. What it errs on the real driving frames themselves is reported beside it
    (`real`): less than that cannot be told apart.
    """

    def __init__(self, flame: Flame) -> None:
        self.offsets = ExpressionOffsets(flame)
        zeros = flame.template_V3.new_zeros
        self.average = zeros(Estimate.SIZE)
        self.map = zeros(Estimate.SIZE, NUMBERS)
        self.offset = zeros(NUMBERS)

    def calibrate(self, estimates_N109: Tensor, parameters_N106: Tensor) -> None:
        """Fit the ridge regression on frames with known expression, jaw and one eye triple."""
        wanted = self.offsets(parameters_N106).flatten(1).double()
        self.average = estimates_N109.mean(0)
        self.offset = wanted.mean(0).float()
        deviation = estimates_N109.std(0).double() + 1e-6
        x = (estimates_N109 - self.average).double() / deviation
        # (X'X + n RIDGE I) W = X'Y, with inputs of unit variance and means of 0.
        penalty = RIDGE * len(x) * torch.eye(Estimate.SIZE, dtype=x.dtype, device=x.device)
        y = wanted - wanted.mean(0)
        solved = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        self.map = (solved / deviation[:, None]).float()

    def read(self, estimates_B109: Tensor) -> Tensor:
        """The offsets of landmarks (B, 53, 3) that it makes of the regressor's numbers."""
        found = self.offset + (estimates_B109 - self.average) @ self.map
        return found.unflatten(1, (-1, 3))

    def __call__(self, estimates_B109: Tensor, parameters_B106: Tensor) -> Tensor:
        """The error of each sample, (B,)."""
        difference = self.read(estimates_B109) - self.offsets(parameters_B106)
        return difference.norm(dim=2).mean(1)

    def motion(self, estimates_B109: Tensor) -> dict[str, np.ndarray]:
        """Mouth, lids and gaze (B,) of the mean head with the offsets that it reads."""
        moved = self.read(estimates_B109) * self.offsets.unit / 100
        inner = (self.offsets.neutral + moved).cpu().numpy()
        # The contour says nothing of these. Landmarks of pictures have y down.
        points = np.zeros((len(inner), 70, 2))
        points[:, INNER] = inner[..., :2] * (1, -1)
        return FaceReader.measure(points)
