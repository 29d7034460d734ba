"""What is wrong with a cache, and all that was looked at."""

from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.caches.kinds import Layout
from pipeline.store.samples import Form

Seen = dict[str, Form | None]  # what the fields of a sample hold, None for one that cannot be read


class FieldAt(NamedTuple):
    """A field of a sample in a tar."""

    sample: str
    field: str
    offset: int
    size: int


@dataclass(frozen=True)
class Finding:
    """Something wrong with `file`, relative to the folder: in a sample and a field of it, where known."""

    file: str
    problem: str
    sample: str = ""
    field: str = ""
    extra: bool = False  # the file does not belong here

    def __str__(self) -> str:
        where = self.file
        if self.sample:
            where += f", sample {self.sample}"
        if self.field:
            where += f", field {self.field}"
        return f"{where}: {self.problem}"


@dataclass
class Verdict:
    """What was looked at and what is wrong with it. `samples` has the keys that are in each shard."""

    layout: Layout
    findings: list[Finding] = field(default_factory=list)
    samples: dict[str, list[str]] = field(default_factory=dict)
    bytes: int = 0

    def damaged(self) -> set[str]:
        """The files that are wrong: shards (a sidecar counts as its shard) and tables.

        Files that do not belong here are none of them.
        """
        return {finding.file.removesuffix(".json") for finding in self.findings if not finding.extra}
