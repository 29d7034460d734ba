"""The quality gate of the multi-view cache: what Psi_3d does not reconstruct well has bad pseudo views, too.

Three measures compare the reconstruction at the frame's own camera with the real frame: PSNR inside the
mask (dB), the share of the mask that the rendered head covers, and the cosine of face recognition features.
The paper trains on every frame; the gate is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.files import write_bytes
from pipeline.core.pictures import below, beside, captioned, encode_jpeg, tile, to_uint8
from pipeline.networks.judges import Judges
from pipeline.store.view_index import FEWEST_FRAMES, QUALITY

DIGITS = {"psnr": 3, "coverage": 4, "identity": 4}
WORST = {"psnr": 0.0, "coverage": 0.0, "identity": -1.0}
SHOWN, TILE = 6, 128  # frames for each measure, pixels
LEVELS = {"least": 0.0, "worst_5_percent": 0.05, "median": 0.5}


class Thresholds(Protocol):
    """What is needed of the section `render_views` of params.yaml."""

    min_psnr: float
    min_coverage: float
    min_identity: float


def measure(
    judges: Judges,
    image_B3SS: Tensor,
    opacity_B1SS: Tensor,
    real_B3SS: Tensor,
    mask_B1SS: Tensor,
    points_B52: Tensor,
) -> list[dict[str, float]]:
    """The quality of each frame, rounded as it is stored.

    Images are in [-1, 1], opacity and mask in [0, 1], the five points of the face are fractions (facts 4.2).
    """
    area = mask_B1SS.sum((1, 2, 3)).clamp_min(1.0)
    squares = (image_B3SS - real_B3SS).square().mean(1, keepdim=True)
    in_mask = (squares * mask_B1SS).sum((1, 2, 3))
    error = in_mask / area
    features = judges.identity(image_B3SS, points_B52)
    real_features = judges.identity(real_B3SS, points_B52)
    # The range of values is 2, so its square is 4; 60 dB and 0 dB at the ends.
    ratio = 4.0 / error.clamp(4e-6, 4.0)
    covered = (opacity_B1SS * mask_B1SS).sum((1, 2, 3))
    found = {
        "psnr": 10.0 * torch.log10(ratio),
        "coverage": covered / area,
        "identity": F.cosine_similarity(features, real_features),
    }
    # A broken reconstruction has the worst quality, as NaN would pass every threshold.
    columns = []
    for name, values in found.items():
        numbers = values.nan_to_num(nan=WORST[name])
        digits = DIGITS[name]
        columns.append([round(number, digits) for number in numbers.tolist()])
    rows = zip(*columns, strict=True)
    return [dict(zip(found, row, strict=True)) for row in rows]


def failed_measures(thresholds: Thresholds, quality: Mapping[str, float]) -> str:
    """The measures by which a frame is too bad to be trained on, separated by commas; "" for none."""
    failed = []
    for name in QUALITY:
        least = getattr(thresholds, f"min_{name}")
        if quality[name] < least:
            failed.append(name)
    return ", ".join(failed)


def gate_summary(index: pa.Table) -> dict[str, Any]:
    """What the metrics say of the rows of an index.

    `kept_out` counts training frames that are kept out and by which measures, and training clips that have
    too few frames left; the rest are quantiles of the quality of all frames.
    """
    # Frames of the other splits are never trained on, so the gate keeps none of them out.
    train = index.filter(pc.equal(index["split"], "train"))
    good = train.filter(train["kept"])
    by_clip = good.group_by("clip").aggregate([("key", "count")])
    counts = np.array(by_clip["key_count"])
    below = {}
    for name in QUALITY:
        failed = pc.match_substring(train["reason"], name)
        below[name] = pc.sum(failed).as_py() or 0
    left = int((counts >= FEWEST_FRAMES).sum())
    summary: dict[str, Any] = {
        "kept_out": {
            "frames": len(train) - len(good),
            "below": below,
            "clips": len(pc.unique(train["clip"])) - left,
        }
    }
    for name in QUALITY:
        values = index[name].to_numpy()
        for level, share in LEVELS.items():
            quantile = float(np.quantile(values, share))
            summary[f"{name}_{level}"] = round(quantile, DIGITS[name])
    return summary


def save_worst(
    path: Path,
    index: pa.Table,
    reconstruct: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
) -> None:
    """Write a JPEG of the frames that are worst by each measure, the real frame above the reconstruction.

    `reconstruct` gives both (n, 3, S, S) in [-1, 1] for the keys of frames.
    """
    rows = []
    for name in QUALITY:
        # Ties are broken by the key, so that equal caches make equal pictures.
        order = [(name, "ascending"), ("key", "ascending")]
        rows_of_worst = index.sort_by(order).slice(0, SHOWN)
        worst = rows_of_worst.select(["key", name, "kept"]).to_pylist()
        real, reconstructed = reconstruct([row["key"] for row in worst])
        tiles = []
        pictures = zip(to_uint8(real), to_uint8(reconstructed), strict=True)
        for row, pair in zip(worst, pictures, strict=True):
            state = "" if row["kept"] else " out"
            text = f"{name} {row[name]:.3g}{state}"
            drawn = [tile(picture, TILE, cv2.INTER_AREA) for picture in pair]
            tiles.append(captioned(below(drawn), text))
        white = np.full_like(tiles[0], 255)
        tiles += [white] * (SHOWN - len(tiles))
        rows.append(beside(tiles))
    write_bytes(path, encode_jpeg(below(rows), 85))
