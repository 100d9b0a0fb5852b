"""Real graphs: those on every machine, and public ones that lie in a folder.

`folder` is where the user has the data sets, one folder each; a graph that needs none is the import
graph of the running Python.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from polypath.errors import InputError
from polypath.graphs.adjacency import undirected
from polypath.graphs.files import NamedGraph

PLANETOID = ("cora", "citeseer", "pubmed")


def planetoid(folder: Path, name: str) -> NamedGraph:
    """Cora, Citeseer or Pubmed, from the files ind.NAME.* in folder/NAME; names are numbers.

    With binary features whose rows sum to 1, and classes. Where only the graph is there, without.
    Raises InputError when the files are not there. These are pickles of the data's authors: take
    them from a source that you trust.
    """
    if name not in PLANETOID:
        raise InputError(f"planetoid: no data set {name!r}; {', '.join(PLANETOID)} are known")
    own = folder / name
    graph = own / f"ind.{name}.graph"
    if not graph.exists():
        raise InputError(
            f"{graph} is not there; it is one of the eight files of Planetoid's {name}"
        )
    if not (own / f"ind.{name}.x").exists():
        return _planetoid_graph(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what has moved in SciPy and torch since
        from torch_geometric.io import read_planetoid_data

        data = read_planetoid_data(str(own), name)
    x = data.x / data.x.sum(1, keepdim=True).clamp_min(1)
    names = [str(node) for node in range(data.num_nodes)]
    return NamedGraph(undirected(data.edge_index, data.num_nodes), names, x, data.y)


def _planetoid_graph(path: Path) -> NamedGraph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.io.planetoid import edge_index_from_dict, read_file

        edge_index = edge_index_from_dict(read_file(str(path.parent), path.parent.name, "graph"))
    names = [str(node) for node in range(int(edge_index.max()) + 1)]
    return NamedGraph(undirected(edge_index, len(names)), names)


def heterophilous(folder: Path, name: str) -> NamedGraph:
    """A graph of heterophilous-graphs, such as tolokers, from folder/heterophilous/NAME.npz."""
    path = folder / "heterophilous" / f"{name}.npz"
    if not path.exists():
        known = sorted(one.stem for one in path.parent.glob("*.npz"))
        raise InputError(f"{path} is not there; the folder has {', '.join(known) or 'none'}")
    with np.load(path) as found:
        x, y = torch.from_numpy(found["node_features"]), torch.from_numpy(found["node_labels"])
        pairs = torch.from_numpy(found["edges"]).long().T
    names = [str(node) for node in range(len(x))]
    return NamedGraph(undirected(pairs, len(x)), names, x.float(), y.long())


def import_graph() -> NamedGraph:
    """Modules of the running Python's standard library; an edge is an import, of either."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(root.rglob("*.py"))
        if not {"test", "tests", "site-packages", "idlelib"} & set(path.relative_to(root).parts)
    }
    ids = {name: place for place, name in enumerate(modules)}
    pairs = []
    for name, path in modules.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for other in _imported(path, package):
            while other and other not in ids:
                other = other.rpartition(".")[0]
            if other:
                pairs.append((ids[name], ids[other]))
    edge_index = undirected(torch.tensor(pairs).T, len(ids))
    return NamedGraph(edge_index, list(ids))


def _imported(path: Path, package: str) -> list[str]:
    """The modules that a file names in its imports, as absolute names."""
    found: list[str] = []
    with warnings.catch_warnings(), suppress(SyntaxError):
        warnings.simplefilter("ignore")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = above if node.level else []
                start = ".".join([*base, *([node.module] if node.module else [])])
                found += [f"{start}.{alias.name}" for alias in node.names]
    return found
