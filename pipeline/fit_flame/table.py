"""The label tables of stage `fit_flame`: faces of ingest in, a label, an error and a verdict for each out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.params import FitFlame, Params
from pipeline.core.errors import UserError
from pipeline.fit_flame.solver import fit
from pipeline.fit_flame.worker import fit_clips
from pipeline.geometry.head_model import load
from pipeline.geometry.landmarks import landmarks_70

SOURCES = {"ffhq": "portraits", "vfhq": "frames"}
TABLE = pa.schema(
    {
        "key": pa.string(),
        "clip": pa.string(),
        "split": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
    }
    | {"label": pa.list_(pa.float32()), "error": pa.float32()}
)


def fit_table(params: Params, item: str, ingested: Path) -> tuple[pa.Table, dict]:
    """Fit every face that ingest accepted; `item` is ffhq (portraits, each a person) or vfhq (frames, one person a clip).

    Returns the table `data/labels/<item>.parquet` and the metrics: errors of landmarks in interocular distances (between the eye centres).
    Raises UserError when there is nothing to fit.
    """
    path = ingested / f"{SOURCES[item]}.parquet"
    columns = (
        ["key", "status", "landmarks"] if item == "ffhq" else ["key", "status", "clip", "split", "index"]
    )
    rows = [row for row in pq.read_table(path, columns=columns).to_pylist() if row["status"] == "ok"]
    if not rows:
        raise UserError(
            f"fit_flame: {path} has no face that ingest accepted. Look into its column `reason` for what was rejected and why."
        )
    settings = params.fit_flame
    if item == "ffhq":
        mesh = np.array([row["landmarks"] for row in rows], np.float64).reshape(len(rows), -1, 3)
        result = fit(load(params.flame.model), landmarks_70(mesh), [row["key"] for row in rows], settings)
        table = [
            _row(row, label, float(error), settings)
            for row, label, error in zip(rows, result.labels, result.errors, strict=True)
        ]
    else:
        rows.sort(key=lambda row: (row["clip"], row["index"]))
        table = []
        for row, (found, reason) in zip(
            rows, fit_clips(params, path, [row["clip"] for row in rows]), strict=True
        ):
            table.append(
                _row(row, *found, settings) if found else _rejected(row, f"its clip was given up: {reason}")
            )
    fitted = sum(row["status"] == "ok" for row in table)
    errors = np.array([row["error"] for row in table if row["error"] is not None])
    metrics = {
        "faces": len(rows),
        "fitted": fitted,
        "fitted_share": fitted / len(rows),
        **_quantiles("landmark_error", errors),
    }
    return pa.Table.from_pylist(table, TABLE), metrics


def _row(row: dict, label: np.ndarray, error: float, settings: FitFlame) -> dict:
    good = error <= settings.max_error  # not so for NaN
    reason = (
        ""
        if good
        else f"landmark error {error:.3f} of the interocular distance, at most {settings.max_error:g} allowed"
    )
    return _rejected(row, reason) | {"status": "ok" if good else "rejected", "label": label, "error": error}


def _rejected(row: dict, reason: str) -> dict:
    names = {"key": row["key"], "clip": row.get("clip", ""), "split": row.get("split", "train")}
    return names | {"status": "rejected", "reason": reason, "label": None, "error": None}


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_median": round(float(np.median(values)), 5),
        f"{name}_95": round(float(np.quantile(values, 0.95)), 5),
    }
