"""What was taken and why the rest was not, in words for a message and in numbers for the metrics."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.splits import SPLITS
from pipeline.ingest.detector import face_size

Row = dict[str, Any]
OK, REJECTED, PASSED_OVER = "ok", "rejected", "passed over"
WORST = 4


def is_ok(row: Row) -> bool:
    """Whether the file or frame of a row is used."""
    return row["status"] == OK


def kind_of_reason(reason: str) -> str:
    """A reason without its details."""
    return reason.split(":")[0]


def count_rejected(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows were rejected for each kind of reason."""
    kinds = Counter(kind_of_reason(row["reason"]) for row in rows if row["status"] == REJECTED)
    return dict(sorted(kinds.items()))


def most_frequent(rows: Sequence[Row]) -> str:
    """The most frequent reasons in words."""
    counts = sorted(count_rejected(rows).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} x {reason}" for reason, count in counts[:WORST])


def metrics_of(portraits: list[Row], clips: list[Row], frames: list[Row]) -> dict[str, Any]:
    """The metrics of the stage.

    Counts by status and reason; `face_share`, of the portraits that can be read; `median_face_pixels`, of the source;
    for clips also `cuts` in the film and `frames_left_out` by reason.
    """
    result: dict[str, Any] = {}
    for name, rows in (("portraits", portraits), ("clips", clips), ("frames", frames)):
        result[name] = {"ok": sum(map(is_ok, rows)), "rejected": count_rejected(rows)}
    for name, rows in (("portraits", portraits), ("frames", frames)):
        sizes = [_source_size(row) for row in rows if is_ok(row)]
        result[name]["median_face_pixels"] = round(float(np.median(sizes)), 1)
    readable = [row for row in portraits if row["width"]]
    with_face = sum(kind_of_reason(row["reason"]) != "no face" for row in readable)
    result["portraits"]["face_share"] = round(with_face / len(readable), 4)
    for name, rows in (("portraits", portraits), ("clips", clips)):
        result[name]["ignored_files"] = sum(row["status"] == PASSED_OVER for row in rows)
    for split in SPLITS:
        result["clips"][split] = sum(is_ok(row) and row["split"] == split for row in clips)
    left_out: Counter[str] = Counter()
    for row in clips:
        left_out.update(row.get("left_out", {}))
    result["clips"]["cuts"] = sum(row.get("cuts", 0) for row in clips)
    result["clips"]["frames_left_out"] = dict(sorted(left_out.items()))
    return result


def _source_size(row: Row) -> float:
    """Pixels of a face in the picture that it came from."""
    mesh_478 = np.asarray(row["landmarks"]).reshape(478, 3)
    return face_size(mesh_478) / row["crop"][0]
