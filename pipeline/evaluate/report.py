"""What people look at after a run: pictures, tables, and one HTML page that needs no network."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import WriteOptions, write_csv

from pipeline.core.files import write_bytes, write_json
from pipeline.core.pages import data_address, fill_in
from pipeline.evaluate import film_measures
from pipeline.evaluate.gallery import Film, contact_sheet, film
from pipeline.evaluate.legend import COLUMNS, METHOD_NAMES, SECTIONS, Column, Section
from pipeline.evaluate.protocol import METHODS, Evaluation, Keys, Pair

TEMPLATE = Path(__file__).with_name("report.html.j2")
# Rows of the contact sheet.
ROWS = 6
DIGITS = 6
# What frames.csv has of each method.
PLOTTED = ("lpips", "psnr_foreground", "aed", "aed_deep3d_mean_abs", "expression_error")
# Tables of a single row whose numbers are not medians of the front end.
PSI_ALONE = ("consistency", "response")


@dataclass(frozen=True)
class Cell:
    """A number as text, and whether it is the best of its column."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """The numbers of a method in the order of the table's columns."""

    method: str
    name: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    section: Section
    columns: list[Column]
    rows: list[Row]


def write_report(
    evaluation: Evaluation,
    *,
    ingest: Path,
    views: int,
    videos: int,
    sheet: Path,
    out: Path,
) -> None:
    """Write the contact sheet with `views` other sides to `sheet` and all else to `out`.

    That is pairs.json (the keys of the frames), instruments.json (the published ones that measured, if
    any), frames.csv (a row a self-reenacted frame), `videos` films and report.html.
    `ingest` is the folder whose tables know when the frames were taken.
    """
    keys = {"self": evaluation.self_keys, "cross": evaluation.cross_keys, "frontal": evaluation.frontal_keys}
    write_json(out / "pairs.json", keys)
    if evaluation.published:
        write_json(out / "instruments.json", dict(evaluation.published))
    write_bytes(out / "frames.csv", frames_csv(evaluation))

    same = [("self", keys) for keys in _one_per_source(evaluation.self_keys)]
    crossed = [("cross", keys) for keys in _one_per_source(evaluation.cross_keys)]
    # Half of the rows are for each kind; what one kind leaves is the other's.
    rows = same[: max(ROWS - len(crossed), ROWS // 2)]
    rows += crossed[: ROWS - len(rows)]
    pairs = [(kind, _pair(evaluation, keys)) for kind, keys in rows]
    picture = contact_sheet(pairs, evaluation.synthesizers, views)
    write_bytes(sheet, picture)

    films = []
    for kind, keys in _in_turns(same, crossed)[:videos]:
        pair = _pair(evaluation, keys)
        made = film(kind, pair, evaluation.clips, evaluation.synthesizers, ingest, evaluation.instruments)
        write_bytes(out / "videos" / made.name, made.data)
        films.append(made)
    text = page(rounded(evaluation.scores), picture, films)
    write_bytes(out / "report.html", text.encode())


def rounded(value: Any) -> Any:
    """Numbers to six digits, so that equal results are equal text.

    What is not finite is left out of dicts.
    """
    if not isinstance(value, dict):
        return round(float(value), DIGITS)
    known = {key: item for key, item in value.items() if isinstance(item, dict) or np.isfinite(item)}
    return {key: rounded(item) for key, item in known.items()}


def frames_csv(evaluation: Evaluation) -> bytes:
    """One row per self-reenacted frame, ordered by how far the head has turned from the source.

    Columns: `turned` in degrees, `driving`, the key of the driving frame, and numbers, each with
    its method.
    """
    columns: dict[str, Any] = {
        "turned": evaluation.turned,
        "driving": [driving for _, driving in evaluation.self_keys],
    }
    for method in METHODS:
        found = evaluation.per_pair[method]
        for name in PLOTTED:
            # Real input has no true expression.
            if name in found:
                columns[f"{name}_{method}"] = found[name].round(DIGITS)
    frames = pa.table(columns).sort_by([("turned", "ascending"), ("driving", "ascending")])
    frames = frames.set_column(0, "turned", pc.round(frames["turned"], 3))
    sink = io.BytesIO()
    write_csv(frames, sink, WriteOptions(quoting_style="none", quoting_header="none"))
    return sink.getvalue()


def page(
    scores: dict[str, Any],
    sheet: bytes,
    films: Sequence[Film],
) -> str:
    """The report as one HTML text with pictures and films inside.

    `scores` are nested (section, method, number), or (section, number) where there is a single row;
    all are finite. `sheet` is a JPEG.
    """
    return fill_in(
        TEMPLATE,
        sheet=data_address("image/jpeg", sheet),
        tables=[table(name, scores[name]) for name in SECTIONS if scores.get(name)],
        films=[
            (each, data_address("video/mp4", each.data), film_measures.table(each.measures)) for each in films
        ],
        legend=COLUMNS.values(),
    )


def table(name: str, values: dict[str, Any]) -> Table:
    """The table of the section `name`: a row a method, or a single row of numbers."""
    has_methods = all(isinstance(value, dict) for value in values.values())
    rows = values if has_methods else {"": values}
    known = set().union(*rows.values())
    shown = [key for key in COLUMNS if key in known]
    best = {key: _best(key, rows) for key in shown}
    alone = "Psi" if name in PSI_ALONE else "median"
    return Table(
        section=SECTIONS[name],
        columns=[COLUMNS[key] for key in shown],
        rows=[
            Row(method, METHOD_NAMES.get(method, alone), _cells(method, row, best))
            for method, row in rows.items()
        ],
    )


def _cells(
    method: str,
    values: Mapping[str, float],
    best: Mapping[str, str | None],
) -> list[Cell]:
    """A cell for each column of `best`; empty where a method has no such number."""
    cells = []
    for key, winning in best.items():
        text = _number(values[key]) if key in values else ""
        # Numbers that read alike are equally good.
        wins = text == winning and method != "real"
        cells.append(Cell(text, wins))
    return cells


def _best(key: str, rows: Mapping[str, Mapping[str, float]]) -> str | None:
    """The best number of a column as text; none where there is one row.

    The real frame does not compete.
    """
    values = [row[key] for method, row in rows.items() if key in row and method != "real"]
    if len(rows) < 2 or not values:
        return None
    best = max(values) if COLUMNS[key].up else min(values)
    return _number(best)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _one_per_source(pairs: Sequence[Keys]) -> list[Keys]:
    """The middle pair of each source."""
    groups: dict[str, list[Keys]] = {}
    for source, driving in pairs:
        groups.setdefault(source, []).append((source, driving))
    return [group[len(group) // 2] for group in groups.values()]


def _pair(evaluation: Evaluation, keys: Keys) -> Pair:
    """The frames of a pair."""
    source, driving = (evaluation.clips.frame(key) for key in keys)
    return Pair(source, driving)


def _in_turns(first: Sequence, second: Sequence) -> list:
    """Items of both in turns, until both are at their end."""
    turns = zip_longest(first, second)
    return [item for turn in turns for item in turn if item is not None]
