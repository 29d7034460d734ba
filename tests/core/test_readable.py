"""Numbers for people."""

import pytest

from pipeline.core.readable import readable_bytes, readable_count, readable_time


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (3000, "3.0 kB"),
        (1.5e9, "1.5 GB"),
        (2.25e12, "2.2 TB"),
        (4e15, "4000.0 TB"),
    ],
)
def test_bytes(size, text):
    assert readable_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(89, "89 s"), (90, "2 minutes"), (5400, "1.5 hours")])
def test_time(seconds, text):
    assert readable_time(seconds) == text


def test_counts():
    assert [readable_count(number, "shards") for number in (0, 1, 1200)] == [
        "0 shards",
        "1 shard",
        "1,200 shards",
    ]
