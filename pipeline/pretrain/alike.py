"""People of real files who look like one another, though they are taken for different ones.

A folder or a name may say who a file shows; otherwise each portrait and each clip stands for a person. Where
that is wrong, face recognition is taught to tell a person from themselves, and who is tested on may have been
trained on. Nothing is left out for it: a network of a small run takes strangers for one another, too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from pipeline.core.device import to_device
from pipeline.core.files import replacing
from pipeline.core.progress import progress, say
from pipeline.core.splits import SPLITS
from pipeline.geometry.label import FIVE_POINTS
from pipeline.networks.judges import Judges
from pipeline.pretrain.faces import CLIP, PORTRAIT, Faces, read_faces

TABLE = "alike.csv"
SHOWN = 3  # pairs in the message
AT_ONCE = 256  # faces, and people who are compared with all others
MANY, FACES = 1 << 15, 4  # faces in a split; of which of a person so many tell enough
MEASURED = 1024  # held-out frames, of which the limit is made


@dataclass(frozen=True)
class _People:
    """P people with the mean of their features."""

    names: list[str]
    splits: list[str]
    features_PE: np.ndarray  # unit


def warn_of_alike(
    judges: Judges,
    ingest: Path,
    labels: Path,
    truth: Path,
    out: Path,
) -> dict[str, int]:
    """Write `out`/alike.csv, a row for each two portraits or clips that seem to show one person.

    They are alike when the cosine of their mean features lies nearer to that of two frames of a clip than
    to that of two clips, both measured on the clips that no network is trained on. Returns the metrics
    `alike_people`, pairs, and `alike_across_splits`, those of them that lie in two splits; nothing where
    the truth is known.
    """
    if (truth / "portraits.parquet").exists():
        return {}
    files = _files(ingest)
    people, held_out = [], []
    for split in SPLITS:
        faces = read_faces(ingest, labels, truth, split)
        rows = _looked_at(faces)
        features_NE = _features(judges, faces, rows)
        people.append(_means(faces, rows, features_NE, split, files))
        if split != "train":
            shown = [f"{split} {who}" for who in faces.people[rows]]
            held_out.append((features_NE, shown))
    rows = _pairs(people, _limit(held_out))
    table = pa.Table.from_pylist(rows, _SCHEMA)
    with replacing(out / TABLE) as file:
        pyarrow.csv.write_csv(table, file)
    across = sum(row["split"] != row["other_split"] for row in rows)
    if rows:
        some = [f"{row['file']} and {row['other']}" for row in rows[:SHOWN]]
        pairs = ", ".join(some)
        say(
            f"perception: {len(rows)} pairs of portraits or clips may show one person, {across} of them in "
            f"two splits ({pairs}); {out / TABLE} lists all. ingest.people and ingest.recordings say who is "
            "one."
        )
    return {"alike_people": len(rows), "alike_across_splits": across}


_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "split": pa.string(),
        "other": pa.string(),
        "other_split": pa.string(),
        "cosine": pa.float32(),
    }
)


def _files(ingest: Path) -> dict[str, str]:
    """The files of portraits and clips by the names that `read_faces` has for who they show."""
    files = {}
    for kind, table in ((PORTRAIT, "portraits"), (CLIP, "clips")):
        told = pq.read_table(ingest / f"{table}.parquet", columns=["key", "file"])
        for row in told.to_pylist():
            name = f"{kind} {row['key']}"
            files[name] = row["file"]
    return files


def _looked_at(faces: Faces) -> np.ndarray:
    """All faces or, where there are very many, FACES of each person, evenly spread."""
    if len(faces) <= MANY:
        return np.arange(len(faces))
    order = np.argsort(faces.people, kind="stable")
    counts = np.bincount(faces.people)
    chosen = []
    for own in np.split(order, np.cumsum(counts)[:-1]):
        count = min(FACES, len(own))
        places = np.linspace(0, len(own) - 1, count)
        chosen.append(own[places.astype(int)])
    return np.sort(np.concatenate(chosen))


@torch.no_grad()
def _features(judges: Judges, faces: Faces, rows: np.ndarray) -> np.ndarray:
    """Unit features of face recognition of some faces, (N, E)."""
    device = judges.regressor.mean.device
    found = []
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    # Hundreds of thousands of faces take minutes.
    for part in progress(parts, label="alike", total=len(rows), unit="faces", size=len):
        batch = to_device(faces.batch(part), device)
        five_points = batch.landmarks[:, list(FIVE_POINTS)]
        found.append(judges.identity(batch.image, five_points).cpu().numpy())
    return np.concatenate(found)


def _means(
    faces: Faces,
    rows: np.ndarray,
    features_NE: np.ndarray,
    split: str,
    files: dict[str, str],
) -> _People:
    sums_PE = np.zeros((len(faces.names), features_NE.shape[1]))
    np.add.at(sums_PE, faces.people[rows], features_NE)
    lengths_P = np.linalg.norm(sums_PE, axis=1, keepdims=True)
    names = [files.get(name, name) for name in faces.names]
    return _People(names, [split] * len(names), sums_PE / lengths_P)


def _limit(held_out: list[tuple[np.ndarray, list[str]]]) -> float:
    """Half-way between the mean cosine of two frames of a clip and that of frames of two clips."""
    features_NE = np.concatenate([features for features, _ in held_out])
    who = np.concatenate([people for _, people in held_out])
    places = np.linspace(0, len(who) - 1, MEASURED).astype(int)
    places = np.unique(places)
    features_NE, who = features_NE[places], who[places]
    cosine_NN = features_NE @ features_NE.T
    same_NN = who[:, None] == who[None]
    itself_NN = np.eye(len(who), dtype=bool)
    same, other = cosine_NN[same_NN & ~itself_NN], cosine_NN[~same_NN]
    return float(same.mean() + other.mean()) / 2


def _pairs(parts: list[_People], limit: float) -> list[dict]:
    """The rows of the table, the most alike first."""
    names, splits = [], []
    for part in parts:
        names += part.names
        splits += part.splits
    features_PE = np.concatenate([part.features_PE for part in parts])
    rows = []
    # All against all would be gigabytes at paper scale.
    for start in range(0, len(names), AT_ONCE):
        some = features_PE[start : start + AT_ONCE]
        cosines = some @ features_PE.T
        for one, other in np.argwhere(cosines >= limit):
            one_number = start + int(one)
            if one_number >= other:
                continue
            row = {"file": names[one_number], "split": splits[one_number]}
            row |= {"other": names[other], "other_split": splits[other]}
            row["cosine"] = round(float(cosines[one, other]), 4)
            rows.append(row)
    return sorted(rows, key=lambda row: (-row["cosine"], row["file"], row["other"]))
