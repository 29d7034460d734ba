"""Which clips are trained on, and which are kept for validation and testing.

Clips that show one recording lie on one side: those with equal bytes always, and those that a rule for names
says belong together.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.config.params import Ingest
from pipeline.core.errors import UserError
from pipeline.core.paths import in_project
from pipeline.core.splits import SPLITS, split_folder
from pipeline.ingest.files import SUFFIXES, VIDEO, plain_words
from pipeline.ingest.report import most_frequent

# Rules for the name of a clip without its folder and suffix; the first group names the recording.
RULES = {
    # Clip+<id of the film>+P<person>+C<clip>+F<first>-<last>
    "vfhq": r"Clip\+(.+)\+P[0-9]+\+C[0-9]+\+F.*",
    # <id of the film, 11 letters>_<clip>
    "celebv": r"([A-Za-z0-9_-]{11})_[0-9]+(?:_.*)?",
    # <name>_part<number>
    "part": r"(.+?)[ _-]*part[ _-]*[0-9]+",
}
NAME, FOLDER, AUTO = "name", "folder", "auto"
HASH = "hash"


def split_clips(rows: Sequence[Mapping[str, Any]], settings: Ingest) -> dict[str, str]:
    """The split, train, validation or test, for the key of every clip.

    A generated file says it in its name. In a folder, `ingest.split` may name lists; otherwise it depends on
    a hash of the recording, so that new clips do not move the others. Raises UserError when a split would
    have no usable clip.
    """
    usable = [row for row in rows if row["status"] == "ok"]
    if settings.source == "generated":
        splits = {row["key"]: Path(row["file"]).name.split("-")[0] for row in rows}
    elif settings.split != HASH:
        splits = _split_by_lists(rows, settings)
    else:
        recordings = recordings_of(rows, settings.recordings)
        groups = sorted(set(recordings.values()))
        good = sorted({recordings[row["key"]] for row in usable})
        found = split_folder(
            groups,
            good,
            settings.validation_share,
            settings.test_share,
        )
        splits = {key: found[recording] for key, recording in recordings.items()}
    counts = Counter(splits[row["key"]] for row in usable)
    if len(counts) < len(SPLITS):
        raise UserError(_too_few(rows, len(usable), settings))
    return splits


def check_rule(rule: str) -> None:
    """Raise UserError for a value of ingest.recordings that says nothing."""
    if rule in (NAME, FOLDER, AUTO, *RULES):
        return
    try:
        groups = re.compile(rule).groups
    except re.error as error:
        problem = f"no regular expression: {error}"
    else:
        problem = "" if groups else "a regular expression without a group"
    if problem:
        known = ", ".join([NAME, FOLDER, AUTO, *RULES])
        raise UserError(
            f'ingest.recordings is "{rule}", which is {problem}. It must be one of {known}, or a regular '
            "expression whose first group names the recording, such as ^(.*)_."
        )


def read_lists(folder: Path) -> dict[str, str]:
    """The split of every clip that the lists name, by its path in ingest.clips, with or without its suffix.

    Raises UserError for a list that is missing or empty, and for a clip in two of them.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = plain_words(error)
            raise UserError(
                f"ingest.split names {folder}, but {path} cannot be read ({reason}). Put a list of clips "
                "there, one a line, or set ingest.split: hash."
            ) from error
        names = [line.strip().removeprefix("./") for line in lines if line.strip()]
        if not names:
            raise UserError(f"{path} names no clip. Add one a line, or set ingest.split: hash.")
        for name in names:
            if found.setdefault(name, split) != split:
                raise UserError(
                    f"{name} is in {found[name]}.txt and {split}.txt of {folder}. Remove it from one."
                )
    return found


def listed_split(file: str, lists: Mapping[str, str]) -> str | None:
    """The split of a clip by the lists, None when they do not name it."""
    return lists.get(file) or lists.get(PurePosixPath(file).with_suffix("").as_posix())


def _split_by_lists(rows: Sequence[Mapping[str, Any]], settings: Ingest) -> dict[str, str]:
    """The splits of the lists. Raises UserError when clips with equal bytes are in two of them."""
    lists = read_lists(in_project(settings.split))
    splits: dict[str, str] = {}
    seen: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        # Only listed clips were read.
        splits[row["key"]] = listed_split(row["file"], lists) or ""
        twin = seen.setdefault(row.get("content") or row["file"], row)
        if splits[twin["key"]] != splits[row["key"]]:
            raise UserError(
                f"{twin['file']} and {row['file']} are the same file, but the lists of {settings.split} put "
                f"one into {splits[twin['key']]} and one into {splits[row['key']]}. Remove one of them."
            )
    return splits


def recordings_of(rows: Sequence[Mapping[str, Any]], rule: str) -> dict[str, str]:
    """The name of the recording for the key of every clip: clips with one name must lie on one side.

    `rule`: "name" (each file is one), "folder" (all of a folder are one), a key of RULES, "auto" (any of
    RULES), or a regular expression for the path whose first group is the recording. Rows may have `content`,
    a hash of the file.
    """
    names = {row["key"]: recording_of(row["file"], rule) for row in rows}
    # Equal contents join two recordings; the alphabetically first name stands for all that are joined.
    parents = {name: name for name in names.values()}

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    seen: dict[str, str] = {}
    for row in rows:
        content = row.get("content")
        if not content:
            continue
        name = names[row["key"]]
        twin = seen.setdefault(content, name)
        mine, other = root(name), root(twin)
        parents[max(mine, other)] = min(mine, other)
    return {key: root(name) for key, name in names.items()}


def recording_of(file: str, rule: str) -> str:
    """The recording of a file by a rule of `recordings_of`: itself where the rule says nothing."""
    path = PurePosixPath(file)
    if rule == NAME:
        return file
    if rule == FOLDER:
        return path.parent.as_posix() if path.parent.name else file
    if rule not in (AUTO, *RULES):
        found = re.search(rule, file)
        recording = found[1] if found else None
        return recording or file
    # A folder of pictures has no suffix, but its name may have a dot.
    stem = path.stem if path.suffix.lower() in SUFFIXES[VIDEO] else path.name
    patterns = RULES.values() if rule == AUTO else [RULES[rule]]
    for pattern in patterns:
        found = re.fullmatch(pattern, stem, re.IGNORECASE)
        if found:
            return path.with_name(found[1]).as_posix()
    return file


def _too_few(
    rows: Sequence[Mapping[str, Any]],
    usable: int,
    settings: Ingest,
) -> str:
    """What to do when a split stays empty."""
    reasons = most_frequent(list(map(dict, rows)))
    rejected = f" (rejected: {reasons})" if reasons else ""
    if settings.source == "folder":
        more = "Add clips to ingest.clips, or say by ingest.recordings which of them belong together,"
    else:
        more = "Raise ingest.train_clips, validation_clips and test_clips"
    return (
        f"of {len(rows)} clips {usable} can be used, but training, validation and testing need one each at "
        f"least{rejected}. {more} in params.yaml."
    )
