"""Graphlet degree vectors: how often each node, and each edge, is on each orbit.

Without any matrix of pairs: a hub costs no more than its edges.
Source: Pržulj 2007 (of nodes); Solava et al. 2012 (of edges); sums as in GRADCO (arXiv 2405.14194).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.graphlets.edges import count_edges
from polypath.graphs.graphlets.formulas import Neighbours, evaluate
from polypath.graphs.graphlets.orbits import EDGE_PAIRS, OrbitPair, transposed
from polypath.graphs.kernels import array

LARGEST = np.iinfo(np.int64).max

NODE_SUMS: tuple[tuple[OrbitPair, int], ...] = (
    ((1, 0, 0), 1),
    ((1, 1, 2), 1),
    ((1, 2, 1), 2),
    ((1, 3, 3), 2),
    ((1, 4, 5), 1),
    ((1, 5, 5), 1),
    ((1, 6, 7), 1),
    ((1, 7, 6), 3),
    ((1, 8, 8), 2),
    ((1, 9, 11), 1),
    ((1, 10, 10), 1),
    ((1, 11, 9), 1),
    ((1, 12, 13), 2),
    ((1, 13, 12), 2),
    ((1, 14, 14), 3),
)
"""Of each orbit: a matrix whose rows sum to its counts, and how often each copy is in the sum."""


def graphlet_degree_vectors(
    graph: Any, num_nodes: int | None = None, *, workers: int | None = None
) -> Tensor:
    """(N, 15) int64: how many induced graphlets have each node on orbits 0 … 14.

    Raises InputError for what is no simple undirected graph, and for a count beyond int64.
    """
    graph = Adjacency.of(graph, num_nodes).to("cpu")
    seen = Neighbours.of(count_edges(graph, workers))
    starts = array(graph.starts)
    found = np.empty((graph.num_nodes, len(NODE_SUMS)), np.int64)
    for orbit, (pair, copies) in enumerate(NODE_SUMS):
        found[:, orbit] = _sums(starts, evaluate(pair, seen), copies, orbit)
    return torch.from_numpy(found)


def edge_graphlet_degree_vectors(
    graph: Any, num_nodes: int | None = None, *, workers: int | None = None
) -> Tensor:
    """(E, 12) int64: on how many pairs of orbits EDGE_PAIRS each of `Adjacency.edges` is.

    Both directions of an edge are counted where the orbits differ.
    Raises InputError for what is no simple undirected graph.
    """
    graph = Adjacency.of(graph, num_nodes).to("cpu")
    seen = Neighbours.of(count_edges(graph, workers), once=True)
    found = np.empty((graph.num_edges, len(EDGE_PAIRS)), np.int64)
    for column, pair in enumerate(EDGE_PAIRS):
        found[:, column] = evaluate(pair, seen)
        if pair[1] != pair[2]:
            found[:, column] += evaluate(transposed(pair), seen)
    return torch.from_numpy(found)


def _sums(starts: np.ndarray, values: np.ndarray, copies: int, orbit: int) -> np.ndarray:
    """(N,) sums of rows over copies, exact even where int64 cannot hold the sum itself."""
    rows, entries = len(starts) - 1, len(values)
    pattern = (np.zeros(entries, np.int32), starts)
    total = sparse.csr_array((values, *pattern), shape=(rows, 1)) @ np.ones(1, np.int64)
    about = sparse.csr_array((values.astype(float), *pattern), shape=(rows, 1)) @ np.ones(1)
    found = total // copies
    for row in np.flatnonzero(about > LARGEST / 2):
        exact = sum(values[starts[row] : starts[row + 1]].tolist()) // copies
        if exact > LARGEST:
            raise InputError(
                f"node {row} is on orbit {orbit} of {exact} graphlets, more than int64 can hold"
            )
        found[row] = exact
    return found
