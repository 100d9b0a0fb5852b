import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.language import folders
from polypath.language.folders import former, replaced


def write(folder: Path, text: str) -> None:
    with replaced(folder, lambda name: name == "a") as draft:
        (draft / "a").write_text(text)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    with replaced(folder, lambda name: True) as draft:
        (draft / "a").write_text("1")
        assert not folder.exists()
    assert (folder / "a").read_text() == "1"
    assert list(folder.parent.iterdir()) == [folder]


def test_others_files_stay_and_own_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_text("old")
    with replaced(folder, lambda name: name in "ab") as draft:
        (draft / "a").write_text("new")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "new", "c": "old"}


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_block_changes_nothing(tmp_path: Path, problem: type[BaseException]) -> None:
    write(tmp_path / "folder", "old")
    with pytest.raises(problem), replaced(tmp_path / "folder", lambda name: True) as draft:
        (draft / "a").write_text("half")
        raise problem
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(InputError, match=r"cannot write .*No space left.*before is intact"),
        replaced(tmp_path / "folder", lambda name: True) as draft,
    ):
        (draft / "a").write_text("half")
        raise full
    assert (tmp_path / "folder" / "a").read_text() == "old"


# The module alone: its package imports transformers.
KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("folders", sys.argv[3])
folders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(folders)

calls = []
def rename(source, target, own=os.rename):
    calls.append(target)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    own(source, target)

folders.os.rename = rename
with folders.replaced(Path(sys.argv[1]), lambda name: True) as draft:
    (draft / "a").write_text("new")
"""


@pytest.mark.parametrize("before", [1, 2])
def test_a_kill_leaves_the_former_folder_whole(tmp_path: Path, before: int) -> None:
    """Before the first rename under its name; between the two, beside it."""
    folder = tmp_path / "folder"
    write(folder, "old")
    command = [sys.executable, "-c", KILLED, str(folder), str(before), folders.__file__]
    ran = subprocess.run(command, check=False)
    assert ran.returncode == -signal.SIGKILL
    place = folder if before == 1 else former(folder)
    assert (place / "a").read_text() == "old"
    assert folder.exists() == (before == 1)
    write(folder, "new")
    assert (folder / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_without_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*places: str) -> None:
        raise OSError(errno.EPERM, "no links here")

    folder = tmp_path / "folder"
    write(folder, "old")
    (folder / "other").write_text("kept")
    monkeypatch.setattr(folders.os, "link", refuse)
    write(folder, "new")
    assert (folder / "other").read_text() == "kept"


def test_places_that_cannot_be_replaced_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; the name of a folder is right"):
        write(tmp_path / "file", "new")
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for place in (".", ".."):
        with pytest.raises(InputError, match="is the current folder; a folder inside it is right"):
            write(Path(place), "new")
