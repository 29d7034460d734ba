"""What people have under the name of a file of weights that is none: a web page, say, or half a file."""

HEAD = 512  # bytes that tell what a file is
# From this size on, binary numbers have ends of lines of both kinds by chance.
TELLING, LOOKED_AT, MANY = 4 << 20, 16 << 20, 1000
LFS = b"version https://git-lfs.github.com/spec/"
WEB = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<error")
ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
TAR_MARK, TAR_PLACE = b"ustar", 257
TEXT_OPCODES = (b"(", b"c")  # with which a dict or an object of protocol 0 begins
SHOWN = 60  # characters of a text


def other_kind(head: bytes) -> str:
    """What a file that cannot be read is by its first bytes, and what to do; nothing when they do not say."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:SHOWN]
    if not start:
        return ""
    if start.lower().startswith(WEB):
        return (
            "it is a web page, as servers send one in place of a file that asks for a login or a "
            "confirmation; download the file itself"
        )
    if start.startswith(LFS):
        return "it is a pointer of Git LFS and not the file; `git lfs pull` in its repository gets that"
    for signature, name in ARCHIVES.items():
        if head.startswith(signature):
            return f"it is compressed by {name}; unpack it first"
    if head[TAR_PLACE:].startswith(TAR_MARK):
        return "it is a tar archive; unpack it first"
    if b"pytorch" in head[:SHOWN] and head[:1] == b"\x08":
        return "it is an ONNX file; the file of PyTorch that it was made of is needed"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start) and set(start) & set(b" :{"):
        line = start.decode().splitlines()[0]
        return f'it is a text, which begins with "{line}"; download the file itself'
    return ""


def mangled_line_ends(data: bytes | memoryview) -> str:
    """That a binary file was copied as a text, when its ends of lines say so; else nothing."""
    some = bytes(data[:LOOKED_AT])
    ends, windows = some.count(b"\n"), some.count(b"\r\n")
    changed = windows == ends and ends > MANY / 100
    changed |= len(some) >= TELLING and windows == 0 and ends > MANY
    if not changed:
        return ""
    return "its ends of lines were changed, as when a binary file is copied as a text; get it again"


def with_own_line_ends(data: bytes) -> bytes:
    """A pickle of protocol 0, which is a text, with the ends of lines that it was written with."""
    if data[:1] in TEXT_OPCODES and data.count(b"\n") == data.count(b"\r\n"):
        return data.replace(b"\r\n", b"\n")
    return data
