"""Text to learn from: the standard library's own source, a file or a folder, in three splits."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from polypath.errors import InputError

SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}
MANY = 100  # documents, from which on whole documents are split rather than each one cut

# Generated tables would dominate; the others are packages of their own on some systems.
_LEFT_OUT = {"encodings", "pydoc_data", "distutils", "ensurepip", "idlelib", "lib2to3"}
_LEFT_OUT |= {"tkinter", "turtledemo"}
_TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Document:
    """A piece of text, named by its path relative to the corpus, with forward slashes."""

    name: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.name.endswith((".py", ".pyi"))


@dataclass(frozen=True)
class Split:
    """One part of a corpus: its documents, ordered by a hash of their names."""

    documents: tuple[Document, ...]

    @cached_property
    def text(self) -> str:
        """All documents, one after another with nothing in between."""
        return "".join(document.text for document in self.documents)

    @cached_property
    def num_bytes(self) -> int:
        """The length of the text in UTF-8."""
        return sum(len(document.text.encode()) for document in self.documents)


@dataclass(frozen=True)
class Corpus:
    """Text in three splits.

    name: where the text comes from.
    skipped: how many files were left out, by reason.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    skipped: Mapping[str, int] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Bytes of each split, by its name."""
        return {name: getattr(self, name).num_bytes for name in SHARES}

    def check_context(self, context: int) -> None:
        """Raises InputError where a split is shorter than one window of `context` + 1 bytes."""
        for split, size in self.sizes().items():
            if size <= context:
                raise InputError(
                    f"{self.name}: the {split} split has {size} bytes, fewer than the "
                    f"{context + 1} of one window; give more text or a shorter context"
                )

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {_megabytes(size)}" for name, size in self.sizes().items())
        left_out = f"; left out: {_counts(self.skipped)}" if self.skipped else ""
        return f"{self.name}: {sizes}{left_out}"


def read_corpus(data: Path | None = None, limit_bytes: int | None = None) -> Corpus:
    """Read a corpus and split it: 90 % train, 5 % valid, 5 % test.

    data: a UTF-8 text file, or a folder whose text files are read recursively (hidden, empty and
        binary ones are left out and counted). None: the Python source of the standard library of
        the running interpreter, without its tests, generated tables and optional packages.
    limit_bytes: take about this much, the same share of every split; a smaller corpus is a part
        of a larger one.

    From 100 documents on, a document falls into a split by a hash of its name, so it stays there
    when others come and go. Fewer documents are each cut into three blocks at line ends.

    Raises InputError when there is nothing to read, when a file cannot be read or is not text, or
    when there is too little for three splits.
    """
    if limit_bytes is not None and limit_bytes <= 0:
        raise InputError(f"a corpus of {limit_bytes} bytes was asked for; it has to be positive")
    skipped: Counter[str] = Counter()
    if data is None:
        root = Path(sysconfig.get_path("stdlib"))
        name = f"the standard library of Python {platform.python_version()}"
        documents = [
            Document(document.name, document.text.replace("\r\n", "\n"))  # as installed on Windows
            for document in _read_all(root, _library(root), skipped)
        ]
        if not documents:
            raise InputError(f"{root}: no Python source in it; name a text of your own with --data")
    elif data.is_dir():
        name = str(data)
        documents = list(_read_all(data, _files(data, skipped), skipped))
        if not documents:
            found = f" (left out: {_counts(+skipped)})" if +skipped else ""
            raise InputError(f"{data}: no text files in this folder{found}")
    else:
        name, documents = str(data), [_read_one(data)]
    splits = _by_document(documents) if len(documents) >= MANY else _by_block(documents)
    if limit_bytes is not None:
        splits = {split: _limited(splits[split], SHARES[split] * limit_bytes) for split in splits}
    corpus = Corpus(name, **{n: Split(tuple(s)) for n, s in splits.items()}, skipped=dict(+skipped))
    if not all(corpus.sizes().values()):
        raise InputError(
            f"{name}: too little text for three splits "
            f"({', '.join(f'{split} {size} bytes' for split, size in corpus.sizes().items())})"
        )
    return corpus


def _library(root: Path) -> Iterator[Path]:
    for module in sys.stdlib_module_names - _LEFT_OUT:
        if (path := root / f"{module}.py").is_file():
            yield path
        for path in _files(root / module, Counter()):
            if path.suffix == ".py" and not _TESTS & set(path.relative_to(root).parts):
                yield path


def _files(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The files below `root`, links to folders not followed; hidden files and folders counted."""
    for folder, folders, names in os.walk(root):
        hidden = [name for name in folders + names if name.startswith(".")]
        skipped["hidden"] += len(hidden)
        folders[:] = [name for name in folders if name not in hidden]
        paths = [Path(folder, name) for name in names if name not in hidden]
        yield from (path for path in paths if path.is_file())


def _read_all(root: Path, paths: Iterable[Path], skipped: Counter[str]) -> Iterator[Document]:
    """The text files among `paths`, ordered by the hash of their names."""
    named = {path.relative_to(root).as_posix(): path for path in paths}
    for name in sorted(named, key=_place):
        raw = _bytes(named[name])
        if _fault(raw) is not None:
            skipped["binary"] += 1
        elif not (text := _text(raw)).strip():
            skipped["empty"] += 1
        else:
            yield Document(name, text)


def _read_one(path: Path) -> Document:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder; a corpus is one of the two")
    raw = _bytes(path)
    if (fault := _fault(raw)) is not None:
        raise InputError(f"{path}: not UTF-8 text: {fault}")
    if not (text := _text(raw)).strip():
        raise InputError(f"{path}: the file has no text in it")
    return Document(path.name, text)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _fault(raw: bytes) -> str | None:
    """What keeps the bytes from being text, and at which offset."""
    if (offset := raw.find(0)) >= 0:
        return f"a NUL byte at offset {offset}"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte {raw[error.start]:#04x} at offset {error.start}"
    return None


def _text(raw: bytes) -> str:
    """Without a byte order mark, and with an end of line at the end, so that documents join."""
    text = raw.decode("utf-8-sig")
    return text if text.endswith("\n") else text + "\n"


def _place(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, the same on every machine."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _by_document(documents: Iterable[Document]) -> dict[str, list[Document]]:
    splits: dict[str, list[Document]] = {split: [] for split in SHARES}
    for document in documents:
        place = _place(document.name)
        for split, share in SHARES.items():
            if place < share or split == "test":
                splits[split].append(document)
                break
            place -= share
    return splits


def _by_block(documents: Iterable[Document]) -> dict[str, list[Document]]:
    splits: dict[str, list[Document]] = {split: [] for split in SHARES}
    for document in documents:
        name, rest = document.name, document.text
        size = len(rest)
        for split, share in SHARES.items():
            block = rest if split == "test" else _cut(rest, round(share * size))
            rest = rest[len(block) :]
            splits[split].append(Document(name, block))
    return splits


def _limited(documents: Iterable[Document], limit: float) -> list[Document]:
    """The first documents, up to `limit` bytes in all; the last one is cut."""
    taken: list[Document] = []
    left = int(limit)
    for document in documents:
        raw = document.text.encode()
        if len(raw) > left:
            start = raw[:left].decode(errors="ignore")
            return [*taken, Document(document.name, _cut(start, len(start)))]
        taken.append(document)
        left -= len(raw)
    return taken


def _cut(text: str, length: int) -> str:
    """The first `length` characters, back to the last end of line where there is one."""
    return text[: text.rfind("\n", 0, length) + 1 or length]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())
