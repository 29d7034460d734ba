"""The manifest of the files that stage `ingest` reads: a line of JSON for each, with its name and checksum.

DVC depends on it in place of the folders. DVC itself does not see through links, ends at a file that it
cannot read, and waits for ever at a FIFO. Names and contents alone are in the manifest, so that a fresh clone
with equal files makes an equal one, and nothing is done again.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config.params import Ingest
from pipeline.core.checksums import Checksums
from pipeline.core.files import write_bytes
from pipeline.core.paths import CHECKSUMS, GENERATED, in_project
from pipeline.core.splits import SPLITS
from pipeline.ingest.files import PICTURE, Listing, find_clips, find_files, relative_name
from pipeline.ingest.splits import HASH

Line = dict[str, str]


def source_folders(settings: Ingest) -> tuple[Path, Path]:
    """Where portraits and clips are read: the generated ones or those of the user."""
    if settings.source == "generated":
        return GENERATED / "portraits", GENERATED / "clips"
    return in_project(settings.portraits), in_project(settings.clips)


def write_manifest(settings: Ingest, out: Path) -> None:
    """Write the manifest of the user's folders, or that the input is generated.

    Files that are passed over are in it with the reason, and so are files that cannot be read. Raises
    UserError when `out` cannot be written.
    """
    # DVC warns of an empty file each time that it looks at it.
    lines = list(_lines(settings)) if settings.source == "folder" else [{"source": settings.source}]
    text = [f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines]
    write_bytes(out, "".join(text).encode())


def files_in(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of a listing of `folder`: those of a folder of numbered pictures one by one."""
    files = []
    for name in names:
        path = folder / name
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in inside if not file.is_dir() and not file.name.startswith(".")]
    return files


def _lines(settings: Ingest) -> Iterator[Line]:
    portraits, clips = source_folders(settings)
    sums = Checksums(CHECKSUMS)
    yield from _lines_of("portraits", portraits, find_files(portraits, PICTURE), sums)
    yield from _lines_of("clips", clips, find_clips(clips), sums)
    if settings.split != HASH:
        lists = Listing(files=[f"{split}.txt" for split in SPLITS])
        yield from _lines_of("split", in_project(settings.split), lists, sums)
    sums.save()


def _lines_of(
    key: str,
    folder: Path,
    listing: Listing,
    sums: Checksums,
) -> Iterator[Line]:
    paths = files_in(folder, listing.files)
    for path, found in zip(paths, sums.of(paths), strict=True):
        name = relative_name(path, folder)
        if isinstance(found, str):
            yield {"ingest": key, "file": name, "sha256": found}
        else:
            yield {"ingest": key, "file": name, "reason": f"cannot be read: {found.strerror}"}
    for name, reason in listing.passed_over.items():
        yield {"ingest": key, "file": name, "reason": reason}
