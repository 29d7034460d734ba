"""The label tables of stage `fit_flame`: faces of ingest in, a label, an error and a verdict for each out."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.params import FitFlame, Params
from pipeline.fit_flame.worker import ITEMS, PORTRAITS, Faces, accepted_faces, fit_people
from pipeline.geometry.label import Label
from pipeline.store.tables import LABELS, OK, ROW_GROUP

__all__ = ["ITEMS", "fit_table"]


def fit_table(params: Params, item: str, ingested: Path) -> tuple[pa.Table, dict]:
    """Fit every face that ingest accepted; `item` is ffhq (portraits, one person each, or a subfolder) or
    vfhq (frames, one person a clip).

    Returns the table `data/labels/<item>.parquet` and the metrics: errors of landmarks in interocular
    distances (between the eye centres). Raises UserError when there is nothing to fit.
    """
    faces = accepted_faces(ingested, item)
    # Columns of Arrow, Python's numbers of the labels of one face take ten kilobytes.
    parts, errors = [], []
    for own, found in fit_people(params, ingested, item, faces):
        if isinstance(found, str):
            kind = "person" if item == PORTRAITS else "clip"
            reasons = [f"its {kind} was given up: {found}"] * len(own)
            parts.append(_part(faces, own, reasons, None))
        else:
            errors.append(found[1])
            parts.append(_part(faces, own, _verdicts(found[1], params.fit_flame), found))
        # A table of seventy thousand pieces of one row would be slow to write.
        if len(parts) == ROW_GROUP:
            parts = [pa.concat_tables(parts).combine_chunks()]
    table = pa.concat_tables(parts)
    if len(table) <= ROW_GROUP:
        table = table.combine_chunks()
    known = np.concatenate(errors) if errors else np.full(1, np.nan)
    fitted = table["status"].to_pylist().count(OK)
    metrics = {
        "faces": len(table),
        "fitted": fitted,
        "fitted_share": fitted / len(table),
        "landmark_error_median": round(float(np.median(known)), 5),
        "landmark_error_95": round(float(np.quantile(known, 0.95)), 5),
    }
    return table, metrics


def _verdicts(errors: np.ndarray, settings: FitFlame) -> list[str]:
    """Why each fit is rejected; empty where it is not."""
    reasons = []
    for error in errors.tolist():
        # An error that is no number is not below the limit either.
        text = (
            f"landmark error {error:.3f} of the interocular distance, at most {settings.max_error:g} allowed"
        )
        reasons.append("" if error <= settings.max_error else text)
    return reasons


def _part(
    faces: Faces,
    own: range,
    reasons: list[str],
    fitted: tuple[np.ndarray, np.ndarray] | None,
) -> pa.Table:
    """The rows of the faces of a person: portraits belong to no clip and are all trained on."""
    rows, count = faces.rows.slice(own.start, len(own)), len(own)
    names = rows.column_names
    if fitted:
        labels, errors = fitted
        offsets = np.arange(count + 1, dtype=np.int32) * Label.SIZE
        label = pa.ListArray.from_arrays(offsets, labels.astype(np.float32).ravel())
        error = pa.array(errors.astype(np.float32))
    else:
        label, error = pa.nulls(count, LABELS.field("label").type), pa.nulls(count, pa.float32())
    columns = {
        "key": rows["key"],
        "clip": rows["clip"] if "clip" in names else pa.array([""] * count),
        "split": rows["split"] if "split" in names else pa.array(["train"] * count),
        "status": pa.array(["rejected" if reason else OK for reason in reasons]),
        "reason": pa.array(reasons),
        "label": label,
        "error": error,
    }
    return pa.table(columns).cast(LABELS)
