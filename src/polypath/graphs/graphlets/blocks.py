"""Blocks of rows of orbit adjacencies: how they are made, and how large they may be.

Shapes: N nodes, M neighbours, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from polypath.graphs.adjacency import Adjacency
from polypath.graphs.graphlets.edges import count_edges, count_triangles, in_threads, threads
from polypath.graphs.graphlets.formulas import Apart, Neighbours, evaluate
from polypath.graphs.graphlets.orbits import OrbitPair
from polypath.graphs.graphlets.rows import DEGREES, JOINED, LEFT, RIGHT, SHARED, walk_rows
from polypath.graphs.kernels import array, inner

Orbits = dict[OrbitPair, sparse.csr_array]
"""Matrices of int64 by (hop, o1, o2); zeros are not stored, columns are ascending."""

Ragged = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Counts (R,) of entries in each row, their columns and their values."""

_NEAR_BYTES, _FAR_BYTES = 240, 48
"""What making a block takes for an entry two hops apart, and for one at three."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What all blocks are made from.

    pairs: of orbits that are wanted. triangles: (M,) on the edges to neighbours. edges: matrices
    (N, N) of the wanted pairs at one hop. sizes: (N,) bytes that making each row takes at most.
    """

    graph: Adjacency
    pairs: tuple[OrbitPair, ...]
    triangles: np.ndarray
    edges: Orbits
    sizes: np.ndarray

    @classmethod
    def of(cls, graph: Adjacency, pairs: tuple[OrbitPair, ...], workers: int | None) -> Ground:
        graph = graph.to("cpu")
        if any(hop == 1 for hop, _, _ in pairs):
            counts = count_edges(graph, workers)
            triangles, seen = counts.triangles[counts.ids], Neighbours.of(counts)
            edges = {pair: _on_edges(graph, evaluate(pair, seen)) for pair in pairs if pair[0] == 1}
        else:
            triangles, edges = count_triangles(graph, workers), {}
        return cls(graph, pairs, triangles, edges, _row_sizes(graph, pairs))

    @property
    def apart(self) -> tuple[OrbitPair, ...]:
        """The wanted pairs at two hops and three."""
        return tuple(pair for pair in self.pairs if pair[0] > 1)

    def split(self, rows: np.ndarray, memory_mb: float, workers: int | None) -> list[np.ndarray]:
        """Rows in blocks, so many that what works at once takes this to make, or has one row."""
        most = memory_mb * 1e6 / threads(workers)
        blocks, start = [], 0
        ends = self.sizes[rows].cumsum()
        while start < len(rows):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
            blocks.append(rows[start:stop])
            start = stop
        return blocks

    def walk(
        self, blocks: Sequence[np.ndarray], workers: int | None, at_once: int
    ) -> Iterator[dict[OrbitPair, Ragged]]:
        """Of each block the rows of the wanted pairs at two hops and three.

        at_once: how many blocks may be made before the first of them is taken.
        """
        if not self.apart:
            yield from ({} for _ in blocks)
            return
        given = array(self.graph.starts), array(self.graph.nodes), self.triangles

        def make(rows: np.ndarray) -> dict[OrbitPair, Ragged]:
            return rows_apart(*given, rows, self.apart)

        for first in range(0, len(blocks), at_once):
            yield from in_threads(make, blocks[first : first + at_once], workers)

    def matrices(self, blocks: Sequence[np.ndarray], workers: int | None) -> Iterator[Orbits]:
        """The matrices (R, N) of each block, of which so many are there at once as can be made."""
        walked = self.walk(blocks, workers, threads(workers))
        for rows, found in zip(blocks, walked, strict=True):
            yield {
                pair: self.edges[pair][rows] if pair in self.edges else self.csr(found[pair])
                for pair in self.pairs
            }

    def csr(self, rows: Ragged) -> sparse.csr_array:
        """(R, N)."""
        return _csr(rows, self.graph.num_nodes)


def rows_apart(
    starts: np.ndarray,
    nodes: np.ndarray,
    triangles: np.ndarray,
    rows: np.ndarray,
    pairs: Sequence[OrbitPair],
) -> dict[OrbitPair, Ragged]:
    """Rows of matrices at two hops and at three."""
    third = (3, 4, 4) in pairs
    joined = any(pair != (2, 1, 1) for pair in pairs)
    near, columns, counted, far, far_columns, paths = walk_rows(
        starts, nodes, triangles, rows, joined, third
    )
    sums = np.ascontiguousarray(counted.T)
    seen = Apart(
        np.repeat(rows, near),
        columns,
        sums[LEFT],
        sums[RIGHT],
        sums[SHARED],
        sums[DEGREES],
        sums[JOINED],
        np.diff(starts),
    )
    columns = columns.astype(np.int32)
    return {
        pair: (far, far_columns.astype(np.int32), paths)
        if pair[0] == 3
        else _without_zeros(near, columns, evaluate(pair, seen))
        for pair in pairs
    }


def _csr(ragged: Ragged, nodes: int) -> sparse.csr_array:
    counts, columns, values = ragged
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    if starts[-1] < np.iinfo(np.int32).max:
        starts = starts.astype(np.int32)
    return sparse.csr_array((values, columns, starts), shape=(len(counts), nodes))


def _on_edges(graph: Adjacency, values: np.ndarray) -> sparse.csr_array:
    columns = array(graph.nodes).astype(np.int32)
    counts = np.diff(array(graph.starts))
    return _csr(_without_zeros(counts, columns, values), graph.num_nodes)


def _row_sizes(graph: Adjacency, pairs: tuple[OrbitPair, ...]) -> np.ndarray:
    """(N,): from each row's walks of two and three steps, or all columns where these are fewer."""
    starts, nodes = array(graph.starts), array(graph.nodes)
    degrees = np.diff(starts).astype(float)
    hops = {hop for hop, _, _ in pairs}
    sums = sparse.csr_array((np.ones(len(nodes)), nodes, starts), shape=(graph.num_nodes,) * 2)
    wedges = sums @ degrees
    others = graph.num_nodes - 1 - degrees
    sizes = np.full(graph.num_nodes, 16.0)
    if hops - {1}:
        sizes += _NEAR_BYTES * np.minimum(wedges, others)
    if 3 in hops:
        sizes += _FAR_BYTES * np.minimum(sums @ wedges, others)
    return sizes


@inner
def _without_zeros(
    counts: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged rows without the entries that are 0."""
    size = 0
    for value in values:
        size += value != 0
    left, kept = np.zeros(len(counts), np.int64), np.empty(size, np.int32)
    found = np.empty(size, np.int64)
    place, end = 0, 0
    for row in range(len(counts)):
        first = end
        for _ in range(counts[row]):
            if values[place] != 0:
                kept[end] = columns[place]
                found[end] = values[place]
                end += 1
            place += 1
        left[row] = end - first
    return left, kept, found
