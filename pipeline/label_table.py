"""The label tables of stage `fit_flame`: faces of ingest in, a label, an error and a verdict for each out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.flame import HeadModel
from pipeline.errors import UserError
from pipeline.fit_flame import fit
from pipeline.landmarks import landmarks_70
from pipeline.params import FitFlame

SOURCES = {"ffhq": "portraits", "vfhq": "frames"}
TABLE = pa.schema(
    {"key": pa.string(), "clip": pa.string(), "split": pa.string(), "status": pa.string(), "reason": pa.string()}
    | {"label": pa.list_(pa.float32()), "error": pa.float32()}
)


def fit_table(head: HeadModel, item: str, ingested: Path, settings: FitFlame) -> tuple[pa.Table, dict]:
    """Fit every face that ingest accepted; `item` is ffhq (portraits, each a person) or vfhq (frames, one person a clip).

    Returns the table `data/labels/<item>.parquet` and the metrics: errors of landmarks in interocular distances (between the eye centres).
    Raises UserError when there is nothing to fit.
    """
    path = ingested / f"{SOURCES[item]}.parquet"
    rows = [row for row in pq.read_table(path).to_pylist() if row["status"] == "ok"]
    if not rows:
        raise UserError(f"fit_flame: {path} has no face that ingest accepted. Look into its column `reason` for what was rejected and why.")
    if item == "vfhq":
        rows.sort(key=lambda row: (row["clip"], row["index"]))
    mesh = np.array([row["landmarks"] for row in rows], np.float64).reshape(len(rows), -1, 3)
    persons = [row["clip"] if item == "vfhq" else row["key"] for row in rows]
    result = fit(head, landmarks_70(mesh), persons, settings)
    table = [_row(item, row, label, float(error), settings) for row, label, error in zip(rows, result.labels, result.errors, strict=True)]
    fitted = sum(row["status"] == "ok" for row in table)
    metrics = {"faces": len(rows), "fitted": fitted, "fitted_share": fitted / len(rows), **_quantiles("landmark_error", result.errors)}
    return pa.Table.from_pylist(table, TABLE), metrics


def _row(item: str, row: dict, label: np.ndarray, error: float, settings: FitFlame) -> dict:
    good = error <= settings.max_error  # not so for NaN
    reason = "" if good else f"landmark error {error:.3f} of the interocular distance, at most {settings.max_error:g} allowed"
    clip, split = (row["clip"], row["split"]) if item == "vfhq" else ("", "train")
    verdict = {"status": "ok" if good else "rejected", "reason": reason}
    return {"key": row["key"], "clip": clip, "split": split, **verdict, "label": label, "error": error}


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}_median": round(float(np.median(values)), 5), f"{name}_95": round(float(np.quantile(values, 0.95)), 5)}
