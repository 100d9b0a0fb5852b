"""Orbit adjacencies of a graph: sparse matrices, whole or block by block, and single entries.

Source: GRADCO (arXiv 2405.14194).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.graphlets.blocks import Ground, Orbits, Ragged
from polypath.graphs.graphlets.edges import threads
from polypath.graphs.graphlets.orbits import GRAPHLET_OF, ORBIT_PAIRS, OrbitPair, chosen
from polypath.graphs.kernels import array

BLOCK_MB = 64
"""What blocks of rows take to make where all are kept: small enough for caches."""

ENTRY = 12
"""Bytes of a stored entry: its column and its value."""

SAMPLED = 64
"""Rows that are counted first, to tell how large all will be."""


def orbit_adjacencies(
    graph: Any,
    num_nodes: int | None = None,
    *,
    only: Iterable[OrbitPair] | None = None,
    rows: range | None = None,
    memory_mb: float | None = None,
    workers: int | None = None,
) -> Orbits:
    """How often i is on orbit o1 and j on orbit o2 of one induced subgraph, for all pairs (i, j).

    By (hop, o1, o2), those of ORBIT_PAIRS or of `only`, each an (N, N) CSR array of int64 with
    sorted columns and no stored zeros; M[hop, o2, o1] is the transpose of M[hop, o1, o2]. Exact.
    rows: these alone, (R, N), in steps of 1; several processes or machines may each take some.
    memory_mb: what all may take; half of the machine's memory where nothing is said. workers:
    threads; torch's number where nothing is said.
    Raises InputError for what is no simple undirected graph, and where the matrices would take more
    than memory_mb: it says how much, before that memory is used.
    """
    ground = Ground.of(Adjacency.of(graph, num_nodes), chosen(only), workers)
    rows = checked_rows(rows, ground.graph.num_nodes)
    most = _half_of_memory() if memory_mb is None else memory_mb * 1e6
    _check_size(ground, rows, most, workers)
    blocks = ground.split(np.arange(rows.start, rows.stop), BLOCK_MB, workers)
    parts: dict[OrbitPair, list[Ragged]] = {pair: [] for pair in ground.apart}
    held, done = 0, 0
    walked = ground.walk(blocks, workers, 8 * threads(workers))
    for own, block in zip(blocks, walked, strict=True):
        held, done = held + _bytes(block), done + len(own)
        if held > most:
            raise _too_large(held * len(rows) / done, most, ground)
        for pair, ragged in block.items():
            parts[pair].append(ragged)
    return {
        pair: ground.edges[pair][rows.start : rows.stop]
        if pair in ground.edges
        else ground.csr(_joined(parts.pop(pair)))
        for pair in ground.pairs
    }


def orbit_adjacency_blocks(
    graph: Any,
    num_nodes: int | None = None,
    *,
    only: Iterable[OrbitPair] | None = None,
    rows: range | None = None,
    memory_mb: float = 1024,
    workers: int | None = None,
) -> Iterator[tuple[range, Orbits]]:
    """The same matrices in blocks of rows, for those that do not fit into memory.

    Yields the rows of each block and its matrices (R, N), whose making takes no more than about
    memory_mb beside the graph and its matrices at one hop. rows: some of them, as a step of 1.
    """
    ground = Ground.of(Adjacency.of(graph, num_nodes), chosen(only), workers)
    rows = checked_rows(rows, ground.graph.num_nodes)
    blocks = ground.split(np.arange(rows.start, rows.stop), memory_mb, workers)
    for own, block in zip(blocks, ground.matrices(blocks, workers), strict=True):
        yield range(int(own[0]), int(own[-1]) + 1), block


def pair_orbits(
    graph: Any,
    pairs: Tensor,
    only: Iterable[OrbitPair] | None = None,
    *,
    memory_mb: float = 256,
    workers: int | None = None,
) -> Tensor:
    """(B, K) int64: the entries (i, j) of K orbit adjacencies for pairs (2, B).

    Only rows of the pairs' first nodes are counted. Entries at one hop tell that a pair is an edge,
    and entries at two and three are 0 there: `Adjacency.without` takes it out first.
    Raises InputError for pairs of a node with itself, and ids that the graph does not have.
    """
    ground = Ground.of(Adjacency.of(graph), chosen(only), workers)
    check_pairs(pairs, ground.graph.num_nodes)
    first, second = array(pairs.cpu())
    found = np.zeros((pairs.shape[1], len(ground.pairs)), np.int64)
    order = np.argsort(first, kind="stable")
    blocks = ground.split(np.unique(first), memory_mb, workers)
    for own, block in zip(blocks, ground.matrices(blocks, workers), strict=True):
        low, high = np.searchsorted(first[order], [own[0], own[-1] + 1])
        places = order[low:high]
        at = np.searchsorted(own, first[places]), second[places]
        for column, matrix in enumerate(block.values()):
            found[places, column] = np.asarray(matrix[at]).ravel()
    return torch.from_numpy(found)


def graphlet_adjacencies(
    graph: Any,
    num_nodes: int | None = None,
    *,
    memory_mb: float | None = None,
    workers: int | None = None,
) -> list[sparse.csr_array]:
    """How many induced copies of each of the nine graphlets two nodes share: (N, N) of int64 each.

    Each is the sum of its graphlet's orbit adjacencies, whose arguments and errors these are.
    """
    orbits = orbit_adjacencies(graph, num_nodes, memory_mb=memory_mb, workers=workers)
    found = []
    for graphlet in range(9):
        own = [orbits.pop(pair) for pair in ORBIT_PAIRS if GRAPHLET_OF[pair[1]] == graphlet]
        found.append(sum(own[1:], own[0]))
    return found


def checked_rows(rows: range | None, nodes: int) -> range:
    """All rows where none are named; raises InputError for those that a graph does not have."""
    if rows is None:
        return range(nodes)
    if rows.step != 1 or not 0 <= rows.start <= rows.stop <= nodes:
        raise InputError(f"rows={rows}; a range within 0 … {nodes} in steps of 1 is right")
    return rows


def _check_size(ground: Ground, rows: range, most: float, workers: int | None) -> None:
    """Raise InputError where rows that are counted first tell that all would be too large."""
    entries = float(ground.graph.num_nodes) * len(rows)
    if not ground.apart or ENTRY * len(ground.apart) * entries < most:
        return
    step = -(-len(rows) // SAMPLED)
    sample = ground.split(np.arange(rows.start, rows.stop, step), BLOCK_MB, workers)
    walked = ground.walk(sample, workers, threads(workers))
    size = step * sum(map(_bytes, walked))
    if size > most:
        raise _too_large(size, most, ground)


def _too_large(size: float, most: float, ground: Ground) -> InputError:
    return InputError(
        f"{len(ground.pairs)} orbit adjacencies of {ground.graph.num_nodes} nodes would take about "
        f"{size / 1e9:,.1f} GB, above {most / 1e9:,.1f} GB; raise memory_mb, ask for some of them "
        "with only=, take orbit_adjacency_blocks or save_orbit_adjacencies, which go row by row, "
        "or graphlet_degree_vectors, which needs none of them"
    )


def _half_of_memory() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def _bytes(block: Mapping[OrbitPair, Ragged]) -> int:
    return sum(part.nbytes for ragged in block.values() for part in ragged)


def _joined(parts: list[Ragged]) -> Ragged:
    """Blocks of rows, one below the other."""
    empty = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)
    counts, columns, values = zip(*(parts or [empty]), strict=True)
    return np.concatenate(counts), np.concatenate(columns), np.concatenate(values)
