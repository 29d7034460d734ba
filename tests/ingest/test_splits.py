"""Clips of one recording are never on both sides."""

import pytest

from pipeline.core.errors import UserError
from pipeline.ingest.splits import check_rule, recordings_of, split_clips
from tests.ingest.test_ingest import SETTINGS


def rows_of(files, contents=None):
    rows = [{"key": file, "file": file, "status": "ok", "reason": ""} for file in files]
    for row, content in zip(rows, contents or [], strict=False):
        row["content"] = content
    return rows


def test_generated_clips_say_their_split_in_the_name():
    names = ["test-000", "train-000", "train-001", "validation-000"]
    settings = SETTINGS.model_copy(update={"source": "generated"})
    splits = split_clips(rows_of([f"{name}.mp4" for name in names]), settings)
    assert splits == {f"{name}.mp4": name.split("-")[0] for name in names}


def test_splits_do_not_move_when_clips_are_added():
    rows = rows_of([f"{number}.mp4" for number in range(200)])
    few, many = split_clips(rows[:150], SETTINGS), split_clips(rows, SETTINGS)
    assert all(many[key] == split for key, split in few.items())
    for name in ("validation", "test"):
        assert 8 < sum(split == name for split in many.values()) < 35


def test_each_split_has_a_clip_or_the_run_stops():
    rows = rows_of(["0.mp4", "1.mp4", "2.mp4"])
    for share in (0.0, 0.1, 0.9):
        settings = SETTINGS.model_copy(update={"validation_share": 0.0, "test_share": share})
        assert sorted(split_clips(rows, settings).values()) == ["test", "train", "validation"]
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
    assert found[together[0]] == found[together[1]] != found[apart]


def test_rules_leave_other_names_alone():
    files = ["1.mp4", "2.mp4", "interview 3.mp4", "a/1.mp4"]
    for rule in ("name", "auto", "celebv"):
        assert recordings_of(rows_of(files), rule) == {file: file for file in files}


def test_equal_bytes_join_recordings():
    files = ["a_part1.mp4", "a_part2.mp4", "copy.mp4", "other.mp4", "c.mp4"]
    found = recordings_of(rows_of(files, ["1", "2", "2", "3", "3"]), "auto")
    assert found["a_part1.mp4"] == found["a_part2.mp4"] == found["copy.mp4"]
    assert found["other.mp4"] == found["c.mp4"] != found["copy.mp4"]
    many = [f"{number}.mp4" for number in range(100)]
    contents = [str(number // 2) for number in range(100)]
    splits = split_clips(rows_of(many, contents), SETTINGS)
    assert all(splits[many[n]] == splits[many[n + 1]] for n in range(0, 100, 2))


def lists(folder, **names):
    folder.mkdir()
    for split, lines in names.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return SETTINGS.model_copy(update={"split": str(folder)})


def test_lists(tmp_path):
    settings = lists(tmp_path / "s", train=["a", "b.mp4"], validation=["x/c.mp4"], test=["d"])
    files = ["a.mp4", "b.mp4", "x/c.mp4", "d"]
    splits = split_clips(rows_of(files), settings)
    assert splits == dict(zip(files, ["train", "train", "validation", "test"], strict=True))
    with pytest.raises(UserError, match=r"a.mp4 and d are the same file.*train.*test"):
        split_clips(rows_of(files, ["1", "2", "3", "1"]), settings)


def test_bad_lists(tmp_path):
    settings = lists(tmp_path / "s", train=["a"], validation=["b"])
    with pytest.raises(UserError, match=r"test\.txt cannot be read"):
        split_clips(rows_of(["a"]), settings)
    (tmp_path / "s" / "test.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"a is in train\.txt and test\.txt"):
        split_clips(rows_of(["a"]), settings)
    (tmp_path / "s" / "test.txt").write_text("\n")
    with pytest.raises(UserError, match="names no clip"):
        split_clips(rows_of(["a"]), settings)


@pytest.mark.parametrize(("rule", "problem"), [("[", "no regular expression"), ("talk", "without a group")])
def test_bad_rules(rule, problem):
    with pytest.raises(UserError, match=rf"ingest\.recordings is .*{problem}.*name, folder, auto, vfhq"):
        check_rule(rule)
