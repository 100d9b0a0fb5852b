import os
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.language.corpus import MANY, Corpus, Document, read_corpus

SPLITS = ("train", "valid", "test")


def names(corpus: Corpus, split: str) -> set[str]:
    return {document.name for document in getattr(corpus, split).documents}


def folder_of(root: Path, count: int) -> Path:
    for i in range(count):
        path = root / f"part{i % 7}" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text number {i}\n" * (1 + i % 5))
    return root


@pytest.fixture(scope="module")
def library() -> Corpus:
    return read_corpus()


def test_the_library_is_several_megabytes_of_this_interpreters_source(library: Corpus) -> None:
    assert 4e6 < sum(library.sizes().values()) < 20e6
    root = Path(sysconfig.get_path("stdlib"))
    for split in SPLITS:
        for document in getattr(library, split).documents:
            assert document.is_python
            source = (root / document.name).read_text(encoding="utf-8-sig")
            assert document.text.rstrip("\n") == source.rstrip("\n")
            top = document.name.partition("/")[0].removesuffix(".py")
            assert top in sys.stdlib_module_names
            assert "site-packages" not in document.name and "test" not in document.name.split("/")


def test_no_document_of_the_library_is_in_two_splits(library: Corpus) -> None:
    found = [name for split in SPLITS for name in names(library, split)]
    assert len(found) == len(set(found)) > 300
    shares = [size / sum(library.sizes().values()) for size in library.sizes().values()]
    assert shares[0] > 0.8 and min(shares) > 0.01


def test_a_second_reading_is_the_same(library: Corpus) -> None:
    assert read_corpus() == library


def test_a_limit_takes_a_part_of_every_split(library: Corpus) -> None:
    small, large = read_corpus(limit_bytes=50_000), read_corpus(limit_bytes=200_000)
    for split, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
        texts = [getattr(c, split).text for c in (small, large, library)]
        for text, limit in zip(texts, (50_000, 200_000), strict=False):
            assert 0.9 * share * limit < len(text.encode()) <= share * limit
        assert texts[2].startswith(texts[1]) and texts[1].startswith(texts[0])


def test_one_file_is_cut_into_blocks_that_are_the_file(shakespeare: Path) -> None:
    corpus = read_corpus(shakespeare)
    joined = "".join(getattr(corpus, split).text for split in SPLITS)
    assert joined == shakespeare.read_text()
    assert all(getattr(corpus, split).text.endswith("\n") for split in SPLITS)
    assert corpus.train.num_bytes / len(joined) == pytest.approx(0.9, abs=0.001)
    assert corpus.valid.num_bytes / len(joined) == pytest.approx(0.05, abs=0.001)
    assert corpus.name == str(shakespeare)


def test_few_documents_give_a_block_of_each_to_every_split(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i:03}\n" for i in range(100)))
    corpus = read_corpus(tmp_path)
    for document in corpus.train.documents:
        assert document.text.splitlines()[-1] == f"{document.name[0]}089"
    assert all(names(corpus, split) == {"a.txt", "b.txt"} for split in SPLITS)
    assert list(corpus.sizes().values()) == [900, 50, 50]


def test_a_document_keeps_its_split_when_others_come(tmp_path: Path) -> None:
    before = read_corpus(folder_of(tmp_path, 3 * MANY))
    after = read_corpus(folder_of(tmp_path, 5 * MANY))
    for split in SPLITS:
        assert names(before, split) < names(after, split)


def test_order_is_that_of_names_not_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_corpus(folder_of(tmp_path, 2 * MANY))
    walk = os.walk

    def backwards(top: Path):
        for folder, folders, files in walk(top):
            folders.reverse()
            yield folder, folders, files[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert read_corpus(tmp_path) == expected


def test_hidden_empty_and_binary_files_are_left_out_and_counted(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(200))
    (tmp_path / "notes.txt").write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / ".secret").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("no")
    corpus = read_corpus(tmp_path)
    assert names(corpus, "train") == {"notes.txt"}
    assert corpus.skipped == {"hidden": 2, "binary": 2, "empty": 1}
    assert str(corpus).endswith("left out: 2 hidden, 2 binary, 1 empty")


def test_byte_order_mark_goes_and_a_last_line_end_comes(tmp_path: Path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes("\ufeff".encode() + b"line\r\n" * 100 + b"end")
    corpus = read_corpus(path)
    assert "".join(getattr(corpus, s).text for s in SPLITS) == "line\r\n" * 100 + "end\n"


@given(st.text(min_size=1, max_size=300).filter(lambda t: "\0" not in t and t.strip()))
def test_any_text_is_cut_without_loss(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "text.txt"
    path.write_bytes(text.encode())
    try:
        corpus = read_corpus(path)
    except InputError as error:
        assert "too little text" in str(error) or "no text in it" in str(error)
        return
    text = text.removeprefix("\ufeff")
    joined = "".join(getattr(corpus, split).text for split in SPLITS)
    assert joined == (text if text.endswith("\n") else text + "\n")
    assert sum(corpus.sizes().values()) == len(joined.encode())


def complaint(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        read_corpus(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "it"
    assert complaint(path) == f"{path}: no such file or folder"
    path.write_bytes(b"")
    assert "no text in it" in complaint(path)
    path.write_bytes(b"abc\0def")
    assert "NUL byte at offset 3" in complaint(path)
    path.write_bytes(b"abcd\xff")
    assert "byte 0xff at offset 4" in complaint(path)
    path.write_text("ab")
    assert "too little text for three splits" in complaint(path)
    assert "positive" in complaint(path, limit_bytes=0)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "neither a file nor a folder" in complaint(fifo)


def test_a_folder_without_text_says_what_it_left_out(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path}: no text files in this folder"
    (tmp_path / "a.bin").write_bytes(b"\0")
    assert complaint(tmp_path).endswith("no text files in this folder (left out: 1 binary)")


@pytest.mark.parametrize("inside", [False, True])
def test_an_unreadable_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    path = tmp_path / "locked.txt"
    path.write_text("text")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    assert complaint(tmp_path if inside else path) == f"{path}: cannot be read: Permission denied"


def test_a_split_shorter_than_a_window_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("123456789\n" * 40)  # blocks of 360, 20 and 20 bytes
    corpus = read_corpus(path)
    corpus.check_context(19)
    with pytest.raises(InputError, match="valid split has 20 bytes, fewer than the 21"):
        corpus.check_context(20)


def test_python_is_known_by_its_name() -> None:
    assert Document("a/b.py", "").is_python
    assert not Document("a.py/b.txt", "").is_python
