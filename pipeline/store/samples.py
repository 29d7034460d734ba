"""What the samples of every kind of shard hold: names, types, shapes and codecs of their fields.

A field is a file of the tar, say `key.depth.npy`: pictures are PNG or of another codec of
pipeline/store/codecs.py, arrays .npy, facts JSON. Writers encode a whole sample
(`Heads.encode(view=..., depth=...)`), readers name the field that they want (`Heads.depth.tensor(sample)`),
a picture always by its name as PNG.

How much of a pixel the head covers is one quantity, uint8 with 255 for all of it, under three names:
`mask.png` belongs to a photo or a real frame, `alpha{i}.png` to a view at the size of the image, and
`opacity.png` holds all views of a synthetic head at the size of volume rendering. Caches on disk have these
names, so they stay.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.store.codecs import PNG, Codec, codec, decode_picture, is_picture, plain_name, spellings
from pipeline.store.shards import decode_npy, encode_npy

PHOTO = "photo"  # what the keys of heads begin with whose view 0 is a photo
DEPTH_UNIT = 1e-4  # world units a step of depth.png (16 bit); 0 = nothing there
CAMERA, LABEL, POINTS = 25, 437, 70  # numbers of a camera and of a label; landmarks

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Form:
    """Type and shape of what a field holds, say uint8 (64, 64, 3)."""

    type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        axes = " x ".join(map(str, self.shape))
        return f"{self.type} {axes or 'scalar'}"


@dataclass(frozen=True)
class Field:
    """A field of a kind of sample.

    `file` is its name in the tar without the key, `type` a dtype of NumPy, "dict" for JSON or "bytes" for
    what has a codec of its own. `shape` has numbers and names of sizes. A field that there is once for each
    view has `{}` in its name and in `count` the size that says how many there are.
    """

    file: str
    type: str
    shape: tuple[str | int, ...] = ()
    count: str = ""

    def name(self, number: int | None = None) -> str:
        """The name of the file, of the view `number` where there is one for each."""
        return self.file.format(number)

    def forms(self, sizes: Sizes) -> Iterator[tuple[str, Form]]:
        """The names of its files in a sample with these sizes, and what each must hold."""
        shape = [sizes.get(size, size) for size in self.shape]
        form = Form(self.type, tuple(shape))
        numbers = range(sizes[self.count]) if self.count else [None]
        for number in numbers:
            yield self.name(number), form

    def encode(self, value: Any, codec: Codec = PNG) -> bytes:
        """The bytes of the file, a picture by `codec`.

        Raises ValueError for a value of another type or with more or fewer axes.
        """
        if self.type == "bytes":
            return value
        if self.type == "dict":
            return json.dumps(value, sort_keys=True, allow_nan=False).encode()
        # Casting here would hide that a writer means something else, and cost digits.
        if (value.dtype.name, value.ndim) != (self.type, len(self.shape)):
            wanted = f"{self.type} with the axes {self.shape}"
            raise ValueError(f"{self.file} holds {wanted}, not {value.dtype} of shape {value.shape}")
        return codec.encode(value) if is_picture(self.file) else encode_npy(value)

    def stored(self, sample: Mapping[str, bytes], number: int | None = None) -> bytes:
        """The bytes of the file in `sample`, whatever the codec of a picture."""
        name = self.name(number)
        for spelling in spellings(name):
            if spelling in sample:
                return sample[spelling]
        return sample[name]

    def array(self, sample: Mapping[str, bytes], number: int | None = None) -> np.ndarray:
        """The values as they are stored. Raises UserError when they cannot be decoded."""
        data = self.stored(sample, number)
        return decode_picture(data) if is_picture(self.file) else decode_npy(data)

    def tensor(self, sample: Mapping[str, bytes], number: int | None = None) -> Tensor:
        """The values as networks take them, float32; a picture as `image_tensor` has it.

        Raises UserError when they cannot be decoded.
        """
        if is_picture(self.file):
            return image_tensor(self.stored(sample, number))
        return torch.from_numpy(self.array(sample, number)).float()

    def facts(self, sample: Mapping[str, bytes]) -> dict[str, Any]:
        """The content of a JSON."""
        return json.loads(sample[self.file])


class Kind:
    """A kind of sample; its fields are attributes of its subclasses."""

    stage: ClassVar[str]  # what makes its shards

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """All fields by the names of their attributes."""
        return {name: value for name, value in vars(cls).items() if isinstance(value, Field)}

    @classmethod
    def encode(cls, codecs: Mapping[str, str] = {}, **values: Any) -> dict[str, bytes]:
        """The files of a sample from a value for every field.

        Where there is a file for each view, the value is a sequence of values. `codecs` has the codec of each
        picture that is no PNG. An array, or a picture as PNG, may come as its bytes.

        Raises ValueError when a field is missing, unknown or of another type.
        """
        fields = cls.fields()
        # A field that a writer forgets would be found missing by training, a stage and perhaps days later.
        if fields.keys() != values.keys():
            differing = ", ".join(sorted(fields.keys() ^ values.keys()))
            raise ValueError(f"{cls.__name__} has other fields: {differing} is missing or unknown")
        files = {}
        for name, field in fields.items():
            several = enumerate(values[name]) if field.count else [(None, values[name])]
            own = codec(codecs.get(name, "png"))
            for number, value in several:
                file = field.name(number)
                if own != PNG:
                    file = str(PurePath(file).with_suffix(own.suffix))
                    value = decode_picture(value) if isinstance(value, bytes) else value
                files[file] = value if isinstance(value, bytes) else field.encode(value, own)
        return files

    @classmethod
    def sizes(cls, seen: Mapping[str, Form]) -> Sizes:
        """The sizes of a sample whose files hold `seen`.

        Raises KeyError or ValueError when they do not tell them.
        """
        raise NotImplementedError

    @classmethod
    def expected(cls, seen: Mapping[str, Form]) -> dict[str, Form]:
        """What the files of a sample must hold by the sizes that are seen in it. Raises as `sizes`."""
        names = {plain_name(name): name for name in seen}
        sizes = cls.sizes({plain: seen[name] for plain, name in names.items()})
        wanted: dict[str, Form] = {}
        for field in cls.fields().values():
            for plain, form in field.forms(sizes):
                wanted[names.get(plain, plain)] = form
        return wanted


PICTURE, GREY = ("image", "image", 3), ("image", "image")


class Aligned(Kind):
    """A portrait or a frame of a clip, cut out and aligned, S x S pixels (pipeline/ingest)."""

    stage = "ingest"
    image = Field("image.png", "uint8", PICTURE)
    mask = Field("mask.png", "uint8", GREY)

    @classmethod
    def sizes(cls, seen: Mapping[str, Form]) -> Sizes:
        return {"image": seen["image.png"].shape[0]}


class Heads(Kind):
    """A synthetic head with one expression, seen by V cameras (pipeline/render/genhead.py).

    S is the size of images, n that of volume rendering. Only the last shape of `opacity` needs a word: the
    views lie below one another.
    """

    stage = "render_genhead"
    view = Field("view{}.png", "uint8", PICTURE, "views")
    uv = Field("uv{}.png", "uint8", PICTURE, "views")  # canonical positions, pipeline/render/position_map.py
    opacity = Field("opacity.png", "uint8", ("rows", "rays"))
    # World units along the ray. Of a head without geometry it is empty, as `points` and `features` are.
    depth = Field("depth.npy", "float16", ("views", "depth", "depth"))
    background = Field("background.png", "uint8", ("rays", "rays", 3))
    cameras = Field("cameras.npy", "float32", ("views", CAMERA))
    label = Field("label.npy", "float32", (LABEL,))  # its camera is that of view 0
    landmarks = Field("landmarks.npy", "float32", ("views", POINTS, 2))  # fractions of the image
    points = Field("points.npy", "float16", ("points", 3))  # world units
    features = Field("features.npy", "float16", ("points", "channels"))  # of GenHead's tri-planes at `points`

    @classmethod
    def sizes(cls, seen: Mapping[str, Form]) -> Sizes:
        views = seen["cameras.npy"].shape[0]
        rays = seen["background.png"].shape[0]
        points, channels = seen["features.npy"].shape
        return {
            "image": seen["view0.png"].shape[0],
            "rays": rays,
            "depth": seen["depth.npy"].shape[1],
            "views": views,
            "rows": views * rays,
            "points": points,
            "channels": channels,
        }


def head_number(key: str) -> int:
    """The number of a head, from its key; another key has none and counts as 0."""
    number = key.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def has_geometry(number: int, share: float) -> bool:
    """Whether a head keeps depth and features: `share` of them do, evenly spread over their numbers."""
    return math.floor((number + 1) * share) > math.floor(number * share)


class Views(Kind):
    """A frame of a clip with its N pseudo views (pipeline/render/views.py).

    Row 0 of cameras, motion and landmarks belongs to the real frame, the others to the pseudo views in
    their order.
    """

    stage = "render_views"
    image = Field("image.png", "uint8", PICTURE)  # as ingested
    mask = Field("mask.png", "uint8", GREY)
    view = Field("view{}.png", "uint8", PICTURE, "views")
    alpha = Field("alpha{}.png", "uint8", ("alpha", "alpha"), "views")  # as large as images, or as rays
    uv = Field("uv.png", "uint8", PICTURE)  # canonical positions at the camera of the real frame
    cameras = Field("cameras.npy", "float32", ("cameras", CAMERA))
    motion = Field("motion.npy", "float32", ("cameras", "motion"))
    label = Field("label.npy", "float32", (LABEL,))  # fitted
    landmarks = Field("landmarks.npy", "float32", ("cameras", POINTS, 2))  # of the fitted head, fractions
    frame = Field("frame.json", "dict")  # clip, index, split and the measures of quality

    @classmethod
    def sizes(cls, seen: Mapping[str, Form]) -> Sizes:
        cameras, motion = seen["motion.npy"].shape
        return {
            "image": seen["image.png"].shape[0],
            "alpha": seen["alpha0.png"].shape[0],
            "cameras": cameras,
            "views": cameras - 1,
            "motion": motion,
        }


class FittedClip(Kind):
    """What fitting makes of the F usable frames of a clip, in the order of time (pipeline/fit_flame)."""

    stage = "fit_flame"
    label = Field("label.npy", "float32", ("frames", LABEL))
    error = Field("error.npy", "float64", ("frames",))  # of the landmarks, interocular distances


class DrawnPortrait(Kind):
    """A portrait of an invented person (pipeline/synthetic); the truth keeps its mask and depth."""

    stage = "ingest"
    image = Field("image.png", "uint8", PICTURE)
    mask = Field("mask.png", "uint8", GREY)
    depth = Field("depth.png", "uint16", GREY)  # in steps of DEPTH_UNIT


class DrawnClip(Kind):
    """A talking clip of an invented person (pipeline/synthetic)."""

    stage = "ingest"
    clip = Field("clip.mp4", "bytes")


class TrueViews(Kind):
    """What a frame of a drawn clip really looks like from other sides (pipeline/synthetic)."""

    stage = "ingest"
    cameras = Field("cameras.npy", "float32", ("views", CAMERA))
    view = Field("view{}.png", "uint8", PICTURE, "views")
    alpha = Field("alpha{}.png", "uint8", GREY, "views")
    depth = Field("depth{}.npy", "float32", GREY, "views")  # world units along the ray
    # View 0 once more with the face of the clip's first frame: the difference is what the motion alone
    # changes.
    unmoved = Field("unmoved.png", "uint8", PICTURE)


def image_tensor(data: bytes) -> Tensor:
    """The bytes of a picture to (3, H, W) or (1, H, W) float32: colour in [-1, 1], grey in [0, 1]."""
    picture = torch.from_numpy(decode_picture(data).astype(np.float32))
    if picture.ndim == 2:
        return picture[None] / 255.0
    return picture.permute(2, 0, 1) / 127.5 - 1.0
