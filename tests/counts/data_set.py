"""What every stage finds at the published counts: a few faces that a small graph has made, many times.

Tables and sidecars have all rows. Pictures, films and shards are links to a few real ones, so that all of it
takes a few gigabytes in place of terabytes.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model.adversary.discriminator import Discriminator
from model.genhead import GenHead
from model.head.flame import Flame
from model.psi.motion_encoder import MotionEncoder
from model.psi.network import Psi
from pipeline.config.params import Params
from pipeline.fit_flame.table import ITEMS, fit_table
from pipeline.geometry import head_model
from pipeline.ingest.worker import ingest
from pipeline.networks.weights import save_weights
from pipeline.render.genhead import render_genhead
from pipeline.render.views import render_views
from pipeline.store.samples import Aligned, Heads, Views
from pipeline.store.shards import ShardReader, read_sidecar, sidecar_path, write_shard
from pipeline.store.tables import read_columns, write_parts, write_table
from pipeline.store.view_index import NAME, write_index
from pipeline.synthetic.generator import generate
from tests.evaluate import world

REAL = Path("shared/real")  # real portraits and clips, where there are some
PICTURES, FRAMES = 8, 16  # portraits and frames of a clip that are really different
SPLITS = ("train", "validation", "test")


class DataSet:
    """The inputs of all stages in `folder`, the project of a rehearsal, at the numbers of `counts`."""

    def __init__(self, folder: Path, counts: Params) -> None:
        self.folder, self.counts = folder, counts
        self.small = folder / "small"
        settings = counts.ingest
        self.clips = [(name, getattr(settings, f"{name}_clips")) for name in SPLITS]
        self.portraits, self.frames = settings.identities * settings.photos, settings.frames

    def make(self) -> None:
        """Write everything: seconds for the small graph, a minute or two for the many."""
        self._small_graph()
        self._files()
        self._ingested()
        self._labels()
        self._networks()
        self._heads()
        self._views()

    def _small_graph(self) -> None:
        """A few faces through the stages, in this process."""
        few = self.counts.ingest.model_copy(
            update={
                "source": "generated",
                "identities": PICTURES,
                "frames": FRAMES,
                "shard_size": PICTURES,
                "train_clips": 1,
                "validation_clips": 1,
                "test_clips": 1,
                "portrait_size": 256,
                "clip_size": 256,
            }
        )
        machine = self.counts.machine.model_copy(update={"workers": 0})
        own = self.counts.model_copy(update={"ingest": few, "machine": machine})
        generate(own, self.small / "generated", self.small / "truth")
        portraits, clips = (self.small / "generated" / name for name in ("portraits", "clips"))
        ingest(few, own.networks.image, machine, portraits, clips, self.small / "ingest")
        for item in ITEMS:
            table, _ = fit_table(own, item, self.small / "ingest")
            write_table(self.small / f"labels/{item}.parquet", table)

    def _files(self) -> None:
        """Portraits and clips as links."""
        real = [sorted((REAL / kind).glob("*")) for kind in ("portraits", "clips")]
        drawn = [sorted((self.small / "generated" / kind).iterdir()) for kind in ("portraits", "clips")]
        portraits, clips = (files or others for files, others in zip(real, drawn, strict=True))
        _link_all(portraits, self.folder / "data/portraits", self.portraits)
        _link_all(clips, self.folder / "data/clips", sum(count for _, count in self.clips))

    def _ingested(self) -> None:
        out, small = self.folder / "data/ingest", self.small / "ingest"
        (self.folder / "data/truth").mkdir(parents=True, exist_ok=True)
        size = self.counts.ingest.shard_size
        portraits = read_columns(small / "portraits.parquet", Aligned.stage)
        names = [_key("portraits", *divmod(number, size)) for number in range(self.portraits)]
        files = [f"{name}.png" for name in names]
        repeated = _repeated(portraits, self.portraits)
        write_table(out / "portraits.parquet", _with(repeated, key=names, file=files))
        reader = ShardReader(small / "shards", Aligned.stage)
        self._shards(out / "shards", "portraits", reader, portraits["key"].to_pylist(), self.portraits, size)

        frames = read_columns(small / "frames.parquet", Aligned.stage)
        frames = frames.slice(0, FRAMES)
        rows = [{"key": name, "file": f"{name}.mp4", "split": split} for name, split in self._clip_names()]
        clips = read_columns(small / "clips.parquet", Aligned.stage)
        repeated = _repeated(clips, len(rows))
        columns = {column: [row[column] for row in rows] for column in ("key", "file", "split")}
        write_table(out / "clips.parquet", _with(repeated, **columns))
        write_parts(out / "frames.parquet", frames.schema, self._frames(frames, index=True))
        keys = frames["key"].to_pylist()
        self._shards(out / "shards", "clips", reader, keys, len(rows) * self.frames, self.frames)

    def _labels(self) -> None:
        out = self.folder / "data/labels"
        portraits = pq.read_table(self.small / "labels/ffhq.parquet")
        size = self.counts.ingest.shard_size
        names = [_key("portraits", *divmod(number, size)) for number in range(self.portraits)]
        write_parts(
            out / "ffhq.parquet", portraits.schema, [_with(_repeated(portraits, len(names)), key=names)]
        )
        frames = pq.read_table(self.small / "labels/vfhq.parquet").slice(0, FRAMES)
        write_parts(out / "vfhq.parquet", frames.schema, self._frames(frames))

    def _clip_names(self) -> Iterator[tuple[str, str]]:
        splits = itertools.chain.from_iterable([name] * count for name, count in self.clips)
        for number, split in enumerate(splits):
            yield f"clips-{number:06d}", split

    def _frames(self, frames: pa.Table, index: bool = False) -> Iterator[pa.Table]:
        """The rows of all clips, one clip after another."""
        repeated = _repeated(frames, self.frames)
        numbers = list(range(self.frames))
        if index:
            repeated = _with(repeated, index=numbers)
        for name, split in self._clip_names():
            keys = [f"{name}-{number:06d}" for number in numbers]
            yield _with(repeated, key=keys, clip=[name] * len(keys), split=[split] * len(keys))

    def _networks(self) -> None:
        """Networks that know nothing, of the sizes of the counts."""
        data, sizes = self.folder / "data", self.counts.networks
        torch.manual_seed(0)
        world.judges(data / "pretrain/perception", sizes.identity)
        genhead = GenHead(sizes, Flame(head_model.load(self.counts.flame.model)))
        # So that there is a surface.
        torch.nn.init.constant_(genhead.decoder.out_sigma.bias, 8.0)
        none = {"z": torch.zeros(0, sizes.genhead.z_dim)}
        networks = {
            "pretrain/genhead/genhead": genhead.state_dict(),
            "pretrain/genhead/portraits": none,
            "pretrain/motion/motion": MotionEncoder(sizes.motion).state_dict(),
            "psi3d/psi3d": Psi(sizes).state_dict(),
            "psi3d/discriminator": Discriminator(sizes).state_dict(),
            "psi/psi": Psi(sizes).state_dict(),
        }
        for name, state in networks.items():
            save_weights(data / f"{name}.safetensors", state, {"network": name, "motion": "emot"})

    def _heads(self) -> None:
        section, small = self.counts.render_genhead, self.small / "heads"
        few = section.model_copy(update={"heads": PICTURES})
        machine = self.counts.machine.model_copy(update={"workers": 0})
        own = self.counts.model_copy(update={"render_genhead": few, "machine": machine})
        render_genhead(own, self.small / "labels", self.folder / "data/pretrain/genhead", small)
        reader = ShardReader(small, Heads.stage)
        out = self.folder / "data/genhead/shards"
        self._shards(out, "heads", reader, reader.keys(), section.heads, section.shard_size)

    def _views(self) -> None:
        section, small = self.counts.render_views, self.small / "views"
        machine = self.counts.machine.model_copy(update={"workers": 0})
        own = self.counts.model_copy(update={"machine": machine})
        data = self.folder / "data"
        inputs = (data / "pretrain/motion", data / "pretrain/perception", data / "psi3d")
        labels = self.small / "labels/vfhq.parquet"
        render_views(own, self.small / "ingest", labels, *inputs, small, self.small / "worst.jpg")
        reader = ShardReader(small / "shards", Views.stage)
        clips = list(self._clip_names())
        total, size = len(clips) * self.frames, section.shard_size
        out = data / "views"
        first = self._shards(out / "shards", "views", reader, reader.keys(), total, size)
        write_index(first, self.small / NAME, lambda _: "")
        index = pq.read_table(self.small / NAME).slice(0, size)
        write_parts(out / NAME, index.schema, self._index(index, clips))

    def _index(self, index: pa.Table, clips: list[tuple[str, str]]) -> Iterator[pa.Table]:
        """The rows of all shards of the cache."""
        total, size = len(clips) * self.frames, len(index)
        for shard, start in enumerate(range(0, total, size)):
            rows = range(start, min(start + size, total))
            places = [divmod(row, self.frames) for row in rows]
            yield _with(
                index.slice(0, len(rows)),
                key=[_key("views", shard, number) for number in range(len(rows))],
                shard=[f"views-{shard:06d}.tar"] * len(rows),
                clip=[clips[clip][0] for clip, _ in places],
                split=[clips[clip][1] for clip, _ in places],
                index=[frame for _, frame in places],
            )

    def _shards(
        self,
        out: Path,
        prefix: str,
        reader: ShardReader,
        keys: list[str],
        total: int,
        size: int,
    ) -> Path:
        """Shards of `size` samples, all links to one with the samples `keys` again and again.

        Returns the folder of that one.
        """
        first = self.small / "first" / prefix
        samples = zip(
            (_key(prefix, 0, number) for number in range(size)), itertools.cycle(keys), strict=False
        )
        write_shard(first / f"{prefix}-000000.tar", ((name, reader.read(key)) for name, key in samples))
        [tar] = first.glob("*.tar")
        read_sidecar(tar)
        text = sidecar_path(tar).read_text()
        out.mkdir(parents=True, exist_ok=True)
        for number in range(-(-total // size)):
            name = f"{prefix}-{number:06d}"
            os.link(tar, out / f"{name}.tar")
            sidecar_path(out / f"{name}.tar").write_text(text.replace(f"{prefix}-000000", name))
        rest = total % size
        if rest:
            _shorten(out / f"{name}.tar", rest)
        return first


def _shorten(shard: Path, samples: int) -> None:
    """Let the sidecar of a shard know fewer samples."""
    path = sidecar_path(shard)
    facts = json.loads(path.read_text())
    facts["members"] = dict(itertools.islice(facts["members"].items(), samples))
    facts["samples"] = samples
    path.write_text(json.dumps(facts))


def _key(prefix: str, shard: int, number: int) -> str:
    return f"{prefix}-{shard:06d}-{number:06d}"


def _link_all(files: list[Path], folder: Path, count: int) -> None:
    """`count` links to some files, a thousand to a folder."""
    for number, file in zip(range(count), itertools.cycle(files), strict=False):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        link = place / f"{number:06d}{file.suffix}"
        link.symlink_to(file.resolve())


def _repeated(table: pa.Table, count: int) -> pa.Table:
    """The rows of a table again and again."""
    return table.take(np.resize(np.arange(len(table)), count))


def _with(table: pa.Table, **columns: Iterable) -> pa.Table:
    """A table with other values in some columns."""
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table
