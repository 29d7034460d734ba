"""Clips of one recording are never on both sides."""

from collections import Counter

import pytest

from pipeline.core.errors import UserError
from pipeline.ingest.splits import FOLDER, check_rule, recording_of, recordings_of, split_clips
from tests.ingest.test_ingest import SETTINGS


def rows_of(files, contents=None):
    """Rows of usable clips; equal `contents` are equal bytes."""
    rows = []
    for file in files:
        rows.append({"key": file, "file": file, "status": "ok", "reason": ""})
    for row, content in zip(rows, contents or [], strict=False):
        row["content"] = content
    return rows


def test_generated_clips_say_their_split_in_the_name():
    expected = {
        "test-000.mp4": "test",
        "train-000.mp4": "train",
        "train-001.mp4": "train",
        "validation-000.mp4": "validation",
    }
    settings = SETTINGS.model_copy(update={"source": "generated"})
    splits = split_clips(rows_of(expected), settings)
    assert splits == expected


def test_splits_do_not_move_when_clips_are_added():
    rows = rows_of([f"{number}.mp4" for number in range(200)])
    few = split_clips(rows[:150], SETTINGS)
    many = split_clips(rows, SETTINGS)
    assert few.items() <= many.items()
    # A tenth of 200 is wanted; what a hash deals out is not even.
    counts = Counter(many.values())
    assert 8 < counts["validation"] < 35
    assert 8 < counts["test"] < 35


def test_each_split_has_a_clip_or_the_run_stops():
    rows = rows_of(["0.mp4", "1.mp4", "2.mp4"])
    for share in (0.0, 0.1, 0.9):
        shares = {"validation_share": 0.0, "test_share": share}
        settings = SETTINGS.model_copy(update=shares)
        splits = split_clips(rows, settings)
        assert sorted(splits.values()) == ["test", "train", "validation"]
    with pytest.raises(UserError, match="training, validation and testing need one each"):
        split_clips(rows[:2], SETTINGS)


@pytest.mark.parametrize(
    ("rule", "together", "apart"),
    [
        ("auto", ["Clip+aB-c_1+P0+C0+F1-9", "Clip+aB-c_1+P1+C4+F100-199"], "Clip+aB-c_2+P0+C0+F1-9"),
        ("auto", ["x/M2Ohb0FAaJU_1.mp4", "x/M2Ohb0FAaJU_12.mp4"], "x/M2Ohb0FAaJV_1.mp4"),
        ("auto", ["talk_part1.mp4", "talk_part2.mp4"], "walk_part1.mp4"),
        ("vfhq", ["Clip+a.b+P0+C0+F1-9", "Clip+a.b+P1+C4+F1-9.mp4"], "talk_part1.mp4"),
        ("folder", ["anna/1.mp4", "anna/2.mp4"], "berta/1.mp4"),
        (r"^(s[0-9]+)_", ["s1_a.mp4", "s1_b.mp4"], "s2_a.mp4"),
    ],
)
def test_rules(rule, together, apart):
    found = recordings_of(rows_of([*together, apart]), rule)
    first, second = (found[file] for file in together)
    assert first == second
    assert first != found[apart]


def test_rules_leave_other_names_alone():
    files = ["1.mp4", "2.mp4", "interview 3.mp4", "a/1.mp4"]
    for rule in ("name", "auto", "celebv"):
        found = recordings_of(rows_of(files), rule)
        assert found == dict(zip(files, files, strict=True))


def test_a_subfolder_is_a_person():
    files = ("anna/1.jpg", "anna/2.jpg", "ben/1.jpg", "alone.jpg")
    assert [recording_of(file, FOLDER) for file in files] == ["anna", "anna", "ben", "alone.jpg"]


def test_equal_bytes_join_recordings():
    files = ["a_part1.mp4", "a_part2.mp4", "copy.mp4", "other.mp4", "c.mp4"]
    rows = rows_of(files, ["1", "2", "2", "3", "3"])
    found = recordings_of(rows, "auto")
    # The copy is that of a part, and so belongs to the other part as well.
    part, other_part, copy, other, same_as_other = (found[file] for file in files)
    assert part == other_part == copy
    assert other == same_as_other
    assert other != copy
    many = [f"{number}.mp4" for number in range(100)]
    contents = [str(number // 2) for number in range(100)]
    splits = split_clips(rows_of(many, contents), SETTINGS)
    for first, second in zip(many[::2], many[1::2], strict=True):
        assert splits[first] == splits[second]


def lists(folder, **names):
    folder.mkdir()
    for split, lines in names.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{split}.txt").write_text(text)
    return SETTINGS.model_copy(update={"split": str(folder)})


def test_lists(tmp_path):
    settings = lists(
        tmp_path / "s",
        train=["a", "b.mp4"],
        validation=["x/c.mp4"],
        test=["d"],
    )
    expected = {
        "a.mp4": "train",
        "b.mp4": "train",
        "x/c.mp4": "validation",
        "d": "test",
    }
    files = list(expected)
    assert split_clips(rows_of(files), settings) == expected
    # Lists of people may be wrong; equal bytes on both sides would spoil the evaluation.
    with pytest.raises(UserError, match=r"a.mp4 and d are the same file.*train.*test"):
        split_clips(rows_of(files, ["1", "2", "3", "1"]), settings)


def test_bad_lists(tmp_path):
    settings = lists(tmp_path / "s", train=["a"], validation=["b"])
    third = tmp_path / "s/test.txt"
    rows = rows_of(["a"])
    with pytest.raises(UserError, match=r"test\.txt cannot be read"):
        split_clips(rows, settings)
    third.write_text("a\n")
    with pytest.raises(UserError, match=r"a is in train\.txt and test\.txt"):
        split_clips(rows, settings)
    third.write_text("\n")
    with pytest.raises(UserError, match="names no clip"):
        split_clips(rows, settings)


@pytest.mark.parametrize(("rule", "problem"), [("[", "no regular expression"), ("talk", "without a group")])
def test_bad_rules(rule, problem):
    with pytest.raises(UserError, match=rf"ingest\.recordings is .*{problem}.*name, folder, auto, vfhq"):
        check_rule(rule)
