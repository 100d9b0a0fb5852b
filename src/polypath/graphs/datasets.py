"""Real graphs: those on every machine, and public ones that lie in a folder or are fetched.

Public data sets are looked for in a folder that has one folder for each: the one given, else the
one that POLYPATH_DATA names, else the user's cache, into which they are fetched.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import undirected
from polypath.graphs.files import NamedGraph

PLANETOID = ("cora", "citeseer", "pubmed")
HETEROPHILOUS = "https://raw.githubusercontent.com/yandex-research/heterophilous-graphs/main/data"
FETCHED = Path("~/.cache/polypath")


def data_folder(folder: Path | None = None) -> Path | None:
    """The folder given, else the one that POLYPATH_DATA names, if any."""
    named = os.environ.get("POLYPATH_DATA")
    return folder or (Path(named) if named else None)


def planetoid(name: str, folder: Path | None = None) -> NamedGraph:
    """Cora, Citeseer or Pubmed, from files ind.NAME.* in folder/NAME, else fetched.

    With binary features whose rows sum to 1, and classes; the graph alone where the folder has
    ind.NAME.graph alone. Nodes are named by their numbers. The files are pickles of the data's
    authors: take them from a source that you trust.
    Raises InputError for other names, and where the files can neither be found nor fetched.
    """
    if name not in PLANETOID:
        raise InputError(f"planetoid: no data set {name!r}; {', '.join(PLANETOID)} are known")
    folder = data_folder(folder)
    own = folder / name if folder else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what has moved in SciPy and torch since
        from torch_geometric.datasets import Planetoid
        from torch_geometric.io import read_planetoid_data
        from torch_geometric.io.planetoid import edge_index_from_dict, read_file

        if own and (own / f"ind.{name}.x").exists():
            data = read_planetoid_data(str(own), name)
        elif own and (own / f"ind.{name}.graph").exists():
            lists = read_file(str(own), name, "graph")
            return _numbered(edge_index_from_dict(lists, num_nodes=len(lists)), len(lists))
        else:
            with _fetching(f"the files of Planetoid's {name}"):
                data = Planetoid(str(FETCHED.expanduser() / "planetoid"), name)[0]
    x = data.x / data.x.sum(1, keepdim=True).clamp_min(1)
    return _numbered(data.edge_index, data.num_nodes, x, data.y)


def heterophilous(name: str, folder: Path | None = None) -> NamedGraph:
    """A graph such as tolokers or minesweeper, from folder/heterophilous/NAME.npz, else fetched.

    Raises InputError where it can neither be found nor fetched.
    """
    folder = data_folder(folder)
    path = (folder or FETCHED.expanduser()) / "heterophilous" / f"{name}.npz"
    if not path.exists() and folder is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _fetching(f"{name}.npz"):
            torch.hub.download_url_to_file(f"{HETEROPHILOUS}/{name}.npz", str(path), progress=False)
    if not path.exists():
        known = sorted(one.stem for one in path.parent.glob("*.npz"))
        raise InputError(f"{path} is not there; the folder has {', '.join(known) or 'none'}")
    with np.load(path) as found:
        x, y = torch.from_numpy(found["node_features"]), torch.from_numpy(found["node_labels"])
        pairs = torch.from_numpy(found["edges"]).long().T
    return _numbered(pairs, len(x), x.float(), y.long())


def _numbered(
    edge_index: Tensor, nodes: int, x: Tensor | None = None, y: Tensor | None = None
) -> NamedGraph:
    return NamedGraph(undirected(edge_index, nodes), [str(node) for node in range(nodes)], x, y)


@contextmanager
def _fetching(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # urllib's errors are among these
        raise InputError(
            f"{what} cannot be fetched: {error}; POLYPATH_DATA may name a folder that has them"
        ) from error


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
