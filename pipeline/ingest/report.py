"""What was taken and why the rest was not, in words for a message and in numbers for the metrics."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.splits import SPLITS

Row = dict[str, Any]
# A file that is passed over was never meant to be read; one that is rejected could not be used.
OK, REJECTED, PASSED_OVER = "ok", "rejected", "passed over"
GOOD = {"status": OK, "reason": ""}
NO_FACE = "no face"
WORST = 4


def is_ok(row: Row) -> bool:
    """Whether the file or frame of a row is used."""
    return row["status"] == OK


def kind_of_reason(reason: str) -> str:
    """A reason without its details."""
    return reason.split(":")[0]


def count_rejected(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows were rejected for each kind of reason."""
    rejected = [row["reason"] for row in rows if row["status"] == REJECTED]
    kinds = Counter(map(kind_of_reason, rejected))
    return dict(sorted(kinds.items()))


def most_frequent(rows: Sequence[Row]) -> str:
    """The most frequent reasons in words."""
    counts = count_rejected(rows)
    ordered = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return ", ".join(f"{counts[kind]} x {kind}" for kind in ordered[:WORST])


def metrics_of(
    portraits: list[Row],
    clips: list[Row],
    frames: list[Row],
    portrait_pixels: list[float],
    frame_pixels: list[float],
) -> dict[str, Any]:
    """The metrics of the stage.

    Counts by status and reason; `face_share`, of the portraits that can be read; `median_face_pixels`, of the
    source, of the sizes of all used faces of portraits and frames; for clips also `cuts` in the film and
    `frames_left_out` by reason.
    """
    readable = [row for row in portraits if row["width"]]
    with_face = [row for row in readable if kind_of_reason(row["reason"]) != NO_FACE]
    face_share = round(len(with_face) / len(readable), 4)
    left_out: Counter[str] = Counter()
    for row in clips:
        left_out.update(row.get("left_out", {}))
    splits = Counter(row["split"] for row in clips if is_ok(row))
    return {
        "portraits": {
            **_counts(portraits),
            "median_face_pixels": _median(portrait_pixels),
            "face_share": face_share,
            "ignored_files": _passed_over(portraits),
        },
        "clips": {
            **_counts(clips),
            "ignored_files": _passed_over(clips),
            **{split: splits[split] for split in SPLITS},
            "cuts": sum(row.get("cuts", 0) for row in clips),
            "frames_left_out": dict(sorted(left_out.items())),
        },
        "frames": {
            **_counts(frames),
            "median_face_pixels": _median(frame_pixels),
        },
    }


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    used = sum(map(is_ok, rows))
    return {"ok": used, "rejected": count_rejected(rows)}


def _passed_over(rows: Sequence[Row]) -> int:
    return sum(row["status"] == PASSED_OVER for row in rows)


def _median(sizes: Sequence[float]) -> float:
    return round(float(np.median(sizes)), 1)
