"""Which clips are trained on, which parameters are chosen on and which are tested on."""

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


def split_folder(
    files: Sequence[str], usable: Sequence[str], validation_share: float, test_share: float
) -> dict[str, str]:
    """The split of every file; `usable` are those that training and testing can have.

    It depends on the hash of a file's name alone, so that new clips do not move the others; but of three
    usable clips or more, one at least is for each split.
    """
    # A clip keeps its place for ever. Only when a split would be empty do the outermost clips change theirs.
    places = {file: _place(file) for file in files}
    splits = {file: _split_at(place, validation_share, test_share) for file, place in places.items()}
    ordered = sorted(usable, key=places.__getitem__)
    if len(ordered) >= len(SPLITS):
        splits[ordered[0]], splits[ordered[-1]] = "test", "train"
        if all(splits[file] != "validation" for file in ordered):
            splits[ordered[1]] = "validation"
    return splits


def _place(file: str) -> float:
    return int(hashlib.sha256(file.encode()).hexdigest()[:8], 16) / 2**32


def _split_at(place: float, validation_share: float, test_share: float) -> str:
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"
