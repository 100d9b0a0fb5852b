"""Where recipes on graphs have these from; each is kept in the run's folder, for all processes.

A source is a function that makes a graph, or None where every seed draws its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polypath.errors import unknown
from polypath.graphs import NamedGraph
from polypath.graphs.datasets import data_folder
from polypath.training import distribution
from polypath.training.checkpoint import load_state, save_state

CORA, IMPORTS = "cora", "imports"

Make = Callable[[], NamedGraph]


def has_cora(data_dir: Path | None) -> bool:
    """Whether a folder, or the one that POLYPATH_DATA names, has Cora with its features."""
    folder = data_folder(data_dir)
    return folder is not None and (folder / CORA / f"ind.{CORA}.x").exists()


def check_names(graphs: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError for a graph that is not known, with the nearest that is."""
    for name in graphs:
        if name not in known:
            raise unknown("graph", name, known)


def chosen(
    known: Mapping[str, Make | None], graphs: Sequence[str], data_dir: Path | None
) -> dict[str, Make | None]:
    """The sources of the graphs named; of all by default, of Cora where it is at hand."""
    names = graphs or [name for name in known if name != CORA or has_cora(data_dir)]
    return {name: known[name] for name in names}


def kept(sources: Mapping[str, Make | None], folder: Path) -> dict[str, Path | None]:
    """The file of each graph, made by the first process where it is not there; None for None."""
    paths = {
        name: None if make is None else folder / f"{name}.safetensors"
        for name, make in sources.items()
    }
    for name, make in sources.items():
        path = paths[name]
        if make is not None and path is not None and not path.exists() and distribution.is_main():
            keep(make(), path)
    distribution.wait()
    return paths


def keep(graph: NamedGraph, path: Path) -> None:
    """A graph as a file, as `read` has it."""
    parts = {"edge_index": graph.edge_index, "x": graph.x, "y": graph.y}
    tensors = {name: part for name, part in parts.items() if part is not None}
    save_state(path, tensors, {"names": list(graph.names)})


def read(path: Path) -> NamedGraph:
    """What `keep` wrote."""
    tensors, facts = load_state(path)
    return NamedGraph(tensors["edge_index"], facts["names"], tensors.get("x"), tensors.get("y"))
