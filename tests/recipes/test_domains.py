from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.language.corpus import Document
from polypath.recipes.domains import arithmetic, characters, docstrings, domains


def test_four_domains_are_on_every_machine() -> None:
    found = domains((), 0.05)
    assert list(found) == ["source", "docstrings", "arithmetic", "characters"]
    for splits in found.values():
        sizes = [len(splits[name]) for name in ("train", "valid", "test")]
        assert sum(sizes) <= 50_100 and sizes[0] > 6 * sizes[2] > 0


def test_lines_are_right() -> None:
    for line in arithmetic(2000).splitlines()[:-1]:
        left, right = line.split(" = ")
        assert eval(left) == int(right)
    assert arithmetic(500) == arithmetic(2000)[:500]
    lines = characters(3000).splitlines()
    fields = next(line for line in lines if line.startswith("0041;")).split(";")
    assert fields == ["0041", "LATIN CAPITAL LETTER A", "Lu", "L", "0"]


def test_docstrings_are_taken_out_of_source() -> None:
    source = '"""One."""\n\ndef f():\n    """Two."""\n\nclass A:\n    """Three."""\n    x = "no"\n'
    found = docstrings([Document("a.py", source), Document("b.py", "def (")])
    assert sorted(found.split()) == ["One.", "Three.", "Two."]


def test_files_of_ones_own(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {n}\n" for n in range(200)))
    files = (tmp_path / "one.txt", tmp_path / "other.txt")
    assert list(domains(files, 1.0)) == ["one", "other"]
    with pytest.raises(InputError, match="two at least"):
        domains(files[:1], 1.0)
    with pytest.raises(InputError, match="one name twice"):
        domains((files[0], files[0]), 1.0)
