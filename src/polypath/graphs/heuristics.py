"""Scores of node pairs from structure alone, as HeaRT defines them.

All take an undirected graph and pairs (2, B), and give (B,) float64; all are symmetric. A pair that
is an edge is scored with that edge in place: `Adjacency.without` takes it out.
Source: HeaRT (Li et al. 2023); Link-MoE (Ma et al. 2024), features of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numba import prange
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.kernels import array, inner, kernel
from polypath.graphs.overlap import common_sums

BLOCK = 1 << 24
"""How many entries of rows over all nodes are in memory at once."""
WIDE = 32
"""How many walks a thread follows at once, at most."""


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

    Each way is exact to `tolerance`; see `pagerank_rows`, also for errors.
    """
    check_pairs(pairs, graph.num_nodes)
    shares = _from_each(graph, pairs, _pagerank_shares(graph, damping, tolerance))
    return shares * graph.degrees[pairs].sum(0) / 2


def pagerank_rows(
    graph: Adjacency, damping: float = 0.85, tolerance: float = 1e-7
) -> Callable[[np.ndarray], np.ndarray]:
    """From nodes (S,) to (S, N): how often walks that restart at each are at every node.

    The errors of a row, but for rounding, are at most `tolerance` in all; a node without neighbours
    keeps its walk.
    Raises InputError unless 0 < damping < 1 and tolerance > 0.
    """
    shares, degrees = _pagerank_shares(graph, damping, tolerance), array(graph.degrees)
    return lambda nodes: shares(nodes) * np.maximum(degrees, 1)


def _pagerank_shares(
    graph: Adjacency, damping: float, tolerance: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Rows of PageRank over the degree of where a walk is, which are symmetric.

    As walks are reversible, they are rows of (1 - damping) (D - damping A)^-1, with degrees D.
    """
    if not (0 < damping < 1 and tolerance > 0):
        raise InputError(
            f"personalised_pagerank: damping={damping}, tolerance={tolerance}; between 0 and 1, "
            "and above 0, is right"
        )
    # What is left of an error, as its Euclidean norm in the basis in which steps are symmetric;
    # the sum of a row's errors is at most √M times that.
    left = tolerance / math.sqrt(max(len(graph.nodes), 1))
    given = array(graph.starts), array(graph.nodes), damping, _chebyshev(damping, left)

    def rows(nodes: np.ndarray) -> np.ndarray:
        threads = torch.get_num_threads()
        parts = threads * max(-(-len(nodes) // (threads * WIDE)), 1)
        found = np.empty((len(nodes), graph.num_nodes))
        _walk(*given, nodes, max(-(-len(nodes) // parts), 1), found)
        return found

    return rows


def _chebyshev(radius: float, left: float) -> np.ndarray:
    """The factors of Chebyshev's iteration, as many as leave this share of an error at most.

    radius: of the spectrum. An error's share after k steps is 1 / cosh(k arcosh(1 / radius)), where
    the power method leaves radius^k. Source: Golub and Varga 1961.
    """
    steps = math.ceil(math.acosh(max(1 / left, 1)) / math.acosh(1 / radius))
    factors = [1.0, 1 / (1 - radius**2 / 2)]
    while len(factors) < steps:
        factors.append(1 / (1 - radius**2 * factors[-1] / 4))
    return np.array(factors)


@kernel
def _walk(
    starts: np.ndarray,
    nodes: np.ndarray,
    damping: float,
    factors: np.ndarray,
    sources: np.ndarray,
    width: int,
    found: np.ndarray,
) -> None:
    """Set rows of found, (S, N); a thread has the walks of a few sources side by side."""
    for part in prange(-(-len(sources) // width)):
        first = part * width
        own = sources[first : first + width]
        now = np.zeros((len(starts) - 1, len(own)))
        other = np.zeros((len(starts) - 1, len(own)))
        for factor in factors:
            _step(starts, nodes, damping, factor, own, now, other)
            now, other = other, now
        for c in range(len(own)):
            for node in range(len(now)):
                found[first + c, node] = max(now[node, c], 0.0)


@inner
def _step(
    starts: np.ndarray,
    nodes: np.ndarray,
    damping: float,
    factor: float,
    sources: np.ndarray,
    now: np.ndarray,
    found: np.ndarray,
) -> None:
    """From what was before, which found has, to what is next: found += factor · (step - found)."""
    for node in range(len(starts) - 1):
        row = found[node]
        for c in range(len(row)):
            row[c] -= factor * row[c]
        share = factor * damping / max(starts[node + 1] - starts[node], 1)
        for edge in range(starts[node], starts[node + 1]):
            other = now[nodes[edge]]
            for c in range(len(row)):
                row[c] += share * other[c]
    for c in range(len(sources)):
        degree = starts[sources[c] + 1] - starts[sources[c]]
        found[sources[c], c] += factor * ((1 - damping) / degree if degree else 1.0)


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
    """Entries of a symmetric matrix (N, N), whose rows (nodes, N) are computed once for a node.

    A pair is found in the row of the end that is in more of the pairs: so there are few rows.
    """
    found = np.zeros(pairs.shape[1])
    i, j = array(pairs)
    counts = np.bincount(array(pairs.flatten()), minlength=graph.num_nodes)
    turn = (counts[i] < counts[j]) | ((counts[i] == counts[j]) & (i > j))
    first, second = np.where(turn, j, i), np.where(turn, i, j)
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
