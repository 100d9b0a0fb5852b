"""The closed forms of the orbit adjacencies at one hop and at two.

Each reads what was counted of pairs (i, j), for i on the first orbit and j on the second; the
transposed pair of orbits is the same form with i and j in each other's place.
Source: GRADCO (arXiv 2405.14194), redundancy equations of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy import sparse

from polypath.graphs.graphlets.edges import EdgeCounts, entries
from polypath.graphs.graphlets.orbits import OrbitPair, transposed
from polypath.graphs.kernels import array


@dataclass(frozen=True, eq=False)
class _Pairs:
    """rows, columns: (P,) ids of i and j. left, right: (P,) what is counted from either."""

    rows: np.ndarray
    columns: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def turned(self) -> Self:
        """The same pairs as (j, i)."""
        ends = {"rows": self.columns, "columns": self.rows}
        return replace(self, **ends, left=self.right, right=self.left)


@dataclass(frozen=True, eq=False)
class Neighbours(_Pairs):
    """What was counted of pairs that are edges; all int64.

    left, right: sums of T over the edges from i (from j) to common neighbours. triangles: T.
    cliques, squares, degrees: as `EdgeCounts` has them. degree, around, beside: (N,) of nodes: d,
    the sum of T to their neighbours, and the sum of their neighbours' d - 1 - T.
    """

    triangles: np.ndarray
    cliques: np.ndarray
    squares: np.ndarray
    degrees: np.ndarray
    degree: np.ndarray
    around: np.ndarray
    beside: np.ndarray

    @classmethod
    def of(cls, counts: EdgeCounts, once: bool = False) -> Neighbours:
        """In the order of the graph's neighbour lists; once: of its `edges`, i < j."""
        starts, where = array(counts.graph.starts), counts.ids
        degree = np.diff(starts)
        rows, columns = entries(counts.graph)
        around = _row_sums(starts, counts.triangles[where])
        beside = _row_sums(starts, degree[columns] - 1) - around
        forth = rows < columns
        if once:
            rows, columns, where, forth = (x[forth] for x in (rows, columns, where, forth))
        left, right = counts.left[where], counts.right[where]
        return cls(
            rows,
            columns,
            np.where(forth, left, right),
            np.where(forth, right, left),
            counts.triangles[where],
            counts.cliques[where],
            counts.squares[where],
            counts.degrees[where],
            degree,
            around,
            beside,
        )

    def edge(self) -> np.ndarray:
        """0–0."""
        return np.ones_like(self.triangles)

    def end_middle(self) -> np.ndarray:
        """1–2, P: neighbours of j alone."""
        return self.degree[self.columns] - 1 - self.triangles

    def triangle(self) -> np.ndarray:
        """3–3."""
        return self.triangles

    def end_inner(self) -> np.ndarray:
        """4–5: paths on from j past what is next to i, without those that come back to i."""
        met = self.degrees - self.triangles - self.right + self.turned().end_middle()
        return self.beside[self.columns] - met - self.cycle()

    def inner_pair(self) -> np.ndarray:
        """5–5."""
        return self.end_middle() * self.turned().end_middle() - self.cycle()

    def leaf_centre(self) -> np.ndarray:
        """6–7."""
        wedges = self.end_middle()
        return wedges * (wedges - 1) // 2 - self.pendant_hub()

    def cycle(self) -> np.ndarray:
        """8–8: squares without those that have a chord."""
        chords = self.rim_chord() + self.turned().rim_chord()
        return self.squares - chords - 2 * self.cliques

    def pendant_hub(self) -> np.ndarray:
        """9–11: triangles at j without those that have a neighbour of i."""
        met = self.right + self.triangles + self.rim_chord()
        return (self.around[self.columns] - met) // 2

    def triangle_pair(self) -> np.ndarray:
        """10–10."""
        return self.degrees - self.left - self.right + 2 * self.cliques

    def triangle_hub(self) -> np.ndarray:
        """10–11."""
        return self.triangles * self.end_middle() - self.rim_chord()

    def rim_chord(self) -> np.ndarray:
        """12–13, Y."""
        return self.right - self.triangles - 2 * self.cliques

    def chord(self) -> np.ndarray:
        """13–13."""
        return self.triangles * (self.triangles - 1) // 2 - self.cliques

    def clique(self) -> np.ndarray:
        """14–14."""
        return self.cliques


@dataclass(frozen=True, eq=False)
class Apart(_Pairs):
    """What was counted of pairs that share neighbours and are no edges; all int64.

    left, right: sums of T over the edges from i (from j) to common neighbours. shared: W, how many
    these are. degrees: of theirs, in sum. joined: F, the edges among them. degree: (N,) of nodes.
    """

    shared: np.ndarray
    degrees: np.ndarray
    joined: np.ndarray
    degree: np.ndarray

    def ends(self) -> np.ndarray:
        """1–1."""
        return self.shared

    def end_inner(self) -> np.ndarray:
        """4–5."""
        onward = (self.degree[self.columns] - 1) * self.shared - self.right
        return onward - 2 * self.corners()

    def leaves(self) -> np.ndarray:
        """6–6."""
        return self.degrees - 2 * self.shared - self.left - self.pendant_triangle()

    def corners(self) -> np.ndarray:
        """8–8."""
        return self.shared * (self.shared - 1) // 2 - self.joined

    def pendant_triangle(self) -> np.ndarray:
        """9–10, Q."""
        return self.right - 2 * self.joined

    def rim(self) -> np.ndarray:
        """12–12."""
        return self.joined


FORMS: Mapping[OrbitPair, Callable[[Any], np.ndarray]] = {
    (1, 0, 0): Neighbours.edge,
    (1, 1, 2): Neighbours.end_middle,
    (1, 3, 3): Neighbours.triangle,
    (1, 4, 5): Neighbours.end_inner,
    (1, 5, 5): Neighbours.inner_pair,
    (1, 6, 7): Neighbours.leaf_centre,
    (1, 8, 8): Neighbours.cycle,
    (1, 9, 11): Neighbours.pendant_hub,
    (1, 10, 10): Neighbours.triangle_pair,
    (1, 10, 11): Neighbours.triangle_hub,
    (1, 12, 13): Neighbours.rim_chord,
    (1, 13, 13): Neighbours.chord,
    (1, 14, 14): Neighbours.clique,
    (2, 1, 1): Apart.ends,
    (2, 4, 5): Apart.end_inner,
    (2, 6, 6): Apart.leaves,
    (2, 8, 8): Apart.corners,
    (2, 9, 10): Apart.pendant_triangle,
    (2, 12, 12): Apart.rim,
}


def evaluate(pair: OrbitPair, counted: Neighbours | Apart) -> np.ndarray:
    """(P,) int64: a pair of orbits at one hop of neighbours, at two of nodes apart."""
    if pair in FORMS:
        return FORMS[pair](counted)
    return FORMS[transposed(pair)](counted.turned())


def _row_sums(starts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) int64 of the values (M,) of neighbours."""
    shape = len(starts) - 1, 1
    ragged = sparse.csr_array((values, np.zeros(len(values), np.int32), starts), shape=shape)
    return ragged @ np.ones(1, np.int64)
