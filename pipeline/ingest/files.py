"""Which files of a folder are read, and why the others are passed over.

The first bytes of a file decide what it is. Its suffix only tells that a file whose bytes say nothing was
meant to be a picture or a video, so that it gets a reason instead of a number.
"""

import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

PICTURE, VIDEO = "picture", "video"
PICTURE_SUFFIXES = (
    ".png .jpg .jpeg .jfif .jpe .webp .bmp .tif .tiff .gif .avif .heic .heif .jp2 .j2k .ppm .pgm"
)
VIDEO_SUFFIXES = ".mp4 .mov .mkv .avi .webm .m4v .3gp .3g2 .mpg .mpeg .ts .mts .m2ts .vob .wmv .asf .flv .ogv"
SUFFIXES = {
    PICTURE: frozenset(PICTURE_SUFFIXES.split()),
    VIDEO: frozenset(VIDEO_SUFFIXES.split()),
}
HEAD = 1024
# Where a signature begins, the signature, and what it stands for.
SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"GIF8", PICTURE),
    (0, b"II*\0", PICTURE),
    (0, b"MM\0*", PICTURE),
    (8, b"WEBP", PICTURE),
    (0, b"\0\0\0\x0cjP  ", PICTURE),
    (0, b"\xff\x4f\xff\x51", PICTURE),
    (0, b"\x1aE\xdf\xa3", VIDEO),
    (8, b"AVI ", VIDEO),
    (0, b"FLV\x01", VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", VIDEO),
    (0, b"\0\0\x01\xba", VIDEO),
    (0, b"\0\0\x01\xb3", VIDEO),
    (0, b"OggS", VIDEO),
    (4, b"moov", VIDEO),
    (4, b"mdat", VIDEO),
)
# The brands of ISO base media files (bytes 8 to 12) that hold one picture.
PICTURE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
# Packets of an MPEG transport stream begin with this byte, every 188 or, with time codes before them, 192
# bytes.
SYNC, PACKETS = 0x47, ((0, 188), (4, 192))
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# The number of a picture in a folder that is a clip: the last one of its name.
NUMBERED = re.compile(r"([0-9]{1,9})\.[^.]*$")


class Rejected(Exception):
    """This file or frame cannot be used.

    The message is the reason: a few words, then details behind a colon.
    """


@dataclass
class Listing:
    """What lies in a folder, as paths relative to it.

    `files` are to be read; `passed_over` has every other with the reason.
    """

    files: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)


def find_files(folder: str | Path, kind: str) -> Listing:
    """List all files below `folder` that are, or by their suffix should be, of `kind`; both lists are sorted.

    Links are followed and every real folder is visited once. Hidden files and folders are left out. Nothing
    but a regular file is ever opened, so that a FIFO cannot stop the run.
    """
    listing = Listing()
    for name, entry in _walk(Path(folder), listing):
        try:
            wanted = is_wanted(entry, kind)
        except Rejected as reason:
            listing.passed_over[name] = str(reason)
            continue
        if wanted:
            listing.files.append(name)
        else:
            listing.passed_over[name] = f"not a {kind}"
    listing.files.sort()
    listing.passed_over = dict(sorted(listing.passed_over.items()))
    return listing


def find_clips(folder: str | Path) -> Listing:
    """List the clips below `folder`: videos, and folders of at least two numbered pictures."""
    listing = find_files(folder, VIDEO)
    pictures = find_files(folder, PICTURE).files
    numbered = defaultdict(list)
    for file in pictures:
        path = PurePosixPath(file)
        if path.parent.name and NUMBERED.search(path.name):
            numbered[path.parent.as_posix()].append(file)
    for place, files in numbered.items():
        if len(files) > 1:
            listing.files.append(place)
            for file in files:
                listing.passed_over.pop(file, None)
    listing.files.sort()
    return listing


def _walk(folder: Path, listing: Listing) -> list[tuple[str, Path]]:
    """All files below `folder` with their relative names; `listing` gets what cannot be walked into."""
    found: list[tuple[str, Path]] = []
    visited: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        name = relative_name(Path(error.filename), folder)
        listing.passed_over[name] = f"a folder that cannot be read: {error.strerror}"

    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        place = relative_name(Path(here), folder)
        first = visited.setdefault(os.path.realpath(here), place)
        if first != place:
            listing.passed_over[place] = f"a link to a folder that is read already: {first}"
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *files]:
            if not _is_text(name):
                readable = relative_name(Path(here) / name, folder)
                listing.passed_over[readable] = "its name is not UTF-8: rename it"
        folders[:] = filter(_is_text, folders)
        visible = [name for name in files if _is_text(name) and not name.startswith(".")]
        found += [(relative_name(Path(here) / name, folder), Path(here) / name) for name in visible]
    return found


def _is_text(name: str) -> bool:
    """Whether a name can be written down: os.walk hides the bytes of other ones in surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def relative_name(path: Path, folder: Path) -> str:
    """The path of a file in `folder` as text; bytes that are not UTF-8 are written out."""
    text = path.relative_to(folder).as_posix()
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def is_wanted(path: Path, kind: str) -> bool:
    """Whether `path` is of `kind` or has a suffix that promises it.

    Raises Rejected for what is no file, or is of the other kind.
    """
    if path.is_symlink() and not path.exists():
        raise Rejected("a link to nothing")
    _check_regular(path)
    promised = path.suffix.lower() in SUFFIXES[kind]
    try:
        with open(path, "rb") as file:
            found = kind_of(file.read(HEAD))
    except OSError as error:
        if promised:
            return True
        raise Rejected(f"cannot be read: {error.strerror}") from error
    if found is not None and found != kind:
        raise Rejected(f"a {found}, not a {kind}")
    return found == kind or promised


def kind_of(head: bytes) -> str | None:
    """PICTURE or VIDEO by the first bytes of a file, None when they say neither."""
    for place, signature, kind in SIGNATURES:
        if head[place : place + len(signature)] == signature:
            return kind
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return PICTURE
    if head[:1] == b"P" and head[1:2] in b"3456" and head[2:3].isspace():
        return PICTURE
    if head[4:8] == b"ftyp":
        return PICTURE if head[8:12] in PICTURE_BRANDS else VIDEO
    for start, length in PACKETS:
        places = head[start::length]
        if len(places) > 2 and set(places[: (len(head) - start) // length]) == {SYNC}:
            return VIDEO
    return None


def check_file(path: Path) -> None:
    """Raise Rejected unless `path` is a file with something in it."""
    _check_regular(path)
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from error
    if empty:
        raise Rejected("empty file")


def _check_regular(path: Path) -> None:
    """Raise Rejected for what must not be opened: a FIFO, say, would never answer."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise Rejected(f"{kind}, not a file")


def plain_words(error: Exception) -> str:
    """The library's own words without addresses and paths: equal files then give equal tables anywhere."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    first_line = text.splitlines()[0]
    named = r"\s*(<[^>]*>|'[^']*/[^']*'|\"[^\"]*/[^\"]*\")"
    return re.sub(named, "", first_line)[:120]
