"""Numbers for people: bytes, durations, counts."""


def readable_bytes(size: float) -> str:
    """A number of bytes in the unit that fits, in thousands: "3.0 kB"."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def readable_time(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def readable_count(number: int, plural: str) -> str:
    """A count and its noun, given in the plural: "1 shard", "1,200 shards"."""
    noun = plural.removesuffix("s") if number == 1 else plural
    return f"{number:,} {noun}"
