"""Tables of frames that a person has marked as bad."""

import pytest

from pipeline.core.bad_frames import find_bad_frames, read_bad_frames, write_bad_frames
from pipeline.core.errors import UserError


def test_all_tables_of_the_folder_count_together(tmp_path):
    folder = tmp_path / "bad_frames"
    assert find_bad_frames(folder) == []
    folder.mkdir()
    # One as the page saves it, one as a spreadsheet does: with a byte order mark, CRLF and a column of notes.
    (folder / "bad_frames.csv").write_text("key\nb-000003\na-000001\n")
    (folder / "more.csv").write_bytes(b"\xef\xbb\xbfnote,key\r\nblurred,a-000001\r\n,a-000002\r\n,\r\n")
    (folder / "empty.csv").touch()
    (folder / "notes.txt").write_text("no table")
    keys = find_bad_frames(folder)
    assert keys == ["a-000001", "a-000002", "b-000003"]
    path = write_bad_frames(tmp_path / "all.csv", keys)
    assert read_bad_frames(path) == set(keys)
    assert read_bad_frames(tmp_path / "none.csv") == set()
    # No mark is a table, too: DVC depends on the file.
    assert read_bad_frames(write_bad_frames(path, [])) == set()


@pytest.mark.parametrize("text", [b"frame\na-000001\n", b"\xff\xfe\x00k"])
def test_another_file_is_named(tmp_path, text):
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(UserError, match=r"x\.csv (has no column `key`|cannot be read)"):
        find_bad_frames(tmp_path)
