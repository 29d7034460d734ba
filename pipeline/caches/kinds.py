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
from pipeline.store.codecs import SUFFIXES, is_picture
from pipeline.store.samples import Aligned, Form, Heads, Kind, Views

# Type and channels of a picture by Pillow's name for its mode.
MODES = {
    "RGB": ("uint8", (3,)),
    "L": ("uint8", ()),
    "I;16": ("uint16", ()),
}
# Pillow's names for the codecs, by their suffixes.
FORMATS = {suffix: name.upper() for name, suffix in SUFFIXES.items()}


@dataclass(frozen=True)
class Layout:
    """A kind of folder: the schemas of its tables, and the kinds of samples by the prefix of shard names."""

    name: str
    stage: str  # what makes it
    tables: dict[str, pa.Schema]
    samples: dict[str, type[Kind]]

    def prefix(self, shard: str) -> str | None:
        """The prefix of the file name of a shard (prefix-name.tar); None for no shard of this kind."""
        prefix, _, name = shard.partition("-")
        is_shard = name.endswith(".tar") and name != ".tar"
        return prefix if is_shard and prefix in self.samples else None


VIEWS = Layout(
    name="multi-view cache",
    stage=Views.stage,
    tables={view_index.NAME: view_index.SCHEMA},
    samples={"views": Views},
)
GENHEAD = Layout(
    name="synthetic heads",
    stage=Heads.stage,
    tables={},
    samples={"heads": Heads},
)
INGEST = Layout(
    name="ingested faces",
    stage=Aligned.stage,
    tables={
        "portraits.parquet": tables.PORTRAITS,
        "clips.parquet": tables.CLIPS,
        "frames.parquet": tables.FRAMES,
    },
    samples={"portraits": Aligned, "clips": Aligned},
)


def layout_of(folder: Path) -> Layout:
    """The kind of a folder, by the first of its tables and shards that is there.

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
    """Type and shape of the field `name` (a picture, .npy, .json), of a picture from its head alone.

    Raises UserError when the bytes are nothing of the kind.
    """
    try:
        if name.endswith(".json"):
            return Form(type(json.loads(data)).__name__, ())
        if is_picture(name):
            with Image.open(io.BytesIO(data), formats=[FORMATS[Path(name).suffix]]) as image:
                kind, channels = MODES[image.mode]
                return Form(kind, (image.height, image.width, *channels))
        array = np.load(io.BytesIO(data), allow_pickle=False)
        return Form(array.dtype.name, array.shape)
    except (UnidentifiedImageError, OSError, ValueError, KeyError, EOFError, SyntaxError) as error:
        suffix = Path(name).suffix.removeprefix(".")
        raise UserError(f"no {suffix} that can be read") from error
