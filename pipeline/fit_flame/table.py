"""The label tables of stage `fit_flame`: faces of ingest in, a label, an error and a verdict for each out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.params import FitFlame, Params
from pipeline.core.errors import UserError
from pipeline.fit_flame.solver import fit
from pipeline.fit_flame.worker import fit_clips
from pipeline.geometry.head_model import load
from pipeline.geometry.landmarks import landmarks_70
from pipeline.store.tables import LABELS, OK, meshes, photographed, read_rows, usable

PORTRAITS, FRAMES = ITEMS = ("ffhq", "vfhq")  # the parts of the stage
Fitted = tuple[np.ndarray, float]  # label (437,), error


def fit_table(params: Params, item: str, ingested: Path) -> tuple[pa.Table, dict]:
    """Fit every face that ingest accepted; `item` is ffhq (portraits, one person each, or a subfolder) or
    vfhq (frames, one person a clip).

    Returns the table `data/labels/<item>.parquet` and the metrics: errors of landmarks in interocular
    distances (between the eye centres). Raises UserError when there is nothing to fit.
    """
    fit_item = _fit_portraits if item == PORTRAITS else _fit_frames
    rows = list(fit_item(params, ingested))
    errors = np.array([row["error"] for row in rows if row["error"] is not None])
    fitted = len(usable(rows))
    metrics = {
        "faces": len(rows),
        "fitted": fitted,
        "fitted_share": fitted / len(rows),
        "landmark_error_median": round(float(np.median(errors)), 5),
        "landmark_error_95": round(float(np.quantile(errors, 0.95)), 5),
    }
    return pa.Table.from_pylist(rows, LABELS), metrics


def _fit_portraits(params: Params, ingested: Path) -> Iterator[dict[str, Any]]:
    rows = _accepted(ingested / "portraits.parquet", ["key", "status", "landmarks"])
    persons = [row["key"] for row in rows]
    settings = params.fit_flame
    # Photos of a person share a shape, but they follow each other in no time that would be smooth.
    if people := photographed(ingested):
        rows.sort(key=lambda row: (people[row["key"]], row["key"]))
        persons = [people[row["key"]] for row in rows]
        settings = settings.model_copy(update={"temporal_weight": 0.0})
    points = landmarks_70(meshes(rows).astype(np.float64))
    result = fit(
        load(params.flame.model),
        points,
        persons,
        settings,
    )
    for row, label, error in zip(rows, result.labels, result.errors, strict=True):
        yield _verdict(row, (label, float(error)), params.fit_flame)


def _fit_frames(params: Params, ingested: Path) -> Iterator[dict[str, Any]]:
    path = ingested / "frames.parquet"
    # Without the landmarks, which would not fit into memory at paper scale: each worker reads those of its
    # clips.
    rows = _accepted(path, ["key", "status", "clip", "split", "index"])
    rows.sort(key=lambda row: (row["clip"], row["index"]))
    found = fit_clips(params, path, [row["clip"] for row in rows])
    for row, (fitted, reason) in zip(rows, found, strict=True):
        if fitted:
            yield _verdict(row, fitted, params.fit_flame)
        else:
            yield _row(row, f"its clip was given up: {reason}", None)


def _accepted(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    rows = usable(read_rows(path, "ingest", columns))
    if not rows:
        raise UserError(
            f"fit_flame: {path} has no face that ingest accepted. "
            "Look into its column `reason` for what was rejected and why."
        )
    return rows


def _verdict(row: dict[str, Any], fitted: Fitted, settings: FitFlame) -> dict[str, Any]:
    _, error = fitted
    # An error that is no number is not below the limit either.
    if error <= settings.max_error:
        return _row(row, "", fitted)
    reason = f"landmark error {error:.3f} of the interocular distance, at most {settings.max_error:g} allowed"
    return _row(row, reason, fitted)


def _row(row: dict[str, Any], reason: str, fitted: Fitted | None) -> dict[str, Any]:
    """A row of the table for a row of ingest: portraits belong to no clip and are all trained on."""
    label, error = fitted or (None, None)
    return {
        "key": row["key"],
        "clip": row.get("clip", ""),
        "split": row.get("split", "train"),
        "status": "rejected" if reason else OK,
        "reason": reason,
        "label": label,
        "error": error,
    }
