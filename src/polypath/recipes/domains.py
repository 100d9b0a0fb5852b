"""Texts of several domains as bytes: files that are given, or four kinds that all machines have."""

from __future__ import annotations

import ast
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.language import read_corpus
from polypath.language.corpus import Document

Splits = dict[str, Tensor]
"""The bytes of a text by split: "train", "valid", "test"; int64."""

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


def domains(files: Sequence[Path], limit_mb: float) -> dict[str, Splits]:
    """Texts by the name of their domain.

    files: a text file or a folder each; none for Python source and its docstrings (of the running
    standard library), arithmetic lines (generated) and a table of characters (Unicode's).
    limit_mb: of each. Raises InputError for one file alone, or two of one name.
    """
    if len(files) == 1:
        raise InputError(f"{files[0]}: one domain; two at least are needed")
    if len({path.stem for path in files}) < len(files):
        raise InputError(f"domains: {[path.stem for path in files]} have one name twice")
    if files:
        texts = {path.stem: read_corpus(path, int(limit_mb * 1e6)) for path in files}
        return {
            name: {split: _bytes(getattr(corpus, split).text) for split in SHARES}
            for name, corpus in texts.items()
        }
    limit = int(limit_mb * 1e6)
    source = read_corpus(None, 6 * limit).train.documents
    made = {
        "source": "".join(document.text for document in source)[:limit],
        "docstrings": docstrings(source)[:limit],
        "arithmetic": arithmetic(limit),
        "characters": characters(limit),
    }
    return {name: _cut(text) for name, text in made.items()}


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long().clone()


def _cut(text: str) -> Splits:
    """A text in three blocks."""
    ids = _bytes(text)
    first = int(len(ids) * SHARES["train"])
    second = first + int(len(ids) * SHARES["valid"])
    return {"train": ids[:first], "valid": ids[first:second], "test": ids[second:]}


def docstrings(documents: Sequence[Document]) -> str:
    """What Python source says of itself: the docstrings of all that has one, one after another."""
    found = []
    for document in documents:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the text is read, not run
                tree = ast.parse(document.text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return "\n".join(text for text in found if text)


def arithmetic(limit: int, seed: int = 0) -> str:
    """Lines as "27 * 4 + 3 = 111", of at least `limit` characters."""
    random, lines, size = Random(seed), [], 0
    while size < limit:
        a, b, c = random.randint(2, 99), random.randint(2, 99), random.randint(2, 999)
        lines.append(f"{a} * {b} + {c} = {a * b + c}\n")
        size += len(lines[-1])
    return "".join(lines)[:limit]


def characters(limit: int) -> str:
    """Lines as "0041;LATIN CAPITAL LETTER A;Lu;L;0", Unicode's table of named characters."""
    lines, size = [], 0
    for code in range(32, sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "")
        if name and not name.startswith(("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT IDEO")):
            kind, side = unicodedata.category(chr(code)), unicodedata.bidirectional(chr(code))
            lines.append(f"{code:04X};{name};{kind};{side};{unicodedata.combining(chr(code))}\n")
            size += len(lines[-1])
            if size >= limit:
                break
    Random(0).shuffle(lines)
    return "".join(lines)[:limit]
