"""The numbers of the evaluation: what each measures, its unit, its range and which way is better.

Images are (B, 3, H, W) in [-1, 1], masks and opacities (B, 1, H, W) in [0, 1]. Functions return one
value a sample, (B,), unless they say otherwise. LPIPS, ID, AED and APD go by the names of paper
section 5 but are measured with the networks at hand (`pipeline.networks.judges`). At generated
scale these are small ones of our own, so that the numbers compare with each other alone, never with
published ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.pictures import decibels
from pipeline.evaluate.sums import Table, Tensors
from pipeline.geometry.label import Estimate
from pipeline.networks.judges import Judges

# Equal images are said to have 60 dB, so that a mean stays finite.
PSNR_LIMIT = 60.0
# The head region goes this share of the image below the lowest landmark, which lies on the chin.
HEAD_MARGIN = 0.05
# Lengths and errors count as at least this much where something is divided by them.
TINY = 1e-12

# Rows and columns of an image.
Region = tuple[slice, slice]


def head_region(mask_BCHW: Tensor, landmarks_BN2: Tensor) -> list[Region]:
    """Rows and columns of the head, one pair a sample. `landmarks` are image fractions.

    The paper does not define its head region. Here it is the bounding box of the foreground above
    the chin (the lowest landmark and HEAD_MARGIN); without foreground it is the whole image.
    """
    # Boxes are numbers of the CPU: one transfer for all samples.
    foreground = (mask_BCHW[:, 0] > 0.5).cpu()
    points = landmarks_BN2.cpu()
    return [_head_box(*sample) for sample in zip(foreground, points, strict=True)]


def _head_box(foreground_HW: Tensor, points_N2: Tensor) -> Region:
    height, width = foreground_HW.shape
    lowest = float(points_N2[:, 1].max()) + HEAD_MARGIN
    chin = int(np.clip(np.ceil(lowest * height), 1, height))
    head = foreground_HW[:chin]
    rows = head.any(1).nonzero()[:, 0].tolist()
    columns = head.any(0).nonzero()[:, 0].tolist()
    if len(rows) < 2 or len(columns) < 2:
        return slice(0, height), slice(0, width)
    down = slice(rows[0], rows[-1] + 1)
    across = slice(columns[0], columns[-1] + 1)
    return down, across


def head_lpips(
    judges: Judges,
    result_BCHW: Tensor,
    wanted_BCHW: Tensor,
    regions: Sequence[Region],
) -> Tensor:
    """LPIPS_h (paper Table 1): LPIPS of the head region, enlarged to the size of the image.

    0 is equal; lower is better.
    """
    # All regions have one size then, whatever the heads have: a small head weighs as much as a
    # large one.
    result = _enlarged(result_BCHW, regions)
    wanted = _enlarged(wanted_BCHW, regions)
    return judges.lpips(result, wanted)


def _enlarged(images_BCHW: Tensor, regions: Sequence[Region]) -> Tensor:
    size = images_BCHW.shape[-2:]
    heads = []
    for image, (rows, columns) in zip(images_BCHW, regions, strict=True):
        crop = image[None, :, rows, columns]
        heads.append(
            F.interpolate(
                crop,
                size=size,
                mode="bilinear",
                align_corners=False,
            )
        )
    return torch.cat(heads)


def foreground_psnr(
    result_BCHW: Tensor,
    wanted_BCHW: Tensor,
    mask_BCHW: Tensor,
) -> Tensor:
    """Peak signal-to-noise ratio inside the true mask, dB, at most 60; higher is better.

    A sample without foreground counts as a whole.
    """
    pixels = mask_BCHW.flatten(1).sum(1)
    empty = (pixels == 0)[:, None, None, None]
    mask = torch.where(empty, torch.ones_like(mask_BCHW), mask_BCHW)
    weight = mask.expand_as(result_BCHW)
    squares = (result_BCHW - wanted_BCHW).square() * weight
    error = squares.flatten(1).sum(1) / weight.flatten(1).sum(1)
    return decibels(error.clamp_min(TINY)).clamp_max(PSNR_LIMIT)


class Change:
    """How much pictures change, and where, added up piece by piece."""

    def __init__(self) -> None:
        self.count = self.pixels = self.pixels_inside = 0
        self.squares = self.squares_inside = 0.0

    def add(self, change_BCHW: Tensor, where_B1HW: Tensor | None = None) -> None:
        """Take more changes, and where to look at them: where `where` is above a half."""
        squares = change_BCHW.double().square()
        self.count += squares.numel()
        self.squares += float(squares.sum())
        if where_B1HW is not None:
            inside = where_B1HW > 0.5
            self.pixels += inside.numel()
            self.pixels_inside += int(inside.sum())
            self.squares_inside += float(squares.sum(1, keepdim=True)[inside].sum())

    def tensors(self) -> Tensors:
        """All sums in one tensor."""
        counts = (self.count, self.pixels, self.pixels_inside)
        sums = (*counts, self.squares, self.squares_inside)
        return {"sums": torch.tensor(sums, dtype=torch.float64)}

    def restore(self, tensors: Tensors) -> None:
        *counts, self.squares, self.squares_inside = tensors["sums"].tolist()
        self.count, self.pixels, self.pixels_inside = map(int, counts)

    @property
    def rms(self) -> float:
        """The root mean square over everything, in the unit of the values; 0 of nothing."""
        return (self.squares / max(self.count, 1)) ** 0.5

    @property
    def concentration(self) -> float:
        """How much more changes inside than on average, as mean squares.

        1 is no more, higher is more; NaN when nothing changes.
        """
        if not self.squares or not self.pixels_inside:
            return float("nan")
        inside = self.squares_inside / self.pixels_inside
        return inside / (self.squares / self.pixels)


def root_mean_square(values_BCHW: Tensor) -> float:
    """Over everything, in the unit of the values."""
    return float(values_BCHW.double().square().mean().sqrt())


def response(change_BCHW: Tensor, true_change_BCHW: Tensor) -> dict[str, float]:
    """How pictures change with the driving motion, beside how they should.

    Both are differences of images in [-1, 1] at the same cameras. `rms` and `true_rms` are the
    sizes of the changes; `share` is the first over the second, where 1 is right and 0 is no motion
    at all; `agreement` is their correlation, -1 to 1: a change of the right size in the wrong place
    has none.
    """
    rms = root_mean_square(change_BCHW)
    true_rms = root_mean_square(true_change_BCHW)
    products = change_BCHW.double() * true_change_BCHW.double()
    common = float(products.mean())
    return {
        "rms": rms,
        "true_rms": true_rms,
        "share": rms / true_rms if true_rms else float("nan"),
        "agreement": common / (rms * true_rms) if rms and true_rms else 0.0,
    }


def within_clips(
    a_N: np.ndarray,
    b_N: np.ndarray,
    clips: Sequence[str],
) -> float:
    """Correlation of two measures over the frames of clips, -1 to 1.

    Each measure counts from its mean over the clip, so that what differs between people does not
    count. Frames where one of the two is NaN are left out. NaN when nothing is left that moves.
    """
    known = np.isfinite(a_N) & np.isfinite(b_N)
    names, numbers = np.unique(np.asarray(clips), return_inverse=True)
    clip = numbers[known]
    frames = np.bincount(clip, minlength=len(names))
    # A clip of which no frame is known has no mean, and nothing that counts from it.
    frames = np.maximum(frames, 1)
    centred = []
    for values in (a_N[known], b_N[known]):
        means = np.bincount(clip, values, len(names)) / frames
        centred.append(values - means[clip])
    a, b = centred
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > TINY else float("nan")


def opacity_iou(opacity_BCHW: Tensor, mask_BCHW: Tensor) -> Tensor:
    """Intersection over union of rendered and true foreground, both cut at 0.5.

    0 to 1, higher is better. Two empty ones agree: 1.
    """
    found = (opacity_BCHW > 0.5).flatten(1)
    true = (mask_BCHW > 0.5).flatten(1)
    common = (found & true).sum(1)
    union = (found | true).sum(1)
    share = common / union.clamp_min(1)
    return torch.where(union > 0, share, torch.ones_like(share))


def depth_error(
    depth_BCHW: Tensor,
    opacity_BCHW: Tensor,
    wanted_BCHW: Tensor,
) -> Tensor:
    """Mean absolute difference of the distance along the ray, where both have foreground.

    In world units, a third of a metre each; lower is better. `wanted` is infinite outside the head.
    NaN for a sample where the two do not overlap.
    """
    both = torch.isfinite(wanted_BCHW) & (opacity_BCHW > 0.5)
    # Where the truth is infinite, so is the difference: it is chosen away, as a weight of 0 would
    # leave NaN.
    difference = (depth_BCHW - wanted_BCHW).abs()
    difference = torch.where(both, difference, torch.zeros_like(depth_BCHW))
    return difference.flatten(1).sum(1) / both.flatten(1).sum(1)


def aed(result_B109: Tensor, driving_B109: Tensor) -> Tensor:
    """Average expression distance (paper section 5.2): mean L1 of estimated coefficients.

    Lower is better. The 3 numbers of the jaw count beside the 100 of the expression, as they are
    part of it in the estimator that the paper uses.
    """
    distance = (result_B109 - driving_B109).abs()
    counted = torch.cat([distance[:, Estimate.EXPRESSION], distance[:, Estimate.JAW]], dim=1)
    return counted.mean(1)


def apd(result_B109: Tensor, driving_B109: Tensor) -> Tensor:
    """Average pose distance (paper section 5.2): mean squared difference of estimated rotations.

    In rad^2 times 1000; lower is better. The paper names no formula: a square is what its reference
    uses and what the published size (0.58) allows, which is about 1.4 degrees.
    """
    turn = (result_B109 - driving_B109)[:, Estimate.ROTATION]
    return 1000.0 * turn.square().mean(1)


def cosine(a_BE: np.ndarray, b_BE: np.ndarray) -> np.ndarray:
    """ID (paper section 5.2): cosine of face recognition features, -1 to 1; higher is better."""
    lengths = np.linalg.norm(a_BE, axis=1) * np.linalg.norm(b_BE, axis=1)
    return (a_BE * b_BE).sum(1) / np.maximum(lengths, TINY)


def consistency(features_NE: np.ndarray) -> float:
    """Cons. (paper section 5.3): mean cosine between all pairs of results of one source.

    The results are of different drivers and seen from the front. -1 to 1, higher is better. Raises
    ValueError for less than two results.
    """
    if len(features_NE) < 2:
        raise ValueError("consistency needs the results of at least two drivers")
    first, second = np.triu_indices(len(features_NE), 1)
    cosines = cosine(features_NE[first], features_NE[second])
    return float(cosines.mean())


def landmark_error(
    found_NP2: np.ndarray,
    wanted_NP2: np.ndarray,
    interocular_N: np.ndarray,
) -> np.ndarray:
    """Distance of each landmark over the true inter-ocular distance, (N, P); lower is better."""
    distance = np.linalg.norm(found_NP2 - wanted_NP2, axis=-1)
    return distance / interocular_N[:, None]


class Thumbnails(Table):
    """What an LPIPS looks like: the side in pixels of a thumbnail as far from the true picture.

    A thumbnail is the true picture made small, and enlarged again.
    """

    def __init__(self, judges: Judges) -> None:
        """The table has the distances of each picture by the side of the thumbnail."""
        super().__init__()
        self.judges = judges

    def shrink(self, images_BCHW: Tensor) -> None:
        """Take more true pictures."""
        side = images_BCHW.shape[-1]
        # Powers of two and their one and a halves in between: each side is about 1.4 times the one
        # before.
        candidates = []
        for power in range(2, side.bit_length()):
            candidates += [2**power, 3 * 2 ** (power - 1)]
        distances = {}
        for size in candidates:
            if size > side:
                continue
            small = F.interpolate(
                images_BCHW,
                size=(size, size),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            again = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
            distance = self.judges.lpips(again.clamp(-1, 1), images_BCHW)
            distances[str(size)] = distance.cpu().numpy()
        self.add(distances)

    def __call__(self, lpips: float) -> float:
        """Pixels, interpolated on a logarithmic scale; at least those of the smallest thumbnail."""
        # A larger thumbnail may be further off by chance, but np.interp needs distances that
        # ascend.
        columns = self.columns
        sides = [int(name) for name in columns]
        distances = [float(torch.from_numpy(values).mean()) for values in columns.values()]
        falling = np.minimum.accumulate(distances)
        logarithm = np.interp(lpips, falling[::-1], np.log(sides)[::-1])
        return float(np.exp(logarithm))
