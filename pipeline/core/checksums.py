"""Checksums of files that are asked for again and again, each computed once.

A file is taken for the same one as long as its path, size, time of change and inode are. Then its checksum
costs a stat. The first time all bytes are read: a terabyte takes half an hour at 500 MB/s.
"""

import json
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import sha256, write_bytes

# A file that was written so shortly before it was read may change once more without another time.
SETTLED = 2.0  # seconds
READERS = 4


class Checksums:
    """SHA-256 of files, with those of earlier runs in the file `store`."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._known: dict[str, list] = {}
        self._asked: dict[str, list] = {}
        try:
            known = json.loads(store.read_bytes())
            self._known = {path: list(facts) for path, facts in known.items()}
        # Absent or damaged: all files are read again.
        except (OSError, ValueError, AttributeError, TypeError):
            return

    def of(self, paths: Sequence[Path]) -> list[str | OSError]:
        """The checksum of each file in hexadecimal, or what kept it from being read.

        Nothing but a regular file is opened, so that a FIFO stops nothing.
        """
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._of, paths))

    def save(self) -> None:
        """Keep the checksums that were asked for; where that is impossible, they are computed again."""
        try:
            write_bytes(self.store, json.dumps(self._asked).encode())
        except UserError:
            return

    def _of(self, path: Path) -> str | OSError:
        try:
            before = _stamp(path)
            known = self._known.get(str(path))
            if known and known[:-1] == before:
                self._asked[str(path)] = known
                return known[-1]
            started = time.time()
            found = sha256(path)
            size, changed, inode = _stamp(path)
        except OSError as error:
            return error
        if [size, changed, inode] == before and changed / 1e9 < started - SETTLED:
            self._asked[str(path)] = [*before, found]
        return found


def _stamp(path: Path) -> list[int]:
    """Size, time of change in nanoseconds and inode. Raises OSError for what is no regular file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(None, "not a file", str(path))
    return [found.st_size, found.st_mtime_ns, found.st_ino]
