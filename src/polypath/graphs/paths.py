"""Paths that join two nodes, those first that say most."""

from __future__ import annotations

from itertools import islice

import torch

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.heuristics import to_scipy
from polypath.graphs.overlap import common_neighbours


def paths_between(graph: Adjacency, source: int, target: int, count: int) -> list[list[int]]:
    """Up to `count` shortest paths, as nodes from source to target; none where there is no path.

    Of equally long ones, those through nodes of low degree come first, as in resource allocation:
    what has few neighbours tells more of each.
    """
    if count < 0:
        raise InputError(f"paths_between: count={count}; 0 at least is right")
    pair = torch.tensor([[source], [target]])
    shared = common_neighbours(graph, pair).nodes
    if graph.has(pair).item():
        return [[source, target]][:count]
    if len(shared):
        order = graph.degrees[shared].argsort(stable=True)
        return [[source, node, target] for node in shared[order][:count].tolist()]
    return _longer(graph, source, target, count)


def _longer(graph: Adjacency, source: int, target: int, count: int) -> list[list[int]]:
    import networkx as nx

    found = nx.from_scipy_sparse_array(to_scipy(graph))
    if not nx.has_path(found, source, target):
        return []
    # Many shortest paths may be there: the best of the first thousand.
    paths = list(islice(nx.all_shortest_paths(found, source, target), 1000))
    return sorted(paths, key=lambda path: sum(found.degree[node] for node in path[1:-1]))[:count]
