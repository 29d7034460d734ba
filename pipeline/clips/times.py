"""When the frames of a clip were taken, by the tables of ingest."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pyarrow.compute as pc

from pipeline.core.films import frame_rate
from pipeline.store.tables import read_columns

STAGE = "ingest"
# Frames a second of a clip whose container does not say; its time stamps are kept all the same.
UNKNOWN_RATE = 25.0


def clip_times(
    ingest: Path,
    clip: str,
    keys: Sequence[str],
) -> tuple[Fraction, list[float]]:
    """The frame rate of a clip, and the seconds from the first of its frames `keys` to each.

    The seconds ascend. A film with them runs as fast as the clip: where a frame between was
    rejected, the one before is shown longer. The frames of a file whose time stamps do not ascend
    are taken as evenly spaced. Raises UserError when the tables cannot be read.
    """
    clips = read_columns(ingest / "clips.parquet", STAGE, ["fps"], pc.field("key") == clip)
    frames = read_columns(ingest / "frames.parquet", STAGE, ["key", "seconds"], pc.field("clip") == clip)
    mean_rate = clips["fps"][0].as_py()
    rate = frame_rate(mean_rate or UNKNOWN_RATE)
    stamps = {row["key"]: row["seconds"] for row in frames.to_pylist()}
    seconds = [stamps[key] - stamps[keys[0]] for key in keys]
    if any(before >= after for before, after in pairwise(seconds)):
        seconds = [float(number / rate) for number in range(len(keys))]
    return rate, seconds
