"""The label tables of stage `fit_flame`: faces of ingest in, a label, an error and a verdict for each out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model.flame import Flame, HeadModel
from pipeline.errors import UserError
from pipeline.fit_flame import Fit, fit
from pipeline.labels import head_vertices
from pipeline.landmarks import landmarks_70
from pipeline.params import FitFlame

SOURCES = {"ffhq": "portraits", "vfhq": "frames"}
TABLE = pa.schema(
    {"key": pa.string(), "clip": pa.string(), "split": pa.string(), "status": pa.string(), "reason": pa.string()}
    | {"label": pa.list_(pa.float32()), "error": pa.float32()}
)


def fit_table(head: HeadModel, item: str, ingested: Path, truth: Path, settings: FitFlame) -> tuple[pa.Table, dict]:
    """Fit every face that ingest accepted; `item` is ffhq (portraits, each a person) or vfhq (frames, one person a clip).

    Returns the table `data/labels/<item>.parquet` and the metrics: errors of landmarks in interocular distances (between the eye centres)
    and, where `truth` holds the truth of generated heads, of rotation (degrees), jaw (degrees) and vertices (interocular distances).
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
    return pa.Table.from_pylist(table, TABLE), metrics | _against_truth(head, item, rows, result, ingested, truth)


def _row(item: str, row: dict, label: np.ndarray, error: float, settings: FitFlame) -> dict:
    good = error <= settings.max_error  # not so for NaN
    reason = "" if good else f"landmark error {error:.3f} of the interocular distance, at most {settings.max_error:g} allowed"
    clip, split = (row["clip"], row["split"]) if item == "vfhq" else ("", "train")
    return {"key": row["key"], "clip": clip, "split": split, "status": "ok" if good else "rejected", "reason": reason, "label": label, "error": error}


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}_median": round(float(np.median(values)), 5), f"{name}_95": round(float(np.quantile(values, 0.95)), 5)}


def _against_truth(head: HeadModel, item: str, rows: list[dict], result: Fit, ingested: Path, truth: Path) -> dict[str, float]:
    """How far the labels are from the heads that were rendered; empty without them (real files)."""
    path = truth / f"{SOURCES[item]}.parquet"
    if not path.exists():
        return {}
    if item == "vfhq":
        files = {row["key"]: row["file"] for row in pq.read_table(ingested / "clips.parquet", columns=["key", "file"]).to_pylist()}
        known = {(row["clip"], row["index"]): row["label"] for row in pq.read_table(path, columns=["clip", "index", "label"]).to_pylist()}
        names = [(files[row["clip"]], row["index"]) for row in rows]
    else:
        known = {row["file"]: row["label"] for row in pq.read_table(path, columns=["file", "label"]).to_pylist()}
        names = [row["file"] for row in rows]
    have = [i for i, name in enumerate(names) if name in known]
    if not have:
        return {}
    wanted = np.array([known[names[i]] for i in have], np.float32)
    return compare(head, result.labels[have], wanted)


def compare(head: HeadModel, labels_N437: np.ndarray, wanted_N437: np.ndarray) -> dict[str, float]:
    """Median errors of labels: rotation of the head and opening of the jaw in degrees, vertices in interocular distances of the wanted head."""
    flame = Flame(head)
    rotations = [labels[:, :16].reshape(-1, 4, 4)[:, :3, :3].astype(np.float64) for labels in (labels_N437, wanted_N437)]
    cosine = (np.einsum("nij,nij->n", *rotations) - 1) / 2
    vertex = []
    for start in range(0, len(labels_N437), 128):  # bounds memory
        mine, theirs = (head_vertices(flame, torch.as_tensor(labels[start : start + 128])) for labels in (labels_N437, wanted_N437))
        marks = flame.landmarks(theirs)
        between = (marks[:, 36:42].mean(1) - marks[:, 42:48].mean(1)).norm(dim=-1)
        face = torch.as_tensor(head.regions["face"])
        vertex.append(((mine - theirs)[:, face].norm(dim=-1).mean(1) / between).numpy())
    return {
        "rotation_error_degrees": round(float(np.degrees(np.median(np.arccos(cosine.clip(-1, 1))))), 4),
        "jaw_error_degrees": round(float(np.degrees(np.median(np.abs(labels_N437[:, 428] - wanted_N437[:, 428])))), 4),
        "vertex_error": round(float(np.median(np.concatenate(vertex))), 5),
    }
