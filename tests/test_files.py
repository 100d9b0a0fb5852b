import os

import pytest

from polypath.errors import InputError
from polypath.files import replace_file, replace_text


def test_replaces_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    replace_text(path, "old")
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted(part):
        part.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, interrupted)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_in_one_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def onto_a_full_disk(part):
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)

    with pytest.raises(InputError, match=r"cannot write .*a\.txt: the disk is full") as error:
        replace_file(path, onto_a_full_disk)
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
