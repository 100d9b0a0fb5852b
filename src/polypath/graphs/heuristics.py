"""Scores of node pairs from structure alone, as HeaRT defines them.

All take an undirected graph and pairs (2, B), and give (B,) float64; all are symmetric. A pair that
is an edge is scored with that edge in place: `Adjacency.without` takes it out.
Source: HeaRT (Li et al. 2023); Link-MoE (Ma et al. 2024), features of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.kernels import array
from polypath.graphs.overlap import common_sums

BLOCK = 1 << 24
"""How many entries of rows over all nodes are in memory at once."""


def shared_neighbours(graph: Adjacency, pairs: Tensor) -> Tensor:
    """How many neighbours both have."""
    return _shared(graph, pairs, torch.ones_like)


def adamic_adar(graph: Adjacency, pairs: Tensor) -> Tensor:
    """The sum of 1 / ln d over shared neighbours. Source: Adamic and Adar 2003."""
    return _shared(graph, pairs, lambda degrees: 1 / degrees.clamp_min(2).log())


def resource_allocation(graph: Adjacency, pairs: Tensor) -> Tensor:
    """The sum of 1 / d over shared neighbours. Source: Zhou et al. 2009."""
    return _shared(graph, pairs, lambda degrees: 1 / degrees.clamp_min(1))


def jaccard(graph: Adjacency, pairs: Tensor) -> Tensor:
    """Shared neighbours over all neighbours of either; 0 where there are none."""
    shared = shared_neighbours(graph, pairs)
    every = graph.degrees[pairs].sum(0) - shared
    return shared / every.clamp_min(1)


def _shared(graph: Adjacency, pairs: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of a value of the degrees (N,) over shared neighbours."""
    return common_sums(graph, pairs, value(graph.degrees.double())[:, None])[:, 0]


def preferential_attachment(graph: Adjacency, pairs: Tensor) -> Tensor:
    """The product of degrees."""
    check_pairs(pairs, graph.num_nodes)
    return graph.degrees[pairs].double().prod(0)


def katz(graph: Adjacency, pairs: Tensor, beta: float = 0.005, length: int = 3) -> Tensor:
    """The sum of beta^l over paths of l edges that visit no node twice, for l up to length ≤ 3."""
    if not 1 <= length <= 3:
        raise InputError(f"katz: length={length}; paths of 1, 2 or 3 edges are counted")
    check_pairs(pairs, graph.num_nodes)
    matrix, degrees = to_scipy(graph), array(graph.degrees)
    found = np.zeros(pairs.shape[1])
    for block, (i, j) in _blocks(graph, pairs):
        rows, others = matrix[i], matrix[j]
        edge = np.asarray(matrix[i, j]).ravel()
        found[block] = beta * edge
        if length > 1:
            found[block] += beta**2 * _along(rows, others)
        if length > 2:
            walks = _along(rows @ matrix, others)
            found[block] += beta**3 * (walks - edge * (degrees[i] + degrees[j] - 1))
    return torch.from_numpy(found)


def katz_index(graph: Adjacency, pairs: Tensor, beta: float = 0.005) -> Tensor:
    """The sum of beta^l over all walks of l edges: an entry of (I - beta A)^-1 - I.

    Raises InputError unless 0 < beta < 1 / the greatest degree, where the sum surely ends.
    """
    check_pairs(pairs, graph.num_nodes)
    most = int(graph.degrees.max()) if graph.num_nodes else 0
    if not 0 < beta * max(most, 1) < 1:
        raise InputError(f"katz_index: beta={beta}; above 0 and below 1 / {most} is right here")
    identity = sparse.identity(graph.num_nodes, format="csc")
    solve = sparse.linalg.factorized(identity - beta * to_scipy(graph).tocsc())
    return _from_each(graph, pairs, lambda nodes: solve(_units(graph, nodes)).T)


def personalised_pagerank(
    graph: Adjacency, pairs: Tensor, damping: float = 0.85, tolerance: float = 1e-7
) -> Tensor:
    """How often a walk that restarts at one end is at the other, the mean of both ways.

    See `pagerank_rows`. Raises InputError unless 0 < damping < 1.
    """
    check_pairs(pairs, graph.num_nodes)
    rows = pagerank_rows(graph, damping, tolerance)
    both = _from_each(graph, pairs, rows), _from_each(graph, pairs.flip(0), rows)
    return (both[0] + both[1]) / 2


def pagerank_rows(
    graph: Adjacency, damping: float = 0.85, tolerance: float = 1e-7
) -> Callable[[np.ndarray], np.ndarray]:
    """From nodes (S,) to (S, N): how often walks that restart at each are at every node.

    Power iteration until no row changes by more than `tolerance` in all; a node without neighbours
    keeps its walk. Raises InputError unless 0 < damping < 1.
    """
    if not 0 < damping < 1:
        raise InputError(f"personalised_pagerank: damping={damping}; between 0 and 1 is right")
    degrees = array(graph.degrees)
    steps = sparse.diags(1 / np.maximum(degrees, 1)) @ to_scipy(graph)
    steps = (steps + sparse.diags((degrees == 0).astype(float))).T.tocsr()

    def rows(nodes: np.ndarray) -> np.ndarray:
        start = _units(graph, nodes)
        now = start
        while True:
            after = damping * (steps @ now) + (1 - damping) * start
            if np.abs(after - now).sum(0).max() <= tolerance:
                return after.T
            now = after

    return rows


def shortest_path(graph: Adjacency, pairs: Tensor) -> Tensor:
    """The number of edges on a shortest path; infinite where there is none."""
    check_pairs(pairs, graph.num_nodes)
    matrix = to_scipy(graph)
    return _from_each(
        graph,
        pairs,
        lambda nodes: csgraph.dijkstra(matrix, directed=False, indices=nodes, unweighted=True),
    )


def to_scipy(graph: Adjacency) -> sparse.csr_array:
    """The adjacency matrix, of float64 ones."""
    parts = np.ones(len(graph.nodes)), array(graph.nodes), array(graph.starts)
    return sparse.csr_array(parts, shape=(graph.num_nodes, graph.num_nodes))


def _units(graph: Adjacency, nodes: np.ndarray) -> np.ndarray:
    """(N, number of nodes): a column for each, 1 at the node."""
    found = np.zeros((graph.num_nodes, len(nodes)))
    found[nodes, np.arange(len(nodes))] = 1
    return found


def _along(rows: sparse.csr_array, others: sparse.csr_array) -> np.ndarray:
    """The inner products of rows of the same place."""
    return np.asarray(rows.multiply(others).sum(1)).ravel()


def _blocks(graph: Adjacency, pairs: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Pairs in pieces, so that rows over all nodes fit into memory."""
    size = max(1, BLOCK // max(graph.num_nodes, 1))
    for start in range(0, pairs.shape[1], size):
        yield slice(start, start + size), array(pairs[:, start : start + size])


def _from_each(graph: Adjacency, pairs: Tensor, rows: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Entries of rows (nodes, N) that are computed once for each of the first ends."""
    found = np.zeros(pairs.shape[1])
    first, second = array(pairs)
    order = np.argsort(first, kind="stable")
    nodes, starts = np.unique(first[order], return_index=True)
    ends = [*starts[1:], len(first)]
    size = max(1, BLOCK // max(graph.num_nodes, 1))
    for start in range(0, len(nodes), size):
        own = nodes[start : start + size]
        block = rows(own)
        places = order[starts[start] : ends[start + len(own) - 1]]
        found[places] = block[np.searchsorted(own, first[places]), second[places]]
    return torch.from_numpy(found)
