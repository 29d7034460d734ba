"""Where a cache lies: a folder, or an address that fsspec knows (http://, s3:// and others).

Parts of files are read, nothing is written.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import fsspec

from pipeline.core.errors import UserError


class Storage:
    """Reads parts of the files under `address`.

    It keeps nothing open, so it may be pickled, forked and shared by threads.
    """

    def __init__(self, address: str | Path):
        self.address = str(address).rstrip("/")
        self.is_remote = "://" in self.address

    def __str__(self) -> str:
        return self.address

    def open(self, name: str) -> BinaryIO:
        """The file `name` for reading, with seek. Raises UserError when it cannot be opened."""
        try:
            if not self.is_remote:
                return open(f"{self.address}/{name}", "rb")
            files, path = self._files(name)
            return files.open(path, "rb")
        # Every kind of address has errors of its own.
        except Exception as error:
            raise self._failure(name, error) from error

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from start to stop of each of `spans`; fewer where the file ends.

        All spans of a remote file are asked for at once. Raises UserError when the file cannot be read.
        """
        try:
            if not self.is_remote:
                return _read_here(f"{self.address}/{name}", spans)
            files, path = self._files(name)
            starts = [start for start, _ in spans]
            stops = [stop for _, stop in spans]
            # All of them go out together: one by one, each would wait for an answer of the server.
            found = files.cat_ranges(
                [path] * len(spans),
                starts,
                stops,
                on_error="raise",
            )
        except Exception as error:
            raise self._failure(name, error) from error
        # A plain file server answers a range request with status 200 and all of the file.
        for data, (start, stop) in zip(found, spans, strict=True):
            if len(data) > stop - start:
                raise UserError(
                    f"{self.address}/{name}: the server sends the whole file when asked for a part. "
                    "Use one that knows range requests."
                )
        return found

    def _files(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        return fsspec.core.url_to_fs(f"{self.address}/{name}")

    def _failure(self, name: str, error: Exception) -> UserError:
        said = error.strerror if isinstance(error, OSError) else None
        reason = said or str(error) or type(error).__name__
        advice = f"`psi4d verify {self.address}` says what is wrong."
        if self.is_remote:
            advice = "Look whether the address is right and the server answers."
        return UserError(f"cannot read {self.address}/{name}: {reason}. {advice}")


def _read_here(path: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(descriptor, stop - start, start) for start, stop in spans]
    finally:
        os.close(descriptor)
