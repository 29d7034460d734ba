"""The three folders of shards that the graph leaves: their tables, and the kinds of samples in their shards.

What the fields of samples hold is said in pipeline/store/samples.py.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from pipeline.core.errors import UserError
from pipeline.store import tables, view_index
from pipeline.store.samples import Aligned, Form, Heads, Kind, Views

MODES = {"RGB": ("uint8", (3,)), "L": ("uint8", ()), "I;16": ("uint16", ())}  # of an image: type and channels


@dataclass(frozen=True)
class Layout:
    """A kind of folder: the schemas of its tables, and the kind of samples for each prefix of shards."""

    name: str
    stage: str  # what makes it
    tables: dict[str, pa.Schema]
    samples: dict[str, type[Kind]]

    def prefix(self, shard: str) -> str | None:
        """The prefix of the name of a shard (prefix-000000.tar), or None when it is no shard of this kind."""
        prefix, _, number = shard.removesuffix(".tar").rpartition("-")
        is_shard = shard.endswith(".tar") and number.isdecimal()
        return prefix if is_shard and prefix in self.samples else None


VIEWS = Layout("multi-view cache", Views.stage, {view_index.NAME: view_index.SCHEMA}, {"views": Views})
GENHEAD = Layout("synthetic heads", Heads.stage, {}, {"heads": Heads})
INGEST = Layout(
    "ingested faces",
    Aligned.stage,
    {"portraits.parquet": tables.PORTRAITS, "clips.parquet": tables.CLIPS, "frames.parquet": tables.FRAMES},
    {"portraits": Aligned, "clips": Aligned},
)


def layout_of(folder: Path) -> Layout:
    """The kind of a folder, by those of its tables and shards that are there.

    Raises UserError when it is none.
    """
    shards = [path.name.removesuffix(".json") for path in (folder / "shards").glob("*.tar*")]
    for layout in (VIEWS, GENHEAD, INGEST):
        has_table = any((folder / table).exists() for table in layout.tables)
        if has_table or any(map(layout.prefix, shards)):
            return layout
    why = "." if folder.is_dir() else ": there is no such folder."
    raise UserError(
        f"{folder} holds no cache (shards/*.tar and their tables){why} "
        "Name data/views, data/genhead or data/ingest; `dvc repro` makes them."
    )


def describe(name: str, data: bytes) -> Form:
    """Type and shape of the field `name` (.png, .npy, .json), of a picture from its head alone.

    Raises UserError when the bytes are nothing of the kind.
    """
    try:
        if name.endswith(".json"):
            return Form(type(json.loads(data)).__name__, ())
        if name.endswith(".png"):
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                kind, channels = MODES[image.mode]
                return Form(kind, (image.height, image.width, *channels))
        array = np.load(io.BytesIO(data), allow_pickle=False)
        return Form(array.dtype.name, array.shape)
    except (UnidentifiedImageError, OSError, ValueError, KeyError, EOFError, SyntaxError) as error:
        raise UserError(f"no {name.rpartition('.')[2]} that can be read") from error
