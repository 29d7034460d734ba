"""The numbers of the evaluation: what each measures, its unit, its range and which way is better.

Images are (B, 3, H, W) in [-1, 1], masks and opacities (B, 1, H, W) in [0, 1]. Functions return one value a sample, (B,), unless they say
otherwise. LPIPS, ID, AED, APD and FID go by the names of paper section 5 but are measured with the networks at hand
(`pipeline.networks.judges`): at generated scale these are our own small ones, and the numbers compare with each other alone, never with
published ones.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from insightface.model_zoo import get_model
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance

from model.head.flame import Flame
from model.judges.identity import identity_crop
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.geometry.expression import EXPRESSION, JAW, NUMBERS, ROTATION, ExpressionOffsets
from pipeline.geometry.landmarks import landmarks_70
from pipeline.geometry.motion_targets import motion_measures
from pipeline.ingest.detector import FaceFinder
from pipeline.ingest.reader import Rejected
from pipeline.networks.judges import Judges

READER_PIXELS = 256  # the face mesh finds little in smaller pictures
READER_SCORE = 0.3  # of the face detector: what is looked at are blurred faces in their place
PSNR_LIMIT = 60.0  # dB; what equal images are said to have, so that a mean stays finite
HEAD_MARGIN = 0.05  # of the image: the head region goes this far below the chin
RIDGE = 1.0  # of the calibration, times the variance of its inputs


def head_region(mask_BCHW: Tensor, landmarks_BN2: Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of the head, one pair a sample: the bounding box of the foreground above the chin (the lowest landmark, plus a
    margin).

    The paper does not define its head region. Without foreground it is the whole image.
    """
    height, width = mask_BCHW.shape[-2:]
    regions = []
    for mask, points in zip(mask_BCHW[:, 0] > 0.5, landmarks_BN2, strict=True):
        chin = int(np.clip(np.ceil((float(points[:, 1].max()) + HEAD_MARGIN) * height), 1, height))
        rows, columns = mask[:chin].any(1).nonzero()[:, 0], mask[:chin].any(0).nonzero()[:, 0]
        found = len(rows) > 1 and len(columns) > 1
        box = (
            (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
            if found
            else (slice(0, height), slice(0, width))
        )
        regions.append(box)
    return regions


def head_lpips(
    judges: Judges, result_BCHW: Tensor, wanted_BCHW: Tensor, regions: Sequence[tuple[slice, slice]]
) -> Tensor:
    """LPIPS_h (paper Table 1): LPIPS of the head region, enlarged to the size of the image. 0 is equal; lower is better."""
    size = result_BCHW.shape[-2:]

    def heads(images: Tensor) -> Tensor:
        crops = [
            image[None, :, rows, columns] for image, (rows, columns) in zip(images, regions, strict=True)
        ]
        return torch.cat(
            [F.interpolate(crop, size=size, mode="bilinear", align_corners=False) for crop in crops]
        )

    return judges.lpips(heads(result_BCHW), heads(wanted_BCHW))


def foreground_psnr(result_BCHW: Tensor, wanted_BCHW: Tensor, mask_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio inside the true mask, dB, peak 2; at most 60. Higher is better. Samples without foreground count whole."""
    empty = (mask_BCHW.flatten(1).sum(1) == 0)[:, None, None, None]
    weight = torch.where(empty, torch.ones_like(mask_BCHW), mask_BCHW).expand_as(result_BCHW)
    error = ((result_BCHW - wanted_BCHW).square() * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return (10.0 * torch.log10(4.0 / error.clamp_min(1e-12))).clamp_max(PSNR_LIMIT)


def root_mean_square(values_BCHW: Tensor) -> float:
    """Over everything."""
    return float(values_BCHW.double().square().mean().sqrt())


def concentration(change_BCHW: Tensor, where_B1HW: Tensor) -> float:
    """How much more changes where `where` is above a half than in the mean of the pictures, as squares; 1 is no more. NaN for no change."""
    squares, inside = change_BCHW.double().square().sum(1, keepdim=True), where_B1HW > 0.5
    return float(squares[inside].mean() / squares.mean()) if squares.any() and inside.any() else float("nan")


def response(change_BCHW: Tensor, true_change_BCHW: Tensor) -> dict[str, float]:
    """How pictures change with the driving motion, beside how they should; both are differences of images in [-1, 1] at the same cameras.

    `rms` is the size of the change, `share` that over the true one (1 is right, 0 is no motion at all), `agreement` their correlation, -1 to
    1: a change of the right size in the wrong place has none.
    """
    rms, true_rms = root_mean_square(change_BCHW), root_mean_square(true_change_BCHW)
    common = float((change_BCHW.double() * true_change_BCHW.double()).mean())
    agreement = common / (rms * true_rms) if rms and true_rms else 0.0
    return {
        "rms": rms,
        "true_rms": true_rms,
        "share": rms / true_rms if true_rms else float("nan"),
        "agreement": agreement,
    }


def within_clips(a_N: np.ndarray, b_N: np.ndarray, clips: Sequence[str]) -> float:
    """Correlation of two measures over the frames of clips, each about its clip's mean, so that what differs between people does not count;
    -1 to 1. Frames where one of them is NaN are left out; NaN when nothing is left that moves."""
    names, clip = np.unique(np.asarray(clips), return_inverse=True)
    known = np.isfinite(a_N) & np.isfinite(b_N)
    centred = []
    for values in (a_N, b_N):
        values = np.where(known, values, 0.0)
        means = np.bincount(clip[known], values[known], len(names)) / np.maximum(
            np.bincount(clip[known], minlength=len(names)), 1
        )
        centred.append((values - means[clip])[known])
    size = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / size) if size > 1e-12 else float("nan")


def opacity_iou(opacity_BCHW: Tensor, mask_BCHW: Tensor) -> Tensor:
    """Intersection over union of rendered and true foreground, both cut at 0.5; 0 to 1, higher is better. Two empty ones agree: 1."""
    a, b = (opacity_BCHW > 0.5).flatten(1), (mask_BCHW > 0.5).flatten(1)
    union = (a | b).sum(1)
    return torch.where(union > 0, (a & b).sum(1) / union.clamp_min(1), torch.ones(len(a), device=a.device))


def depth_error(depth_BCHW: Tensor, opacity_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Mean absolute difference of the distance along the ray, world units (a third of a metre), where both have foreground; lower is
    better.

    `wanted` is infinite outside the head. NaN for a sample where the two do not overlap.
    """
    both = torch.isfinite(wanted_BCHW) & (opacity_BCHW > 0.5)
    difference = torch.where(both, (depth_BCHW - wanted_BCHW).abs(), torch.zeros_like(depth_BCHW))
    return difference.flatten(1).sum(1) / both.flatten(1).sum(1)


def aed(result_B109: Tensor, driving_B109: Tensor) -> Tensor:
    """Average expression distance (paper section 5.2): mean L1 of the 100 estimated expression coefficients and the 3 of the jaw, which is
    part
    of the expression in the estimator that the paper uses. Coefficient units; lower is better."""
    columns = [*range(*EXPRESSION.indices(109)), *range(*JAW.indices(109))]
    return (result_B109 - driving_B109)[:, columns].abs().mean(1)


def apd(result_B109: Tensor, driving_B109: Tensor) -> Tensor:
    """Average pose distance (paper section 5.2): mean squared difference of the estimated head rotation vectors, rad^2 times 1000; lower is
    better. The paper names no formula; a square is what its reference uses and what the published size (0.58) allows: about 1.4 degrees."""
    return 1000.0 * (result_B109 - driving_B109)[:, ROTATION].square().mean(1)


def cosine(a_BE: np.ndarray, b_BE: np.ndarray) -> np.ndarray:
    """ID (paper section 5.2): cosine of face recognition features, -1 to 1; higher is better."""
    return (a_BE * b_BE).sum(1) / np.maximum(
        np.linalg.norm(a_BE, axis=1) * np.linalg.norm(b_BE, axis=1), 1e-12
    )


def consistency(features_NE: np.ndarray) -> float:
    """Cons. (paper section 5.3): mean cosine between all pairs of results of one source under different drivers, seen from the front; -1 to
    1,
    higher is better. Raises ValueError for less than two results."""
    if len(features_NE) < 2:
        raise ValueError("consistency needs the results of at least two drivers")
    first, second = np.triu_indices(len(features_NE), 1)
    return float(cosine(features_NE[first], features_NE[second]).mean())


def landmark_error(found_NP2: np.ndarray, wanted_NP2: np.ndarray, interocular_N: np.ndarray) -> np.ndarray:
    """Distance of each landmark over the true inter-ocular distance, (N, P); 0.04 is 4 %. Lower is better."""
    return np.linalg.norm(found_NP2 - wanted_NP2, axis=-1) / interocular_N[:, None]


class Thumbnails:
    """What an LPIPS looks like: the side in pixels of the thumbnail of the true picture, enlarged again, that has the same."""

    def __init__(self, judges: Judges, images_BCHW: Tensor) -> None:
        """`images_BCHW` are the true pictures."""
        side = images_BCHW.shape[-1]
        powers = range(2, side.bit_length())
        self.sides = [size for power in powers for size in (2**power, 3 * 2 ** (power - 1)) if size <= side]
        self.distances = []
        for size in self.sides:
            small = F.interpolate(
                images_BCHW, size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
            again = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False).clamp(-1, 1)
            self.distances.append(float(judges.lpips(again, images_BCHW).mean()))

    def __call__(self, lpips: float) -> float:
        """Pixels, interpolated on a logarithmic scale; the smallest thumbnail's when it is worse than that."""
        falling = np.minimum.accumulate(self.distances)[::-1]
        return float(np.exp(np.interp(lpips, falling, np.log(self.sides)[::-1])))


class FaceReader:
    """Reads mouth, lids and gaze from pictures, enlarged, by the face mesh of ingest: an instrument that no network of ours has learnt from
    pictures that ours have drawn."""

    NAMES = ("mouth_opening", "eye_opening", "gaze")

    def __init__(self) -> None:
        self.faces = FaceFinder(READER_SCORE, 0.0)

    def __call__(self, images_BCHW: Tensor) -> dict[str, np.ndarray]:
        """The measures of `motion_measures`, (B,); NaN where no face is found."""
        side = images_BCHW.shape[-1]
        size = max(side, READER_PIXELS)
        large = F.interpolate(images_BCHW, size=(size, size), mode="bicubic", align_corners=False).clamp(
            -1, 1
        )
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
    """Fréchet distance over the 64 numbers of our trunk, not of Inception: hence the name `fid_perception`. Lower is better."""

    def __init__(self, judges: Judges) -> None:
        distance = FrechetInceptionDistance(feature=judges.trunk, normalize=True).set_dtype(torch.float64)
        self.distance = distance.to(judges.trunk.scale.device)

    def __call__(self, results_BCHW: Tensor, real_BCHW: Tensor) -> float:
        """The distance of two sets of at least two images."""
        self.distance.reset()
        self.distance.update(real_BCHW, real=True)
        self.distance.update(results_BCHW, real=False)
        return float(self.distance.compute().clamp_min(0.0))


class FaceRecognition:
    """Face recognition as insightface runs it: the exported ONNX network on aligned 112x112 crops."""

    def __init__(self, onnx_file: str | Path) -> None:
        """Raises UserError when the file is missing or holds no recognition network."""
        try:
            self.model = get_model(str(onnx_file), providers=["CPUExecutionProvider"])
        except Exception as error:  # insightface asserts, onnxruntime has errors of its own
            raise UserError(
                f"{onnx_file} is no readable face recognition network ({error}). Run `dvc repro pretrain@perception`."
            ) from error

    def __call__(self, image_BCHW: Tensor, five_points_B52: Tensor) -> np.ndarray:
        """Features (B, E), not normalised."""
        crops = to_uint8(identity_crop(image_BCHW, five_points_B52))
        return self.model.get_feat([np.ascontiguousarray(crop[:, :, ::-1]) for crop in crops])


class ExpressionTruth:
    """Expression error against known parameters (generated heads only), percent of the inter-ocular distance; lower is better.

    The frozen regressor learnt fitted parameters, which are biased against the truth. So a ridge regression from its 109 numbers to the
    true offsets of landmarks (`pipeline.geometry.expression`) is fitted on real frames of training clips, where the truth is known: a calibrated
    instrument. The error is the mean distance over the inner landmarks between what it reads in a picture and the truth of the driving
    frame. What it errs on the real driving frames themselves is reported beside it (`real`): less than that cannot be told apart.
    """

    def __init__(self, flame: Flame) -> None:
        self.offsets = ExpressionOffsets(flame)
        zeros = flame.template_V3.new_zeros
        self.average, self.map, self.offset = zeros(109), zeros(109, NUMBERS), zeros(NUMBERS)

    def calibrate(self, estimates_N109: Tensor, parameters_N106: Tensor) -> None:
        """Fit the ridge regression on frames with known parameters (expression, jaw, one eye triple)."""
        wanted = self.offsets(parameters_N106).flatten(1).double()
        self.average, self.offset = estimates_N109.mean(0), wanted.mean(0).float()
        deviation = estimates_N109.std(0).double() + 1e-6
        x = (estimates_N109 - self.average).double() / deviation
        solved = torch.linalg.solve(
            x.T @ x + RIDGE * len(x) * torch.eye(109, dtype=x.dtype, device=x.device),
            x.T @ (wanted - wanted.mean(0)),
        )
        self.map = (solved / deviation[:, None]).float()

    def __call__(self, estimates_B109: Tensor, parameters_B106: Tensor) -> Tensor:
        """The error of each sample, (B,)."""
        found = self.offset + (estimates_B109 - self.average) @ self.map
        return (found.unflatten(1, (53, 3)) - self.offsets(parameters_B106)).norm(dim=2).mean(1)
