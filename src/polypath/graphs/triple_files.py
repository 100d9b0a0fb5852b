"""Knowledge graphs in files: triples by name, GraIL's folders, OpenKE's folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.files import replace_text
from polypath.graphs.files import find, numbered_rows
from polypath.graphs.knowledge_splits import KnowledgeSplit
from polypath.graphs.triples import KnowledgeGraph

HEADERS = {"head", "relation", "tail", "subject", "predicate", "object", "source", "target"}
PARTS = ("train", "valid", "test")


def read_triples(path: str | Path, relations: Sequence[str] | None = None) -> KnowledgeGraph:
    """A knowledge graph from lines of head, relation and tail, cut at commas, tabs or spaces.

    A first line of column names is passed over, and so are empty lines and those that begin with #.
    Repeated facts are taken once. Names are in order of appearance.
    relations: the only ones that may be there. Raises InputError, with the line, for a file that is
    not that, and an unknown relation, beside the nearest one.
    """
    path = Path(path)
    rows = _triples(path)
    entities: dict[str, int] = {}
    kinds = {name: place for place, name in enumerate(relations or ())}
    facts: dict[tuple[int, int, int], None] = {}
    for number, (head, relation, tail) in rows:
        if relations is None:
            kinds.setdefault(relation, len(kinds))
        kind = find(kinds, relation, f"{path}, line {number}", "relation")
        ends = [entities.setdefault(name, len(entities)) for name in (head, tail)]
        facts[ends[0], kind, ends[1]] = None
    return KnowledgeGraph(torch.tensor(list(facts)), list(entities), list(kinds))


def write_triples(path: str | Path, graph: KnowledgeGraph) -> None:
    """A graph's facts by name, cut at tabs, as `read_triples` reads them; whole or not at all."""
    rows = (
        (graph.entities[h], graph.relations[r], graph.entities[t])
        for h, r, t in graph.facts.tolist()
    )
    replace_text(Path(path), "".join("\t".join(row) + "\n" for row in rows))


def read_facts(path: str | Path, graph: KnowledgeGraph) -> Tensor:
    """(T, 3) int64: facts about a graph's entities, in lines as `read_triples` has them.

    Raises InputError, with the line, for an entity or a relation that the graph does not have.
    """
    path = Path(path)
    entities = {name: place for place, name in enumerate(graph.entities)}
    kinds = {name: place for place, name in enumerate(graph.relations)}
    facts: dict[tuple[int, int, int], None] = {}
    for number, (head, relation, tail) in _triples(path):
        where = f"{path}, line {number}"
        kind = find(kinds, relation, where, "relation")
        ends = [find(entities, name, where, "entity") for name in (head, tail)]
        facts[ends[0], kind, ends[1]] = None
    return torch.tensor(list(facts))


def _triples(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers, each with three names."""
    found: list[tuple[int, list[str]]] = []
    for number, cells in numbered_rows(path):
        if not found and len(cells) == 3 and {cell.lower() for cell in cells} <= HEADERS:
            continue
        if len(cells) != 3 or not all(cells):
            raise InputError(
                f"{path}, line {number}: {','.join(cells)!r} is not head, relation and tail; each "
                "line is a fact, as in 'ada,knows,grace'"
            )
        found.append((number, cells))
    if not found:
        raise InputError(f"{path}: no facts")
    return found


def read_grail(folder: str | Path) -> KnowledgeSplit:
    """GraIL's inductive split: train.txt and valid.txt of a folder, and all of FOLDER_ind.

    The graph of FOLDER_ind/train.txt is asked for FOLDER_ind/test.txt; FOLDER_ind/valid.txt is set
    aside, and so is the first folder's test.txt, which nobody reads.
    Raises InputError for files that are not that.
    """
    folder = Path(folder)
    other = folder.with_name(f"{folder.name}_ind")
    train = read_triples(folder / "train.txt")
    inference = read_triples(other / "train.txt", train.relations)
    return KnowledgeSplit(
        train,
        read_facts(folder / "valid.txt", train),
        inference,
        read_facts(other / "test.txt", inference),
        read_facts(other / "valid.txt", inference),
    )


def read_openke(folder: str | Path) -> KnowledgeSplit:
    """OpenKE's split of one graph: entity2id.txt, relation2id.txt, train2id.txt and its like.

    Each file tells its number of lines first; facts are "head tail relation" in ids.
    Raises InputError, with the line, for files that are not that.
    """
    folder = Path(folder)
    entities, relations = (_names(folder / f"{kind}2id.txt") for kind in ("entity", "relation"))
    facts = {part: _numbers(folder / f"{part}2id.txt") for part in PARTS}
    train = KnowledgeGraph(facts["train"], entities, relations)
    return KnowledgeSplit(train, facts["valid"], train, facts["test"], facts["test"][:0])


def _names(path: Path) -> list[str]:
    """Names in the order of their ids."""
    found: dict[int, str] = {}
    for number, cells in _counted(path):
        if len(cells) != 2 or not cells[1].isdecimal() or int(cells[1]) in found:
            raise InputError(f"{path}, line {number}: {cells!r}; a name and an id of its own")
        found[int(cells[1])] = cells[0]
    if sorted(found) != list(range(len(found))):
        raise InputError(f"{path}: the ids of {len(found)} names are not 0 … {len(found) - 1}")
    return [found[place] for place in range(len(found))]


def _numbers(path: Path) -> Tensor:
    rows = []
    for number, cells in _counted(path):
        if len(cells) != 3 or not all(cell.isdecimal() for cell in cells):
            raise InputError(f"{path}, line {number}: {cells!r}; the ids head, tail, relation")
        rows.append([int(cells[place]) for place in (0, 2, 1)])
    return torch.tensor(rows)


def _counted(path: Path) -> list[tuple[int, list[str]]]:
    """The lines after the first, which tells how many these are."""
    (number, first), *rest = [*numbered_rows(path)] or [(1, [""])]
    if len(first) != 1 or not first[0].isdecimal() or int(first[0]) != len(rest):
        raise InputError(
            f"{path}, line {number}: {' '.join(first)!r}; the number of lines that follow is "
            f"right, {len(rest)}"
        )
    return rest
