"""Tables on disk, and what those of `ingest` hold: a row for every portrait, clip and frame, also for those that were rejected."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.files import write_bytes

_TEXT, _INT, _FLOATS = pa.string(), pa.int32(), pa.list_(pa.float32())
_FACE = {"box": _FLOATS, "score": pa.float32(), "landmarks": _FLOATS, "crop": _FLOATS, "shard": _TEXT}
_STATE = {"status": _TEXT, "reason": _TEXT}
PORTRAITS = pa.schema({"key": _TEXT, "file": _TEXT, **_STATE, "width": _INT, "height": _INT, **_FACE})
CLIPS = pa.schema(
    {
        "key": _TEXT,
        "file": _TEXT,
        "split": _TEXT,
        **_STATE,
        "fps": pa.float64(),
        "frames_declared": _INT,
        "frames_decoded": _INT,
    }
    | {"frames_ok": _INT, "width": _INT, "height": _INT, "seconds": pa.float64()}
)
FRAMES = pa.schema(
    {"key": _TEXT, "clip": _TEXT, "index": _INT, "seconds": pa.float64(), "split": _TEXT, **_STATE, **_FACE}
)


ROW_GROUP = 1 << 13  # rows of a table that are read together: a worker wants those of a few clips only


def write_table(path: str | Path, table: pa.Table) -> Path:
    """Write a Parquet table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return write_bytes(path, sink.getvalue().to_pybytes())
