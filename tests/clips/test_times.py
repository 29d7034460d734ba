"""Films of clips run as fast as the clips were taken."""

from fractions import Fraction

import pyarrow as pa
import pytest

from pipeline.clips.times import clip_times
from pipeline.core.errors import UserError
from pipeline.store.tables import write_table


@pytest.mark.parametrize(
    ("fps", "times", "rate", "wanted"),
    [
        # Frames between were rejected.
        (25.0, [0.4, 0.44, 0.6], 25, [0.0, 0.04, 0.2]),
        # The rate varies.
        (29.97002997, [0.0, 0.1, 0.15], Fraction(30000, 1001), [0.0, 0.1, 0.15]),
        # There are no time stamps.
        (10.0, [0.0, 0.0, 0.0], 10, [0.0, 0.1, 0.2]),
        # The container does not say how many frames a second there are.
        (0.0, [0.0, 0.5, 1.0], 25, [0.0, 0.5, 1.0]),
    ],
)
def test_the_times_of_frames(tmp_path, fps, times, rate, wanted):
    keys = ["a-0", "a-1", "a-2"]
    # The times of another clip do not count.
    clips = [{"key": "a", "fps": fps}, {"key": "b", "fps": 7.0}]
    frames = [{"key": "b-0", "clip": "b", "seconds": 3.0}]
    for key, seconds in zip(keys, times, strict=True):
        frames.append({"key": key, "clip": "a", "seconds": seconds})
    write_table(tmp_path / "clips.parquet", pa.Table.from_pylist(clips))
    write_table(tmp_path / "frames.parquet", pa.Table.from_pylist(frames))
    found = clip_times(tmp_path, "a", keys)
    assert found[0] == rate
    assert found[1] == pytest.approx(wanted)


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"clips.parquet is missing. Run the stage ingest"):
        clip_times(tmp_path, "a", ["a-0"])
