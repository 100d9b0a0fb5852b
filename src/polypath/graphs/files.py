"""Graphs in text files: edge lists, and triples of a knowledge graph, with names or ids."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import undirected

HEADERS = {"source", "target", "from", "to", "src", "dst", "node1", "node2", "head", "tail"}


@dataclass(frozen=True, eq=False)
class NamedGraph:
    """A simple undirected graph whose nodes have names.

    edge_index: (2, M) int64, both directions. names: N of them. x: (N, F) float32 features or None.
    y: (N,) int64 classes or None.
    """

    edge_index: Tensor
    names: Sequence[str]
    x: Tensor | None = None
    y: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.names)


def read_edges(path: str | Path) -> NamedGraph:
    """An undirected graph from lines of two names, separated by a comma, a tab or spaces.

    A first line of column names is passed over, and so are empty lines and those that begin with #.
    Further columns are not read. Self-loops and repeated edges are dropped; `read_edges` of numbers
    keeps them as names. Names are in order of appearance.
    Raises InputError, with the line, for a file that is not that or has no edge.
    """
    path = Path(path)
    ids: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for number, cells in numbered_rows(path):
        if not pairs and {cell.lower() for cell in cells[:2]} <= HEADERS:
            continue
        if len(cells) < 2 or not all(cells[:2]):
            raise InputError(
                f"{path}, line {number}: {','.join(cells)!r} has no two names; "
                "each line is an edge, as in 'ada,grace'"
            )
        pairs.append((ids.setdefault(cells[0], len(ids)), ids.setdefault(cells[1], len(ids))))
    if not any(i != j for i, j in pairs):
        raise InputError(f"{path}: no edge between two different nodes")
    return NamedGraph(undirected(torch.tensor(pairs).T, len(ids)), list(ids))


def read_pairs(path: str | Path, names: Sequence[str]) -> Tensor:
    """(2, B) int64: pairs of a graph's names from lines as `read_edges` has them.

    Raises InputError, with the line, for a name that the graph does not have.
    """
    path = Path(path)
    ids = {name: place for place, name in enumerate(names)}
    pairs: list[list[int]] = []
    for number, cells in numbered_rows(path):
        if not pairs and {cell.lower() for cell in cells[:2]} <= HEADERS - set(ids):
            continue
        if len(cells) < 2:
            raise InputError(f"{path}, line {number}: {cells[0]!r}; two names are right")
        pairs.append([find(ids, cell, f"{path}, line {number}") for cell in cells[:2]])
    if not pairs:
        raise InputError(f"{path}: no pairs")
    return torch.tensor(pairs).T


def find(ids: Mapping[str, int], name: str, where: str, kind: str = "node") -> int:
    """The id of a name; InputError names the nearest one where there is none."""
    if name in ids:
        return ids[name]
    from rapidfuzz import process

    near = process.extractOne(name, list(ids))
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise InputError(f"{where}: no {kind} {name!r} in the graph{hint}")


def numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells; a file is cut at commas, at tabs or at spaces, as its first line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    first = lines[0][1] if lines else ""
    mark = next((mark for mark in "\t," if mark in first), None)
    for number, line in lines:
        if mark is None:
            yield number, line.split()
        else:
            cells = next(csv.reader([line], delimiter=mark))
            yield number, [cell.strip() for cell in cells]
