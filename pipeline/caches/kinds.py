"""The three folders of shards that the graph leaves: which tables lie beside the shards, and which fields a sample must have.

What the fields mean is said where they are made: pipeline/ingest/worker.py, pipeline/render/genhead.py, pipeline/render/views.py.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from pipeline.core.errors import UserError
from pipeline.store import tables, view_index

LABEL, CAMERA, LANDMARKS = 437, 25, 70  # numbers
MODES = {"RGB": ("uint8", (3,)), "L": ("uint8", ()), "I;16": ("uint16", ())}  # of an image: type and channels


@dataclass(frozen=True)
class Field:
    """Type and shape of a field, say uint8 (64, 64, 3)."""

    type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.type} {' x '.join(map(str, self.shape)) or 'scalar'}"


Fields = dict[str, Field]


@dataclass(frozen=True)
class Layout:
    """A kind of folder. `samples` has, for each prefix of shard names, what a sample must have according to sizes that are seen in one."""

    name: str
    tables: dict[str, pa.Schema]
    samples: dict[str, Callable[[Fields], Fields]]

    def prefix(self, shard: str) -> str | None:
        """The prefix of the file name of a shard (prefix-000000.tar), or None when it is no shard of this kind."""
        prefix, _, number = shard.removesuffix(".tar").rpartition("-")
        return prefix if prefix in self.samples and shard.endswith(".tar") and number.isdecimal() else None


def describe(name: str, data: bytes) -> Field:
    """Type and shape of the field `name` (.png, .npy, .json), of a picture from its head alone. Raises UserError when the bytes are nothing of
    the kind."""
    try:
        if name.endswith(".json"):
            return Field(type(json.loads(data)).__name__, ())
        if name.endswith(".png"):
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                kind, channels = MODES[image.mode]
                return Field(kind, (image.height, image.width, *channels))
        array = np.load(io.BytesIO(data), allow_pickle=False)
        return Field(array.dtype.name, array.shape)
    except (UnidentifiedImageError, OSError, ValueError, KeyError, EOFError, SyntaxError) as error:
        raise UserError(f"no {name.rpartition('.')[2]} that can be read") from error


def _pictures(size: int, *names: str) -> Fields:
    return {name: Field("uint8", (size, size, 3)) for name in names}


def _greys(size: int, *names: str) -> Fields:
    return {name: Field("uint8", (size, size)) for name in names}


def _aligned(seen: Fields) -> Fields:
    size = seen["image.png"].shape[0]
    return _pictures(size, "image.png") | _greys(size, "mask.png")


def _heads(seen: Fields) -> Fields:
    size, rays = seen["view0.png"].shape[0], seen["background.png"].shape[0]
    views, (points, channels) = seen["cameras.npy"].shape[0], seen["features.npy"].shape
    arrays = {"cameras.npy": Field("float32", (views, CAMERA)), "label.npy": Field("float32", (LABEL,))}
    arrays["landmarks.npy"] = Field("float32", (views, LANDMARKS, 2))
    arrays |= {
        "depth.npy": Field("float16", (views, rays, rays)),
        "opacity.png": Field("uint8", (views * rays, rays)),
    }
    arrays |= {
        "points.npy": Field("float16", (points, 3)),
        "features.npy": Field("float16", (points, channels)),
    }
    return (
        arrays
        | _pictures(rays, "background.png")
        | _pictures(size, *(f"{kind}{v}.png" for kind in ("view", "uv") for v in range(views)))
    )


def _views(seen: Fields) -> Fields:
    size, (cameras, motion) = seen["image.png"].shape[0], seen["motion.npy"].shape
    pictures = _pictures(size, "image.png", "uv.png", *(f"view{v}.png" for v in range(cameras - 1)))
    arrays = {
        "cameras.npy": Field("float32", (cameras, CAMERA)),
        "motion.npy": Field("float32", (cameras, motion)),
    }
    arrays |= {"label.npy": Field("float32", (LABEL,)), "frame.json": Field("dict", ())}
    arrays["landmarks.npy"] = Field("float32", (cameras, LANDMARKS, 2))
    return pictures | arrays | _greys(size, "mask.png", *(f"alpha{v}.png" for v in range(cameras - 1)))


VIEWS = Layout("multi-view cache", {view_index.NAME: view_index.SCHEMA}, {"views": _views})
GENHEAD = Layout("synthetic heads", {}, {"heads": _heads})
INGEST = Layout(
    "ingested faces",
    {"portraits.parquet": tables.PORTRAITS, "clips.parquet": tables.CLIPS, "frames.parquet": tables.FRAMES},
    {"portraits": _aligned, "clips": _aligned},
)


def layout_of(folder: Path) -> Layout:
    """The kind of a folder, by whatever of its tables and shards is there. Raises UserError when it is none of them."""
    for layout in (VIEWS, GENHEAD, INGEST):
        shards = (path.name.removesuffix(".json") for path in (folder / "shards").glob("*.tar*"))
        if any((folder / table).exists() for table in layout.tables) or any(map(layout.prefix, shards)):
            return layout
    raise UserError(
        f"{folder} holds no cache (shards/*.tar and their tables)" + ("." if folder.is_dir() else ": there is no such folder.")
        + " Name data/views, data/genhead or data/ingest; `dvc repro` makes them."
    )  # fmt: skip
