"""The index of a multi-view cache: `index.parquet` has a row for every frame, with its place in the shards, its cameras and its quality.

`offset` and `size` (bytes) are those of the sample in its tar. Its fields follow each other in alphabetical order, named once in the metadata
of the schema; each has a tar header of 512 bytes before it and is padded to 512, so `sizes` and `crcs` say all about them. `cameras` are the
(1 + N) x 25 numbers of `cameras.npy`. `kept` says whether the frame may be trained on; `reason` names the measures of quality that it fails.
All but the last two follows from the shards alone.

Opening reads three columns. Places come with the first frame that is read of their row group and stay: some 130 bytes for a frame of 4 views.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.store.shards import BLOCK, damage, damaged_field, decode_npy, read_fields, read_sidecar
from pipeline.store.storage import Storage

NAME = "index.parquet"
QUALITY = ("psnr", "coverage", "identity")
SCHEMA = pa.schema(
    {"key": pa.string(), "clip": pa.string(), "split": pa.string(), "index": pa.int64(), "shard": pa.string()}
    | {
        "offset": pa.int64(),
        "size": pa.int64(),
        "sizes": pa.list_(pa.uint32()),
        "crcs": pa.list_(pa.uint32()),
    }
    | {"cameras": pa.list_(pa.float32())}
    | {name: pa.float32() for name in QUALITY}
    | {"kept": pa.bool_(), "reason": pa.string()}
)
PLACES = ["shard", "offset", "sizes", "crcs"]
ROW_GROUP = 1 << 14
FEWEST_FRAMES = 2  # of a clip that is trained on: a source and a driving frame
GAP = 1 << 16  # bytes between two fields for which it is not worth to read twice


def describe_frame(clip: str, index: int, split: str, quality: Mapping[str, float]) -> bytes:
    """The field `frame.json` of a sample: what the index needs and its other fields do not tell."""
    return json.dumps(
        {"clip": clip, "index": index, "split": split} | dict(quality), sort_keys=True, allow_nan=False
    ).encode()


def shard_rows(shard: Path) -> tuple[list[str], pa.Table]:
    """The names of the fields and the rows of a shard, read from it and its sidecar, without `kept` and `reason`.

    Raises UserError when something of it is damaged or its samples do not have the same fields.
    """
    _, members = read_sidecar(shard)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names[:-2]}
    names = list(next(iter(members.values()), {}))
    for key, places in members.items():
        if list(places) != names or not {"cameras.npy", "frame.json"} <= places.keys():
            raise UserError(
                f"{shard}: the fields of the sample {key} are not those of a multi-view cache. Make it again by running its stage."
            )
        found = read_fields(shard, key, {name: places[name] for name in ("cameras.npy", "frame.json")})
        offsets, sizes, crcs = zip(*places.values(), strict=True)
        row: dict[str, Any] = {
            "key": key,
            "shard": shard.name,
            "cameras": decode_npy(found["cameras.npy"]).ravel(),
            "sizes": sizes,
            "crcs": crcs,
        }
        row |= {"offset": offsets[0] - BLOCK, "size": offsets[-1] + _padded(sizes[-1]) - offsets[0] + BLOCK}
        row |= json.loads(found["frame.json"])
        for name, column in columns.items():
            column.append(row[name])
    return names, pa.table(columns, pa.schema(list(SCHEMA)[:-2]))


def write_index(shards: Path, out: Path, judge: Callable[[Mapping[str, float]], str]) -> pa.Table:
    """Write the index of all shards of a folder to `out` in one step; returns its rows without places and cameras.

    `judge` says of a frame's quality why it must not be trained on, "" when it may. Raises UserError as `shard_rows`, when shards have
    different fields, and when the place cannot be written.
    """
    paths = sorted(shards.glob("*.tar"))
    if not paths:
        raise UserError(f"there is no shard (*.tar) in {shards}. Run the stage that makes it: dvc repro.")
    fields, _ = shard_rows(paths[0])
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    kept, waiting = [], []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(
                file, SCHEMA.with_metadata({"fields": json.dumps(fields)}), compression="zstd"
            ) as writer:
                for shard in paths:
                    names, rows = shard_rows(shard)
                    if names != fields:
                        raise UserError(
                            f"{shard}: its samples have other fields than those of {paths[0].name}. Run the stage that made them again."
                        )
                    reasons = [judge(quality) for quality in rows.select(QUALITY).to_pylist()]
                    rows = rows.append_column(
                        "kept", pa.array([not reason for reason in reasons], pa.bool_())
                    )
                    waiting.append(rows.append_column("reason", pa.array(reasons, pa.string())))
                    kept.append(waiting[-1].drop_columns(["cameras", "sizes", "crcs"]))
                    if sum(map(len, waiting)) >= ROW_GROUP or shard == paths[-1]:
                        writer.write_table(pa.concat_tables(waiting).cast(writer.schema), ROW_GROUP)
                        waiting = []
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}. Make the folder writable or free some space, then run again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return pa.concat_tables(kept)


def fields_of(schema: pa.Schema) -> list[str]:
    """The names of the fields of a sample, as the schema of an index has them in its metadata; none where it has not."""
    return json.loads((schema.metadata or {}).get(b"fields", b"[]"))


def disagreements(index: pa.Table, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """(key, column) wherever `index` says something else than `rows`, which have the same keys in the same order."""
    for name in rows.column_names:
        if not index[name].combine_chunks().equals(rows[name].combine_chunks()):
            for key, mine, other in zip(
                rows["key"].to_pylist(), index[name].to_pylist(), rows[name].to_pylist(), strict=True
            ):
                if mine != other:
                    yield key, name


@dataclass(frozen=True)
class Places:
    """The places of the frames of one row group."""

    shards: np.ndarray  # (n,) str
    offsets: np.ndarray  # (n,) int64, of the first byte of the samples
    sizes: np.ndarray  # (n, F) uint32
    crcs: np.ndarray  # (n, F) uint32


class ViewIndex:
    """A multi-view cache, opened by its index: `frames` are row numbers. `address` is a folder or whatever fsspec knows."""

    def __init__(self, address: str | Path):
        """Raises UserError when the index is missing, damaged or of another form."""
        self.storage = Storage(address)
        try:
            with self.storage.open(NAME) as file:
                self._facts = pq.ParquetFile(file).metadata
            schema = self._facts.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.storage}/{NAME} is damaged. Run the stage that makes it: dvc repro render_views."
            ) from error
        self.fields = fields_of(schema)
        if not self.fields or not set(SCHEMA.names) <= set(schema.names):
            raise UserError(
                f"{self.storage}/{NAME} is of an older form. Run the stage that makes it: dvc repro render_views."
            )
        groups = [self._facts.row_group(group).num_rows for group in range(self._facts.num_row_groups)]
        self._starts = np.cumsum([0, *groups])
        self._places: dict[int, Places] = {}
        self._number = {name: number for number, name in enumerate(self.fields)}

    def __len__(self) -> int:
        return self._facts.num_rows

    @property
    def views(self) -> int:
        """The number of pseudo views of a frame."""
        return sum(name.startswith("view") for name in self.fields)

    def columns(self, names: Collection[str], groups: Collection[int] | None = None) -> pa.Table:
        """Whole columns; texts as dictionaries, but for keys. Only of some row groups where they are named."""
        texts = [name for name in ("clip", "split", "shard", "reason") if name in names]
        try:
            with self.storage.open(NAME) as file:
                parquet = pq.ParquetFile(file, metadata=self._facts, read_dictionary=texts)
                return (
                    parquet.read(list(names))
                    if groups is None
                    else parquet.read_row_groups(list(groups), list(names))
                )
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.storage}/{NAME} is damaged. Run the stage that makes it: dvc repro render_views."
            ) from error

    def clips(self, split: str) -> tuple[dict[str, np.ndarray], int]:
        """The kept frames of each clip of `split` by its name, in their order, and how many frames of that split are not kept."""
        table = self.columns(["clip", "split", "kept"])
        names, clip = _codes(table["clip"])
        splits, part = _codes(table["split"])
        mine = part == splits.index(split) if split in splits else np.zeros(len(clip), bool)
        kept = table["kept"].to_numpy() & mine
        frames = np.flatnonzero(kept)
        frames = frames[np.argsort(clip[frames], kind="stable")]
        bounds = np.cumsum(np.bincount(clip[frames], minlength=len(names)))[:-1]
        found = zip(names, np.split(frames, bounds), strict=True) if names else ()
        return {name: rows for name, rows in found if len(rows)}, int(mine.sum() - kept.sum())

    def key(self, frame: int) -> str:
        """The key of a frame: what its files in the tar begin with."""
        group = self._group(frame)
        return self.columns(["key"], [group])["key"][frame - int(self._starts[group])].as_py()

    def read(self, frame: int, names: Collection[str]) -> dict[str, bytes]:
        """Fields of a frame, with one read for those that lie near each other.

        Raises UserError that names shard, sample and field for one that is cut short or altered.
        """
        group = self._group(frame)
        places, row = self._load(group), frame - int(self._starts[group])
        sizes, crcs = places.sizes[row].tolist(), places.crcs[row].tolist()
        start, starts = int(places.offsets[row]), []
        for size in sizes:
            starts.append(start + BLOCK)
            start += BLOCK + _padded(size)
        spans: list[tuple[int, int]] = []
        parts = []  # number of the field and of the span that it is in
        for number in sorted(self._number[name] for name in names):
            if not spans or starts[number] - spans[-1][1] > GAP:
                spans.append((starts[number], starts[number]))
            spans[-1] = (spans[-1][0], starts[number] + sizes[number])
            parts.append((number, len(spans) - 1))
        shard = f"shards/{places.shards[row]}"
        blocks = self.storage.read(shard, spans)
        found = {}
        for number, span in parts:
            first = starts[number] - spans[span][0]
            data = blocks[span][first : first + sizes[number]]
            if what := damage(data, sizes[number], crcs[number]):
                raise damaged_field(f"{self.storage}/{shard}", self.fields[number], self.key(frame), what)
            found[self.fields[number]] = data
        return found

    def _group(self, frame: int) -> int:
        return int(np.searchsorted(self._starts, frame, "right")) - 1

    def _load(self, group: int) -> Places:
        if group not in self._places:
            table = self.columns(PLACES, [group]).combine_chunks()
            names, codes = _codes(table["shard"])
            shape = (len(table), len(self.fields))
            sizes, crcs = (
                pc.list_flatten(table[name]).to_numpy().reshape(shape) for name in ("sizes", "crcs")
            )
            self._places[group] = Places(
                np.array(names, object)[codes], table["offset"].to_numpy(), sizes, crcs
            )
        return self._places[group]


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The texts of a dictionary column and which of them each row has."""
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return [], np.zeros(0, np.int32)
    return chunks[0].dictionary.to_pylist(), np.concatenate(
        [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks]
    )


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
