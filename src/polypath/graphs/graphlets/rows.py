"""What is counted of pairs that are no neighbours, row by row.

Shapes: N nodes, M neighbours, R rows, P pairs two hops apart, Q pairs at the ends of a 4-path.
A row is walked with accumulators over all nodes: wedges for two hops, then one step more. Its cost
is that of these walks, and of four-node patterns with a chord; nothing is of order N.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polypath.graphs.graphlets.bits import ascending, note, ones_of
from polypath.graphs.kernels import inner

SHARED, DEGREES, LEFT, RIGHT, JOINED = range(5)
"""Columns of what is counted of a pair two hops apart; the fields of `formulas.Apart`."""


class Rows(NamedTuple):
    """Ragged rows of pairs without an edge; all int64, columns ascending.

    near: (R,) pairs of each row two hops apart. near_nodes: (P,). counted: (P, 5). far: (R,) pairs
    of each row at both ends of an induced path of four. far_nodes: (Q,). paths: (Q,) how many.
    """

    near: np.ndarray
    near_nodes: np.ndarray
    counted: np.ndarray
    far: np.ndarray
    far_nodes: np.ndarray
    paths: np.ndarray


@inner
def walk_rows(
    starts: np.ndarray,
    nodes: np.ndarray,
    triangles: np.ndarray,
    rows: np.ndarray,
    joined: bool,
    third: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Rows`.

    starts (N + 1,), nodes (M,): neighbour lists. triangles: (M,) on the edges to them. joined:
    count edges among common neighbours. third: walk the third hop too, which needs `joined`.
    """
    count = len(starts) - 1
    sums, walks = np.zeros((count, 5), np.int64), np.zeros(count, np.int64)
    own = np.zeros(count, np.bool_)  # the row's node and its neighbours
    low = np.zeros((count + 63) // 64, np.uint64)
    high = np.zeros((len(low) + 63) // 64, np.uint64)
    local, words = np.full(count, -1, np.int64), np.zeros(count, np.uint64)
    found = np.empty(count, np.int64)

    near, far = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    near_nodes, counted = np.empty(0, np.int64), np.empty((0, 5), np.int64)
    far_nodes, paths = np.empty(0, np.int64), np.empty(0, np.int64)
    near_end, far_end = 0, 0
    for row in range(len(rows)):
        i = rows[row]
        own[i] = True
        own[nodes[starts[i] : starts[i + 1]]] = True
        _wedges(starts, nodes, triangles, i, sums, low, high)
        if joined:
            _joined(starts, nodes, triangles, i, local, words, sums)
        begin, size = near_end, ascending(low, high, found)
        if begin + size > len(near_nodes):
            more = 2 * (begin + size)
            near_nodes, counted = _grown(near_nodes, more), _grown(counted, more)
        for j in found[:size]:
            if not own[j]:
                near_nodes[near_end] = j
                counted[near_end] = sums[j]
                near_end += 1
        near[row] = near_end - begin

        if third:
            _onward(starts, nodes, near_nodes[begin:near_end], sums, walks, low, high)
            size = ascending(low, high, found)
            if far_end + size > len(far_nodes):
                more = 2 * (far_end + size)
                far_nodes, paths = _grown(far_nodes, more), _grown(paths, more)
            begin_far = far_end
            for j in found[:size]:
                # Of the pendants of a paw that the walk has met, and of chords, none is a path.
                path = walks[j] - sums[j, RIGHT] + 2 * sums[j, JOINED]
                walks[j] = 0
                if path > 0 and not own[j]:
                    far_nodes[far_end] = j
                    paths[far_end] = path
                    far_end += 1
            far[row] = far_end - begin_far

        for j in near_nodes[begin:near_end]:
            sums[j] = 0
        own[i] = False
        sums[i] = 0
        for j in nodes[starts[i] : starts[i + 1]]:
            own[j] = False
            sums[j] = 0
    return (
        near,
        near_nodes[:near_end].copy(),
        counted[:near_end].copy(),
        far,
        far_nodes[:far_end].copy(),
        paths[:far_end].copy(),
    )


@inner
def _wedges(
    starts: np.ndarray,
    nodes: np.ndarray,
    triangles: np.ndarray,
    i: int,
    sums: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Add the wedges i – k – j to the sums of j, and j to the set."""
    for a in range(starts[i], starts[i + 1]):
        k = nodes[a]
        degree = starts[k + 1] - starts[k]
        for b in range(starts[k], starts[k + 1]):
            j = nodes[b]
            if sums[j, SHARED] == 0:
                note(low, high, j)
            sums[j, SHARED] += 1
            sums[j, DEGREES] += degree
            sums[j, LEFT] += triangles[a]
            sums[j, RIGHT] += triangles[b]


@inner
def _joined(
    starts: np.ndarray,
    nodes: np.ndarray,
    triangles: np.ndarray,
    i: int,
    local: np.ndarray,
    words: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add to each j the edges among the common neighbours of i and j.

    An edge (k, l) of i's neighbours is met for l in strips of 64: `words` has, for each j, which of
    the strip are its neighbours. local is -1 and words is 0, before and after.
    """
    inside = np.empty(starts[i + 1] - starts[i], np.int64)
    size = 0
    for a in range(starts[i], starts[i + 1]):
        if triangles[a] > 0:
            local[nodes[a]] = size
            inside[size] = nodes[a]
            size += 1
    near = np.zeros(size, np.uint64)  # of each k, its neighbours among the strip, after it
    for strip in range(0, size, 64):
        members = inside[strip : min(strip + 64, size)]
        for place in range(len(members)):
            bit = np.uint64(1) << np.uint64(place)
            for j in nodes[starts[members[place]] : starts[members[place] + 1]]:
                words[j] |= bit
                if 0 <= local[j] < strip + place:
                    near[local[j]] |= bit
        for place in range(strip + len(members)):
            if near[place] == 0:
                continue
            k = inside[place]
            for j in nodes[starts[k] : starts[k + 1]]:
                sums[j, JOINED] += ones_of(words[j] & near[place])
            near[place] = 0
        for k in members:
            words[nodes[starts[k] : starts[k + 1]]] = 0
    local[inside[:size]] = -1


@inner
def _onward(
    starts: np.ndarray,
    nodes: np.ndarray,
    near: np.ndarray,
    sums: np.ndarray,
    walks: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Add the wedges to each k one step on to the walks of its neighbours, and these to the set."""
    for k in near:
        shared = sums[k, SHARED]
        for j in nodes[starts[k] : starts[k + 1]]:
            if walks[j] == 0:
                note(low, high, j)
            walks[j] += shared


@inner
def _grown(kept: np.ndarray, size: int) -> np.ndarray:
    """A longer array that begins with what there is."""
    more = np.empty((size, *kept.shape[1:]), np.int64)
    more[: len(kept)] = kept
    return more
